"""Full pools: filled in every way, emptied again whatever snapshots pin, and what statfs promises about them."""

import contextlib
import errno
import os
import random
from collections.abc import Iterator

import pytest

from btree import Store
from cowfs._native import ROOT_INODE, FileSystem
from cowfs.compression import Compression
from tests.unit.filesystem_pool import BLOCK, NODE, SIZE, Pool, fails

SEED = int(os.environ.get("COWFS_TEST_SEED", "1"))
SIZE_BYTES = 24 << 20
CONTENT_LENGTHS = {"large": 1 << 20, "block": BLOCK, "inline": 200, "empty": 0}


@contextlib.contextmanager
def until_full() -> Iterator[None]:
    with fails(errno.ENOSPC):
        yield


def small_pool(size_bytes: int = SIZE_BYTES, **format_options: int) -> Pool:
    pool = Pool(size_bytes)
    if format_options:
        pool.store.close()
        Store.format(pool.storage, **format_options)
        pool.store = Store(pool.storage, background=False)
        pool.volume_id = pool.store.volume_create("main")
        FileSystem.initialize(pool.store, pool.volume_id, uid=0, gid=0)
        pool.mount()
    return pool


class Filler:
    """Makes files until there is no room, and snapshots while it does so."""

    def __init__(self, pool: Pool, content: int | bytes, snapshot_every: int) -> None:
        """Of each file the content, or its length."""
        self.pool = pool
        self.names: list[bytes] = []
        self.snapshots: list[int] = []
        content = random.Random(SEED).randbytes(content) if isinstance(content, int) else content
        with until_full():
            while True:
                name = b"file %d" % len(self.names)
                node = pool.file_system.create(ROOT_INODE, name, 0o100644, 0, 0)[NODE]
                self.names.append(name)
                try:
                    if content:
                        pool.file_system.write(node, 0, content)
                finally:
                    pool.file_system.forget(node, 1)
                if len(self.names) % snapshot_every == 0:
                    self.snapshot()
        self.snapshot()

    def snapshot(self) -> None:
        try:
            self.snapshots.append(self.pool.store.snapshot(self.pool.volume_id, f"{len(self.snapshots)}").id)
        except OSError as error:
            assert error.errno == errno.ENOSPC  # it would pin what then could not be deleted any more

    def unlink_all(self, checkpoint_every: int, chance: random.Random | None = None) -> None:
        if chance:
            chance.shuffle(self.names)
        for count, name in enumerate(self.names):
            self.pool.file_system.unlink(ROOT_INODE, name)
            if checkpoint_every and count % checkpoint_every == 0:
                self.pool.store.checkpoint()


def destroy_snapshots(pool: Pool, snapshots: list[int], chance: random.Random) -> None:
    chance.shuffle(snapshots)
    for snapshot in snapshots:
        pool.store.snapshot_delete(snapshot)
        if chance.random() < 0.1:
            pool.store.checkpoint()
    for _ in range(1000):
        pool.store.checkpoint()
        if not pool.store.statistics()["deletion_queue_length"]:
            break
    pool.store.checkpoint()
    assert pool.store.statistics()["failed_errno"] == 0


def assert_emptied(pool: Pool, free_before: int) -> None:
    assert pool.names() == []
    assert pool.store.statistics()["free_blocks"] >= free_before - 16
    pool.check()


@pytest.mark.parametrize("kind", CONTENT_LENGTHS)
@pytest.mark.parametrize(("order", "checkpoint_every"), [("made", 0), ("random", 0), ("random", 3)])
def test_everything_can_be_deleted_while_snapshots_hold_it(kind: str, order: str, checkpoint_every: int) -> None:
    chance = random.Random(SEED)
    pool = small_pool()
    free_before = pool.store.statistics()["free_blocks"]
    filler = Filler(pool, CONTENT_LENGTHS[kind], snapshot_every=5 if kind == "large" else 200)
    assert filler.snapshots
    filler.unlink_all(checkpoint_every, chance if order == "random" else None)
    pool.store.checkpoint()
    destroy_snapshots(pool, filler.snapshots, chance)
    assert_emptied(pool, free_before)
    pool.store.close()


