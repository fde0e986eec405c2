"""The checker finds what it is there to find: each test breaks one thing in the items."""

from collections.abc import Callable

import pytest

from cowfs._native import ROOT_INODE
from tests.unit.filesystem_pool import BLOCK, NODE, Pool, pattern
from tests.unit.filesystem_pool import pool as pool

Change = Callable[[Pool, "Tree"], None]


class Tree:
    def __init__(self, pool: Pool) -> None:
        self.directory = pool.mkdir(b"d")
        self.file = pool.create(b"f", pattern(5 * BLOCK), self.directory)
        self.small = pool.create(b"small", b"inline")
        pool.file_system.setxattr(self.file, b"user.x", pattern(2000))


def key(inode: int, kind: int, rest: bytes = b"") -> bytes:
    return inode.to_bytes(8, "big") + bytes([kind]) + rest


def edit(pool: Pool, at: bytes, offset: int, value: int, length: int) -> None:
    item = pool.store.get(pool.volume_id, at)
    assert item is not None
    pool.store.put(pool.volume_id, at, item[:offset] + value.to_bytes(length, "little") + item[offset + length :])


def only(pool: Pool, inode: int, kind: int) -> bytes:
    prefix = key(inode, kind)
    return pool.store.scan(pool.volume_id, prefix, prefix + b"\xff" * 300)[0][0]


def delete(pool: Pool, at: bytes) -> None:
    pool.store.delete(pool.volume_id, at)


BREAKS: dict[str, tuple[Change, str]] = {
    "link count of a file": (lambda p, t: edit(p, key(t.file, 1), 12, 2, 4), "link count 2 with 1 names"),
    "link count of a directory": (lambda p, t: edit(p, key(1, 1), 12, 5, 4), "link count 5 with 1 subdirectories"),
    "size of a directory": (lambda p, t: edit(p, key(1, 1), 16, 640, 8), "directory size"),
    "blocks": (lambda p, t: edit(p, key(t.file, 1), 24, 9, 8), "counts 9 blocks and has 5"),
    "size": (lambda p, t: edit(p, key(t.file, 1), 16, 100, 8), "extents up to block 5"),
    "parent": (lambda p, t: edit(p, key(t.directory, 1), 96, t.directory, 8), "cannot be reached"),
    "inode item": (lambda p, t: delete(p, key(t.file, 1)), "leads to inode"),
    "items without inode": (lambda p, t: delete(p, key(t.file, 1)), "no valid inode item"),
    "inode mode": (lambda p, t: edit(p, key(t.file, 1), 0, 0o153456, 4), "no valid inode item"),
    "entry": (lambda p, t: delete(p, only(p, t.directory, 5)), "which has no such entry"),
    "entry of another type": (lambda p, t: edit(p, only(p, t.directory, 5), 8, 4, 1), "has type 4"),
    "entry under another hash": (lambda p, t: move_entry(p, t.directory), "name of another hash"),
    "back-reference": (lambda p, t: delete(p, only(p, t.file, 4)), "does not refer back"),
    "inline bytes": (lambda p, t: delete(p, only(p, t.small, 2)), "6 inline bytes and has 0"),
    "chunk of an xattr": (lambda p, t: delete(p, only(p, t.file, 3)), "chunk of an extended attribute is missing"),
    "orphan record without inode": (
        lambda p, t: p.store.put(p.volume_id, key(0, 8, (99).to_bytes(8, "big")), b"\1"),
        "without an inode",
    ),
    "orphan record of a file with names": (
        lambda p, t: p.store.put(p.volume_id, key(0, 8, t.file.to_bytes(8, "big")), b"\1"),
        "does not fit the inode",
    ),
    "unknown item": (lambda p, t: p.store.put(p.volume_id, key(t.file, 6), b""), "unknown type 6"),
    "foreign key": (lambda p, t: p.store.put(p.volume_id, b"\xffshort", b""), "none of a file system"),
    "volume record": (lambda p, t: delete(p, key(0, 1)), "volume record"),
    "root": (lambda p, t: delete(p, key(1, 1)), "root directory is missing"),
}


def move_entry(pool: Pool, directory: int) -> None:
    at = only(pool, directory, 5)
    item = pool.store.get(pool.volume_id, at)
    assert item is not None
    delete(pool, at)
    pool.store.put(pool.volume_id, at[:9] + (7 << 32).to_bytes(8, "big"), item)


@pytest.mark.parametrize("what", sorted(BREAKS))
def test_what_is_broken_is_found(what: str) -> None:
    broken = Pool()
    tree = Tree(broken)
    assert broken.file_system.check(broken.volume_id) == []
    change, message = BREAKS[what]
    change(broken, tree)
    problems = broken.file_system.check(broken.volume_id)
    assert any(message in problem for problem in problems), problems
    broken.store.close()


def test_an_unlinked_inode_without_a_record(pool: Pool) -> None:
    node = pool.create(b"f", pattern(100))
    pool.file_system.unlink(ROOT_INODE, b"f")
    assert pool.file_system.check(pool.volume_id) == []
    record = key(0, 8, node.to_bytes(8, "big"))
    delete(pool, record)
    assert any("no orphan record" in problem for problem in pool.file_system.check(pool.volume_id))
    pool.store.put(pool.volume_id, record, b"\1")
    pool.file_system.forget(node, 1)


def test_snapshots_are_checked_too(pool: Pool) -> None:
    tree = Tree(pool)
    snapshot = pool.store.snapshot(pool.volume_id, "s", sync=False)
    pool.file_system.unlink(tree.directory, b"f")
    assert pool.file_system.check(snapshot.id) == []


def test_a_large_tree(pool: Pool) -> None:
    """More items than a page, deep and wide."""
    parent = ROOT_INODE
    for depth in range(100):
        parent = pool.mkdir(b"d%d" % depth, parent)
        for index in range(5):
            pool.create(b"f%d" % index, pattern(index * 3000), parent)
    assert pool.file_system.check(pool.volume_id) == []
    assert pool.file_system.getattr(parent)[NODE] == parent
