"""Operations drawn from a seed, made on a recorded pool and on its twin, and what a crash among them may leave."""

import contextlib
import dataclasses
import enum
import random
import threading
import time
from collections.abc import Callable, Iterator

from btree import Storage, Store
from btree.records import SnapshotInfo, StorageEvent
from btree.reference import ReferenceStore, State
from cowfs.retention import Thinner, parse_rule
from tests.model.store_pair import (
    POOL_SIZE_BYTES,
    Configuration,
    Pair,
    StatePictures,
    describe_difference,
    store_picture,
)

BLOCK_SIZE_BYTES = 4096
EXTENT_BLOCKS_MAX = 32
JOURNAL_START_BYTES = 64 << 10
JOURNAL_SIZE_BYTES = 1 << 20
SNAPSHOTS_AT_ONCE = 8
RULES = ("1us(all)", "1ms(all) | 1s(3ms)", "1us(all) | forever(5ms)", "1us(all) | forever(20ms)")


class PairOn(Pair):
    """A Store opened on what a storage holds, beside a twin that goes on from one of `states`: the one it shows."""

    def __init__(self, configuration: Configuration, storage: Storage, states: list[State]) -> None:
        self.configuration = configuration
        self.storage = storage
        self.store = self._open()
        self.real = {}
        self.refused_for_space = 0
        self.twin = ReferenceStore()
        self.state = self._shown(states)
        self.twin.restore(self.state)
        self._find_ids_again()

    def _shown(self, states: list[State]) -> State:
        found, pictures = store_picture(self.store), StatePictures()
        for state in states:
            if pictures.of(state) == found:
                return state
        oldest, newest = (describe_difference(found, pictures.of(states[at])) for at in (0, -1))
        raise AssertionError(
            f"what is there is none of the {len(states)} possible states; "
            f"from the durable one it differs in: {oldest}; from the newest in: {newest}"
        )


class Kind(enum.Enum):
    ALONE = "alone"
    TIGHT = "tight"
    """A pool so full that what was freed is soon used again."""
    BESIDE = "beside"
    """Another thread writes checkpoints all the time; when it does so is not drawn from the seed."""


