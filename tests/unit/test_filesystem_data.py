"""Reading, writing, truncating: holes, partial blocks, inline content, extents that split and grow."""

import errno
import random
import stat

import pytest

from btree import Storage, Store
from cowfs._native import INLINE_LENGTH_MAX, ROOT_INODE, FileSystem
from tests.unit.filesystem_pool import (
    BLOCK,
    BLOCKS,
    CTIME,
    MODE,
    MTIME,
    NODE,
    SIZE,
    Pool,
    fails,
    pattern,
    random_bytes,
)
from tests.unit.filesystem_pool import pool as pool

SIZE_MAX = 1 << 60


def test_small_files_are_inline(pool: Pool) -> None:
    node = pool.create(b"f", pattern(INLINE_LENGTH_MAX))
    assert pool.extents(node) == []
    assert pool.content(node) == pattern(INLINE_LENGTH_MAX)
    # Inline bytes are no hole: as many 512-byte units as they fill.
    assert pool.file_system.getattr(node)[BLOCKS] == (INLINE_LENGTH_MAX + 511) // 512
    pool.file_system.write(node, 10, b"changed")
    assert pool.content(node) == pattern(10) + b"changed" + pattern(INLINE_LENGTH_MAX)[17:]


def test_inline_content_moves_to_extents_when_it_grows(pool: Pool) -> None:
    node = pool.create(b"f", pattern(500))
    pool.file_system.write(node, 500, pattern(1000, 2))
    assert pool.extents(node) == [(0, 1)]
    assert pool.content(node) == pattern(500) + pattern(1000, 2)
    assert pool.file_system.getattr(node)[BLOCKS] == 8


def test_inline_content_moves_when_the_write_is_elsewhere(pool: Pool) -> None:
    node = pool.create(b"f", pattern(500))
    pool.file_system.write(node, 10 * BLOCK, pattern(BLOCK, 2))
    assert pool.extents(node) == [(0, 1), (10, 1)]
    assert pool.content(node) == pattern(500) + bytes(10 * BLOCK - 500) + pattern(BLOCK, 2)


def test_inline_content_under_a_whole_block(pool: Pool) -> None:
    node = pool.create(b"f", pattern(500))
    pool.file_system.write(node, 0, pattern(BLOCK, 3))
    assert pool.content(node) == pattern(BLOCK, 3)


def test_a_sparse_tail_stays_inline(pool: Pool) -> None:
    node = pool.create(b"f", b"abc")
    pool.file_system.setattr(node, size=1 << 40)
    assert pool.file_system.getattr(node)[BLOCKS] == 1
    assert pool.file_system.read(node, 0, 10) == b"abc" + bytes(7)
    assert pool.file_system.read(node, (1 << 40) - 3, 10) == bytes(3)
    pool.file_system.write(node, 300, b"def")
    assert pool.extents(node) == []
    assert pool.file_system.read(node, 0, 303) == b"abc" + bytes(297) + b"def"
    pool.file_system.setattr(node, size=2)
    pool.file_system.setattr(node, size=6)
    assert pool.content(node) == b"ab" + bytes(4)


@pytest.mark.parametrize("size", [0, 1, 799, 800, 801, 4095, 4096, 4097, 131_072, 131_073, 1_500_000])
def test_contents_of_all_sizes(pool: Pool, size: int) -> None:
    content = random_bytes(size)
    node = pool.create(b"f", content)
    assert pool.content(node) == content
    pool.crash()
    pool.mount()
    assert pool.content(node) == content


def test_holes_are_zeros_and_take_nothing(pool: Pool) -> None:
    node = pool.create(b"f")
    pool.file_system.write(node, 1 << 30, b"x" * BLOCK)
    assert pool.file_system.getattr(node)[SIZE] == (1 << 30) + BLOCK
    assert pool.file_system.getattr(node)[BLOCKS] == 8
    assert pool.file_system.read(node, (1 << 30) - 5, 10) == bytes(5) + b"x" * 5
    assert pool.file_system.read(node, 12345, 3 << 20) == bytes(3 << 20)


