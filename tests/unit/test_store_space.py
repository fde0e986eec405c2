"""What destroying snapshots would free, against what destroying them does free: ranges, arbitrary sets, clones, chains
that rollbacks left, with and without a deletion queue that is still to be worked off."""

import errno
import random

import pytest

from btree import Storage, Store
from tests.unit.store_helpers import NO_SUCH_ID, expect_errno

POOL_SIZE_BYTES = 64 << 20


def open_store(*, copies: int = 1) -> tuple[Storage, Store]:
    storage = Storage.open_memory(POOL_SIZE_BYTES)
    Store.format(storage, metadata_copies=copies)
    return storage, Store(storage, background=False)


def settle(store: Store) -> int:
    """Blocks in trees of volumes and snapshots, when nothing is left to be done. The system tree's nodes are in it:
    each time it is measured it is as compact as the one before."""
    for _ in range(6):
        store.checkpoint()
    assert store.statistics()["deletion_queue_length"] == 0
    return int(store.statistics()["used_blocks"])


def write(store: Store, volume: int, chance: random.Random, count: int) -> None:
    for _ in range(count):
        store.write_extent(volume, b"x%03d" % chance.randrange(100), b"x" * chance.choice([1, 5000, 20000]))
        store.put(volume, b"k%03d" % chance.randrange(300), chance.randbytes(400))


def freed_by_deleting(store: Store, ids: list[int], system_nodes: int) -> tuple[int, int]:
    """Lower and upper bound of what came free of the volumes' own: the system tree itself may have shrunk or grown by
    some nodes."""
    before = settle(store)
    for snapshot_id in ids:
        store.snapshot_delete(snapshot_id)
    after = settle(store)
    return before - after - system_nodes, before - after + system_nodes


@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("seed", range(6))
def test_any_set_of_a_volume_with_clones_and_rollbacks(seed: int, copies: int) -> None:
    """dead_blocks counts what is in buckets, so for a live chain it falls by exactly what is freed; in all, the answer
    must be what the space shows, but for the nodes of the system tree, of which there are few here."""
    chance = random.Random(seed)
    storage, store = open_store(copies=copies)
    volumes = [store.volume_create("main")]
    for step in range(40):
        volume = chance.choice(volumes)
        write(store, volume, chance, chance.randrange(8))
        own = store.snapshots(volume)
        action = chance.random()
        if action < 0.1 and own and len(volumes) < 4:
            volumes.append(store.clone(chance.choice(own).id, f"clone{step}"))
        elif action < 0.2 and own:
            store.rollback(volume, chance.choice(own).id, f"guard{step}")
        elif action < 0.3 and own:
            store.snapshot_delete(chance.choice(own).id)
        elif action < 0.4:
            store.checkpoint()
        elif action < 0.5 and store.volume_get(volume).origin_snapshot_id:
            store.promote(volume)
        store.snapshot(volume, f"s{step}")
    for volume in volumes:
        write(store, volume, chance, 3)
    while ids := [each.id for volume in volumes for each in store.snapshots(volume)]:
        chosen = chance.sample(ids, min(len(ids), chance.choice([1, 2, 5, 12, len(ids)])))
        if chance.random() < 0.3:
            chosen = ids[: len(chosen)]
        told = store.snapshots_space(chosen)
        unique = store.snapshots_unique(chosen)
        if len(chosen) == 1:
            assert unique == [told]
        assert sum(each or 0 for each in unique) <= told
        chance.shuffle(chosen)
        low, high = freed_by_deleting(store, chosen, 12 * copies)
        assert low <= told <= high, (len(chosen), told)
        assert store.check() == []
    store.close()
    storage.close()


def test_a_live_chain_to_the_block() -> None:
    chance = random.Random(3)
    _, store = open_store(copies=2)
    volume = store.volume_create("main")
    snapshots = []
    for number in range(60):
        write(store, volume, chance, 5)
        snapshots.append(store.snapshot(volume, f"s{number}").id)
        if number % 7 == 0:
            store.checkpoint()
    write(store, volume, chance, 50)
    for chosen in (snapshots[10:20], snapshots[3:40:3], [snapshots[55], snapshots[0]], snapshots[30:]):
        present = [each for each in chosen if each in {found.id for found in store.snapshots(volume)}]
        told = store.snapshots_space(present)
        before = store.statistics()["dead_blocks"]
        for snapshot_id in present:
            store.snapshot_delete(snapshot_id)
        # Once with the merges still queued.
        left = [each.id for each in store.snapshots(volume)]
        again = store.snapshots_space(left)
        for _ in range(6):
            store.checkpoint()
        assert before - store.statistics()["dead_blocks"] == told
        assert store.snapshots_space(left) == again
    store.close()


def test_a_set_frees_more_than_its_parts() -> None:
    _, store = open_store()
    volume = store.volume_create("main")
    store.write_extent(volume, b"x", b"x" * 4096 * 10)
    first, second = (store.snapshot(volume, name).id for name in ("first", "second"))
    store.delete_extent(volume, b"x")
    store.checkpoint()
    alone = store.snapshots_unique([first, second])
    assert store.snapshots_space([first, second]) >= 10 + sum(each or 0 for each in alone)
    assert store.snapshots_space([]) == 0
    clone = store.clone(first, "clone")
    assert store.snapshots_space([first]) == 0
    assert store.snapshots_space([first, second]) < 10
    store.volume_destroy(clone)
    assert store.snapshots_space([first, second]) >= 10
    expect_errno(errno.ENOENT, store.snapshots_space, [NO_SUCH_ID])
    assert store.snapshots_unique([NO_SUCH_ID]) == [None]
    store.close()


def test_written() -> None:
    _, store = open_store()
    volume = store.volume_create("main")
    ids = []
    for count in (30, 0, 2):
        for number in range(count):
            store.write_extent(volume, b"x%d" % number, b"x" * 4096 * 3)
        store.put(volume, b"plain", b"%d" % count)
        ids.append(store.snapshot(volume, f"s{count}").id)
    assert [store.snapshot_written(each, 1000) for each in ids] == [90, 0, 6]
    assert store.snapshot_written(ids[0], 10) is None
    store.rollback(volume, ids[0], "guard")
    store.write_extent(volume, b"y", b"y" * 4096)
    assert store.snapshot_written(store.snapshot(volume, "after").id, 1000) == 1
    store.snapshot_delete(ids[1])
    assert store.snapshot_written(ids[2], 1000) == 6
    expect_errno(errno.ENOENT, store.snapshot_written, NO_SUCH_ID, 10)
    store.close()