class Workload:
    """Steps on a pair. Extents hold random bytes, so that what an older write left behind never passes for a newer."""

    WEIGHTS = {  # noqa: RUF012
        "put": 12,
        "delete": 6,
        "apply": 8,
        "write_extent": 16,
        "delete_extent": 5,
        "snapshot": 8,
        "snapshot_delete": 6,
        "snapshot_annotate": 1,
        "snapshots": 2,
        "thin": 2,
        "clone": 2,
        "rollback": 2,
        "property_set": 2,
        "volume_create": 1,
        "volume_destroy": 1,
        "commit": 8,
        "checkpoint": 3,
    }

    def __init__(self, pair: Pair, chance: random.Random, extent_blocks_max: int,
                 part_done: Callable[[str], None] = lambda name: None) -> None:
        self.pair = pair
        self.random = chance
        self.part_done = part_done
        """Called within a step of several transactions, after each."""
        self.extent_blocks_max = extent_blocks_max
        self.names_made = 0

    def step(self) -> str:
        name = self.random.choices(list(self.WEIGHTS), list(self.WEIGHTS.values()))[0]
        getattr(self, name)()
        return name

    def volume(self) -> int:
        return self.pair.choose(self.random.randrange, self.pair.volume_ids())

    def snapshot_id(self) -> int:
        return self.pair.choose(self.random.randrange, self.pair.snapshot_ids())

    def key(self) -> bytes:
        return b"key%03d" % self.random.randrange(150)

    def extent_key(self) -> bytes:
        return b"x%d" % self.random.randrange(12)

    def fresh_name(self) -> str:
        self.names_made += 1
        return f"n{self.names_made}-{self.random.randrange(1 << 32):x}"

    def value(self) -> bytes:
        return self.random.randbytes(self.random.choice([1, 8, 60, 60, self.random.randrange(600)]))

    def put(self) -> None:
        self.pair.put(self.volume(), self.key(), self.value())

    def delete(self) -> None:
        self.pair.delete(self.volume(), self.key())

    def apply(self) -> None:
        changes: list[tuple[bytes, bytes | None]] = [
            (self.key(), self.value() if self.random.random() < 0.7 else None)
            for _ in range(self.random.choice([2, 6, 40]))
        ]
        if self.random.random() < 0.3:
            changes.append((self.extent_key(), None))
        self.pair.apply(self.volume(), changes)

    def write_extent(self) -> None:
        blocks = self.random.choice([1, 1, 2, 4, self.random.randrange(1, self.extent_blocks_max + 1)])
        length = blocks * BLOCK_SIZE_BYTES - self.random.choice([0, 0, 100])
        self.pair.write_extent(self.volume(), self.extent_key(), self.random.randbytes(length))

    def delete_extent(self) -> None:
        self.pair.delete_extent(self.volume(), self.extent_key())

    def snapshot(self) -> None:
        self.pair.snapshot(self.volume(), self.fresh_name(), sync=self.random.random() < 0.3)

    def snapshots(self) -> None:
        """Automatic ones, with a change before each."""
        volume_id = self.volume()
        for _ in range(SNAPSHOTS_AT_ONCE):
            self.pair.put(volume_id, self.key(), self.value())
            self.part_done("snapshots")
            self.names_made += 1
            number = self.names_made << 40 | self.random.randrange(1 << 32)
            self.pair.snapshot(volume_id, f"auto-{number // 10**12:08d}T{number // 10**6 % 10**6:06d}."
                               f"{number % 10**6:06d}Z", sync=False)
            self.part_done("snapshots")

    def thin(self) -> None:
        """The daemon's thinner, with times that follow from ids, so that the seed decides. Each deletion is one
        transaction, and none is waited for."""
        volume_id = self.volume()
        twin_ids = {self.pair.real[twin_id]: twin_id for twin_id in self.pair.snapshot_ids()}

        def fetch(after_id: int, limit: int) -> list[SnapshotInfo]:
            found = self.pair.store.snapshots(self.pair.real[volume_id], after_id=after_id, limit=limit)
            return [snapshot._replace(created_ns=snapshot.id * 10**6) for snapshot in found]

        def destroy(snapshot: SnapshotInfo) -> None:
            if snapshot.hold_count == 0 and snapshot.clone_count == 0:
                self.pair.snapshot_delete(twin_ids[snapshot.id])
                self.part_done("thin")

        held = {each.id for each in self.pair.twin.snapshots(volume_id) if each.hold_count or each.clone_count}
        thinner = Thinner(parse_rule(self.random.choice(RULES)))
        while thinner.step(fetch, destroy, 1 << 62, 5):
            pass
        assert held <= {each.id for each in self.pair.twin.snapshots(volume_id)}

    def snapshot_delete(self) -> None:
        self.pair.snapshot_delete(self.snapshot_id())

    def snapshot_annotate(self) -> None:
        held = self.random.random() < 0.2
        self.pair.snapshot_annotate(self.snapshot_id(), int(held), self.random.randbytes(self.random.randrange(100)))

    def clone(self) -> None:
        if len(self.pair.volume_ids()) < 5:
            self.pair.clone(self.snapshot_id(), self.fresh_name())

    def rollback(self) -> None:
        snapshot_id = self.snapshot_id()
        if self.pair.snapshot_ids():
            volume_id = self.pair.twin.snapshot_get(snapshot_id).volume_id
            self.pair.rollback(volume_id, snapshot_id, self.fresh_name())

    def property_set(self) -> None:
        value = self.random.randbytes(self.random.choice([0, 4, 300]))
        self.pair.property_set(self.volume(), f"p{self.random.randrange(4)}", value)

    def volume_create(self) -> None:
        if len(self.pair.volume_ids()) < 5:
            self.pair.volume_create(self.fresh_name())

    def volume_destroy(self) -> None:
        if len(self.pair.volume_ids()) > 2:
            self.pair.volume_destroy(self.volume())

    def commit(self) -> None:
        self.pair.commit()

    def checkpoint(self) -> None:
        self.pair.checkpoint()


