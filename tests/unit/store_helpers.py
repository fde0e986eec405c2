"""What the tests of the store's API share."""

from collections.abc import Callable
from typing import Any, Final

import pytest

POOL_SIZE_BYTES: Final = 16 << 20
BLOCK: Final = 4096
NO_SUCH_ID: Final = 2**63 - 1


def expect_errno(error: int, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> None:
    with pytest.raises(OSError) as caught:
        function(*arguments, **keywords)
    assert caught.value.errno == error, caught.value
