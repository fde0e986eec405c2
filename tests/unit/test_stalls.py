"""No background work holds what requests need for more than a bounded number of steps, however much there is to do.
Counted in steps, not timed: a step is a node, a record, a dead entry, a snapshot (enum store_hold)."""

import threading
from collections.abc import Iterator

import pytest

from btree import Storage, Store

# checkpoint.c, BATCH_BYTES of nodes of 4 KiB; RESOLVE_NODES_MAX; RELEASE_NODES_MAX.
ENTER_STEPS_MAX = 256
RESOLVE_STEPS_MAX = 128
RELEASE_STEPS_MAX = 512
# maintenance.c: twice the GATHERED_…_MAX, and what one change adds.
DEAD_STEPS_MAX = 2 * 131_072 + 4096
RECORD_STEPS_MAX = 2 * 8192 + 64
CPU_MAX_NS = 1_000_000_000
"""Of one holding: far above what is promised, so that sanitizers and slow machines pass, far below work on all."""


@pytest.fixture
def store() -> Iterator[Store]:
    storage = Storage.open_memory(1 << 30)
    Store.format(storage)
    with Store(storage, background=False) as opened:
        yield opened


def keys(count: int) -> list[bytes]:
    return [b"%07d" % number for number in range(count)]


def check_bounds(store: Store) -> None:
    holds = store.stalls()["holds"]
    assert holds["enter"]["steps_max"] <= ENTER_STEPS_MAX
    assert holds["resolve"]["steps_max"] <= RESOLVE_STEPS_MAX
    assert holds["release"]["steps_max"] <= RELEASE_STEPS_MAX
    assert holds["freeze"]["steps_max"] <= RECORD_STEPS_MAX
    assert holds["delete"]["steps_max"] <= DEAD_STEPS_MAX
    for name, hold in holds.items():
        assert hold["cpu_max_ns"] < CPU_MAX_NS, name


def test_a_checkpoint_with_very_many_unwritten_nodes(store: Store) -> None:
    volume = store.volume_create("main")
    many = keys(200_000)
    store.bulk_load(volume, ((key, b"v" * 100) for key in many))
    store.checkpoint()
    before = store.stalls()["holds"]
    written = store.statistics()["nodes_written"]
    store.bulk_load(volume, ((key, b"w" * 100) for key in many[::25]))
    assert store.statistics()["dirty_bytes"] > 4000 * 4096
    store.checkpoint()
    nodes = store.statistics()["nodes_written"] - written
    after = store.stalls()["holds"]
    assert nodes > 4000
    for name, steps_max in (("enter", ENTER_STEPS_MAX), ("release", RELEASE_STEPS_MAX)):
        assert after[name]["count"] - before[name]["count"] >= nodes // steps_max, f"{name}: in how many holdings"
    check_bounds(store)
    assert store.check() == []


def test_changes_beside_checkpoints(store: Store) -> None:
    """Nodes that are copied while a checkpoint runs have pointers to be resolved at its end, some of them beside the
    foreground."""
    volume = store.volume_create("main")
    many = keys(100_000)
    expected = dict.fromkeys(many, b"v" * 100)
    store.bulk_load(volume, expected.items())
    store.checkpoint()
    ended = threading.Event()

    def write_checkpoints() -> None:
        while not ended.is_set():
            store.checkpoint()

    thread = threading.Thread(target=write_checkpoints)
    thread.start()
    try:
        for round_number in range(60):
            changes: list[tuple[bytes, bytes | None]] = []
            for key in many[round_number % 7 :: 211]:
                value = b"%07d" % round_number * 14
                expected[key] = value
                changes.append((key, value))
            # A third of a stretch goes, and comes back: neighbours are joined and split, inner nodes too.
            stretch = many[round_number * 1000 : round_number * 1000 + 4000]
            for start in range(0, len(stretch), 400):
                store.apply(volume, [(key, None) for key in stretch[start : start + 400]])
            for start in range(0, len(stretch), 400):
                store.apply(volume, [(key, expected[key]) for key in stretch[start : start + 400]])
            for start in range(0, len(changes), 400):
                store.apply(volume, changes[start : start + 400])
    finally:
        ended.set()
        thread.join()
    assert store.stalls()["holds"]["resolve"]["count"] > 0
    check_bounds(store)
    assert dict(store.scan(volume)) == expected
    assert store.check() == []


