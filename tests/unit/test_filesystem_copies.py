"""copy_file_range: blocks that files share, and bytes where they cannot."""

import errno
import random
import stat
import threading
import time

import pytest

from btree import Storage, Store
from cowfs._native import ROOT_INODE, FileSystem
from tests.unit.filesystem_pool import BLOCK, BLOCKS, MODE, MTIME, NODE, SIZE, Pool, fails, pattern, random_bytes
from tests.unit.filesystem_pool import pool as pool


def copy(pool: Pool, node_in: int, offset_in: int, node_out: int, offset_out: int, length: int) -> int:
    """Goes on after short copies."""
    done = 0
    while got := pool.file_system.copy_range(node_in, offset_in + done, node_out, offset_out + done, length - done):
        done += got
        if done == length:
            break
    return done


def references(pool: Pool) -> list[tuple[int, int]]:
    """(blocks, references) of each run of shared blocks, in the order of their addresses."""
    blocks = pool.store.scan(pool.volume_id, bytes(8) + b"\x09", bytes(8) + b"\x0a")
    counts = pool.store.scan(pool.volume_id, bytes(8) + b"\x0a", bytes(8) + b"\x0b")
    assert [key[9:] for key, _ in blocks] == [key[9:] for key, _ in counts]
    return [
        (int.from_bytes(value[16:18], "little"), int.from_bytes(count, "little"))
        for (_, value), (_, count) in zip(blocks, counts, strict=True)
    ]


def test_a_whole_file_shares_its_blocks(pool: Pool) -> None:
    content = random_bytes(100 * BLOCK + 17)
    source, target = pool.create(b"f", content), pool.create(b"g")
    before = pool.used_blocks()
    assert pool.file_system.copy_range(source, 0, target, 0, 1 << 40) == len(content)
    assert pool.content(target) == content
    assert pool.content(source) == content
    assert pool.used_blocks() < before + 40
    assert pool.file_system.getattr(target)[BLOCKS] == pool.file_system.getattr(source)[BLOCKS] == 101 * 8
    assert sum(blocks for blocks, _ in references(pool)) == 101
    assert {count for _, count in references(pool)} == {2}


def test_a_change_of_one_leaves_the_other(pool: Pool) -> None:
    content = random_bytes(40 * BLOCK)
    source, target = pool.create(b"f", content), pool.create(b"g")
    copy(pool, source, 0, target, 0, len(content))
    pool.file_system.write(target, 5 * BLOCK + 7, b"target")
    pool.file_system.write(source, 6 * BLOCK + 7, b"source")
    pool.file_system.setattr(source, size=30 * BLOCK + 5)
    pool.file_system.allocate(target, 3, 10 * BLOCK, 2 * BLOCK)
    expected = bytearray(content)
    expected[5 * BLOCK + 7 : 5 * BLOCK + 13] = b"target"
    expected[10 * BLOCK : 12 * BLOCK] = bytes(2 * BLOCK)
    assert pool.content(target) == expected
    expected = bytearray(content[: 30 * BLOCK + 5])
    expected[6 * BLOCK + 7 : 6 * BLOCK + 13] = b"source"
    assert pool.content(source) == expected
    assert {count for _, count in references(pool)} == {1, 2}


@pytest.mark.parametrize("first", [b"f", b"g"])
def test_the_last_reference_frees(pool: Pool, first: bytes) -> None:
    empty = pool.used_blocks()
    content = random_bytes(300 * BLOCK)
    source, target = pool.create(b"f", content), pool.create(b"g")
    copy(pool, source, 0, target, 0, len(content))
    second = b"g" if first == b"f" else b"f"
    pool.file_system.unlink(ROOT_INODE, first)
    pool.file_system.forget(source if first == b"f" else target, 1)
    assert pool.content(target if first == b"f" else source) == content
    assert {count for _, count in references(pool)} == {1}
    pool.file_system.unlink(ROOT_INODE, second)
    pool.file_system.forget(target if first == b"f" else source, 1)
    assert references(pool) == []
    assert pool.used_blocks() <= empty + 8