def test_reading_stops_at_the_end(pool: Pool) -> None:
    node = pool.create(b"f", pattern(5000))
    assert pool.file_system.read(node, 4990, 1 << 40) == pattern(5000)[4990:]
    assert pool.file_system.read(node, 5000, 10) == b""
    assert pool.file_system.read(node, 1 << 62, 10) == b""
    assert pool.file_system.read(node, 0, 0) == b""


def test_partial_blocks_are_merged(pool: Pool) -> None:
    content = bytearray(random_bytes(10 * BLOCK + 100))
    node = pool.create(b"f", bytes(content))
    rng = random.Random(1)
    for _ in range(200):
        offset = rng.randrange(len(content) + 3000)
        data = rng.randbytes(rng.choice([1, 100, 4096, 9000]))
        pool.file_system.write(node, offset, data)
        content.extend(bytes(max(0, offset + len(data) - len(content))))
        content[offset : offset + len(data)] = data
        if rng.random() < 0.1:
            pool.store.snapshot(pool.volume_id, f"s{offset}")
        if rng.random() < 0.1:
            pool.store.commit()
    assert pool.content(node) == content


def test_overwriting_splits_extents_and_frees_exactly_what_it_covers(pool: Pool) -> None:
    before = pool.used_blocks()
    node = pool.create(b"f", pattern(32 * BLOCK))
    assert pool.extents(node) == [(0, 32)]
    pool.store.checkpoint()
    pool.file_system.write(node, 10 * BLOCK, pattern(3 * BLOCK, 5))
    assert pool.extents(node) == [(0, 10), (10, 3), (13, 19)]
    expected = pattern(32 * BLOCK)[: 10 * BLOCK] + pattern(3 * BLOCK, 5) + pattern(32 * BLOCK)[13 * BLOCK :]
    assert pool.content(node) == expected
    assert pool.file_system.getattr(node)[BLOCKS] == 32 * 8
    pool.file_system.unlink(ROOT_INODE, b"f")
    pool.file_system.forget(node, 1)
    # The tree may have come out a node larger; the 32 blocks are back.
    assert pool.used_blocks() < before + 8


def test_sequential_writes_grow_extents(pool: Pool) -> None:
    node = pool.create(b"f")
    for block in range(40):
        pool.file_system.write(node, block * BLOCK, pattern(BLOCK, block))
    assert pool.extents(node) == [(0, 32), (32, 8)]
    assert pool.content(node) == b"".join(pattern(BLOCK, block) for block in range(40))


def test_small_appends_take_no_new_block_each(pool: Pool) -> None:
    node = pool.create(b"f", pattern(1000))
    free = pool.store.statistics()["free_blocks"]
    content = pattern(1000)
    for index in range(30):
        pool.file_system.write(node, len(content), pattern(100, index))
        content += pattern(100, index)
    assert pool.content(node) == content
    assert free - pool.store.statistics()["free_blocks"] < 30
    pool.crash()
    pool.mount()
    assert pool.content(node) == content


def test_in_place_changes_spare_a_snapshot(pool: Pool) -> None:
    node = pool.create(b"f", pattern(3000))
    snapshot = pool.store.snapshot(pool.volume_id, "s", sync=False)
    pool.file_system.write(node, 100, b"after the snapshot")
    pool.file_system.write(node, 200, b"in place now")
    root = pool.file_system.view_of_snapshot(snapshot.id)
    old = pool.file_system.lookup(root, b"f")[NODE]
    assert pool.content(old) == pattern(3000)
    content = bytearray(pattern(3000))
    content[100:118] = b"after the snapshot"
    content[200:212] = b"in place now"
    assert pool.content(node) == content


