"""Extended attributes."""

import errno
import stat

import pytest

from cowfs._native import ROOT_INODE
from tests.unit.filesystem_pool import CTIME, NODE, Pool, fails, pattern
from tests.unit.filesystem_pool import pool as pool


@pytest.mark.parametrize("length", [0, 1, 511, 512, 513, 1024, 65_536])
def test_values(pool: Pool, length: int) -> None:
    node = pool.create(b"f")
    pool.file_system.setxattr(node, b"user.x", pattern(length))
    assert pool.file_system.getxattr(node, b"user.x") == pattern(length)
    pool.file_system.setxattr(node, b"user.x", b"shorter")
    assert pool.file_system.getxattr(node, b"user.x") == b"shorter"
    pool.file_system.removexattr(node, b"user.x")
    with fails(errno.ENODATA):
        pool.file_system.getxattr(node, b"user.x")


def test_longest_name_and_value(pool: Pool) -> None:
    node = pool.create(b"f")
    name = b"user." + b"n" * 250
    for value in (pattern(65_536), pattern(65_536, 2), b""):
        pool.file_system.setxattr(node, name, value)
        assert pool.file_system.getxattr(node, name) == value
    with fails(errno.E2BIG):
        pool.file_system.setxattr(node, b"user.x", bytes(65_537))
    for bad in (b"", b"user." + b"n" * 251):
        with fails(errno.ERANGE):
            pool.file_system.setxattr(node, bad, b"")
        with fails(errno.ERANGE):
            pool.file_system.getxattr(node, bad)


def test_names_that_begin_alike(pool: Pool) -> None:
    node = pool.create(b"f")
    names = [b"user.a", b"user.a.b", b"user.a\x01", b"user.aa", b"user.b", b"trusted.a", b"system.x", b"security.y"]
    for name in names:
        pool.file_system.setxattr(node, name, name * 100)
    assert pool.file_system.listxattr(node) == sorted(names)
    for name in names:
        assert pool.file_system.getxattr(node, name) == name * 100
    pool.file_system.removexattr(node, b"user.a")
    assert pool.file_system.listxattr(node) == sorted(names[1:])


def test_flags(pool: Pool) -> None:
    node = pool.create(b"f")
    with fails(errno.ENODATA):
        pool.file_system.setxattr(node, b"user.x", b"1", 2)
    pool.file_system.setxattr(node, b"user.x", b"1", 1)
    with fails(errno.EEXIST):
        pool.file_system.setxattr(node, b"user.x", b"2", 1)
    pool.file_system.setxattr(node, b"user.x", b"3", 2)
    assert pool.file_system.getxattr(node, b"user.x") == b"3"
    with fails(errno.EINVAL):
        pool.file_system.setxattr(node, b"user.x", b"3", 3)
    with fails(errno.ENODATA):
        pool.file_system.removexattr(node, b"user.y")


def test_all_kinds_have_them(pool: Pool) -> None:
    link = pool.file_system.create(ROOT_INODE, b"s", stat.S_IFLNK | 0o777, 0, 0, target=b"x")[NODE]
    for node in (ROOT_INODE, link, pool.mkdir(b"d")):
        pool.file_system.setattr(node, ctime_ns=1)
        pool.file_system.setxattr(node, b"trusted.x", b"value")
        assert pool.file_system.getattr(node)[CTIME] > 1
        assert pool.file_system.listxattr(node) == [b"trusted.x"]
    assert pool.file_system.readlink(link) == b"x"


def test_more_names_than_a_list_holds(pool: Pool) -> None:
    node = pool.create(b"f")
    for index in range(270):
        pool.file_system.setxattr(node, b"user.%03d" % index + b"n" * 240, b"")
    with fails(errno.E2BIG):
        pool.file_system.listxattr(node)
    pool.file_system.unlink(ROOT_INODE, b"f")
    pool.file_system.forget(node, 1)


def test_capabilities_go_with_a_write_or_a_new_owner(pool: Pool) -> None:
    node = pool.create(b"f")
    for change in (
        lambda: pool.file_system.write(node, 0, b"x"),
        lambda: pool.file_system.write(node, 9000, bytes(5000)),
        lambda: pool.file_system.setattr(node, size=3),
        lambda: pool.file_system.setattr(node, uid=3),
    ):
        pool.file_system.setxattr(node, b"security.capability", b"\x01" * 24)
        pool.file_system.setxattr(node, b"security.other", b"stays")
        pool.file_system.setattr(node, mode=0o700)
        assert len(pool.file_system.listxattr(node)) == 2
        change()
        assert pool.file_system.listxattr(node) == [b"security.other"]
