"""The deletion queue: bounded work in each checkpoint, taken up again after a crash, until all space is back."""

import random

import pytest

from btree import Storage, Store

POOL_SIZE_BYTES = 96 << 20
DIRTY_BYTES_MAX = 256 << 10
"""The least there is: a checkpoint makes about 682 steps then."""


def open_store(storage: Storage) -> Store:
    return Store(storage, dirty_bytes_max=DIRTY_BYTES_MAX, background=False)


def drain(storage: Storage, store: Store, *, crash: bool) -> tuple[Store, int]:
    """Checkpoints until the queue is empty; how many it took."""
    count = 0
    while store.statistics()["deletion_queue_length"]:
        store.checkpoint()
        count += 1
        if crash:
            store.abandon()
            store = open_store(storage)
            assert store.check() == []
        assert count < 500
    store.checkpoint()
    store.checkpoint()
    return store, count


@pytest.mark.parametrize("crash", [False, True])
def test_a_large_tree_is_walked_in_steps(crash: bool) -> None:
    storage = Storage.open_memory(POOL_SIZE_BYTES)
    Store.format(storage)
    store = open_store(storage)
    store.volume_create("stays")
    store.checkpoint()
    empty = store.statistics()["used_blocks"]
    volume = store.volume_create("goes")
    for number in range(18_000):
        store.write_extent(volume, b"%05d" % number, b"x")
    store.snapshot(volume, "s")
    store.checkpoint()
    assert store.statistics()["used_blocks"] > 18_000
    store.volume_destroy(volume)
    store.commit()
    store, count = drain(storage, store, crash=crash)
    # Opening after a crash writes checkpoints too.
    assert count > (1 if crash else 4), "it was done at once"
    assert store.statistics()["used_blocks"] <= empty + 20
    assert store.statistics()["dead_blocks"] == 0
    assert store.check() == []
    store.close()


@pytest.mark.parametrize("crash", [False, True])
@pytest.mark.parametrize("order", ["oldest", "newest", "random"])
def test_large_buckets_are_merged_in_steps(order: str, crash: bool) -> None:
    chance = random.Random(1)
    storage = Storage.open_memory(POOL_SIZE_BYTES)
    Store.format(storage)
    store = open_store(storage)
    volume = store.volume_create("main")
    snapshots = []
    for number in range(3000):
        store.write_extent(volume, b"%05d" % number, b"x")
    store.checkpoint()
    empty = store.statistics()["used_blocks"]
    for name in ("a", "b", "c"):
        snapshots.append(store.snapshot(volume, name).id)
        for number in chance.sample(range(3000), 2000):
            store.write_extent(volume, b"%05d" % number, b"y")
    store.checkpoint()
    if order == "newest":
        snapshots.reverse()
    elif order == "random":
        chance.shuffle(snapshots)
    for snapshot in snapshots:
        store.snapshot_delete(snapshot)
    store.commit()
    store, count = drain(storage, store, crash=crash)
    assert count > 2, "it was done at once"
    # The system tree, sparse after the merges, keeps some nodes.
    assert store.statistics()["used_blocks"] <= empty + 300
    assert store.statistics()["dead_blocks"] == 0
    assert store.check(read_data=True) == []
    store.close()
