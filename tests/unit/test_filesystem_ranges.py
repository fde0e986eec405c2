"""SEEK_DATA and SEEK_HOLE, fallocate, copy_file_range."""

import errno
import stat

import pytest

from cowfs._native import INLINE_LENGTH_MAX, ROOT_INODE
from tests.unit.filesystem_pool import BLOCK, BLOCKS, CTIME, MODE, MTIME, SIZE, Pool, fails, pattern, random_bytes
from tests.unit.filesystem_pool import pool as pool

KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 3, 0x10
SIZE_MAX = 1 << 60


# ---- seek


def test_seek_in_extents(pool: Pool) -> None:
    node = pool.create(b"f")
    pool.file_system.write(node, 3 * BLOCK + 10, pattern(2 * BLOCK))
    pool.file_system.write(node, 10 * BLOCK, pattern(BLOCK))
    pool.file_system.setattr(node, size=20 * BLOCK + 5)
    seek = pool.file_system.seek
    assert seek(node, 0, False) == 3 * BLOCK
    assert seek(node, 3 * BLOCK + 7, False) == 3 * BLOCK + 7
    assert seek(node, 3 * BLOCK + 7, True) == 6 * BLOCK
    assert seek(node, 6 * BLOCK, False) == 10 * BLOCK
    assert seek(node, 5, True) == 5
    assert seek(node, 10 * BLOCK, True) == 11 * BLOCK
    assert seek(node, 20 * BLOCK + 4, True) == 20 * BLOCK + 4
    with fails(errno.ENXIO):
        seek(node, 11 * BLOCK, False)
    for hole in (False, True):
        for offset in (20 * BLOCK + 5, SIZE_MAX, (1 << 64) - 1):
            with fails(errno.ENXIO):
                seek(node, offset, hole)


def test_the_end_of_the_file_is_a_hole(pool: Pool) -> None:
    node = pool.create(b"f", pattern(BLOCK + 100))
    assert pool.file_system.seek(node, 0, True) == BLOCK + 100
    assert pool.file_system.seek(node, BLOCK + 99, False) == BLOCK + 99


def test_seek_in_inline_bytes(pool: Pool) -> None:
    node = pool.create(b"f", pattern(100))
    assert pool.file_system.seek(node, 7, False) == 7
    assert pool.file_system.seek(node, 7, True) == 100
    pool.file_system.setattr(node, size=1 << 40)
    assert pool.file_system.seek(node, 7, True) == 100
    assert pool.file_system.seek(node, 200, True) == 200
    with fails(errno.ENXIO):
        pool.file_system.seek(node, 100, False)


def test_seek_over_many_extents(pool: Pool) -> None:
    """More than one transaction looks at."""
    node, other = pool.create(b"f"), pool.create(b"g")
    for block in range(600):
        pool.file_system.write(node, block * BLOCK, pattern(BLOCK, block))
        pool.file_system.write(other, block * BLOCK, pattern(BLOCK, block))
    assert len(pool.extents(node)) > 256
    assert pool.file_system.seek(node, 5, True) == 600 * BLOCK
    with fails(errno.EISDIR):
        pool.file_system.seek(ROOT_INODE, 0, True)


# ---- allocate


def test_allocate_extends(pool: Pool) -> None:
    node = pool.create(b"f", pattern(100))
    pool.file_system.allocate(node, KEEP_SIZE, 0, 1 << 20)
    assert pool.content(node) == pattern(100)
    pool.file_system.allocate(node, 0, 50, 1 << 20)
    assert pool.content(node) == pattern(100) + bytes((1 << 20) - 50)
    pool.file_system.allocate(node, 0, 0, 5)
    assert pool.file_system.getattr(node)[SIZE] == (1 << 20) + 50


@pytest.mark.parametrize("mode", [2, 4, 8, 0x20, 0x40, 0x12, 0x13, 1 << 31])
def test_other_modes(pool: Pool, mode: int) -> None:
    with fails(errno.EOPNOTSUPP):
        pool.file_system.allocate(pool.create(b"f"), mode, 0, 1)


def test_allocate_bounds(pool: Pool) -> None:
    node = pool.create(b"f")
    with fails(errno.EINVAL):
        pool.file_system.allocate(node, 0, 0, 0)
    for offset, length in ((SIZE_MAX, 1), (1, SIZE_MAX), ((1 << 64) - 1, (1 << 64) - 1)):
        with fails(errno.EFBIG):
            pool.file_system.allocate(node, PUNCH_HOLE, offset, length)
    with fails(errno.ENOSPC):
        pool.file_system.allocate(node, 0, 0, 1 << 30)
    with fails(errno.EISDIR):
        pool.file_system.allocate(ROOT_INODE, 0, 0, 1)
    fifo = pool.file_system.create(ROOT_INODE, b"p", stat.S_IFIFO | 0o644, 0, 0)[0]
    with fails(errno.ENODEV):
        pool.file_system.allocate(fifo, 0, 0, 1)