def test_truncation_zeroes_the_last_block(pool: Pool) -> None:
    for commit in (False, True):
        node = pool.create(b"f%d" % commit, pattern(3 * BLOCK))
        if commit:
            pool.store.commit()
        pool.file_system.setattr(node, size=BLOCK + 100)
        assert pool.extents(node) == [(0, 2)] if not commit else pool.extents(node)[-1][0] == 1
        pool.file_system.setattr(node, size=3 * BLOCK)
        assert pool.content(node) == pattern(BLOCK + 100) + bytes(2 * BLOCK - 100)
        assert pool.file_system.getattr(node)[BLOCKS] == 16


def test_truncation_of_a_snapshots_block_copies_it(pool: Pool) -> None:
    node = pool.create(b"f", pattern(3 * BLOCK))
    snapshot = pool.store.snapshot(pool.volume_id, "s")
    pool.file_system.setattr(node, size=100)
    pool.file_system.setattr(node, size=200)
    assert pool.content(node) == pattern(100) + bytes(100)
    root = pool.file_system.view_of_snapshot(snapshot.id)
    assert pool.content(pool.file_system.lookup(root, b"f")[NODE]) == pattern(3 * BLOCK)


def test_truncation_to_nothing_makes_a_file_inline_again(pool: Pool) -> None:
    node = pool.create(b"f", pattern(3 * BLOCK))
    pool.file_system.setattr(node, size=0)
    assert pool.file_system.getattr(node)[BLOCKS] == 0
    pool.file_system.write(node, 0, b"small")
    assert pool.extents(node) == []
    assert pool.content(node) == b"small"


def scattered(pool: Pool, name: bytes, extents: int) -> int:
    """A file of many extents: every other block."""
    node = pool.create(name)
    for index in range(extents):
        pool.file_system.write(node, index * 2 * BLOCK, pattern(BLOCK, index))
    assert len(pool.extents(node)) == extents
    return node


def test_long_truncations_leave_nothing_behind(pool: Pool) -> None:
    node = scattered(pool, b"f", 300)
    pool.file_system.setattr(node, size=20 * BLOCK + 5)
    assert len(pool.extents(node)) == 11
    assert pool.orphans() == []
    pool.file_system.setattr(node, size=700 * BLOCK)
    assert pool.file_system.read(node, 20 * BLOCK, BLOCK) == pattern(5, 10) + bytes(BLOCK - 5)
    assert pool.file_system.read(node, 21 * BLOCK, 600 * BLOCK) == bytes(600 * BLOCK)


def test_largest_file(pool: Pool) -> None:
    node = pool.create(b"f")
    pool.file_system.setattr(node, size=SIZE_MAX)
    pool.file_system.write(node, SIZE_MAX - 5, b"12345")
    assert pool.file_system.read(node, SIZE_MAX - 10, 100) == bytes(5) + b"12345"
    with fails(errno.EFBIG):
        pool.file_system.write(node, SIZE_MAX - 4, b"12345")
    for size in (SIZE_MAX + 1, (1 << 63) - 1):
        with fails(errno.EFBIG):
            pool.file_system.setattr(node, size=size)
    with fails(errno.EFBIG):
        pool.file_system.write(node, (1 << 64) - 1, b"12345")
    pool.file_system.setattr(node, size=0)
    assert pool.file_system.getattr(node)[BLOCKS] == 0


def test_only_regular_files_have_data(pool: Pool) -> None:
    directory = pool.mkdir(b"d")
    fifo = pool.file_system.create(ROOT_INODE, b"p", stat.S_IFIFO | 0o644, 0, 0)[NODE]
    for node, number in ((directory, errno.EISDIR), (fifo, errno.EINVAL)):
        with fails(number):
            pool.file_system.read(node, 0, 10)
        with fails(number):
            pool.file_system.write(node, 0, b"x")
        with fails(number):
            pool.file_system.setattr(node, size=5)


