"""Immutable and append-only inodes, and files without a name."""

import errno
import stat

import pytest

from cowfs._native import ROOT_INODE
from tests.unit.filesystem_pool import CTIME, FLAGS, GID, MODE, NLINK, NODE, SIZE, Pool, fails, pattern
from tests.unit.filesystem_pool import pool as pool

IMMUTABLE, APPEND = 1, 2
WRITE, OPEN_APPEND, TRUNCATE = 1, 2, 4


# ---- flags


def test_flags_are_kept(pool: Pool) -> None:
    node = pool.create(b"f", b"x")
    pool.file_system.setattr(node, ctime_ns=1)
    pool.file_system.setflags(node, IMMUTABLE | APPEND)
    assert pool.file_system.getattr(node)[FLAGS] == IMMUTABLE | APPEND
    assert pool.file_system.getattr(node)[CTIME] > 1
    pool.crash()
    pool.mount()
    assert pool.file_system.lookup(ROOT_INODE, b"f")[FLAGS] == IMMUTABLE | APPEND
    pool.file_system.setflags(node, 0)
    assert pool.file_system.getattr(node)[FLAGS] == 0
    with fails(errno.EOPNOTSUPP):
        pool.file_system.setflags(node, 4)


@pytest.mark.parametrize("flag", [IMMUTABLE, APPEND])
def test_what_both_forbid(pool: Pool, flag: int) -> None:
    system = pool.file_system
    node = pool.create(b"f", pattern(10_000))
    pool.create(b"g")
    system.setxattr(node, b"user.x", b"1")
    system.setflags(node, flag)
    before = system.getattr(node)
    for change in (
        lambda: system.write(node, 10_000, b"x"),
        lambda: system.write(node, 0, pattern(8192)),
        lambda: system.setattr(node, size=5),
        lambda: system.setattr(node, size=20_000),
        lambda: system.setattr(node, mode=0o600),
        lambda: system.setattr(node, uid=5),
        lambda: system.setattr(node, mtime_ns=5),
        lambda: system.setxattr(node, b"user.y", b"1"),
        lambda: system.removexattr(node, b"user.x"),
        lambda: system.link(node, ROOT_INODE, b"other"),
        lambda: system.unlink(ROOT_INODE, b"f"),
        lambda: system.rename(ROOT_INODE, b"f", ROOT_INODE, b"other", 0),
        lambda: system.rename(ROOT_INODE, b"g", ROOT_INODE, b"f", 0),
        lambda: system.rename(ROOT_INODE, b"g", ROOT_INODE, b"f", 2),
        lambda: system.allocate(node, 3, 0, 100),
        lambda: system.allocate(node, 0x10, 0, 100),
        lambda: system.may_open(node, WRITE),
        lambda: system.may_open(node, WRITE | OPEN_APPEND | TRUNCATE),
        lambda: system.may_open(node, TRUNCATE),
    ):
        with fails(errno.EPERM):
            change()
    assert system.getattr(node) == before
    assert pool.content(node) == pattern(10_000)
    system.may_open(node, 0)
    system.setflags(node, 0)
    system.unlink(ROOT_INODE, b"f")


def test_append_only_files_grow_at_their_end(pool: Pool) -> None:
    node = pool.create(b"f", b"ab")
    pool.file_system.setflags(node, APPEND)
    pool.file_system.may_open(node, WRITE | OPEN_APPEND)
    pool.file_system.write(node, 2, b"cd", append=True)
    pool.file_system.write(node, 4, pattern(10_000), True)
    assert pool.content(node) == b"abcd" + pattern(10_000)
    pool.file_system.allocate(node, 0, 0, 20_000)
    assert pool.file_system.getattr(node)[SIZE] == 20_000
    pool.file_system.setflags(node, IMMUTABLE)
    for change in (
        lambda: pool.file_system.write(node, 20_000, b"x", append=True),
        lambda: pool.file_system.allocate(node, 0, 0, 30_000),
        lambda: pool.file_system.may_open(node, WRITE | OPEN_APPEND),
    ):
        with fails(errno.EPERM):
            change()


def test_directories(pool: Pool) -> None:
    system = pool.file_system
    for flag, parent in ((IMMUTABLE, pool.mkdir(b"i")), (APPEND, pool.mkdir(b"a")), (IMMUTABLE, ROOT_INODE)):
        pool.create(b"f", b"x", parent)
        pool.mkdir(b"d", parent)
        outside = pool.create(b"x", b"", pool.mkdir(b"o"))
        system.setflags(parent, flag)
        for change in (
            lambda parent=parent: system.unlink(parent, b"f"),
            lambda parent=parent: system.rmdir(parent, b"d"),
            lambda parent=parent: system.rename(parent, b"f", parent, b"g", 0),
            lambda parent=parent: system.setattr(parent, mode=0o700),
        ):
            with fails(errno.EPERM):
                change()
        for index, change in enumerate((
            lambda parent=parent: pool.create(b"new", b"", parent),
            lambda parent=parent, outside=outside: system.link(outside, parent, b"link"),
            lambda parent=parent: pool.mkdir(b"newd", parent),
            lambda parent=parent: system.create_unnamed(parent, 0o600, 0, 0),
        )):  # fmt: skip
            if flag == APPEND:
                change()
            else:
                with fails(errno.EPERM):
                    change()
            assert index < 4
        # What is in a file below is not the directory's business.
        system.write(system.lookup(parent, b"f")[NODE], 0, b"y")
        system.setflags(parent, 0)
        system.rename(ROOT_INODE, b"o", ROOT_INODE, b"old%d" % parent, 0)