@pytest.mark.parametrize(
    "options", [{"node_size_bytes": 16384}, {"metadata_copies": 1}, {"journal_size_bytes": 1 << 20}]
)
def test_the_same_in_other_formats(options: dict[str, int]) -> None:
    chance = random.Random(SEED)
    pool = small_pool(**options)
    free_before = pool.store.statistics()["free_blocks"]
    filler = Filler(pool, BLOCK, snapshot_every=150)
    filler.unlink_all(5, chance)
    destroy_snapshots(pool, filler.snapshots, chance)
    assert_emptied(pool, free_before)
    pool.store.close()


def test_a_pool_that_was_closed_full_is_emptied_after_opening() -> None:
    """What is set aside is known again from the medium."""
    chance = random.Random(SEED)
    pool = small_pool()
    free_before = pool.store.statistics()["free_blocks"]
    filler = Filler(pool, 0, snapshot_every=300)
    for crash in (True, False):
        available = pool.store.statistics()["available_blocks"]
        if crash:
            pool.crash()
        else:
            pool.store.close()
            pool.store = Store(pool.storage, background=False)
        pool.mount()
        assert abs(pool.store.statistics()["available_blocks"] - available) < 200
    filler.unlink_all(7, chance)
    destroy_snapshots(pool, filler.snapshots, chance)
    assert_emptied(pool, free_before)
    pool.store.close()


@pytest.mark.parametrize("new_length", [0, BLOCK])
def test_everything_can_be_truncated_while_snapshots_hold_it(new_length: int) -> None:
    pool = small_pool()
    filler = Filler(pool, 3 * BLOCK, snapshot_every=200)
    for name in filler.names:
        truncate(pool, name, new_length)
    filler.unlink_all(10)
    destroy_snapshots(pool, filler.snapshots, random.Random(SEED))
    pool.check()
    pool.store.close()


@pytest.mark.parametrize("compression", [Compression(0), Compression(1)], ids=["plain", "compressed"])
def test_everything_can_be_truncated_to_within_a_block(compression: Compression) -> None:
    """Its rest is zeroed in a new place as long as there is one; then it stays until the file grows again."""
    pool = small_pool()
    pool.file_system.set_compression(pool.volume_id, *compression)
    chance = random.Random(SEED)
    content = chance.randbytes(6 * BLOCK) + bytes(2 * BLOCK) if compression.algorithm else chance.randbytes(3 * BLOCK)
    filler = Filler(pool, content, snapshot_every=200)
    if pool.file_system.lookup(ROOT_INODE, filler.names[-1])[SIZE] != len(content):
        pool.file_system.unlink(ROOT_INODE, filler.names.pop())  # there was no room for its content
    lengths = {name: chance.choice([1, BLOCK, BLOCK + 1, 2 * BLOCK - 1]) for name in filler.names}
    uncut = 0
    for name in filler.names:
        truncate(pool, name, lengths[name])
        uncut += is_uncut(pool, name)
    assert uncut > 20
    pool.crash()
    pool.mount()
    pool.check()
    for name in filler.names:
        node = pool.file_system.lookup(ROOT_INODE, name)[NODE]
        assert pool.content(node) == content[: lengths[name]]
        pool.file_system.forget(node, 1)
    destroy_snapshots(pool, filler.snapshots, chance)
    for name in filler.names:
        truncate(pool, name, 2 * BLOCK)
        node = pool.file_system.lookup(ROOT_INODE, name)[NODE]
        assert pool.content(node) == content[: lengths[name]].ljust(2 * BLOCK, b"\0")
        assert not is_uncut(pool, name)
        pool.file_system.forget(node, 1)
    pool.check()
    filler.unlink_all(10)
    pool.store.close()


def is_uncut(pool: Pool, name: bytes) -> bool:
    """docs/FORMAT.md, flags of an inode."""
    node = pool.file_system.lookup(ROOT_INODE, name)[NODE]
    item = pool.store.get(pool.volume_id, node.to_bytes(8, "big") + b"\x01")
    pool.file_system.forget(node, 1)
    assert item is not None
    return bool(int.from_bytes(item[88:92], "little") & 4096)


