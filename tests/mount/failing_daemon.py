"""`cowfs mount --foreground POOL DIRECTORY`, in which looking up `.cowfs/failing` fails in a way nobody foresaw."""

import sys

from cowfs import history
from cowfs._native import Attributes
from cowfs.commands.main import main

lookup = history.History.lookup


def failing_lookup(self: history.History, parent: int, name: bytes) -> Attributes:
    if name == b"failing":
        raise ZeroDivisionError(f"lookup in {parent}")
    return lookup(self, parent, name)


if __name__ == "__main__":
    history.History.lookup = failing_lookup  # type: ignore[method-assign]
    sys.exit(main(["mount", "--foreground", *sys.argv[1:]]))
