"""A Store and its reference twin, driven together: every call goes to both, and what they answer is compared."""

import dataclasses
import errno
from collections.abc import Callable
from typing import Any

from btree import Storage, Store
from btree.records import SnapshotInfo, VolumeInfo
from btree.reference import ReferenceExtent, ReferenceStore, State, Tree

POOL_SIZE_BYTES = 16 << 20
# What a full pool must not refuse: these never, and those not as long as no snapshot holds on to what is deleted (then
# each deletion costs the nodes it changes, and the reserve for that is finite).
EMPTYING_CALLS = {"snapshot_delete", "volume_destroy", "commit", "checkpoint"}
DELETING_CALLS = {"delete", "delete_extent"}

Items = tuple[tuple[bytes, object], ...]


@dataclasses.dataclass(frozen=True)
class Configuration:
    node_size_bytes: int = 4096
    metadata_copies: int = 2
    background: bool = False
    cache_bytes_max: int = 64 << 10
    dirty_bytes_max: int = 256 << 10
    buffer_bytes_max: int = 1 << 20


@dataclasses.dataclass(frozen=True)
class SnapshotPicture:
    name: str
    clone_count: int
    hold_count: int
    annotation: bytes
    items: Items


@dataclasses.dataclass(frozen=True)
class VolumePicture:
    name: str
    generation: int
    origin: tuple[str, str] | str | None
    """Volume and snapshot name; 'hidden' when the snapshot was deleted; None when the volume is no clone."""
    properties: tuple[tuple[str, bytes], ...]
    items: Items
    snapshots: tuple[SnapshotPicture, ...]


def object_items(store: Store, object_id: int) -> Items:
    """Everything in one tree, extents as ('extent', data)."""

    def content(key: bytes, value: bytes) -> object:
        if len(value) < 32 or len(value) % 8:
            return value
        try:
            return ("extent", store.read_extent(object_id, key))
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return value

    return tuple((key, content(key, value)) for key, value in store.scan(object_id))


def store_picture(store: Store) -> list[VolumePicture]:
    """All that can be seen of a pool, without ids and times, which a crash may change."""

    def origin(volume: VolumeInfo) -> tuple[str, str] | str | None:
        if volume.origin_snapshot_id == 0:
            return None
        try:
            snapshot = store.snapshot_get(volume.origin_snapshot_id)
        except FileNotFoundError:
            return "hidden"
        return store.volume_get(snapshot.volume_id).name, snapshot.name

    def picture(snapshot: SnapshotInfo) -> SnapshotPicture:
        return SnapshotPicture(
            snapshot.name,
            snapshot.clone_count,
            snapshot.hold_count,
            snapshot.annotation,
            object_items(store, snapshot.id),
        )

    pictures = []
    for volume in store.volumes():
        snapshots = tuple(picture(snapshot) for snapshot in store.snapshots(volume.id))
        assert volume.snapshot_count == len(snapshots)
        pictures.append(
            VolumePicture(
                volume.name,
                volume.generation,
                origin(volume),
                tuple(store.properties(volume.id).items()),
                object_items(store, volume.id),
                snapshots,
            )
        )
    return pictures


class StatePictures:
    """Pictures of the twin's states; the items of a tree that states share are worked out once."""

    def __init__(self) -> None:
        self._items: dict[int, tuple[Tree, Items]] = {}

    def _tree_items(self, tree: Tree) -> Items:
        if id(tree) not in self._items:
            items = tuple(
                (key, ("extent", value.data) if isinstance(value, ReferenceExtent) else value)
                for key, value in sorted(tree.items())
            )
            self._items[id(tree)] = (tree, items)
        return self._items[id(tree)][1]

    def of(self, state: State) -> list[VolumePicture]:
        twin = ReferenceStore()
        twin.restore(state)
        pictures = []
        for volume in twin.volumes():
            origin: tuple[str, str] | str | None = None
            if volume.origin_snapshot_id:
                snapshot = state.snapshots[volume.origin_snapshot_id]
                origin = "hidden" if snapshot.hidden else (twin.volume_get(snapshot.volume_id).name, snapshot.name)
            snapshots = tuple(
                SnapshotPicture(
                    info.name,
                    info.clone_count,
                    info.hold_count,
                    info.annotation,
                    self._tree_items(state.snapshots[info.id].tree),
                )
                for info in twin.snapshots(volume.id)
            )
            properties = tuple(twin.properties(volume.id).items())
            items = self._tree_items(state.volumes[volume.id].tree)
            pictures.append(VolumePicture(volume.name, volume.generation, origin, properties, items, snapshots))
        return pictures


