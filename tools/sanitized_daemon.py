"""`cowfs mount --foreground -o OPTIONS POOL DIRECTORY` with extensions from another folder (tools/sanitized.py), which
is the first argument, before `mount`."""

import importlib.util
import pathlib
import sys
import sysconfig
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

EXTENSIONS = ("btree._store", "cowfs._native")


class Finder(MetaPathFinder):
    """Finds these extensions there, and not beside the sources."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in EXTENSIONS:
            return None
        file = self.folder.joinpath(*fullname.split(".")).with_suffix(str(sysconfig.get_config_var("EXT_SUFFIX")))
        return importlib.util.spec_from_file_location(fullname, file)


if __name__ == "__main__":
    sys.meta_path.insert(0, Finder(pathlib.Path(sys.argv[1])))
    from cowfs.commands.main import main

    sys.exit(main(sys.argv[2:]))