def test_deleting_a_snapshot_with_very_many_dead_entries(store: Store) -> None:
    volume = store.volume_create("main")
    many = keys(400_000)
    for start in range(0, len(many), 400):
        store.apply(volume, [(key, b"v" * 8) for key in many[start : start + 400]])
    for number in range(6000):
        store.write_extent(volume, b"x%07d" % number, b"data")
    snapshot = store.snapshot(volume, "a", sync=False)
    for number in range(6000):
        store.write_extent(volume, b"x%07d" % number, b"other")
    dead = store.statistics()["dead_blocks"]
    assert dead >= 6000
    store.snapshot_delete(snapshot.id)
    assert store.stalls()["holds"]["delete"]["steps_max"] > 6000, "in memory, and handed over at once"
    store.checkpoint()
    while store.statistics()["deletion_queue_length"]:
        store.checkpoint()
    check_bounds(store)
    assert store.check() == []


def test_dead_entries_in_memory_are_bounded(store: Store) -> None:
    """A checkpoint takes them long before they are as many as the memory for unwritten nodes would hold."""
    volume = store.volume_create("main")
    names = [b"x%07d" % number for number in range(2000)]
    for name in names:
        store.write_extent(volume, name, b"data")
    checkpoints = store.statistics()["checkpoints"]
    for number in range(140):
        store.snapshot(volume, f"s{number}", sync=False)
        for name in names[:1000]:
            store.write_extent(volume, name, b"other")
    assert store.statistics()["checkpoints"] > checkpoints, "140,000 dead entries, 3 MiB"
    check_bounds(store)


def test_records_in_memory_are_bounded(store: Store) -> None:
    volume = store.volume_create("main")
    for number in range(40_000):
        store.put(volume, b"key", b"%d" % number)
        store.snapshot(volume, f"s{number}", sync=False)
    for info in store.snapshots(volume)[::3]:
        store.snapshot_delete(info.id)
    store.checkpoint()
    assert store.statistics()["checkpoints"] >= 5
    assert store.snapshot_find(volume, "s39998").id and len(store.snapshots(volume)) == 26_666
    check_bounds(store)
    assert store.check() == []


def test_who_is_quicker_than_the_checkpoint_waits_in_parts() -> None:
    storage = Storage.open_memory(1 << 30)
    Store.format(storage)
    with Store(storage, dirty_bytes_max=256 << 10) as store:
        volume = store.volume_create("main")
        number = 0
        while store.stalls()["waits"]["unwritten"]["count"] < 20:
            store.put(volume, b"%07d" % (number * 7919 % 1_000_003), b"v" * 100)
            number += 1
            assert number < 5_000_000, "never had to wait"
        assert store.statistics()["dirty_bytes"] < 4 * (256 << 10)
        check_bounds(store)
        assert store.stalls()["waits"]["unwritten"]["waited_max_ns"] > 0


def test_figures() -> None:
    storage = Storage.open_memory(64 << 20)
    Store.format(storage)
    with Store(storage, background=False) as store:
        stalls = store.stalls()
        assert set(stalls) == {"holds", "waits"}
        for hold in stalls["holds"].values():
            assert set(hold) == {"count", "steps_max", "held_max_ns", "cpu_max_ns"}
        for wait in stalls["waits"].values():
            assert wait == {"count": 0, "waited_max_ns": 0}
        store.volume_create("main")
        store.checkpoint()
        freeze = store.stalls()["holds"]["freeze"]
        assert freeze["count"] == 1
        assert freeze["cpu_max_ns"] > 0 and freeze["held_max_ns"] > 0 and freeze["steps_max"] > 0
