"""The C store against its twin: hypothesis looks for short counterexamples, seeded random runs go long.

A failing random run prints its seed; COWFS_SEED=<seed> runs that one again.
"""

import os
import random
import secrets
from collections.abc import Iterator

import hypothesis
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.model.store_pair import Configuration, Pair

NODE_SIZES_BYTES = [4096, 8192, 16384]
STEPS_PER_SEED = 1000
SEEDS_PER_CONFIGURATION = 2


# ---- hypothesis

# Few keys, of very different lengths and with long common prefixes.
KEYS = st.one_of(
    st.integers(0, 40).map(lambda number: b"k%03d" % number),
    st.integers(0, 40).map(lambda number: b"long/" + b"p" * 200 + b"%03d" % number),
    st.binary(min_size=1, max_size=3),
    st.integers(0, 3).map(lambda number: bytes([number]) * 320),
)
EXTENT_KEYS = st.integers(0, 8).map(lambda number: b"x%d" % number)
VALUES = st.one_of(
    st.binary(max_size=8), st.integers(0, 255).flatmap(lambda b: st.integers(0, 590).map(lambda n: bytes([b]) * n))
)
PICKS = st.integers(0, 1 << 16)
NAMES = st.sampled_from(["a", "b", "c", "d", "e" * 255, "", ".", "..", "x/y", "f" * 256, "é"])


class StoreTwinMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.pair: Pair | None = None

    @initialize(
        node_size_bytes=st.sampled_from(NODE_SIZES_BYTES),
        metadata_copies=st.sampled_from([1, 2]),
        background=st.booleans(),
    )
    def open(self, node_size_bytes: int, metadata_copies: int, background: bool) -> None:
        self.pair = Pair(Configuration(node_size_bytes, metadata_copies, background))
        self.pair.volume_create("a")

    def volume(self, pick: int) -> int:
        return self.pair.choose(lambda count: pick % count, self.pair.volume_ids())

    def snapshot_id(self, pick: int) -> int:
        return self.pair.choose(lambda count: pick % count, self.pair.snapshot_ids())

    def object_id(self, pick: int) -> int:
        return self.pair.choose(lambda count: pick % count, self.pair.volume_ids() + self.pair.snapshot_ids())

    @rule(pick=PICKS, key=KEYS, value=VALUES)
    def put(self, pick: int, key: bytes, value: bytes) -> None:
        self.pair.put(self.volume(pick), key, value)

    @rule(pick=PICKS, key=KEYS | EXTENT_KEYS)
    def delete(self, pick: int, key: bytes) -> None:
        self.pair.delete(self.volume(pick), key)

    @rule(pick=PICKS, key=KEYS | EXTENT_KEYS, value=VALUES)
    def put_to_any_object(self, pick: int, key: bytes, value: bytes) -> None:
        self.pair.put(self.object_id(pick), key, value)

    @rule(pick=PICKS, changes=st.lists(st.tuples(KEYS | EXTENT_KEYS, st.none() | VALUES), max_size=30))
    def apply(self, pick: int, changes: list[tuple[bytes, bytes | None]]) -> None:
        self.pair.apply(self.volume(pick), changes)

    @rule(pick=PICKS, start=st.integers(0, 400), count=st.integers(0, 300), length=st.integers(0, 60))
    def bulk_load(self, pick: int, start: int, count: int, length: int) -> None:
        self.pair.bulk_load(
            self.volume(pick), [(b"bulk%04d" % number, b"v" * length) for number in range(start, start + count)]
        )

    @rule(pick=PICKS, key=KEYS | EXTENT_KEYS)
    def get(self, pick: int, key: bytes) -> None:
        self.pair.get(self.object_id(pick), key)

    @rule(
        pick=PICKS,
        start=st.just(b"") | KEYS,
        stop=st.none() | KEYS,
        reverse=st.booleans(),
        limit=st.integers(0, 20),
    )
    def scan(self, pick: int, start: bytes, stop: bytes | None, reverse: bool, limit: int) -> None:
        self.pair.scan(self.object_id(pick), start, stop, reverse, limit)

    @rule(old=PICKS, new=PICKS, start=st.just(b"") | KEYS, limit=st.integers(0, 20))
    def diff(self, old: int, new: int, start: bytes, limit: int) -> None:
        self.pair.diff(self.object_id(old), self.object_id(new), start, limit)

    @rule(pick=PICKS, key=EXTENT_KEYS | KEYS, length=st.integers(0, 33 * 4096), fill=st.integers(0, 255))
    def write_extent(self, pick: int, key: bytes, length: int, fill: int) -> None:
        self.pair.write_extent(self.volume(pick), key, bytes([fill]) * length)

    @rule(pick=PICKS, key=EXTENT_KEYS | KEYS)
    def read_extent(self, pick: int, key: bytes) -> None:
        self.pair.read_extent(self.object_id(pick), key)

    @rule(pick=PICKS, key=EXTENT_KEYS | KEYS)
    def delete_extent(self, pick: int, key: bytes) -> None:
        self.pair.delete_extent(self.volume(pick), key)

    @rule(name=NAMES)
    def volume_create(self, name: str) -> None:
        self.pair.volume_create(name)

    @rule(pick=PICKS)
    def volume_destroy(self, pick: int) -> None:
        self.pair.volume_destroy(self.volume(pick))

    @rule(pick=PICKS, name=NAMES, sync=st.booleans())
    def snapshot(self, pick: int, name: str, sync: bool) -> None:
        self.pair.snapshot(self.volume(pick), name, sync=sync)

    @rule(pick=PICKS, name=NAMES)
    def snapshot_find(self, pick: int, name: str) -> None:
        self.pair.snapshot_find(self.volume(pick), name)

    @rule(pick=PICKS)
    def snapshot_get(self, pick: int) -> None:
        self.pair.snapshot_get(self.snapshot_id(pick))

    @rule(pick=PICKS)
    def snapshot_delete(self, pick: int) -> None:
        self.pair.snapshot_delete(self.snapshot_id(pick))

    @rule(pick=PICKS, hold_count=st.integers(0, 2), annotation=st.binary(max_size=10) | st.just(b"a" * 513))
    def snapshot_annotate(self, pick: int, hold_count: int, annotation: bytes) -> None:
        self.pair.snapshot_annotate(self.snapshot_id(pick), hold_count, annotation)

    @rule(pick=PICKS, name=NAMES)
    def clone(self, pick: int, name: str) -> None:
        self.pair.clone(self.snapshot_id(pick), name)

    @rule(volume=PICKS, snapshot=PICKS, name=NAMES)
    def rollback(self, volume: int, snapshot: int, name: str) -> None:
        self.pair.rollback(self.volume(volume), self.snapshot_id(snapshot), name)

    @rule(pick=PICKS, name=NAMES, value=st.binary(max_size=3) | st.just(b"v" * 513))
    def property_set(self, pick: int, name: str, value: bytes) -> None:
        self.pair.property_set(self.volume(pick), name, value)

    @rule(pick=PICKS, name=NAMES)
    def property_get(self, pick: int, name: str) -> None:
        self.pair.property_get(self.volume(pick), name)

    @rule()
    def commit(self) -> None:
        self.pair.commit()

    @rule()
    def checkpoint(self) -> None:
        self.pair.checkpoint()

    @rule()
    def reopen(self) -> None:
        self.pair.reopen()

    @rule()
    def crash_after_commit(self) -> None:
        self.pair.commit()
        self.pair.crash()

    @rule(look_first=st.booleans())
    def crash(self, look_first: bool) -> None:
        self.pair.crash(look_first=look_first)

    @invariant()
    def volumes_are_the_same(self) -> None:
        if self.pair is not None:
            names = [volume.name for volume in self.pair.twin.volumes()]
            assert [volume.name for volume in self.pair.store.volumes()] == names

    def teardown(self) -> None:
        if self.pair is not None:
            self.pair.close()


TestStoreTwinMachine = StoreTwinMachine.TestCase
TestStoreTwinMachine.settings = hypothesis.settings(
    max_examples=200,
    stateful_step_count=40,
    deadline=None,
    print_blob=True,
    suppress_health_check=list(hypothesis.HealthCheck),
)


# ---- long random runs