def test_snapshots_keep_what_they_shared(pool: Pool) -> None:
    content = random_bytes(100 * BLOCK)
    empty = pool.used_blocks()
    source = pool.create(b"f", content)
    old = pool.store.snapshot(pool.volume_id, "old", sync=False)
    target = pool.create(b"g")
    copy(pool, source, 0, target, 0, len(content))
    shared = pool.store.snapshot(pool.volume_id, "shared", sync=False)
    for name, node in ((b"f", source), (b"g", target)):
        pool.file_system.unlink(ROOT_INODE, name)
        pool.file_system.forget(node, 1)
    pool.check()
    for snapshot, names in ((old, [b"f"]), (shared, [b"f", b"g"])):
        root = pool.file_system.view_of_snapshot(snapshot.id)
        assert pool.file_system.check(snapshot.id) == []
        for name in names:
            assert pool.content(pool.file_system.lookup(root, name)[NODE]) == content
    clone = pool.file_system.view_of_volume(pool.store.clone(shared.id, "clone"))
    pool.file_system.write(pool.file_system.lookup(clone, b"f")[NODE], 0, b"clone")
    assert pool.content(pool.file_system.lookup(clone, b"g")[NODE]) == content
    pool.check()
    pool.store.volume_destroy(pool.store.volume_find("clone").id)
    pool.store.snapshot_delete(old.id)
    pool.check()
    pool.store.snapshot_delete(shared.id)
    pool.check()
    for _ in range(4):
        pool.store.checkpoint()
    assert pool.used_blocks() <= empty + 16


def test_rollback_to_before_and_after(pool: Pool) -> None:
    content = random_bytes(50 * BLOCK)
    source, target = pool.create(b"f", content), pool.create(b"g")
    before = pool.store.snapshot(pool.volume_id, "before", sync=False)
    copy(pool, source, 0, target, 0, len(content))
    after = pool.store.snapshot(pool.volume_id, "after", sync=False)
    pool.file_system.write(target, 0, random_bytes(20 * BLOCK))
    pool.store.rollback(pool.volume_id, before.id, "guard1")
    pool.file_system.rolled_back(pool.volume_id)
    assert references(pool) == []
    pool.check()
    pool.store.rollback(pool.volume_id, after.id, "guard2")
    pool.file_system.rolled_back(pool.volume_id)
    assert pool.content(pool.file_system.lookup(ROOT_INODE, b"g")[NODE]) == content
    pool.check()


def test_sharing_survives_a_crash(pool: Pool) -> None:
    content = random_bytes(50 * BLOCK)
    source, target = pool.create(b"f", content), pool.create(b"g")
    copy(pool, source, 0, target, 0, len(content))
    pool.file_system.write(source, 0, b"x")
    pool.crash()
    pool.mount()
    assert pool.content(target) == content
    assert pool.content(source) == b"x" + content[1:]


def test_a_file_shares_with_itself(pool: Pool) -> None:
    content = random_bytes(32 * BLOCK)
    node = pool.create(b"f", content)
    assert pool.extents(node) == [(0, 32)]
    assert copy(pool, node, 0, node, 16 * BLOCK, 8 * BLOCK) == 8 * BLOCK
    expected = content[: 16 * BLOCK] + content[: 8 * BLOCK] + content[24 * BLOCK :]
    assert pool.content(node) == expected
    # From the target back, over the source of the first.
    assert copy(pool, node, 20 * BLOCK, node, 2 * BLOCK, 12 * BLOCK) == 12 * BLOCK
    expected = expected[: 2 * BLOCK] + expected[20 * BLOCK :] + expected[14 * BLOCK :]
    assert pool.content(node) == expected
    for offset_in, offset_out in ((0, BLOCK), (BLOCK, 0), (0, 0), (5, 1)):
        with fails(errno.EINVAL):
            pool.file_system.copy_range(node, offset_in, node, offset_out, 2 * BLOCK)


def test_one_block_many_times(pool: Pool) -> None:
    block = random_bytes(BLOCK)
    source, target = pool.create(b"f", block), pool.create(b"g")
    for index in range(700):
        copy(pool, source, 0, target, index * BLOCK, BLOCK)
    assert references(pool) == [(1, 701)]
    assert pool.content(target) == block * 700
    pool.file_system.write(target, 0, pattern(700 * BLOCK))
    assert references(pool) == [(1, 1)]


RANGES = [
    (0, 0, 10), (0, 0, BLOCK), (0, 5, 3 * BLOCK), (7, 7, 5 * BLOCK), (7, 7 + BLOCK, 5 * BLOCK + 3), (1, BLOCK - 1, 9),
    (BLOCK, 0, 20 * BLOCK), (3 * BLOCK, 9 * BLOCK, 1 << 30), (3 * BLOCK + 9, 40 * BLOCK + 9, 1 << 30),
    (20 * BLOCK, 0, 100), (20 * BLOCK + 50, 3, 1 << 30), (20 * BLOCK + 100, 0, 5), (0, 0, 1 << 62),
]  # fmt: skip