def test_changes_set_times(pool: Pool) -> None:
    node = pool.create(b"f")
    for change in (
        lambda: pool.file_system.write(node, 0, b"x"),
        lambda: pool.file_system.write(node, 9000, b"x" * BLOCK),
        lambda: pool.file_system.write(node, 9001, b"y"),
        lambda: pool.file_system.setattr(node, size=5),
        lambda: pool.file_system.setattr(node, size=5),
    ):
        pool.file_system.setattr(node, mtime_ns=1, ctime_ns=1)
        change()
        attributes = pool.file_system.getattr(node)
        assert attributes[MTIME] > 1
        assert attributes[CTIME] > 1


def test_writing_clears_setuid(pool: Pool) -> None:
    node = pool.create(b"f")
    for change in (
        lambda: pool.file_system.write(node, 0, b"x"),
        lambda: pool.file_system.write(node, 9000, b"x" * BLOCK),
        lambda: pool.file_system.write(node, 9001, b"y"),
        lambda: pool.file_system.setattr(node, size=5),
        lambda: pool.file_system.setattr(node, uid=5),
        lambda: pool.file_system.setattr(node, gid=5),
    ):
        pool.file_system.setattr(node, mode=0o6755)
        change()
        assert pool.file_system.getattr(node)[MODE] == stat.S_IFREG | 0o755
        # Without group execution the bit means mandatory locking and stays.
        pool.file_system.setattr(node, mode=0o6745)
        change()
        assert pool.file_system.getattr(node)[MODE] == stat.S_IFREG | 0o2745
    pool.file_system.setattr(node, mode=0o6755, uid=3)
    assert pool.file_system.getattr(node)[MODE] == stat.S_IFREG | 0o6755


def test_an_interrupted_truncation_is_finished(pool: Pool) -> None:
    """Every write of a long truncation with its commits is cut once: mounting finishes what the journal holds."""
    node = scattered(pool, b"f", 300)
    pool.store.checkpoint()
    image = pool.storage.read(0, pool.storage.size())
    sizes = list(range(500 * BLOCK, 0, -90 * BLOCK))
    storage = Storage.open_memory(len(image))
    interrupted, cuts = True, 0
    while interrupted:
        storage.write(0, image)
        recorder = Storage.open_recorder(storage, record=False)
        store = Store(recorder, background=False)
        try:
            file_system = FileSystem(store, pool.volume_id)
            recorder.fail("write", cuts, errno.EIO, forever=True)
            for size in sizes:
                file_system.setattr(node, size=size)
                file_system.fsync(node)
            store.checkpoint()
            interrupted = False
        except OSError:
            cuts += 1
        finally:
            store.abandon()
            recorder.close()
        with Store(storage, background=False) as again:
            file_system = FileSystem(again, pool.volume_id)
            assert file_system.check(pool.volume_id) == []
            assert file_system.getattr(node)[SIZE] in {599 * BLOCK, *sizes}
    assert cuts > len(sizes)


def mark_truncating(pool: Pool, node: int, size: int) -> None:
    """As after the first transaction of a long truncation: the size is new, the extents past it are still there."""
    key = node.to_bytes(8, "big") + b"\x01"
    item = bytearray(pool.store.get(pool.volume_id, key) or b"")
    item[16:24] = size.to_bytes(8, "little")
    item[88:92] = (int.from_bytes(item[88:92], "little") | 1 << 9).to_bytes(4, "little")
    pool.store.put(pool.volume_id, key, bytes(item))
    pool.store.put(pool.volume_id, bytes(8) + b"\x08" + node.to_bytes(8, "big"), b"\x02")
    assert pool.file_system.check(pool.volume_id) == []


def test_mounting_finishes_a_truncation(pool: Pool) -> None:
    node = scattered(pool, b"f", 200)
    mark_truncating(pool, node, 10 * BLOCK)
    snapshot = pool.store.snapshot(pool.volume_id, "s")
    pool.crash()
    assert pool.orphans() == [(node, 2)]
    pool.mount()
    assert pool.orphans() == []
    assert pool.extents(node) == [(block, 1) for block in range(0, 10, 2)]
    # A snapshot stays as it was; what it shows of the file ends at the size.
    root = pool.file_system.view_of_snapshot(snapshot.id)
    old = pool.file_system.lookup(root, b"f")[NODE]
    assert pool.content(old) == pool.content(node)
    assert pool.file_system.check(snapshot.id) == []


