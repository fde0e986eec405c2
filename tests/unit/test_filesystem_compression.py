"""Compressed extents, from the raw items: what becomes one, what cuts it, and what shares it."""

import itertools
import random

import pytest

from cowfs.compression import Compression, parse_compression
from cowfs.errors import CowfsError
from tests.unit.filesystem_pool import BLOCK, BLOCKS, Pool, fails, pattern, pool, random_bytes

__all__ = ["pool"]

KIB = 1 << 10
UNIT = 128 * KIB
LZ4, ZSTD = Compression(1), Compression(2, 3)


def compress(pool: Pool, how: Compression) -> None:
    pool.file_system.set_compression(pool.volume_id, *how)


def extents(pool: Pool, node: int) -> list[tuple[int, int, int, int]]:
    """(first logical block, blocks of content, blocks on the medium, compression) of each extent item."""
    prefix = node.to_bytes(8, "big") + b"\x07"
    return [(int.from_bytes(key[9:], "big"), int.from_bytes(value[18:20], "little"),
             int.from_bytes(value[16:18], "little"), value[20])
            for key, value in pool.store.scan(pool.volume_id, prefix, prefix + b"\xff" * 9)]


def shape(pool: Pool, node: int) -> list[tuple[int, int, int]]:
    return [(first, content, how) for first, content, _stored, how in extents(pool, node)]


@pytest.mark.parametrize("how", [LZ4, ZSTD, Compression(2, 19)])
def test_units_end_on_multiples_of_their_largest_size(pool: Pool, how: Compression) -> None:
    compress(pool, how)
    data = pattern(3 * UNIT)
    node = pool.create(b"file")
    pool.file_system.write(node, 40 * KIB, data)
    assert shape(pool, node) == [(10, 22, how.algorithm), (32, 32, how.algorithm), (64, 32, how.algorithm),
                                 (96, 10, how.algorithm)]
    assert all(stored < content for _first, content, stored, _how in extents(pool, node))
    assert pool.file_system.getattr(node)[BLOCKS] == 8 * sum(stored for _, _, stored, _ in extents(pool, node))
    assert pool.content(node) == bytes(40 * KIB) + data
    for offset, length in ((41 * KIB, 1), (UNIT - 5, 10), (100 * KIB, 2 * UNIT), (3 * UNIT, 3 * UNIT)):
        assert pool.file_system.read(node, offset, length) == (bytes(40 * KIB) + data)[offset : offset + length]


@pytest.mark.parametrize("how", [LZ4, ZSTD])
def test_what_saves_nothing_is_stored_as_it_is(pool: Pool, how: Compression) -> None:
    compress(pool, how)
    noise = random_bytes(5 * UNIT)
    node = pool.create(b"noise", noise)
    assert {kind for _first, _content, kind in shape(pool, node)} == {0}
    assert pool.content(node) == noise
    few = pool.create(b"few", bytes(2 * BLOCK))
    assert shape(pool, few) == [(0, 2, 0)]
    # what repeats is found although its bytes are distributed evenly
    repeated = pool.create(b"repeated", random_bytes(4 * BLOCK) * 8)
    assert shape(pool, repeated) == [(0, 32, how.algorithm)]


def test_failures_are_remembered_for_a_while(pool: Pool) -> None:
    compress(pool, LZ4)
    node = pool.create(b"file")
    kinds = []
    for unit in range(40):
        pool.file_system.write(node, unit * UNIT, random_bytes(UNIT) if unit < 4 else bytes(UNIT))
        kinds.append(any(how for first, _content, how in shape(pool, node) if first == unit * 32))
    assert not any(kinds[:4])
    assert 4 <= kinds.index(True) < 20
    assert all(kinds[kinds.index(True) :])


@pytest.mark.parametrize("how", [LZ4, ZSTD])
@pytest.mark.parametrize(("offset", "length"), [(0, 1), (5 * BLOCK, BLOCK), (5 * BLOCK + 7, 3 * BLOCK), (UNIT - 9, 18),
                                                (BLOCK, UNIT), (UNIT - BLOCK, BLOCK), (0, UNIT), (7, 3 * UNIT - 20)])
def test_parts_are_overwritten(pool: Pool, how: Compression, offset: int, length: int) -> None:
    compress(pool, how)
    expected = bytearray(pattern(3 * UNIT))
    node = pool.create(b"file", bytes(expected))
    before = pool.used_blocks()
    compress(pool, Compression(0))
    pool.file_system.write(node, offset, random_bytes(length))
    expected[offset : offset + length] = pool.file_system.read(node, offset, length)
    assert pool.content(node) == expected
    # what remains of a split extent is compressed again: only what was written is stored as it is
    assert pool.used_blocks() <= before + length // BLOCK + 8
    blocks = pool.file_system.getattr(node)[BLOCKS] // 8
    assert blocks == sum(stored for _, _, stored, _ in extents(pool, node))