@pytest.mark.parametrize("kind", ["empty", "inline", "short", "long", "sparse"])
@pytest.mark.parametrize("source_kind", ["blocks", "sparse", "inline", "inline and a hole"])
def test_ranges(pool: Pool, kind: str, source_kind: str) -> None:
    sources = {
        "blocks": random_bytes(20 * BLOCK + 100),
        "sparse": random_bytes(3 * BLOCK) + bytes(4 * BLOCK) + random_bytes(9 * BLOCK) + bytes(4 * BLOCK + 100),
        "inline": random_bytes(500),
        "inline and a hole": random_bytes(500) + bytes(20 * BLOCK - 400),
    }
    targets = {
        "empty": b"", "inline": random_bytes(300), "short": random_bytes(9 * BLOCK + 5),
        "long": random_bytes(70 * BLOCK), "sparse": random_bytes(BLOCK) + bytes(60 * BLOCK) + random_bytes(7),
    }  # fmt: skip
    content, old = sources[source_kind], targets[kind]
    source = pool.create(b"f")
    for at in range(0, len(content), BLOCK):
        piece = content[at : at + BLOCK].rstrip(b"\0")
        if piece:
            pool.file_system.write(source, at, piece)
    pool.file_system.setattr(source, size=len(content))
    for index, (offset_in, offset_out, length) in enumerate(RANGES):
        target = pool.create(b"t%d" % index, old)
        piece = content[offset_in : offset_in + length]
        assert copy(pool, source, offset_in, target, offset_out, length) == len(piece)
        expected = old
        if piece:
            expected = old[:offset_out].ljust(offset_out, b"\0") + piece + old[offset_out + len(piece) :]
        assert pool.content(target) == expected
        # Bytes past the end are zeros.
        pool.file_system.setattr(target, size=len(expected) + 3 * BLOCK)
        assert pool.content(target) == expected + bytes(3 * BLOCK)
    assert pool.content(source) == content


def test_from_a_snapshot_and_from_another_volume(pool: Pool) -> None:
    content = random_bytes(5 * BLOCK) + bytes(3000 * BLOCK) + random_bytes(5000)
    source = pool.create(b"f", content[: 5 * BLOCK])
    pool.file_system.write(source, 3005 * BLOCK, content[-5000:])
    snapshot = pool.store.snapshot(pool.volume_id, "s", sync=False)
    pool.file_system.write(source, 0, b"changed")
    root = pool.file_system.view_of_snapshot(snapshot.id)
    old = pool.file_system.lookup(root, b"f")[NODE]
    target = pool.create(b"g")
    assert copy(pool, old, 0, target, 0, len(content)) == len(content)
    assert pool.content(target) == content
    assert pool.extents(target) == [(0, 5), (3005, 2)]
    assert references(pool) == []
    other = pool.file_system.view_of_volume(pool.store.clone(snapshot.id, "c"))
    node = pool.create(b"h", b"", other)
    assert copy(pool, source, 0, node, 100, 7) == 7
    assert pool.content(node) == bytes(100) + b"changed"
    with fails(errno.EROFS):
        pool.file_system.copy_range(source, 0, old, 0, 10)


def test_refusals(pool: Pool) -> None:
    node, directory = pool.create(b"f", pattern(3 * BLOCK)), pool.mkdir(b"d")
    fifo = pool.file_system.create(ROOT_INODE, b"p", stat.S_IFIFO | 0o644, 0, 0)[NODE]
    target = pool.create(b"t", b"x")
    for pair in ((node, directory), (directory, node)):
        with fails(errno.EISDIR):
            pool.file_system.copy_range(pair[0], 0, pair[1], 0, 1)
    with fails(errno.EINVAL):
        pool.file_system.copy_range(node, 0, fifo, 0, 1)
    with fails(errno.EFBIG):
        pool.file_system.copy_range(node, 0, target, 1 << 60, 1)
    assert pool.file_system.copy_range(node, 0, target, (1 << 60) - 3, 100) == 3
    assert pool.file_system.copy_range(node, 3 * BLOCK, target, 0, 100) == 0
    assert pool.file_system.copy_range(node, (1 << 64) - 1, target, 0, 100) == 0
    assert pool.file_system.copy_range(node, 0, target, 0, 0) == 0
    for flags in (1, 2):
        pool.file_system.setflags(target, flags)
        for offset in (0, 5):
            with fails(errno.EPERM):
                pool.file_system.copy_range(node, 0, target, offset, 2 * BLOCK)
    # What the source forbids is no matter.
    pool.file_system.setflags(node, 1)
    pool.file_system.setflags(target, 0)
    assert pool.file_system.copy_range(node, 0, target, 0, 2 * BLOCK) == 2 * BLOCK


