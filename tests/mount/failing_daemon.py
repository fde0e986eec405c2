"""`cowfs mount --foreground POOL DIRECTORY`, in which the verb readlink fails in a way that nobody foresaw."""

import sys
from typing import Any

from cowfs import operations
from cowfs.commands.main import main
from cowfs.volumes import MountedPool


class FailingFileSystem:
    """Hands everything on but readlink."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def readlink(self, node: int) -> bytes:
        raise ZeroDivisionError(f"readlink of {node}")


class FailingOperations(operations.Operations):
    def __init__(self, pool: MountedPool, *, honours_setuid: bool = False) -> None:
        super().__init__(pool, honours_setuid=honours_setuid)
        self.filesystem = FailingFileSystem(self.filesystem)  # type: ignore[assignment]


if __name__ == "__main__":
    operations.Operations = FailingOperations  # type: ignore[misc]
    sys.exit(main(["mount", "--foreground", *sys.argv[1:]]))