def test_files_that_are_unlinked_while_open_go_with_their_last_close() -> None:
    """Not only at the next mount, however full the pool is and whatever snapshots hold."""
    pool = small_pool()
    filler = Filler(pool, 40 * BLOCK, snapshot_every=10)
    nodes = [pool.file_system.lookup(ROOT_INODE, name)[NODE] for name in filler.names]
    filler.unlink_all(3, random.Random(SEED))
    assert len(pool.orphans()) == len(nodes)
    for node in nodes:
        pool.file_system.forget(node, 1)
    assert pool.orphans() == []
    destroy_snapshots(pool, filler.snapshots, random.Random(SEED))
    pool.check()
    pool.store.close()


def truncate(pool: Pool, name: bytes, length: int) -> None:
    node = pool.file_system.lookup(ROOT_INODE, name)[NODE]
    try:
        pool.file_system.setattr(node, size=length)
    finally:
        pool.file_system.forget(node, 1)


def test_full_of_attributes() -> None:
    pool = small_pool()
    node = pool.create(b"file")
    snapshot = pool.store.snapshot(pool.volume_id, "early")
    names = [b"user.%d" % number for number in range(10_000)]
    with until_full():
        for name in names:
            pool.file_system.setxattr(node, name, random.Random(SEED).randbytes(60_000))
    present = pool.file_system.listxattr(node)
    assert len(present) > 100
    for name in present:
        pool.file_system.removexattr(node, name)
    pool.store.snapshot_delete(snapshot.id)
    assert pool.file_system.listxattr(node) == []
    pool.check()
    pool.store.close()


def test_full_of_snapshots() -> None:
    """Each with a change of its own, deleted from the middle outwards."""
    pool = small_pool(16 << 20)
    free_before = pool.store.statistics()["free_blocks"]
    node = pool.create(b"file", os.urandom(64 * BLOCK))
    snapshots: list[int] = []
    with until_full():
        while True:
            pool.file_system.write(node, len(snapshots) % 64 * BLOCK, os.urandom(BLOCK))
            snapshots.append(pool.store.snapshot(pool.volume_id, f"s{len(snapshots)}").id)
    assert len(snapshots) > 200
    pool.file_system.unlink(ROOT_INODE, b"file")
    pool.file_system.forget(node, 1)
    destroy_snapshots(pool, snapshots, random.Random(SEED))
    assert_emptied(pool, free_before)
    pool.store.close()


def test_full_of_shared_blocks() -> None:
    """Copies that share blocks cost items only; then each of them is changed until nothing is shared any more."""
    pool = small_pool()
    length = 32 * BLOCK
    source = pool.create(b"source", os.urandom(length))
    pool.store.snapshot(pool.volume_id, "s")
    names: list[bytes] = []
    with until_full():
        while True:
            copy = pool.create(b"copy %d" % len(names))
            names.append(b"copy %d" % len(names))
            pool.file_system.copy_range(source, 0, copy, 0, length)
            pool.file_system.forget(copy, 1)
            if len(names) > 100:
                pool.file_system.write(pool.file_system.lookup(ROOT_INODE, names[-100])[NODE], 0, os.urandom(length))
    assert len(names) > 150
    for name in names:
        pool.file_system.unlink(ROOT_INODE, name)
    pool.file_system.release_all()
    pool.store.snapshot_delete(pool.store.snapshot_find(pool.volume_id, "s").id)
    for _ in range(3):
        pool.store.checkpoint()
    assert pool.names() == [b"source"]
    pool.check()
    pool.store.close()