def test_an_immutable_file_that_is_unlinked_goes(pool: Pool) -> None:
    node = pool.create(b"f", pattern(100_000))
    pool.file_system.unlink(ROOT_INODE, b"f")
    pool.file_system.setflags(node, IMMUTABLE)
    pool.file_system.forget(node, 1)
    assert pool.orphans() == []


# ---- files without a name


def test_an_unnamed_file_goes_with_its_last_lookup(pool: Pool) -> None:
    node, mode, nlink = pool.file_system.create_unnamed(ROOT_INODE, 0o640, 3, 4)[:3]
    assert (mode, nlink) == (stat.S_IFREG | 0o640, 0)
    assert pool.file_system.lookup_count(node) == 1
    pool.file_system.write(node, 0, pattern(20_000))
    assert pool.content(node) == pattern(20_000)
    assert pool.names() == []
    assert pool.orphans() == [(node, 1)]
    assert pool.file_system.check(pool.volume_id) == []
    pool.file_system.forget(node, 1)
    assert pool.orphans() == []
    with fails(errno.ESTALE):
        pool.file_system.getattr(node)


def test_an_unnamed_file_gets_a_name(pool: Pool) -> None:
    node = pool.file_system.create_unnamed(ROOT_INODE, 0o600, 0, 0)[NODE]
    pool.file_system.write(node, 0, pattern(20_000))
    pool.create(b"taken")
    with fails(errno.EEXIST):
        pool.file_system.link(node, ROOT_INODE, b"taken")
    assert pool.file_system.link(node, ROOT_INODE, b"f")[NLINK] == 1
    assert pool.orphans() == []
    pool.file_system.forget(node, 2)
    assert pool.content(pool.file_system.lookup(ROOT_INODE, b"f")[NODE]) == pattern(20_000)
    # Once it has lost its last name there is no second first one.
    pool.file_system.unlink(ROOT_INODE, b"f")
    with fails(errno.ENOENT):
        pool.file_system.link(node, ROOT_INODE, b"again")
    pool.file_system.forget(node, 1)


def test_a_crash_takes_unnamed_files(pool: Pool) -> None:
    before = pool.used_blocks()
    pool.file_system.write(pool.file_system.create_unnamed(ROOT_INODE, 0, 0, 0)[NODE], 0, pattern(1 << 20))
    pool.crash()
    pool.mount()
    assert pool.orphans() == []
    assert pool.used_blocks() <= before + 8


def test_unmounting_takes_unnamed_files(pool: Pool) -> None:
    pool.file_system.create_unnamed(ROOT_INODE, 0, 0, 0)
    pool.file_system.release_all()
    assert pool.orphans() == []


def test_unnamed_files_in_snapshots(pool: Pool) -> None:
    """A clone has the inode and its record, and finishes the removal when it is opened."""
    node = pool.file_system.create_unnamed(ROOT_INODE, 0o600, 0, 0)[NODE]
    snapshot = pool.store.snapshot(pool.volume_id, "s", sync=False)
    pool.file_system.link(node, ROOT_INODE, b"f")
    clone = pool.store.clone(snapshot.id, "c")
    root = pool.file_system.view_of_volume(clone)
    assert pool.names(root) == []
    assert pool.file_system.check(clone) == []
    assert pool.names() == [b"f"]


def test_unnamed_files_are_regular_and_in_a_directory(pool: Pool) -> None:
    with fails(errno.EINVAL):
        pool.file_system.create_unnamed(ROOT_INODE, stat.S_IFDIR | 0o700, 0, 0)
    with fails(errno.ENOTDIR):
        pool.file_system.create_unnamed(pool.create(b"f"), 0o600, 0, 0)
    directory = pool.mkdir(b"d")
    pool.file_system.setattr(directory, mode=0o2755, gid=77)
    before = pool.file_system.getattr(directory)
    attributes = pool.file_system.create_unnamed(directory, 0o600, 0, 0)
    assert (attributes[GID], attributes[MODE]) == (77, stat.S_IFREG | 0o600)
    assert pool.file_system.getattr(directory) == before
    pool.file_system.rmdir(ROOT_INODE, b"d")
    with fails(errno.ENOENT):
        pool.file_system.create_unnamed(directory, 0o600, 0, 0)


def test_the_first_new_item_raises_the_version(pool: Pool) -> None:
    """Of a volume of version 1, which this version reads as it is."""
    record = pool.store.get(pool.volume_id, bytes(8) + b"\1")
    assert record is not None
    assert record[0] == 2
    pool.store.put(pool.volume_id, bytes(8) + b"\1", b"\1" + record[1:])
    pool.mount()
    pool.create(b"f", pattern(10_000))
    assert pool.store.get(pool.volume_id, bytes(8) + b"\1") == b"\1" + record[1:]
    pool.file_system.create_unnamed(ROOT_INODE, 0o600, 0, 0)
    assert pool.store.get(pool.volume_id, bytes(8) + b"\1") == record