CONTENT = pattern(9 * BLOCK + 100)
RANGES = [
    (0, 1), (0, BLOCK), (1, BLOCK), (1, BLOCK - 1), (1, 5), (BLOCK, 3 * BLOCK), (BLOCK - 1, BLOCK + 2),
    (10, 8 * BLOCK), (8 * BLOCK + 7, BLOCK + 80), (8 * BLOCK, BLOCK + 100), (9 * BLOCK, 50), (9 * BLOCK + 50, 50),
    (9 * BLOCK + 50, 1 << 20), (0, 1 << 20), (9 * BLOCK + 100, 500), (1 << 20, 5),
]  # fmt: skip


@pytest.mark.parametrize("mode", [PUNCH_HOLE, ZERO_RANGE, ZERO_RANGE | KEEP_SIZE])
@pytest.mark.parametrize("snapshot", [False, True])
def test_ranges_become_zeros(pool: Pool, mode: int, snapshot: bool) -> None:
    for index, (offset, length) in enumerate(RANGES):
        node = pool.create(b"f%d" % index, CONTENT)
        if snapshot:
            pool.store.snapshot(pool.volume_id, f"s{index}", sync=False)
        pool.file_system.allocate(node, mode, offset, length)
        end = min(len(CONTENT), offset + length)
        expected = CONTENT[:offset] + bytes(max(0, end - offset)) + CONTENT[end:]
        if mode == ZERO_RANGE:
            expected += bytes(max(0, offset + length - len(expected)))
        assert pool.content(node) == expected
        # The bytes past the end are zeros too.
        pool.file_system.setattr(node, size=1 << 16)
        assert pool.content(node).rstrip(b"\0") == expected.rstrip(b"\0")


def test_whole_blocks_are_given_back(pool: Pool) -> None:
    node = pool.create(b"f", pattern(100 * BLOCK))
    before = pool.used_blocks()
    pool.file_system.allocate(node, PUNCH_HOLE, BLOCK, 98 * BLOCK)
    assert pool.file_system.getattr(node)[BLOCKS] == 16
    assert pool.used_blocks() <= before - 90
    assert pool.file_system.seek(node, BLOCK, False) == 99 * BLOCK


def test_a_hole_takes_no_block(pool: Pool) -> None:
    node = pool.create(b"f")
    pool.file_system.setattr(node, size=10 * BLOCK)
    pool.file_system.allocate(node, PUNCH_HOLE, 100, 5 * BLOCK)
    assert pool.file_system.getattr(node)[BLOCKS] == 0
    pool.file_system.write(node, 9 * BLOCK, b"x")
    pool.file_system.allocate(node, ZERO_RANGE, 100, 5 * BLOCK)
    assert pool.extents(node) == [(9, 1)]


def test_punching_inline_bytes(pool: Pool) -> None:
    content = pattern(INLINE_LENGTH_MAX)
    for offset, length in ((0, 10), (5, 10), (700, 100), (700, 5000), (0, 800), (900, 5)):
        node = pool.create(b"%d.%d" % (offset, length), content)
        pool.file_system.allocate(node, PUNCH_HOLE, offset, length)
        end = min(len(content), offset + length)
        assert pool.content(node) == content[:offset] + bytes(max(0, end - offset)) + content[end:]


def test_a_punch_of_many_extents(pool: Pool) -> None:
    node = pool.create(b"f")
    for block in range(0, 400, 2):
        pool.file_system.write(node, block * BLOCK, pattern(BLOCK, block))
    pool.file_system.allocate(node, PUNCH_HOLE, BLOCK, 397 * BLOCK)
    assert pool.extents(node) == [(0, 1), (398, 1)]


def test_a_punch_is_a_change_like_a_write(pool: Pool) -> None:
    node = pool.create(b"f", pattern(3 * BLOCK))
    pool.file_system.setattr(node, mode=0o6755, mtime_ns=1, ctime_ns=1)
    pool.file_system.allocate(node, PUNCH_HOLE, 0, BLOCK)
    attributes = pool.file_system.getattr(node)
    assert attributes[MODE] == stat.S_IFREG | 0o755
    assert attributes[MTIME] > 1
    assert attributes[CTIME] > 1


def test_a_full_pool_can_be_punched(pool: Pool) -> None:
    node, data = pool.create(b"f"), random_bytes(1 << 20)
    with fails(errno.ENOSPC):
        for offset in range(0, 1 << 30, 1 << 20):
            pool.file_system.write(node, offset, data)
    pool.file_system.allocate(node, PUNCH_HOLE, 100, 5 * BLOCK)
    assert pool.file_system.read(node, 0, 200) == data[:100] + bytes(100)
    pool.file_system.allocate(node, PUNCH_HOLE, 0, 1 << 30)