def describe_difference(found: list[VolumePicture], expected: list[VolumePicture]) -> str:
    """Where two pictures differ, short enough to be read."""
    if [volume.name for volume in found] != [volume.name for volume in expected]:
        return f"volumes {[volume.name for volume in found]}, expected {[volume.name for volume in expected]}"
    lines = []

    def compare(where: str, left: Any, right: Any) -> None:
        for field in dataclasses.fields(left):
            old, new = getattr(left, field.name), getattr(right, field.name)
            if field.name == "items":
                keys = sorted(key for key, _ in set(old) ^ set(new))
                if keys:
                    lines.append(f"{where}: {len(set(keys))} items differ, first {keys[:3]}")
            elif field.name == "snapshots":
                if [each.name for each in old] != [each.name for each in new]:
                    lines.append(f"{where}: snapshots {[each.name for each in old]}, not {[each.name for each in new]}")
                else:
                    for one, other in zip(old, new, strict=True):
                        compare(f"{where}@{one.name}", one, other)
            elif old != new:
                lines.append(f"{where}: {field.name} {old!r}, expected {new!r}")

    for one, other in zip(found, expected, strict=True):
        compare(one.name, one, other)
    return "; ".join(lines)


class Pair:
    """Objects are named by the twin's ids; `real` translates them."""

    def __init__(self, configuration: Configuration) -> None:
        self.configuration = configuration
        self.storage = Storage.open_memory(POOL_SIZE_BYTES)
        Store.format(
            self.storage,
            node_size_bytes=configuration.node_size_bytes,
            metadata_copies=configuration.metadata_copies,
        )
        self.store = self._open()
        self.twin = ReferenceStore()
        self.real: dict[int, int] = {}
        self.refused_for_space = 0

    def _open(self, *, read_only: bool = False) -> Store:
        return Store(
            self.storage,
            cache_bytes_max=self.configuration.cache_bytes_max,
            dirty_bytes_max=self.configuration.dirty_bytes_max,
            buffer_bytes_max=self.configuration.buffer_bytes_max,
            commit_interval_ms=5,
            background=self.configuration.background,
            read_only=read_only,
        )

    # ---- calls

    def both(self, name: str, *arguments: Any, ids: int = 1, **keywords: Any) -> tuple[Any, Any] | None:
        """Calls a method of both; the first `ids` arguments are object ids. None when both refused with one errno, or
        the Store for want of space; else what they answered."""
        real_arguments = [self.real.get(each, 2**63 - 1) for each in arguments[:ids]] + list(arguments[ids:])
        real_error = twin_error = None
        real_answer = twin_answer = None
        try:
            real_answer = getattr(self.store, name)(*real_arguments, **keywords)
        except OSError as error:
            real_error = error
        if real_error is not None and real_error.errno == errno.ENOSPC:
            snapshots = self.twin.possible_after_crash()[-1].snapshots
            assert name not in EMPTYING_CALLS, f"{name}: {real_error}; {self.store.statistics()}"
            assert name not in DELETING_CALLS or snapshots, f"{name}: {real_error}; {self.store.statistics()}"
            self.refused_for_space += 1
            return None
        try:
            twin_answer = getattr(self.twin, name)(*arguments, **keywords)
        except OSError as error:
            twin_error = error
        assert (real_error and real_error.errno) == (twin_error and twin_error.errno), (
            f"{name}{arguments[:ids]}: the store says {real_error!r}, the twin {twin_error!r}"
        )
        return None if real_error is not None else (real_answer, twin_answer)

    def _plain(self, object_id: int, pairs: list[tuple[bytes, ...]]) -> list[tuple[bytes, ...]]:
        """The keys alone of what are extents in the twin: their values are the store's own business."""
        tree = dict(self.twin.scan(object_id))
        return [each[:1] if isinstance(tree.get(each[0]), ReferenceExtent) else each for each in pairs]

    def put(self, volume_id: int, key: bytes, value: bytes) -> None:
        self.both("put", volume_id, key, value)

    def delete(self, volume_id: int, key: bytes) -> None:
        self.both("delete", volume_id, key)

    def apply(self, volume_id: int, changes: list[tuple[bytes, bytes | None]]) -> None:
        self.both("apply", volume_id, changes)

    def bulk_load(self, volume_id: int, items: list[tuple[bytes, bytes]]) -> None:
        # Cut short by a full pool it keeps its first transactions, which the twin cannot know: so only with room.
        if self.store.statistics()["available_blocks"] < 1024:
            return
        answers = self.both("bulk_load", volume_id, items)
        assert answers is None or answers[0] == answers[1]

    def get(self, object_id: int, key: bytes) -> None:
        answers = self.both("get", object_id, key)
        if answers is not None:
            real, twin = answers
            if isinstance(twin, ReferenceExtent):
                self.read_extent(object_id, key)
            else:
                assert real == twin

    def scan(self, object_id: int, start: bytes, stop: bytes | None, reverse: bool, limit: int) -> None:
        answers = self.both("scan", object_id, start, stop, reverse=reverse, limit=limit)
        if answers is not None:
            real, twin = answers
            assert self._plain(object_id, real) == self._plain(object_id, twin)

    def diff(self, old_id: int, new_id: int, start: bytes, limit: int) -> None:
        answers = self.both("diff", old_id, new_id, ids=2, start=start, limit=limit)
        if answers is not None:
            real, twin = answers
            assert [each[0] for each in real] == [each[0] for each in twin]
            for (key, *real_values), (_, *twin_values) in zip(real, twin, strict=True):
                for real_value, twin_value in zip(real_values, twin_values, strict=True):
                    if not isinstance(twin_value, ReferenceExtent):
                        assert real_value == twin_value, key

    def write_extent(self, volume_id: int, key: bytes, data: bytes) -> None:
        self.both("write_extent", volume_id, key, data)

    def read_extent(self, object_id: int, key: bytes) -> None:
        answers = self.both("read_extent", object_id, key)
        assert answers is None or answers[0] == answers[1]

    def delete_extent(self, volume_id: int, key: bytes) -> None:
        self.both("delete_extent", volume_id, key)

    def volume_create(self, name: str) -> None:
        answers = self.both("volume_create", name, ids=0)
        if answers is not None:
            self.real[answers[1]] = answers[0]

    def volume_destroy(self, volume_id: int) -> None:
        self.both("volume_destroy", volume_id)

    def clone(self, snapshot_id: int, name: str) -> None:
        answers = self.both("clone", snapshot_id, name)
        if answers is not None:
            self.real[answers[1]] = answers[0]

    def _same_snapshot(self, answers: tuple[SnapshotInfo, SnapshotInfo] | None) -> None:
        if answers is not None:
            real, twin = answers
            self.real[twin.id] = real.id
            assert self.real[twin.volume_id] == real.volume_id
            assert (real.name, real.clone_count, real.hold_count, real.annotation) == (
                twin.name,
                twin.clone_count,
                twin.hold_count,
                twin.annotation,
            )

    def snapshot(self, volume_id: int, name: str, *, sync: bool) -> None:
        self._same_snapshot(self.both("snapshot", volume_id, name, sync=sync))

    def snapshot_find(self, volume_id: int, name: str) -> None:
        self._same_snapshot(self.both("snapshot_find", volume_id, name))

    def snapshot_get(self, snapshot_id: int) -> None:
        self._same_snapshot(self.both("snapshot_get", snapshot_id))

    def snapshot_delete(self, snapshot_id: int) -> None:
        self.both("snapshot_delete", snapshot_id)

    def snapshot_annotate(self, snapshot_id: int, hold_count: int, annotation: bytes) -> None:
        self.both("snapshot_annotate", snapshot_id, hold_count, annotation)

    def rollback(self, volume_id: int, snapshot_id: int, guard_name: str) -> None:
        self._same_snapshot(self.both("rollback", volume_id, snapshot_id, guard_name, ids=2))

    def property_set(self, volume_id: int, name: str, value: bytes) -> None:
        self.both("property_set", volume_id, name, value)

    def property_get(self, volume_id: int, name: str) -> None:
        answers = self.both("property_get", volume_id, name)
        assert answers is None or answers[0] == answers[1]

    def commit(self) -> None:
        self.both("commit", ids=0)

    def checkpoint(self) -> None:
        self.both("checkpoint", ids=0)

    # ---- the whole

    def compare(self) -> None:
        """Both show the same, and the store is sound."""
        found = store_picture(self.store)
        state = self.twin.possible_after_crash()[-1]
        expected = StatePictures().of(state)
        assert found == expected, describe_difference(found, expected)
        self.check()

    def check(self) -> None:
        problems = self.store.check(read_data=True)
        assert problems == [], problems[:10]

    def _find_ids_again(self) -> None:
        """After a crash the store may have given out other ids than before: names tell which is which."""
        self.real = {}
        for volume in self.twin.volumes():
            self.real[volume.id] = self.store.volume_find(volume.name).id
            for snapshot in self.twin.snapshots(volume.id):
                self.real[snapshot.id] = self.store.snapshot_find(self.real[volume.id], snapshot.name).id

    def reopen(self) -> None:
        self.store.close()
        self.twin.commit()
        self.store = self._open()
        self._find_ids_again()
        self.compare()

    def crash(self, *, look_first: bool = False) -> None:
        """The process dies. What is there afterwards must be one of the states since the last durable point; the twin
        goes on from there. With `look_first` the pool is opened read-only before, which must not change it."""
        self.store.abandon()
        looked = None
        if look_first:
            with self._open(read_only=True) as store:
                looked = store_picture(store)
                problems = store.check(read_data=True)
                assert problems == [], problems[:10]
        self.store = self._open()
        found = store_picture(self.store)
        assert looked is None or looked == found, describe_difference(looked, found)
        self.twin.restore(self._match(found))
        self._find_ids_again()
        self.check()

    def _match(self, found: list[VolumePicture]) -> State:
        states = self.twin.possible_after_crash()
        pictures = StatePictures()
        for state in reversed(states):
            if pictures.of(state) == found:
                return state
        oldest, newest = pictures.of(states[0]), pictures.of(states[-1])
        raise AssertionError(
            f"the state after the crash is none of the {len(states)} possible ones; "
            f"from the durable one it differs in: {describe_difference(found, oldest)}; "
            f"from the newest in: {describe_difference(found, newest)}"
        )

    def close(self) -> None:
        try:
            self.compare()
        finally:
            self.store.close()
        self.storage.close()

    # ---- what there is

    def volume_ids(self) -> list[int]:
        return [volume.id for volume in self.twin.volumes()]

    def snapshot_ids(self) -> list[int]:
        return [each.id for volume in self.twin.volumes() for each in self.twin.snapshots(volume.id)]

    def choose(self, pick: Callable[[int], int], ids: list[int]) -> int:
        """One of the ids, or, when there are none, an id that nothing has."""
        return ids[pick(len(ids))] if ids else 10**9
