"""A pool in memory with one volume and its FileSystem, for unit tests; every pool is checked at its end."""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator

import pytest

from btree import Storage, Store
from cowfs._native import ROOT_INODE, FileSystem

NODE, MODE, NLINK, UID, GID, RDEV, SIZE, BLOCKS, ATIME, MTIME, CTIME, BIRTH, FLAGS = range(13)
BLOCK = 4096


def held_nodes(file_system: FileSystem, view: int) -> list[int]:
    """All nodes of a view that are held, in one go."""
    nodes, cursor = file_system.held_nodes(view, 0)
    while cursor:
        more, cursor = file_system.held_nodes(view, cursor)
        nodes += more
    return nodes


class Pool:
    def __init__(self, size_bytes: int = 64 << 20) -> None:
        self.storage = Storage.open_memory(size_bytes)
        Store.format(self.storage)
        self.store = Store(self.storage, background=False)
        self.volume_id = self.store.volume_create("main")
        FileSystem.initialize(self.store, self.volume_id, uid=0, gid=0)
        self.file_system = FileSystem(self.store, self.volume_id)

    def crash(self) -> None:
        """What was committed is there again; everything else, lookup counts too, is lost."""
        self.store.commit()
        self.store.abandon()
        self.store = Store(self.storage, background=False)

    def mount(self) -> None:
        self.file_system = FileSystem(self.store, self.volume_id)

    def create(self, name: bytes, content: bytes = b"", parent: int = ROOT_INODE) -> int:
        node = self.file_system.create(parent, name, stat.S_IFREG | 0o644, 0, 0)[NODE]
        if content:
            assert self.file_system.write(node, 0, content) == len(content)
        return node

    def mkdir(self, name: bytes, parent: int = ROOT_INODE) -> int:
        return self.file_system.create(parent, name, stat.S_IFDIR | 0o755, 0, 0)[NODE]

    def content(self, node: int) -> bytes:
        size = self.file_system.getattr(node)[SIZE]
        content = self.file_system.read(node, 0, size + 1)
        assert len(content) == size
        return content

    def names(self, node: int = ROOT_INODE) -> list[bytes]:
        return sorted(entry[0] for entry in self.file_system.readdir(node, 0, 10_000, False))

    def extents(self, node: int) -> list[tuple[int, int]]:
        """(first logical block, blocks) of each extent item, from the raw items."""
        prefix = node.to_bytes(8, "big") + b"\x07"
        items = self.store.scan(self.volume_id, prefix, prefix + b"\xff" * 9)
        return [(int.from_bytes(key[9:], "big"), int.from_bytes(value[16:18], "little")) for key, value in items]

    def orphans(self) -> list[tuple[int, int]]:
        """(inode, kinds) of each orphan record."""
        prefix = bytes(8) + b"\x08"
        items = self.store.scan(self.volume_id, prefix, prefix + b"\xff" * 9)
        return [(int.from_bytes(key[9:], "big"), value[0]) for key, value in items]

    def used_blocks(self) -> int:
        self.store.checkpoint()
        self.store.checkpoint()
        return int(self.store.statistics()["used_blocks"])

    def check(self) -> None:
        assert self.file_system.check(self.volume_id) == []
        self.store.checkpoint()
        assert self.store.check(read_data=True) == []


@pytest.fixture
def pool() -> Iterator[Pool]:
    pool = Pool()
    try:
        yield pool
        pool.check()
    finally:
        pool.store.close()


@contextlib.contextmanager
def fails(number: int) -> Iterator[None]:
    with pytest.raises(OSError) as caught:
        yield
    found = errno.errorcode[caught.value.errno or 0]
    assert found == errno.errorcode[number]


def pattern(length: int, seed: int = 1) -> bytes:
    return bytes((seed * 7 + index * 13 + index // 251) % 256 for index in range(length))


def random_bytes(length: int) -> bytes:
    return os.urandom(length)