@dataclasses.dataclass(frozen=True)
class Step:
    name: str
    events_before: int
    events_after: int
    durable: int
    """Index of the newest state that is durable once this step has returned."""


class History:
    """A recorded run: every write and flush, and the state after each step."""

    def __init__(self, seed: int, configuration: Configuration, steps: int, kind: Kind) -> None:
        self.configuration = configuration
        chance = random.Random(seed)
        self.recorder = Storage.open_recorder(Storage.open_memory(POOL_SIZE_BYTES))
        Store.format(
            self.recorder,
            node_size_bytes=configuration.node_size_bytes,
            metadata_copies=configuration.metadata_copies,
            journal_size_bytes=JOURNAL_SIZE_BYTES,
            uuid=chance.randbytes(16),
        )
        self.pair = PairOn(configuration, self.recorder, [State()])
        self._prepare(chance, kind)
        self.states = [self._state()]
        self.steps: list[Step] = []
        self.start = self._event_count()
        self._durable = 0
        self._events_before = self.start
        workload = Workload(self.pair, chance, EXTENT_BLOCKS_MAX, self._note)
        with self._checkpoints_beside(kind):
            for _ in range(steps):
                self._note(workload.step())
        self.pair.store.abandon()
        self.events: list[StorageEvent] = self.recorder.events()
        self.recorder.close()

    def _note(self, name: str) -> None:
        """A transaction has been made."""
        self.states.append(self._state())
        if len(self.pair.twin.possible_after_crash()) == 1:
            self._durable = len(self.steps) + 1
        self.steps.append(Step(name, self._events_before, self._event_count(), self._durable))
        self._events_before = self._event_count()

    @contextlib.contextmanager
    def _checkpoints_beside(self, kind: Kind) -> Iterator[None]:
        stop = threading.Event()

        def write_checkpoints() -> None:
            while not stop.is_set():
                self.pair.store.checkpoint()
                time.sleep(0.0005)

        thread = threading.Thread(target=write_checkpoints)
        if kind is Kind.BESIDE:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            if kind is Kind.BESIDE:
                thread.join()

    def _prepare(self, chance: random.Random, kind: Kind) -> None:
        """Volumes, and a journal whose end is anywhere, so that it sometimes wraps in the recorded part. Some pools
        were closed cleanly before it."""
        self.pair.volume_create("a")
        self.pair.volume_create("b")
        volume_id = self.pair.volume_ids()[0]
        if kind is Kind.TIGHT:
            room = chance.randrange(150, 500)
            number = 0
            while self.pair.store.statistics()["available_blocks"] > room:
                data = chance.randbytes(EXTENT_BLOCKS_MAX * BLOCK_SIZE_BYTES)
                self.pair.write_extent(volume_id, b"ballast%04d" % number, data)
                number += 1
        for _ in range(chance.randrange(250)):
            self.pair.put(volume_id, b"commits", chance.randbytes(4))
            self.pair.commit()
        if chance.random() < 0.5:
            self.pair.reopen()
        self.pair.checkpoint()

    def unflushed_groups_max(self) -> int:
        """How many journal groups were ever written without a flush between them."""
        most = groups = 0
        for event in self.events[self.start :]:
            if event.kind == "flush":
                groups = 0
            elif JOURNAL_START_BYTES <= event.offset_bytes < JOURNAL_START_BYTES + JOURNAL_SIZE_BYTES:
                groups += 1
                most = max(most, groups)
        return most

    def _event_count(self) -> int:
        _, writes, flushes = self.recorder.counts()
        return writes + flushes

    def _state(self) -> State:
        return self.pair.twin.possible_after_crash()[-1]

    def possible(self, cut: int) -> list[State]:
        """The states that a crash after the first `cut` events may leave: from the last one that was durable to the
        last one that was begun."""
        durable = max((step.durable for step in self.steps if step.events_after <= cut), default=0)
        begun = sum(step.events_before <= cut for step in self.steps)
        return self.states[durable : begun + 1]
