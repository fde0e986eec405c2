"""The demonstration's load (tools/demo.py) until the daemon is killed under it: source trees unpacked, git repositories
made, a database filled while snapshots are taken. Run as a program: ROOT LOG PREFIX ARCHIVE, where ARCHIVE is a tar
archive of files. Adds to LOG what was acknowledged, like tests/mount/crash_load.py."""

import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any, TextIO

import cowfs
from tests.mount.crash_load import Load
from tools import demo
from tools.scratch import CommandFailed


def sync_each(directory: pathlib.Path) -> None:
    """fsync of each file and directory below, as programs do that know of nothing better."""
    for folder, _directories, files in os.walk(directory):
        for path in (*(os.path.join(folder, name) for name in files), folder):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


class DemoLoad(Load):
    failures = (*Load.failures, CommandFailed, demo.DemonstrationFailed)

    def __init__(self, root: pathlib.Path, log: TextIO, prefix: str, archive: pathlib.Path) -> None:
        super().__init__(root, log, prefix)
        self.archive = archive

    def acknowledge_durable(self, **what: Any) -> None:
        self.expect_mount()
        self.acknowledge(**what)

    def unpack(self, into: pathlib.Path) -> None:
        into.mkdir()
        demo.unpack([self.archive], into, demo.Step(demo.Report(is_terminal=False)))

    def unpack_trees(self) -> None:
        client = cowfs.connect(str(self.root))
        number = 0
        while True:
            tree = self.root / f"{self.prefix}-tree-{number}"
            self.unpack(tree)
            if number % 2 == 0:
                client.sync()
            else:
                sync_each(tree)
            self.acknowledge_durable(kind="tree", name=tree.name)
            number += 1

    def make_repository(self) -> None:
        """Of the same tree, and then one commit after the other in it."""
        client = cowfs.connect(str(self.root))
        tree = self.root / f"{self.prefix}-repository"
        self.unpack(tree)
        demo.git(tree, "init", "--quiet", "--initial-branch=main")
        files = sorted(path for path in tree.rglob("*.py"))
        number = 0
        while True:
            commit = demo.commit_all(tree, f"commit {number}")
            client.sync()
            self.acknowledge_durable(kind="commit", name=tree.name, id=commit)
            with open(files[number % len(files)], "a", encoding="utf-8") as file:
                file.write(f"# changed by commit {number}\n")
            number += 1

    def fill_and_snapshot(self) -> None:
        folder = self.root / f"{self.prefix}-demo"
        folder.mkdir()

        def took(one: demo.Taken) -> None:
            self.acknowledge(kind="taken", **vars(one))

        demo.fill_and_snapshot(cowfs.connect(str(self.root)), folder, folder.name, lambda _rows: True, took)

    def works(self) -> list[Callable[[], None]]:
        return [self.unpack_trees, self.make_repository, self.fill_and_snapshot]


if __name__ == "__main__":
    with open(sys.argv[2], "a", encoding="utf-8") as log:
        DemoLoad(pathlib.Path(sys.argv[1]), log, sys.argv[3], pathlib.Path(sys.argv[4])).run()