def test_growing_waits_for_the_rest_of_a_truncation(pool: Pool) -> None:
    """Old extents past the end must not show again."""
    node = scattered(pool, b"f", 100)
    pool.store.commit()
    for grow in (
        lambda: pool.file_system.setattr(node, size=400 * BLOCK),
        lambda: pool.file_system.write(node, 300 * BLOCK, b"x" * 100 * BLOCK),
        lambda: pool.file_system.write(node, 400 * BLOCK - 2, b"xx"),
    ):
        mark_truncating(pool, node, 10 * BLOCK)
        grow()
        assert pool.orphans() == []
        assert pool.file_system.read(node, 10 * BLOCK, 200 * BLOCK) == bytes(200 * BLOCK)
        assert pool.file_system.getattr(node)[SIZE] == 400 * BLOCK
    # Making it still shorter needs no waiting, and a removal takes everything.
    mark_truncating(pool, node, 10 * BLOCK)
    pool.file_system.setattr(node, size=3 * BLOCK)
    assert pool.orphans() == []
    assert pool.extents(node) == [(0, 1), (2, 1)]
    mark_truncating(pool, node, 1 * BLOCK)
    pool.file_system.unlink(ROOT_INODE, b"f")
    assert pool.orphans() == [(node, 3)]
    pool.file_system.forget(node, 1)
    assert pool.orphans() == []


def test_a_full_pool_can_be_emptied() -> None:
    pool = Pool(16 << 20)
    nodes = []
    with fails(errno.ENOSPC):
        for index in range(1000):
            nodes.append(pool.create(b"f%d" % index))
            pool.file_system.write(nodes[-1], 0, random_bytes(200_000))
    with fails(errno.ENOSPC):
        for index in range(100_000):
            pool.create(b"n%d" % index)
    pool.file_system.setattr(nodes[0], size=100)
    for index, node in enumerate(nodes):
        pool.file_system.unlink(ROOT_INODE, b"f%d" % index)
        pool.file_system.forget(node, 1)
    pool.store.checkpoint()
    pool.create(b"again", random_bytes(1_000_000))
    pool.check()
    pool.store.close()


def test_damaged_data_is_an_error(pool: Pool) -> None:
    content = random_bytes(3 * BLOCK)
    node = pool.create(b"f", content)
    pool.store.close()
    address = pool.storage.read(0, pool.storage.size()).index(content[BLOCK : 2 * BLOCK])
    good = pool.storage.read(address, BLOCK)
    pool.storage.write(address + 17, bytes(2) if any(good[17:19]) else b"xx")
    pool.store = Store(pool.storage, background=False)
    pool.mount()
    with fails(errno.EIO):
        pool.file_system.read(node, 0, 3 * BLOCK)
    with fails(errno.EIO):
        pool.file_system.read(node, BLOCK + 5, 10)
    with fails(errno.EIO):
        pool.file_system.write(node, BLOCK + 5, b"merge")
    with fails(errno.EIO):
        pool.file_system.setattr(node, size=BLOCK + 5)
    assert pool.file_system.read(node, 0, BLOCK) == content[:BLOCK]
    assert pool.store.statistics()["checksum_mismatches"] == 4
    pool.storage.write(address, good)
    assert pool.content(node) == content


def test_statfs(pool: Pool) -> None:
    block_size, blocks, free, available, name_length_max = pool.file_system.statfs()
    assert (block_size, name_length_max) == (4096, 255)
    assert 0 < available <= free <= blocks < 64 << 20 >> 12
    pool.create(b"f", random_bytes(1 << 20))
    assert pool.file_system.statfs()[3] <= available - 256
