"""The load under which the daemon is killed. Run as a program: LOAD ROOT LOG PREFIX. It works in ROOT until the mount
dies, and adds a line to LOG (on another file system) only after what the line says was acknowledged: a file as synced,
a snapshot as durable. tests/mount/test_crash.py holds the remounted file system against those lines."""

import errno
import json
import os
import pathlib
import random
import sqlite3
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable
from typing import Any, TextIO

import cowfs

BLOCK = 4096
BLOCKS = 128


def block_content(number: int, version: int) -> bytes:
    """A block that says which it is, and shows when it is torn."""
    head = f"{number:08}{version:012}".encode()
    body = head * (BLOCK // len(head))
    body += bytes(BLOCK - 4 - len(body))
    return body + zlib.crc32(body).to_bytes(4, "little")


def block_version(number: int, content: bytes) -> int:
    """The version that a block holds; 0 for one never written. AssertionError when it is not whole."""
    if content == bytes(len(content)):
        return 0
    assert zlib.crc32(content[:-4]) == int.from_bytes(content[-4:], "little"), f"block {number} is torn"
    assert int(content[:8]) == number, f"block {number} holds block {int(content[:8])}"
    return int(content[8:20])


FIO_TIMEOUT_S = 25
"""Less than the test waits for the load to end by itself."""


def fio_words(directory: pathlib.Path, number: int) -> list[str]:
    """A job that ends with an fsync, of which fio says whether it went well. Every block of its file says to which job
    and place it belongs and has a checksum: with --verify_only and --do_verify=1 the same words look whether it is all
    there."""
    return [
        "fio", "--name=job", f"--filename={directory / str(number)}", "--rw=randwrite", "--bs=4k-32k", "--size=1m",
        "--ioengine=psync", "--fallocate=none", "--verify=crc32c", "--do_verify=0", "--verify_fatal=1",
        "--verify_state_save=0", f"--randseed={number + 1}", f"--fsync={(0, 1, 8, 16)[number % 4]}", "--end_fsync=1",
        "--output-format=terse",
    ]  # fmt: skip


def file_content(name: str) -> bytes:
    randomness = random.Random(name)
    return randomness.randbytes(randomness.choice([10, 1000, 5000, 70_000, 300_000]))


class Load:
    # How a work may notice that the mount is dead.
    failures: tuple[type[Exception], ...] = (OSError, sqlite3.Error, cowfs.CowfsError)

    def __init__(self, root: pathlib.Path, log: TextIO, prefix: str) -> None:
        self.root = root
        self.prefix = prefix
        self.log = log
        self.lock = threading.Lock()
        self.device = os.stat(root).st_dev

    def acknowledge(self, **what: Any) -> None:
        with self.lock:
            self.log.write(json.dumps(what) + "\n")
            self.log.flush()

    def expect_mount(self) -> None:
        """OSError when the daemon is gone. Once a dead mount is taken down, its path leads to the directory below it,
        where everything goes well that should have failed."""
        os.statvfs(self.root)
        if os.stat(self.root).st_dev != self.device:
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN), str(self.root))

    def make_files(self) -> None:
        directory = self.root / f"{self.prefix}-files"
        directory.mkdir()
        number = 0
        while True:
            name = f"{directory.name}/{number}"
            descriptor = os.open(self.root / name, os.O_CREAT | os.O_WRONLY)
            os.write(descriptor, file_content(name))
            if number % 3 == 0:
                os.rename(self.root / name, self.root / f"{name}-renamed")
            os.fsync(descriptor)
            os.close(descriptor)
            self.acknowledge(kind="file", name=f"{name}-renamed" if number % 3 == 0 else name, content_of=name)
            if number % 10 == 9:
                gone = f"{directory.name}/{number - 5}" + ("-renamed" if (number - 5) % 3 == 0 else "")
                self.acknowledge(kind="going", name=gone)
                os.unlink(self.root / gone)
            number += 1

    def overwrite_blocks(self) -> None:
        randomness = random.Random(self.prefix)
        descriptor = os.open(self.root / "blocks", os.O_CREAT | os.O_RDWR)
        versions = [block_version(n, os.pread(descriptor, BLOCK, n * BLOCK) or bytes(BLOCK)) for n in range(BLOCKS)]
        version = max(versions)
        while True:
            for _ in range(randomness.randrange(1, 20)):
                number = randomness.randrange(BLOCKS)
                version += 1
                os.pwrite(descriptor, block_content(number, version), number * BLOCK)
                versions[number] = version
            os.fdatasync(descriptor)
            self.acknowledge(kind="blocks", versions=versions)

    def take_snapshots(self) -> None:
        client = cowfs.connect(str(self.root))
        number = 0
        while True:
            name = f"{self.prefix}-snapshot-{number}"
            (self.root / f"{self.prefix}-counter").write_text(f"{number:06}" * 1000)
            client.snapshot(name, sync=number % 5 == 0)
            self.acknowledge(kind="snapshot", name=name, number=number, durable=number % 5 == 0)
            if number % 7 == 6:
                gone = f"{self.prefix}-snapshot-{number - 3}"
                self.acknowledge(kind="going snapshot", name=gone)
                client.destroy(gone)
            number += 1

    def fill_database(self) -> None:
        database = sqlite3.connect(self.root / "data.db", isolation_level=None, timeout=30)
        is_wal = zlib.crc32(self.prefix.encode()) % 2 == 1
        database.execute(f"pragma journal_mode={'wal' if is_wal else 'delete'}")
        # With less than that SQLite does not sync the deletion of its journal, which is what commits.
        database.execute("pragma synchronous=extra")
        database.execute("create table if not exists entry (prefix text, number integer, content blob)")
        number = 0
        while True:
            database.execute("insert into entry values (?, ?, randomblob(2000))", (self.prefix, number))
            if not is_wal:
                # SQLite calls a commit done when it cannot even open the directory in which to sync the deletion of
                # its journal, as when the daemon died after that deletion. Who answers now was there then.
                self.expect_mount()
            self.acknowledge(kind="row", prefix=self.prefix, number=number)
            number += 1

    def churn(self) -> None:
        """What nobody syncs: unlinked files that stay open, large files, truncation, attributes. Only that there is a
        directory for it."""
        randomness = random.Random(self.prefix)
        directory = self.root / f"{self.prefix}-churn"
        directory.mkdir()
        descriptor = os.open(directory, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
        self.acknowledge(kind="churn", name=directory.name)
        open_descriptors = []
        number = 0
        while True:
            path = directory / str(randomness.randrange(100))
            descriptor = os.open(path, os.O_CREAT | os.O_RDWR)
            os.pwrite(descriptor, randomness.randbytes(100_000), randomness.randrange(1_000_000))
            os.ftruncate(descriptor, randomness.randrange(1_000_000))
            os.setxattr(path, "user.number", str(number).encode())
            if number % 4 == 0:
                path.unlink()
                open_descriptors.append(descriptor)
                if len(open_descriptors) > 20:
                    os.close(open_descriptors.pop(0))
            else:
                os.close(descriptor)
            number += 1

    def run_fio(self) -> None:
        directory = self.root / f"{self.prefix}-fio"
        directory.mkdir()
        number = zlib.crc32(self.prefix.encode())  # few jobs come to their end between two kills: not always the same
        while True:
            done = subprocess.run(fio_words(directory, number), capture_output=True, check=False, timeout=FIO_TIMEOUT_S)
            if done.returncode != 0:
                raise OSError(errno.EIO, f"fio: {done.stderr!r}")
            self.expect_mount()
            self.acknowledge(kind="fio", name=directory.name, number=number)
            number += 1

    def works(self) -> list[Callable[[], None]]:
        """What goes on side by side, each until the mount dies."""
        return [
            self.make_files, self.overwrite_blocks, self.take_snapshots, self.fill_database, self.run_fio, self.churn,
        ]  # fmt: skip

    def run(self) -> None:
        def until_the_mount_dies(work: Callable[[], None]) -> None:
            try:
                work()
            except self.failures as error:
                self.acknowledge(kind="end", of=work.__name__, error=repr(error))

        threads = [threading.Thread(target=until_the_mount_dies, args=(work,)) for work in self.works()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


if __name__ == "__main__":
    with open(sys.argv[2], "a", encoding="utf-8") as log:
        Load(pathlib.Path(sys.argv[1]), log, sys.argv[3]).run()
