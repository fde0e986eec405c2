"""Promotion in the store: whose snapshots are changes, and nothing else does."""

import errno
import random

import pytest

from btree import Storage, Store
from tests.unit.filesystem_pool import fails


def reopened(storage: Storage, store: Store, *, clean: bool) -> Store:
    if clean:
        store.close()
    else:
        store.commit()
        store.abandon()
    return Store(storage, background=False)


def names(store: Store, volume_id: int) -> list[str]:
    return [snapshot.name for snapshot in store.snapshots(volume_id)]


@pytest.mark.parametrize("first", ["clone", "origin"])
@pytest.mark.parametrize("clean", [True, False])
def test_either_volume_may_go_first(first: str, clean: bool) -> None:
    storage = Storage.open_memory(64 << 20)
    Store.format(storage)
    store = Store(storage, background=False)
    main = store.volume_create("main")
    for number in range(4):
        for key in range(200):
            store.put(main, f"{key:04}".encode(), bytes([number]) * 200)
        store.snapshot(main, f"s{number}")
    clone = store.clone(store.snapshot_find(main, "s1").id, "clone")
    for key in range(100):
        store.put(clone, f"{key:04}".encode(), b"clone")
    store.snapshot(clone, "k")
    store.promote(clone)
    assert names(store, clone) == ["s0", "s1", "k"] and names(store, main) == ["s2", "s3"]
    with fails(errno.EINVAL):
        store.promote(clone)
    store = reopened(storage, store, clean=clean)
    assert names(store, clone) == ["s0", "s1", "k"] and names(store, main) == ["s2", "s3"]
    assert store.volume_get(main).origin_snapshot_id == store.snapshot_find(clone, "s1").id
    assert store.snapshot_find(clone, "s1").clone_count == 0
    gone, left = (clone, main) if first == "clone" else (main, clone)
    store.volume_destroy(gone)
    assert store.get(left, b"0000") == (b"clone" if left == clone else bytes([3]) * 200)
    store.checkpoint()
    store.checkpoint()
    assert store.check() == []
    store = reopened(storage, store, clean=clean)
    for snapshot in store.snapshots(left):
        assert store.get(snapshot.id, b"0150") is not None
        store.snapshot_delete(snapshot.id)
    store.volume_destroy(left)
    for _ in range(3):
        store.checkpoint()
    assert store.check() == []
    assert store.statistics()["dead_blocks"] == 0
    store.close()


def test_promotion_at_random() -> None:
    """Trees of clones with rollbacks, promotions, deletions and crashes: each object keeps its content, and in the end
    nothing is left of any."""
    for seed in range(12):
        chooser = random.Random(seed)
        storage = Storage.open_memory(64 << 20)
        Store.format(storage)
        store = Store(storage, background=False)
        volumes = {store.volume_create("main"): b""}
        snapshots: dict[int, bytes] = {}
        for step in range(150):
            volume = chooser.choice(sorted(volumes))
            action = chooser.randrange(10)
            if action < 3:
                volumes[volume] = f"{seed}-{step}".encode()
                store.apply(volume, [(f"{key:03}".encode(), volumes[volume] * 20) for key in range(60)])
            elif action == 3:
                if volumes[volume]:
                    snapshots[store.snapshot(volume, f"s{step}", sync=False).id] = volumes[volume]
            elif action == 4 and snapshots:
                origin = chooser.choice(sorted(snapshots))
                volumes[store.clone(origin, f"v{step}")] = snapshots[origin]
            elif action == 5 and snapshots:
                gone = chooser.choice(sorted(snapshots))
                store.snapshot_delete(gone)
                del snapshots[gone]
            elif action == 6:
                own = [one.id for one in store.snapshots(volume)]
                if own:
                    target = chooser.choice(own)
                    snapshots[store.rollback(volume, target, f"g{step}").id] = volumes[volume]
                    volumes[volume] = snapshots[target]
            elif action == 7 and len(volumes) > 1 and chooser.random() < 0.5:
                for one in store.snapshots(volume):
                    del snapshots[one.id]
                store.volume_destroy(volume)
                del volumes[volume]
            elif action == 8:
                try:
                    store.promote(volume)
                except OSError as error:
                    assert error.errno == errno.EINVAL
            elif action == 9 and chooser.random() < 0.4:
                if chooser.random() < 0.5:
                    store.checkpoint()
                store = reopened(storage, store, clean=chooser.random() < 0.3)
        assert {one.id for volume in volumes for one in store.snapshots(volume)} == set(snapshots)
        for thing, content in [*volumes.items(), *snapshots.items()]:
            assert store.get(thing, b"030") == (content * 20 if content else None)
        store.checkpoint()
        assert store.check() == []
        for volume in chooser.sample(sorted(volumes), len(volumes)):
            store.volume_destroy(volume)
        for _ in range(4):
            store.checkpoint()
        assert store.check() == []
        assert store.statistics()["dead_blocks"] == 0
        store.close()