@pytest.mark.parametrize("with_snapshot", [False, True])
def test_what_statfs_promises_can_be_written(with_snapshot: bool) -> None:
    """In one large file: what its items take is all that is missing."""
    pool = small_pool(64 << 20)
    block_size, blocks, free, available, _ = pool.file_system.statfs()
    assert free <= blocks and blocks - available < blocks / 16
    node = pool.create(b"file")
    if with_snapshot:
        pool.file_system.write(node, 0, os.urandom(available // 2 * block_size))
        pool.store.snapshot(pool.volume_id, "s")
        pool.store.checkpoint()
        available = pool.file_system.statfs()[3]
    size = written = pool.file_system.getattr(node)[6]
    with until_full():
        while True:
            written += pool.file_system.write(node, written, os.urandom(BLOCK * 8))
    assert (written - size) // block_size >= available * 98 // 100
    assert pool.file_system.statfs()[3] <= available // 50
    pool.check()
    pool.store.close()


GROWN_END = 30 * BLOCK + 50


def grow(pool: Pool, node: int, kept: int, how: str) -> bytes:
    """Makes the file longer; what it then has behind the first `kept` bytes, of which zero_range takes the last 100."""
    file_system = pool.file_system
    zeros = bytes(GROWN_END - kept)
    match how:
        case "size":
            file_system.setattr(node, size=GROWN_END)
        case "append":
            file_system.write(node, kept, b"x" * 10)
            return b"x" * 10
        case "far":
            file_system.write(node, GROWN_END - 10, b"x" * 10)
            return zeros[:-10] + b"x" * 10
        case "allocate":
            file_system.allocate(node, 0, 0, GROWN_END)
        case "zero_range":
            file_system.allocate(node, 0x10, kept - 100, GROWN_END - kept + 100)
        case "copy_to":
            source = pool.create(b"source of %d" % node, b"y" * BLOCK)
            assert file_system.copy_range(source, 0, node, 31 * BLOCK, BLOCK) == BLOCK
            return bytes(31 * BLOCK - kept) + b"y" * BLOCK
        case "shrink":
            file_system.setattr(node, size=kept - 10)
            file_system.setattr(node, size=kept)
            file_system.setattr(node, size=GROWN_END)
            return zeros
    return zeros


@pytest.mark.parametrize("compression", [Compression(0), Compression(1)], ids=["plain", "compressed"])
def test_what_was_not_cut_never_shows(compression: Compression) -> None:
    """However a file grows that was made shorter while the pool was full, and however it is copied."""
    pool = small_pool()
    pool.file_system.set_compression(pool.volume_id, *compression)
    chance = random.Random(SEED)
    content = b"".join(chance.randbytes(3000) + bytes(1096) for _ in range(32))
    # An extent that is not compressed is cut between blocks without any room.
    lengths = [BLOCK * 25 + 100] + ([BLOCK * 27] if compression.algorithm else [])
    ways = ["size", "append", "far", "allocate", "zero_range", "copy_to", "shrink"]
    # Now and then a checkpoint has made just the room that one takes: there are three of each kind.
    victims = [(b"%s %d %d" % (how.encode(), kept, which), kept, how)
               for kept in lengths for how in ways for which in range(3)]  # fmt: skip
    others = [b"other %d" % number for number in range(1200)]
    for name, length in [(victim[0], len(content)) for victim in victims] + [(other, 3 * BLOCK) for other in others]:
        pool.file_system.forget(pool.create(name, content[:length]), 1)
    snapshot = pool.store.snapshot(pool.volume_id, "s").id
    noise = pool.create(b"noise")
    with until_full():
        for offset in range(0, SIZE_BYTES, BLOCK):
            pool.file_system.write(noise, offset, chance.randbytes(BLOCK))
    left = iter(others)
    for name, kept, _ in victims:
        for other in left:  # which takes what checkpoints have made of room
            truncate(pool, other, BLOCK + 1)
            if is_uncut(pool, other):
                break
        truncate(pool, name, kept)
    victims = [victim for victim in victims if is_uncut(pool, victim[0])]
    assert {(kept, how) for _, kept, how in victims} == {(kept, how) for kept in lengths for how in ways}
    pool.file_system.setattr(noise, size=0)
    destroy_snapshots(pool, [snapshot], chance)
    for name, kept, how in victims:
        node = pool.file_system.lookup(ROOT_INODE, name)[NODE]
        copy = pool.create(b"copy of " + name)
        assert pool.file_system.copy_range(node, 0, copy, 0, 1 << 20) == kept
        pool.file_system.setattr(copy, size=GROWN_END)
        assert pool.content(copy) == content[:kept].ljust(GROWN_END, b"\0"), name
        assert is_uncut(pool, name)
        expected = content[:kept]
        if how == "zero_range":
            expected = content[: kept - 100] + bytes(100)
        if how == "shrink":
            expected = content[: kept - 10] + bytes(10)
        expected += grow(pool, node, kept, how)
        assert pool.content(node) == expected, name
        assert not is_uncut(pool, name)
        pool.crash()
        pool.mount()
        assert pool.content(pool.file_system.lookup(ROOT_INODE, name)[NODE]) == expected, name
    pool.check()
    pool.store.close()