@pytest.mark.parametrize("size", [0, 1, BLOCK, 9 * BLOCK, 9 * BLOCK + 1, UNIT, UNIT + 5 * BLOCK - 1, 3 * UNIT - 1])
def test_cut_at(pool: Pool, size: int) -> None:
    compress(pool, ZSTD)
    data = pattern(3 * UNIT)
    node = pool.create(b"file", data)
    pool.file_system.setattr(node, size=size)
    assert pool.content(node) == data[:size]
    pool.file_system.setattr(node, size=3 * UNIT)
    assert pool.content(node) == data[:size] + bytes(3 * UNIT - size)
    pool.file_system.setattr(node, size=0)
    assert extents(pool, node) == []


@pytest.mark.parametrize(("offset", "length"), [(0, UNIT), (BLOCK, BLOCK), (5000, 30000), (UNIT - 100, 200),
                                                (0, 3 * UNIT), (UNIT // 2, UNIT)])
def test_holes_are_punched(pool: Pool, offset: int, length: int) -> None:
    compress(pool, LZ4)
    expected = bytearray(pattern(3 * UNIT))
    node = pool.create(b"file", bytes(expected))
    pool.file_system.allocate(node, 3, offset, length)
    expected[offset : offset + length] = bytes(length)
    assert pool.content(node) == expected
    if length >= 2 * BLOCK:
        hole = pool.file_system.seek(node, offset, True)
        assert hole == -(-offset // BLOCK) * BLOCK


def test_copies_share_whole_extents_and_split_others(pool: Pool) -> None:
    compress(pool, LZ4)
    data = pattern(4 * UNIT)
    node = pool.create(b"file", data)
    stored = sum(stored for _, _, stored, _ in extents(pool, node))
    before = pool.used_blocks()
    copy = pool.create(b"copy")
    assert pool.file_system.copy_range(node, 0, copy, 0, 4 * UNIT) == 4 * UNIT
    assert pool.used_blocks() < before + stored // 2
    assert pool.content(copy) == data
    part = pool.create(b"part")
    done = 0
    while done < UNIT:
        done += pool.file_system.copy_range(node, UNIT // 2 + done, part, 3 * BLOCK + done, UNIT - done)
    assert pool.content(part) == bytes(3 * BLOCK) + data[UNIT // 2 :][:UNIT]
    pool.file_system.write(copy, 2 * UNIT + 77, b"changed")
    assert pool.content(node) == data
    assert pool.content(copy) == data[: 2 * UNIT + 77] + b"changed" + data[2 * UNIT + 84 :]
    pool.check()
    for name in (b"file", b"copy", b"part"):
        child = pool.file_system.lookup(1, name)[0]
        pool.file_system.unlink(1, name)
        pool.file_system.forget(child, 2)
    pool.check()
    pool.store.checkpoint()
    assert pool.used_blocks() < 40


def test_snapshots_keep_what_is_split(pool: Pool) -> None:
    compress(pool, ZSTD)
    data = pattern(4 * UNIT)
    node = pool.create(b"file", data)
    snapshot = pool.store.snapshot(pool.volume_id, "before")
    for block in range(0, 128, 7):
        pool.file_system.write(node, block * BLOCK, b"x")
    root = pool.file_system.view_of_snapshot(snapshot.id)
    old = pool.file_system.lookup(root, b"file")[0]
    assert pool.content(old) == data
    pool.check()
    pool.store.rollback(pool.volume_id, snapshot.id, "guard")
    pool.file_system.rolled_back(pool.volume_id)
    again = pool.file_system.lookup(1, b"file")[0]
    assert pool.content(again) == data
    pool.file_system.write(again, 0, bytes(UNIT))
    assert shape(pool, again & (1 << 40) - 1)[0] == (0, 32, 2), "a rollback keeps the setting"


def test_a_full_pool_can_be_emptied_by_truncating_within_extents() -> None:
    full = Pool(20 << 20)
    try:
        compress(full, LZ4)
        data = bytes(UNIT)  # one block on the medium
        nodes = [full.create(b"file%d" % number, data) for number in range(200)]
        noise = full.create(b"noise")
        with fails(28):
            for offset in itertools.count(0, UNIT):
                full.file_system.write(noise, offset, random_bytes(UNIT))
        for number, node in enumerate(nodes):
            full.file_system.setattr(node, size=5 * BLOCK + number)
            assert full.content(node) == bytes(5 * BLOCK + number)
        full.file_system.setattr(noise, size=0)
        full.store.checkpoint()
        full.create(b"new", random_bytes(UNIT))
        full.check()
    finally:
        full.store.close()


def test_a_crash_keeps_what_was_committed(pool: Pool) -> None:
    compress(pool, LZ4)
    data = pattern(2 * UNIT)
    pool.create(b"file", data)
    pool.crash()
    pool.mount()
    node = pool.file_system.lookup(1, b"file")[0]
    assert pool.content(node) == data
    assert [how for _first, _content, how in shape(pool, node)] == [1, 1]


def test_random_changes(pool: Pool) -> None:
    generator = random.Random(11)
    expected = bytearray(6 * UNIT)
    node = pool.create(b"file", bytes(expected))
    for turn in range(400):
        compress(pool, generator.choice([LZ4, ZSTD, Compression(0)]))
        offset = generator.randrange(6 * UNIT)
        length = min(generator.choice([1, 600, BLOCK, 5 * BLOCK, UNIT, 3 * UNIT]), 6 * UNIT - offset)
        if generator.random() < 0.5:
            offset, length = offset // BLOCK * BLOCK, -(-length // BLOCK) * BLOCK
        if generator.random() < 0.2:
            pool.file_system.allocate(node, 3, offset, length)
            data = bytes(length)
        else:
            data = pattern(length, turn) if generator.random() < 0.7 else random_bytes(length)
            pool.file_system.write(node, offset, data)
        expected[offset : offset + length] = data
        if turn % 50 == 0:
            pool.store.snapshot(pool.volume_id, f"s{turn}")
        assert pool.file_system.read(node, offset, length) == data
    assert pool.content(node)[: 6 * UNIT] == expected[: 6 * UNIT]


@pytest.mark.parametrize("piece", [1000, BLOCK, 3 * BLOCK, 40 * KIB])
def test_small_writes_are_gathered(pool: Pool, piece: int) -> None:
    compress(pool, ZSTD)
    data = pattern(3 * UNIT + 7 * BLOCK + 5)
    node = pool.create(b"file")
    for offset in range(0, len(data), piece):
        pool.file_system.write(node, offset, data[offset : offset + piece])
    pool.file_system.gather()
    assert shape(pool, node) == [(0, 32, 2), (32, 32, 2), (64, 32, 2), (96, 7, 2), (103, 1, 0)]
    assert pool.content(node) == data
    pool.check()
    # going on where the file ends: the unit that it ends in is gathered again
    for offset in range(len(data), len(data) + 9 * BLOCK, BLOCK):
        pool.file_system.write(node, offset, data[offset % UNIT :][:BLOCK])
    pool.file_system.gather()
    assert shape(pool, node)[-2:] == [(96, 16, 2), (112, 1, 0)]


def test_what_a_snapshot_has_is_not_gathered(pool: Pool) -> None:
    compress(pool, LZ4)
    node = pool.create(b"file")
    data = pattern(2 * UNIT)
    for offset in range(0, UNIT + UNIT // 2, BLOCK):
        pool.file_system.write(node, offset, data[offset : offset + BLOCK])
        if offset == UNIT // 2:
            pool.store.snapshot(pool.volume_id, "s")
    used = pool.used_blocks()
    pool.file_system.gather()
    assert {how for first, _content, how in shape(pool, node) if first < 17} == {0}
    assert (17, 15, 1) in shape(pool, node)
    assert pool.used_blocks() < used
    shared = pool.create(b"shared")
    pool.file_system.copy_range(node, 0, shared, 0, UNIT)
    before = shape(pool, node)
    pool.file_system.write(node, 0, b"")
    pool.file_system.gather()
    assert shape(pool, node) == before


def test_noise_is_gathered_in_vain(pool: Pool) -> None:
    compress(pool, LZ4)
    node = pool.create(b"file")
    data = random_bytes(UNIT)
    for offset in range(0, UNIT, BLOCK):
        pool.file_system.write(node, offset, data[offset : offset + BLOCK])
    pool.file_system.gather()
    assert {how for _first, _content, how in shape(pool, node)} == {0}
    assert pool.content(node) == data


def test_scattered_writes_are_not_gathered(pool: Pool) -> None:
    node = pool.create(b"file", bytes(2 * UNIT))
    compress(pool, LZ4)
    for block in random.Random(4).sample(range(64), 30):
        pool.file_system.write(node, block * BLOCK, pattern(BLOCK))
    pool.file_system.gather()
    assert {how for _first, _content, how in shape(pool, node)} == {0}


@pytest.mark.parametrize(("text", "parsed"), [("off", Compression(0)), ("lz4", LZ4), ("zstd", ZSTD), ("zstd:3", ZSTD),
                                              ("zstd:19", Compression(2, 19)), ("zstd:1", Compression(2, 1))])
def test_ways_to_compress(text: str, parsed: Compression) -> None:
    assert parse_compression(text) == parsed
    assert parse_compression(str(parsed)) == parsed


@pytest.mark.parametrize("text", ["", "on", "zstd:", "zstd:0", "zstd:20", "zstd:-1", "zstd:+3", "lz4:1", "zstd:٣"])
def test_what_is_no_way_to_compress(text: str) -> None:
    with pytest.raises(CowfsError):
        parse_compression(text)


def test_the_core_refuses_others(pool: Pool) -> None:
    for algorithm, level in ((3, 0), (2, 0), (2, 20)):
        with fails(22):
            pool.file_system.set_compression(pool.volume_id, algorithm, level)