def test_a_copy_is_a_change_like_a_write(pool: Pool) -> None:
    source, target = pool.create(b"f", pattern(3 * BLOCK)), pool.create(b"g")
    pool.file_system.setattr(target, mode=0o6755, mtime_ns=1)
    before = pool.file_system.getattr(source)
    copy(pool, source, 0, target, 0, BLOCK)
    attributes = pool.file_system.getattr(target)
    assert attributes[MODE] == stat.S_IFREG | 0o755
    assert attributes[MTIME] > 1
    assert pool.file_system.getattr(source) == before


def test_scattered_references(pool: Pool) -> None:
    """Runs of one block each, and writes and cuts that touch more of them than one transaction can change."""
    content = random_bytes(256 * BLOCK)
    source, target = pool.create(b"f", content), pool.create(b"g")
    copy(pool, source, 0, target, 0, len(content))
    rng = random.Random(5)
    for index in range(200):
        copy(pool, source, rng.randrange(256) * BLOCK, pool.create(b"x%d" % index), 0, BLOCK)
    blocks = list(range(256))
    rng.shuffle(blocks)
    other = pool.create(b"h")
    for index, block in enumerate(blocks):
        copy(pool, source, block * BLOCK, other, index * BLOCK, BLOCK)
    assert pool.content(other) == b"".join(content[block * BLOCK : (block + 1) * BLOCK] for block in blocks)
    last = pool.create(b"i")
    copy(pool, other, 0, last, 0, len(content))
    pool.check()
    new = random_bytes(len(content))
    pool.file_system.write(other, 0, new)
    assert pool.content(other) == new
    copy(pool, source, 0, last, 0, len(content))
    assert pool.content(last) == content
    for name, node in ((b"f", source), (b"h", other), (b"g", target), (b"i", last)):
        pool.file_system.unlink(ROOT_INODE, name)
        pool.file_system.forget(node, 1)
        pool.check()
    for index in range(200):
        pool.file_system.unlink(ROOT_INODE, b"x%d" % index)
    pool.file_system.release_all()
    assert references(pool) == []


@pytest.mark.parametrize("size", [1, 10 * BLOCK + 3])
def test_appending_to_borrowed_blocks(pool: Pool, size: int) -> None:
    """They are neither changed in place nor grown by blocks of another owner."""
    content = random_bytes(10 * BLOCK + size)
    source, target = pool.create(b"f", content), pool.create(b"g")
    copy(pool, source, 0, target, 0, len(content))
    for _ in range(20):
        piece = random_bytes(700)
        pool.file_system.write(target, pool.file_system.getattr(target)[SIZE], piece)
        pool.file_system.write(source, pool.file_system.getattr(source)[SIZE], piece[:5])
    assert pool.content(source)[: len(content)] == content
    assert pool.content(target)[: len(content)] == content
    pool.check()


def test_the_checker_compares_counts(pool: Pool) -> None:
    source, target = pool.create(b"f", pattern(40 * BLOCK)), pool.create(b"g")
    copy(pool, source, 4 * BLOCK, target, 0, 20 * BLOCK)
    keys = [key for key, _ in pool.store.scan(pool.volume_id, bytes(8) + b"\x0a", bytes(8) + b"\x0b")]
    good = pool.store.get(pool.volume_id, keys[0])
    for bad in ((1).to_bytes(4, "little"), (3).to_bytes(4, "little"), b"", bytes(4)):
        pool.store.put(pool.volume_id, keys[0], bad)
        assert any("shared blocks at" in problem for problem in pool.file_system.check(pool.volume_id))
    pool.store.delete(pool.volume_id, keys[0])
    assert any("shared blocks at" in problem for problem in pool.file_system.check(pool.volume_id))
    assert good is not None
    pool.store.put(pool.volume_id, keys[0][:9] + (1).to_bytes(8, "big"), good)
    assert any("no shared blocks begin" in problem for problem in pool.file_system.check(pool.volume_id))
    pool.store.delete(pool.volume_id, keys[0][:9] + (1).to_bytes(8, "big"))
    pool.store.put(pool.volume_id, keys[0], good)
    extent = target.to_bytes(8, "big") + b"\x07" + bytes(8)
    item = pool.store.get(pool.volume_id, extent)
    assert item is not None
    pool.store.delete(pool.volume_id, extent)
    assert any("count 2 references" in problem for problem in pool.file_system.check(pool.volume_id))
    pool.store.put(pool.volume_id, extent, (1000).to_bytes(8, "little") + item[8:])
    assert any("borrows block 1000" in problem for problem in pool.file_system.check(pool.volume_id))
    pool.store.put(pool.volume_id, extent, item)


