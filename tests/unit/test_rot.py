"""Rot: one bit of any block flipped. Whoever reads gets the right bytes or EIO, and scrub finds the block and says what
it belonged to."""

import contextlib
import errno
import random
import stat
import threading
import time
from collections.abc import Iterator

import pytest

from btree import Storage, Store
from cowfs._native import ROOT_INODE, FileSystem
from tests.unit.filesystem_pool import BLOCK, MODE, NODE, pattern

POOL_SIZE_BYTES = 16 << 20
BLOCKS = POOL_SIZE_BYTES // BLOCK
RING_SLOTS = 16
JOURNAL_BLOCKS = 256
BITMAP_BLOCK = RING_SLOTS + JOURNAL_BLOCKS

Content = dict[tuple[str, bytes], bytes]


class Image:
    """A closed pool with a volume, its snapshots, a clone, shared blocks and every kind of item."""

    def __init__(self, *, copies: int = 2) -> None:
        self.storage = Storage.open_memory(POOL_SIZE_BYTES)
        Store.format(self.storage, metadata_copies=copies, journal_size_bytes=JOURNAL_BLOCKS * BLOCK)
        with Store(self.storage, background=False) as store:
            self.volume_id = store.volume_create("main")
            FileSystem.initialize(store, self.volume_id, uid=0, gid=0)
            self.populate(store)
            self.content = read_all(store)
        self.bytes = self.storage.read(0, POOL_SIZE_BYTES)
        self.used = self.blocks_in_use()

    def populate(self, store: Store) -> None:
        files = FileSystem(store, self.volume_id)
        folder = ROOT_INODE
        for number in range(4):
            folder = files.create(folder, b"d%d" % number, stat.S_IFDIR | 0o755, 0, 0)[NODE]
            for index in range(12):
                node = files.create(folder, b"f%d" % index, stat.S_IFREG | 0o644, 0, 0)[NODE]
                files.write(node, 0, pattern(index * 1500, number * 100 + index))
                files.setxattr(node, b"user.x", pattern(300, index))
            files.copy_range(node, 0, files.create(folder, b"copy", stat.S_IFREG | 0o644, 0, 0)[NODE], 0, 3 * BLOCK)
            files.create(folder, b"link", stat.S_IFLNK | 0o777, 0, 0, 0, b"f1")
            snapshot = store.snapshot(self.volume_id, f"s{number}", sync=False)
            files.write(node, 0, pattern(2 * BLOCK, 7))
            store.checkpoint()
        store.clone(snapshot.id, "clone")
        files.unlink(folder, b"f3")
        files.release_all()
        store.snapshot_delete(store.snapshots(self.volume_id)[1].id)
        for _ in range(3):
            store.checkpoint()

    def blocks_in_use(self) -> list[int]:
        """Out of the bitmap page, the newer of its two copies."""
        pages = [self.bytes[(BITMAP_BLOCK + slot) * BLOCK :][:BLOCK] for slot in range(2)]
        newest = max(pages, key=lambda page: int.from_bytes(page[8:16], "little"))
        return [block for block in range(BLOCKS) if newest[32 + block // 8] >> block % 8 & 1]

    def damaged(self, block: int, bit: int) -> Storage:
        """The pool as it was closed, but for this bit."""
        content = bytearray(self.bytes)
        content[block * BLOCK + bit // 8] ^= 1 << bit % 8
        self.storage.write(0, content)
        return self.storage

    def storage_with(self, blocks: list[int], draw: random.Random) -> Storage:
        """The same with a drawn bit of each of these."""
        content = bytearray(self.bytes)
        for block in blocks:
            content[block * BLOCK + draw.randrange(BLOCK)] ^= 1 << draw.randrange(8)
        self.storage.write(0, content)
        return self.storage


def read_all(store: Store) -> Content:
    """What a user can read: every tree's every path. EIO where something cannot be read is content, too."""
    found: Content = {}
    for volume in store.volumes():
        try:
            files = FileSystem(store, volume.id, read_only=True)
            read_tree(files, volume.name, ROOT_INODE, found)
        except OSError as error:
            assert error.errno == errno.EIO, error
            found[volume.name, b""] = UNREADABLE
            files = FileSystem(store, store.volume_find("clone").id, read_only=True)
        for snapshot in store.snapshots(volume.id):
            tree = f"{volume.name}@{snapshot.name}"
            try:
                read_tree(files, tree, files.view_of_snapshot(snapshot.id), found)
            except OSError as error:
                assert error.errno == errno.EIO, error
                found[tree, b""] = UNREADABLE
    return found


UNREADABLE = b"EIO"


def read_tree(files: FileSystem, tree: str, root: int, found: Content) -> None:
    pending = [(b"", root)]
    while pending:
        path, node = pending.pop()
        try:
            entries = files.readdir(node, 0, 1000, False)
            found[tree, path] = b"".join(name + b"/" for name, _, _ in sorted(entries))
        except OSError as error:
            assert error.errno == errno.EIO, error
            found[tree, path] = UNREADABLE
            continue
        for name, _, attributes in entries:
            child, where = attributes[NODE], path + b"/" + name
            if stat.S_ISDIR(attributes[MODE]):
                pending.append((where, child))
                continue
            try:
                if stat.S_ISLNK(attributes[MODE]):
                    found[tree, where] = files.readlink(child)
                else:
                    found[tree, where] = files.read(child, 0, 1 << 20) + b"".join(
                        files.getxattr(child, name) for name in files.listxattr(child))
            except OSError as error:
                assert error.errno == errno.EIO, error
                found[tree, where] = UNREADABLE


def compare(found: Content, right: Content) -> int:
    """How much could not be read; nothing may be wrong, or missing without an unreadable directory above it."""
    unreadable = 0
    for where, content in right.items():
        if where not in found:
            tree, path = where
            while (tree, path) not in found:
                path = path.rpartition(b"/")[0]
            assert found[tree, path] == UNREADABLE, where
            unreadable += 1
        elif found[where] == UNREADABLE:
            unreadable += 1
        else:
            assert found[where] == content, where
    assert found.keys() <= right.keys()
    return unreadable


def scrub(store: Store, step_bytes: int = 64 << 10) -> tuple[dict[str, int], list[dict[str, object]]]:
    figures: dict[str, int] = {}
    damage: list[dict[str, object]] = []
    position = b""
    while True:
        position, step, found = store.scrub(position, step_bytes)
        for name, value in step.items():
            figures[name] = figures.get(name, 0) + value
        damage += found
        if step["finished"]:
            return figures, damage


@contextlib.contextmanager
def opened(storage: Storage, *, read_only: bool = False) -> Iterator[Store]:
    """Abandoned at the end: the next test of the same image writes it anew."""
    store = Store(storage, background=False, read_only=read_only)
    try:
        yield store
    finally:
        store.abandon()


@pytest.fixture(scope="module")
def image() -> Image:
    return Image()


@pytest.fixture(scope="module")
def single() -> Image:
    return Image(copies=1)


def test_scrub_reads_each_block_once(image: Image) -> None:
    image.storage.write(0, image.bytes)
    with opened(image.storage, read_only=True) as store:
        figures, damage = scrub(store)
        assert damage == [] and figures["damaged"] == 0
        # Inner nodes are read once in each step that goes through them, so: one step.
        position, step, _ = store.scrub(b"", 1 << 30)
        assert step["finished"] and 2 * step["nodes"] + step["data_blocks"] == len(image.used)
        assert store.scrub(position)[1]["bytes"] == 0


def check_block(store: Store, block: int, image: Image, copies: int) -> str:
    """Returns what kind of damage it was."""
    scrub(store)
    damage = [entry for entry in store.damages()[0] if entry["object_id"] or entry["kind"] == "node copy"]
    assert [entry["address"] for entry in damage] == [block], (block, damage)
    kind, key = str(damage[0]["kind"]), damage[0]["key"]
    assert damage[0]["repaired"] == (kind == "node copy")
    unreadable = compare(read_all(store), image.content)
    if kind == "data":
        assert unreadable and isinstance(key, bytes)
    else:
        assert kind == ("node copy" if copies == 2 else "node")
    if copies == 2 and kind != "data":
        assert not unreadable and scrub(store)[1] == []
    return kind


@pytest.mark.parametrize("copies", [1, 2])
def test_every_block_in_use(image: Image, single: Image, copies: int) -> None:
    """Each block of each tree, one drawn bit: nothing that is read is wrong, and scrub finds the block. With two copies
    of the metadata nothing but data can be lost, and scrub leaves no other damage."""
    pool = image if copies == 2 else single
    draw = random.Random(copies)
    kinds = {"data": 0, "node": 0, "node copy": 0, "refused": 0}
    for block in pool.used:
        storage = pool.damaged(block, draw.randrange(8 * BLOCK))
        try:
            with opened(storage) as store:
                FileSystem(store, store.volume_find("clone").id, read_only=True)
                kinds[check_block(store, block, pool, copies)] += 1
        except OSError as error:
            # What all depends on has no second copy: the pool, or the volume, cannot be opened, and that is said.
            assert copies == 1 and error.errno in (errno.EIO, errno.EUCLEAN), (block, error)
            kinds["refused"] += 1
    assert kinds["data"] > 100
    assert kinds["refused"] + kinds["node"] > 20 if copies == 1 else kinds["node copy"] > 40, kinds


def test_reading_repairs(image: Image) -> None:
    """Without a scrub: whoever reads finds it. First copies of nodes are written again, second ones not looked at."""
    draw = random.Random(3)
    repaired = 0
    for block in draw.sample(image.used, 120):
        with opened(image.damaged(block, draw.randrange(8 * BLOCK))) as store:
            unreadable = compare(read_all(store), image.content)
            kinds = {entry["kind"]: entry for entry in store.damages()[0]}
            if unreadable:
                assert int.from_bytes(kinds["read"]["key"][:8], "big") > 1
            elif kinds:
                assert kinds.keys() == {"node copy"} and kinds["node copy"]["repaired"]
                assert kinds["node copy"]["address"] == block
                repaired += 1
    assert repaired


def test_what_is_outside_the_trees(image: Image) -> None:
    """Superblocks, journal and bitmap pages, and all that is free: nothing is lost."""
    draw = random.Random(4)
    outside = set(range(BLOCKS)) - set(image.used)
    named = [*range(RING_SLOTS), *range(BLOCKS - RING_SLOTS, BLOCKS), BITMAP_BLOCK, BITMAP_BLOCK + 1]
    for block in [*named, *draw.sample(sorted(outside - set(named)), 40)]:
        with opened(image.damaged(block, draw.randrange(8 * BLOCK))) as store:
            assert compare(read_all(store), image.content) == 0, block
            scrub(store)
            store.checkpoint()
            assert scrub(store)[1] == [], block
            assert store.check() == [], block


@pytest.mark.parametrize("closed", [False, True], ids=["after a checkpoint", "after a clean unmount"])
def test_rot_in_the_journal_is_never_passed_over(closed: bool) -> None:
    """After a crash: a damaged group that was flushed before a later one keeps the pool from being opened for writing,
    instead of taking what was committed after it away unseen. Only the last group has nobody to tell of it. So it is
    in the first session after a clean unmount too, before its first checkpoint."""
    storage = Storage.open_memory(POOL_SIZE_BYTES)
    Store.format(storage, journal_size_bytes=JOURNAL_BLOCKS * BLOCK)
    store = Store(storage, background=False)
    volume_id = store.volume_create("main")
    if closed:
        store.close()
        store = Store(storage, background=False)
    else:
        store.checkpoint()
    for number in range(12):
        store.put(volume_id, b"key %d" % number, pattern(300, number))
        store.commit()
    store.abandon()
    image = storage.read(0, POOL_SIZE_BYTES)
    draw = random.Random(5)
    groups = [block for block in range(RING_SLOTS, BITMAP_BLOCK) if image[block * BLOCK :][:4] == b"CTJN"]
    last = max(groups, key=lambda block: int.from_bytes(image[block * BLOCK + 8 :][:8], "little"))
    refused = 0
    for block in groups:
        content = bytearray(image)
        content[block * BLOCK + draw.randrange(300)] ^= 1 << draw.randrange(8)
        storage.write(0, content)
        try:
            with opened(storage) as store:
                items = store.scan(volume_id)
                assert len(items) == (11 if block == last else 12)
        except OSError as error:
            assert error.errno == errno.EIO and "journal is damaged" in str(error) and block != last
            refused += 1
            with opened(storage, read_only=True) as store:
                assert store.damages()[0][0]["kind"] == "journal" and store.check() != []
            store = Store(storage, background=False, rebuild_space=True)
            assert len(store.scan(volume_id)) < 12
            store.close()
            with opened(storage) as store:
                assert store.check() == []
    assert refused > 8


def test_scrub_beside_changes_finds_nothing() -> None:
    """Writers, snapshots that come and go and checkpoints move everything while it is read: none of that is damage."""
    storage = Storage.open_memory(4 * POOL_SIZE_BYTES)
    Store.format(storage)
    store = Store(storage, commit_interval_ms=5)
    volume_id = store.volume_create("main")
    FileSystem.initialize(store, volume_id, uid=0, gid=0)
    files = FileSystem(store, volume_id)
    nodes = [files.create(ROOT_INODE, b"f%d" % index, stat.S_IFREG | 0o644, 0, 0)[NODE] for index in range(40)]
    stop = threading.Event()
    failures: list[BaseException] = []

    def change(seed: int) -> None:
        draw = random.Random(seed)
        try:
            while not stop.is_set():
                files.write(draw.choice(nodes), draw.randrange(100_000), pattern(draw.randrange(1, 30_000), seed))
                if seed == 0:
                    store.snapshot(volume_id, f"s{draw.random()}", sync=False)
                    for old in store.snapshots(volume_id)[:-6]:
                        store.snapshot_delete(old.id)
                if draw.randrange(20) == 0:
                    store.checkpoint()
        except BaseException as error:
            failures.append(error)
            stop.set()

    threads = [threading.Thread(target=change, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    rounds, least_s = 0, time.monotonic() + 1.5
    try:
        while not failures and (rounds < 3 or time.monotonic() < least_s):
            # Each step waits its turn among threads that are always busy in Python, too.
            figures, damage = scrub(store, 1 << 20)
            assert damage == [] and figures["damaged"] == 0
            rounds += 1
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == [] and rounds >= 3
    assert store.damages() == ([], 0)
    assert store.check(read_data=True) == []
    store.close()
