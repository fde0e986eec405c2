"""POSIX and the programs once more, with the kernel keeping what they write."""

import os
import pathlib
from collections.abc import Iterator

import pytest

from tests.mount import test_posix, test_programs
from tests.mount.conftest import pools_in_folder

# A write that no file can take is refused when its page is written back, and the kernel calls that an I/O error.
LEFT_OUT = {"test_largest_sizes"}

host_tree = test_programs.host_tree
for module in (test_posix, test_programs):
    globals().update(
        {name: test for name, test in vars(module).items() if name.startswith("test_") and name not in LEFT_OUT}
    )


@pytest.fixture(scope="module")
def shared_root(transport: str) -> Iterator[pathlib.Path]:
    if transport == "nopump":
        pytest.skip("cache=back needs the pump")
    if os.geteuid() != 0:
        pytest.skip("cache=back is for root")
    with pools_in_folder() as make_pool:
        yield make_pool().make().mount("-o", "allow_other,cache=back").directory