class RandomRun:
    """Steps drawn from one seed."""

    def __init__(self, seed: int, configuration: Configuration) -> None:
        self.random = random.Random(seed)
        self.pair = Pair(configuration)
        self.pair.volume_create("main")
        self.names_made = 0
        self.weights = {
            self.put: 14,
            self.delete: 10,
            self.apply: 12,
            self.bulk_load: 2,
            self.get: 8,
            self.scan: 8,
            self.diff: 4,
            self.write_extent: 10,
            self.read_extent: 6,
            self.delete_extent: 4,
            self.snapshot: 10,
            self.snapshot_delete: 7,
            self.snapshot_annotate: 2,
            self.property_set: 2,
            self.clone: 2,
            self.rollback: 2,
            self.volume_destroy: 1,
            self.commit: 3,
            self.checkpoint: 1,
            self.crash: 0.5,
            self.reopen: 0.3,
        }

    def run(self, steps: int) -> None:
        actions, weights = list(self.weights), list(self.weights.values())
        try:
            for _ in range(steps):
                self.random.choices(actions, weights)[0]()
            self.pair.compare()
            self.pair.reopen()
            self.empty()
            self.pair.close()
        finally:
            self.pair.store.abandon()

    def empty(self) -> None:
        """A pool, however full, can be emptied; and then nothing is left of what was in it."""
        pair = self.pair
        for snapshot_id in pair.snapshot_ids():
            pair.snapshot_annotate(snapshot_id, 0, b"")
        for volume_id in pair.volume_ids():
            pair.volume_destroy(volume_id)
        for _ in range(4):
            pair.checkpoint()
        while (statistics := pair.store.statistics())["deletion_queue_length"]:
            before = statistics["dead_blocks"] + statistics["used_blocks"]
            pair.checkpoint()
            statistics = pair.store.statistics()
            assert statistics["dead_blocks"] + statistics["used_blocks"] < before, "a checkpoint does nothing"
        pair.checkpoint()
        statistics = pair.store.statistics()
        assert statistics["deletion_queue_length"] == 0
        assert statistics["dead_blocks"] == 0
        assert pair.store.volumes() == []
        # What remains is the store's own tree: a few nodes.
        assert statistics["used_blocks"] < 200, statistics

    def pick(self, ids: list[int]) -> int:
        return self.pair.choose(self.random.randrange, ids)

    def volume(self) -> int:
        return self.pick(self.pair.volume_ids())

    def snapshot_id(self) -> int:
        return self.pick(self.pair.snapshot_ids())

    def object_id(self) -> int:
        return self.pick(self.pair.volume_ids() + self.pair.snapshot_ids())

    def key(self) -> bytes:
        match self.random.randrange(6):
            case 0:
                return b"directory/%d/" % self.random.randrange(3) + b"n" * self.random.randrange(250)
            case 1:
                return self.random.randbytes(self.random.randrange(1, 4))
            case 2:
                return b"x%d" % self.random.randrange(30)
            case _:
                return b"file%05d" % self.random.randrange(1500)

    def value(self) -> bytes:
        length = self.random.choice([0, 5, 40, 40, 40, 120, self.random.randrange(590)])
        return self.random.randbytes(4) * (length // 4) + bytes(length % 4)

    def fresh_name(self) -> str:
        self.names_made += 1
        return f"name{self.names_made}"

    def put(self) -> None:
        self.pair.put(self.volume(), self.key(), self.value())

    def delete(self) -> None:
        volume_id = self.volume()
        start = self.key()
        items = self.pair.twin.scan(volume_id, start, limit=1) if self.pair.volume_ids() else []
        self.pair.delete(volume_id, items[0][0] if items else start)

    def apply(self) -> None:
        changes: list[tuple[bytes, bytes | None]] = [
            (self.key(), self.value() if self.random.random() < 0.6 else None)
            for _ in range(self.random.choice([2, 5, 60]))
        ]
        self.pair.apply(self.volume(), changes)

    def bulk_load(self) -> None:
        start = self.random.randrange(1500)
        value = self.value()
        self.pair.bulk_load(self.volume(), [(b"file%05d" % number, value) for number in range(start, start + 150)])

    def get(self) -> None:
        self.pair.get(self.object_id(), self.key())

    def scan(self) -> None:
        stop = self.random.choice([None, self.key()])
        start = self.random.choice([b"", self.key()])
        limit = self.random.choice([0, 1, 10, 300])
        self.pair.scan(self.object_id(), start, stop, self.random.random() < 0.5, limit)

    def diff(self) -> None:
        self.pair.diff(
            self.object_id(), self.object_id(), self.random.choice([b"", self.key()]), self.random.choice([0, 1, 50])
        )

    def write_extent(self) -> None:
        length = self.random.choice([1, 4096, 8192, 40000, 32 * 4096])
        data = self.random.randbytes(64) * (length // 64 + 1)
        self.pair.write_extent(self.volume(), b"x%d" % self.random.randrange(30), data[:length])

    def read_extent(self) -> None:
        self.pair.read_extent(self.object_id(), b"x%d" % self.random.randrange(30))

    def delete_extent(self) -> None:
        self.pair.delete_extent(self.volume(), b"x%d" % self.random.randrange(30))

    def snapshot(self) -> None:
        if len(self.pair.snapshot_ids()) < 40:
            self.pair.snapshot(self.volume(), self.fresh_name(), sync=self.random.random() < 0.3)
        else:
            self.snapshot_delete()

    def snapshot_delete(self) -> None:
        self.pair.snapshot_delete(self.snapshot_id())

    def snapshot_annotate(self) -> None:
        hold_count = self.random.choice([0, 0, 0, 1])
        self.pair.snapshot_annotate(self.snapshot_id(), hold_count, self.random.randbytes(self.random.randrange(20)))

    def property_set(self) -> None:
        value = self.random.randbytes(self.random.choice([0, 4, 300]))
        self.pair.property_set(self.volume(), f"p{self.random.randrange(6)}", value)

    def clone(self) -> None:
        if len(self.pair.volume_ids()) < 5:
            self.pair.clone(self.snapshot_id(), self.fresh_name())

    def rollback(self) -> None:
        volume_id = self.volume()
        self.pair.rollback(
            volume_id,
            self.pick([each.id for each in self.pair.twin.snapshots(volume_id)] if self.pair.volume_ids() else []),
            self.fresh_name(),
        )

    def volume_destroy(self) -> None:
        self.pair.volume_destroy(self.volume())
        if not self.pair.volume_ids():
            self.pair.volume_create(self.fresh_name())

    def commit(self) -> None:
        self.pair.commit()

    def checkpoint(self) -> None:
        self.pair.checkpoint()

    def crash(self) -> None:
        if self.random.random() < 0.3:
            self.pair.commit()
        self.pair.crash(look_first=self.random.random() < 0.3)
        if not self.pair.volume_ids():
            self.pair.volume_create(self.fresh_name())

    def reopen(self) -> None:
        self.pair.reopen()


class FullPoolRun(RandomRun):
    """Most of the time the pool is full: what adds is refused, what deletes is not (store_pair.EMPTYING_CALLS)."""

    def __init__(self, seed: int, configuration: Configuration) -> None:
        super().__init__(seed, configuration)
        self.weights |= {self.fill: 3, self.drain: 2, self.snapshot: 6, self.clone: 1, self.crash: 0.2}

    def run(self, steps: int) -> None:
        super().run(steps)
        assert self.pair.refused_for_space > 10

    def fill(self) -> None:
        volume_id = self.volume()
        data = self.random.randbytes(64) * (64 * self.random.choice([3, 32]))
        refused = self.pair.refused_for_space
        for number in range(200):
            self.pair.write_extent(volume_id, b"fill%03d" % number, data)
            if self.pair.refused_for_space > refused + 3:
                break

    def drain(self) -> None:
        volume_id = self.volume()
        for number in range(self.random.randrange(200)):
            self.pair.delete_extent(volume_id, b"fill%03d" % number)
        while len(self.pair.snapshot_ids()) > 8:
            snapshot_id = self.pair.snapshot_ids()[0]
            self.pair.snapshot_annotate(snapshot_id, 0, b"")
            self.pair.snapshot_delete(snapshot_id)


def seeds() -> Iterator[int]:
    """New ones each time, printed so that a failure can be had again."""
    given = os.environ.get("COWFS_SEED")
    for seed in [int(given)] if given else [secrets.randbits(32) for _ in range(SEEDS_PER_CONFIGURATION)]:
        print(f"COWFS_SEED={seed}")
        yield seed


CONFIGURATIONS = [
    Configuration(node_size_bytes, metadata_copies, background)
    for node_size_bytes in NODE_SIZES_BYTES
    for metadata_copies in (1, 2)
    for background in (False, True)
]


@pytest.mark.parametrize(
    "configuration",
    CONFIGURATIONS,
    ids=lambda each: f"{each.node_size_bytes}-{each.metadata_copies}{'-background' if each.background else ''}",
)
def test_random_run(configuration: Configuration) -> None:
    for seed in seeds():
        RandomRun(seed, configuration).run(STEPS_PER_SEED)


@pytest.mark.parametrize(
    "configuration",
    CONFIGURATIONS,
    ids=lambda each: f"{each.node_size_bytes}-{each.metadata_copies}{'-background' if each.background else ''}",
)
def test_random_run_in_a_full_pool(configuration: Configuration) -> None:
    for seed in seeds():
        FullPoolRun(seed, configuration).run(STEPS_PER_SEED)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_random_run_with_fixed_seeds(seed: int) -> None:
    """The same on every machine: a failure here is not the luck of the draw."""
    RandomRun(seed, CONFIGURATIONS[seed % len(CONFIGURATIONS)]).run(STEPS_PER_SEED)