def test_a_gibibyte_is_shared_at_once() -> None:
    storage = Storage.open_memory(5 << 28)
    Store.format(storage)
    store = Store(storage, background=False)
    try:
        volume_id = store.volume_create("main")
        FileSystem.initialize(store, volume_id, uid=0, gid=0)
        system = FileSystem(store, volume_id)
        source = system.create(ROOT_INODE, b"f", stat.S_IFREG | 0o644, 0, 0)[NODE]
        target = system.create(ROOT_INODE, b"g", stat.S_IFREG | 0o644, 0, 0)[NODE]
        data = bytes(range(256)) * (1 << 15)
        for offset in range(0, 1 << 30, len(data)):
            system.write(source, offset, data)
        begin = time.monotonic()
        assert system.copy_range(source, 0, target, 0, 1 << 30) == 1 << 30
        shared = time.monotonic()
        system.unlink(ROOT_INODE, b"f")
        system.forget(source, 1)
        removed = time.monotonic()
        print(f"shared in {shared - begin:.3f} s, removed in {removed - shared:.3f} s")
        assert shared - begin < 2
        assert system.read(target, (1 << 30) - 512, 1024) == data[-512:]
        assert system.check(volume_id) == []
    finally:
        store.close()


def test_a_full_pool_of_shared_blocks_can_be_emptied() -> None:
    """Releasing scattered references splits runs, which takes metadata before anything is free."""
    full = Pool(size_bytes=16 << 20)
    system = full.file_system
    rng = random.Random(7)
    blocks = 1500
    source = full.create(b"f", random_bytes(blocks * BLOCK))
    nodes = {name: full.create(name) for name in (b"g%d" % index for index in range(10))}

    def scatter(times: int) -> None:
        for at in range(times):
            for node in nodes.values():
                system.copy_range(source, rng.randrange(blocks) * BLOCK, node, at * BLOCK, BLOCK)

    scatter(400)
    nodes[b"filler"] = full.create(b"filler")
    with fails(errno.ENOSPC):
        for at in range(1 << 20):
            system.write(nodes[b"filler"], at * BLOCK, pattern(BLOCK))
    del nodes[b"filler"]
    with fails(errno.ENOSPC):
        scatter(10_000)
    nodes[b"f"] = source
    for name, node in nodes.items():
        system.setattr(node, size=rng.randrange(200) * BLOCK + 5)
        system.allocate(node, 3, 100, 90 * BLOCK)
        assert system.check(full.volume_id) == []
        system.unlink(ROOT_INODE, name)
        system.forget(node, 1)
    full.check()
    assert references(full) == []
    system.unlink(ROOT_INODE, b"filler")
    system.release_all()
    full.check()
    full.store.close()


def test_many_threads(pool: Pool) -> None:
    """Each change is one of the verbs on a few files that all threads share; the tree is sound afterwards."""
    nodes = [pool.create(b"f%d" % index, random_bytes(50 * BLOCK)) for index in range(4)]
    system = pool.file_system
    deadline = time.monotonic() + 2
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        rng = random.Random(seed)
        try:
            while time.monotonic() < deadline:
                source, target = rng.sample(nodes, 2)
                first, second, count = rng.randrange(60), rng.randrange(60), rng.randrange(1, 30)
                kind = rng.randrange(6)
                if kind < 3:
                    system.copy_range(source, first * BLOCK, target, second * BLOCK, count * BLOCK - kind)
                elif kind == 3:
                    system.write(target, first * BLOCK + rng.randrange(3), rng.randbytes(rng.randrange(3 * BLOCK)))
                elif kind == 4:
                    system.allocate(target, rng.choice([3, 0x10]), first * BLOCK + 5, count * BLOCK)
                else:
                    system.setattr(target, size=first * BLOCK + rng.choice([0, 9]))
                node = system.create_unnamed(ROOT_INODE, 0o600, 0, 0)[NODE]
                system.copy_range(source, 0, node, 0, 1 << 20)
                system.link(node, ROOT_INODE, b"t%d" % seed)
                system.unlink(ROOT_INODE, b"t%d" % seed)
                system.forget(node, 2)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert system.check(pool.volume_id) == []
