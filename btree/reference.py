"""The store's API in plain Python: the reference that tests hold the C store against.

Trees are dicts that are replaced, never changed, so a snapshot is a second reference to one. What a crash may leave is
modelled by the list of states since the last durable point: after a crash the real store must show one of them.
Space is not modelled; whoever compares leaves out what the real store refused with ENOSPC.
"""

import dataclasses
import errno
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Final, NoReturn

from btree.records import SnapshotInfo, VolumeInfo

BLOCK_SIZE_BYTES: Final = 4096
EXTENT_BLOCKS_MAX: Final = 32
KEY_LENGTH_MAX: Final = 320
NAME_LENGTH_MAX: Final = 255
ANNOTATION_LENGTH_MAX: Final = 512
PROPERTY_NAME_LENGTH_MAX: Final = 64
PROPERTY_LENGTH_MAX: Final = 512
PROPERTIES_MAX: Final = 256


class ReferenceExtent(bytes):
    """What get(), scan() and diff() give for an extent: bytes that no other write has, as long as
    the shortest real one."""

    data: bytes

    @classmethod
    def make(cls, token: int, data: bytes) -> "ReferenceExtent":
        extent = cls(b"extent %025d" % token)
        extent.data = data + bytes(-len(data) % BLOCK_SIZE_BYTES)
        return extent


Tree = Mapping[bytes, bytes]


@dataclasses.dataclass(frozen=True)
class Volume:
    id: int
    name: str
    tree: Tree
    origin_snapshot_id: int = 0
    generation: int = 0
    properties: Mapping[str, bytes] = dataclasses.field(default_factory=dict)
    destroyed: bool = False
    """Destroyed, but still there because a clone hangs on one of its snapshots."""


@dataclasses.dataclass(frozen=True)
class Snapshot:
    id: int
    volume_id: int
    name: str
    tree: Tree
    hold_count: int = 0
    annotation: bytes = b""
    hidden: bool = False
    """Deleted by name, but still there because a clone hangs on it."""


@dataclasses.dataclass
class State:
    """Everything a pool holds. Copies share the records, which are frozen."""

    volumes: dict[int, Volume] = dataclasses.field(default_factory=dict)
    snapshots: dict[int, Snapshot] = dataclasses.field(default_factory=dict)
    next_id: int = 1

    def copy(self) -> "State":
        return State(dict(self.volumes), dict(self.snapshots), self.next_id)


def fail(error: int) -> NoReturn:
    raise OSError(error, os.strerror(error))


class ReferenceStore:
    """Same methods and errno values as btree.Store, for a store without limits of space."""

    def __init__(self, item_length_max: int = 1 << 16) -> None:
        self.item_length_max: Final = item_length_max
        self._state = State()
        self._states_since_durable = [State()]
        self._extents_written = 0

    # ---- durability

    def commit(self) -> None:
        self._states_since_durable = [self._state.copy()]

    def checkpoint(self) -> None:
        self.commit()

    def possible_after_crash(self) -> list[State]:
        """What a crash now may leave, oldest first: the last durable state and each one after it."""
        return list(self._states_since_durable)

    def restore(self, state: State) -> None:
        """A crash left this state, which is durable now."""
        self._state = state.copy()
        self.commit()

    def _done(self) -> None:
        self._states_since_durable.append(self._state.copy())

    # ---- items

    def _tree(self, object_id: int) -> Tree:
        if object_id in self._state.snapshots and not self._state.snapshots[object_id].hidden:
            return self._state.snapshots[object_id].tree
        return self._volume(object_id).tree

    def _volume(self, volume_id: int) -> Volume:
        volume = self._state.volumes.get(volume_id)
        if volume is None or volume.destroyed:
            fail(errno.ENOENT)
        return volume

    def _change(self, volume_id: int, change: Callable[[dict[bytes, bytes]], None]) -> None:
        """One transaction: what `change` raises leaves everything as it was."""
        if volume_id in self._state.snapshots and not self._state.snapshots[volume_id].hidden:
            fail(errno.EROFS)
        volume = self._volume(volume_id)
        tree = dict(volume.tree)
        change(tree)
        self._state.volumes[volume_id] = dataclasses.replace(volume, tree=tree)
        self._done()

    def _check_item(self, key: bytes, value: bytes | None) -> None:
        if not 0 < len(key) <= KEY_LENGTH_MAX:
            fail(errno.EINVAL)
        if value is not None and len(key) + len(value) > self.item_length_max:
            fail(errno.EMSGSIZE)

    def get(self, object_id: int, key: bytes) -> bytes | None:
        return self._tree(object_id).get(key)

    def put(self, volume_id: int, key: bytes, value: bytes) -> None:
        self.apply(volume_id, [(key, value)])

    def delete(self, volume_id: int, key: bytes) -> None:
        self.apply(volume_id, [(key, None)])

    def apply(self, volume_id: int, changes: Iterable[tuple[bytes, bytes | None]]) -> None:
        gathered = list(changes)

        def change(tree: dict[bytes, bytes]) -> None:
            for key, value in gathered:
                self._check_item(key, value)
                if value is None:
                    tree.pop(key, None)
                else:
                    tree[key] = value

        self._change(volume_id, change)

    def bulk_load(self, volume_id: int, items: Iterable[tuple[bytes, bytes]]) -> int:
        gathered = list(items)
        # One transaction for each item is the finest that a crash could cut; the C store's are coarser.
        self._volume(volume_id)
        for item in gathered:
            self.apply(volume_id, [item])
        return len(gathered)

    def scan(
        self, object_id: int, start: bytes = b"", stop: bytes | None = None, *, reverse: bool = False, limit: int = 0
    ) -> list[tuple[bytes, bytes]]:
        if len(start) > KEY_LENGTH_MAX or (stop is not None and len(stop) > KEY_LENGTH_MAX):
            fail(errno.EINVAL)
        tree = self._tree(object_id)
        keys = sorted((key for key in tree if start <= key and (stop is None or key < stop)), reverse=reverse)
        return [(key, tree[key]) for key in (keys[:limit] if limit else keys)]

    def diff(
        self, old_object_id: int, new_object_id: int, *, start: bytes = b"", limit: int = 0
    ) -> list[tuple[bytes, bytes | None, bytes | None]]:
        if len(start) > KEY_LENGTH_MAX:
            fail(errno.EINVAL)
        old, new = self._tree(old_object_id), self._tree(new_object_id)
        keys = sorted(key for key in old.keys() | new.keys() if key >= start and old.get(key) != new.get(key))
        return [(key, old.get(key), new.get(key)) for key in (keys[:limit] if limit else keys)]

    # ---- extents

    def write_extent(self, volume_id: int, key: bytes, data: bytes) -> None:
        if not 0 < len(data) <= EXTENT_BLOCKS_MAX * BLOCK_SIZE_BYTES:
            fail(errno.EINVAL)
        self._extents_written += 1
        extent = ReferenceExtent.make(self._extents_written, data)

        def change(tree: dict[bytes, bytes]) -> None:
            self._check_item(key, None)
            tree[key] = extent

        self._change(volume_id, change)

    def read_extent(self, object_id: int, key: bytes) -> bytes | None:
        value = self.get(object_id, key)
        if value is None:
            return None
        if not isinstance(value, ReferenceExtent):
            fail(errno.EINVAL)
        return value.data

    def delete_extent(self, volume_id: int, key: bytes) -> None:
        def change(tree: dict[bytes, bytes]) -> None:
            if not isinstance(tree.get(key, ReferenceExtent()), ReferenceExtent):
                fail(errno.EINVAL)
            tree.pop(key, None)

        self._change(volume_id, change)

    # ---- volumes

    def _new_id(self) -> int:
        self._state.next_id += 1
        return self._state.next_id - 1

    def _check_name(self, name: str) -> None:
        length = len(os.fsencode(name))
        if length > NAME_LENGTH_MAX:
            fail(errno.ENAMETOOLONG)
        if length == 0 or name in (".", "..") or "/" in name or "\0" in name:
            fail(errno.EINVAL)

    def _check_name_is_free(self, name: str) -> None:
        if any(volume.name == name and not volume.destroyed for volume in self._state.volumes.values()):
            fail(errno.EEXIST)

    def _visible_snapshots(self, volume_id: int) -> list[Snapshot]:
        return [each for each in self._state.snapshots.values() if each.volume_id == volume_id and not each.hidden]

    def _volume_info(self, volume: Volume) -> VolumeInfo:
        count = len(self._visible_snapshots(volume.id))
        return VolumeInfo(volume.id, volume.name, 0, volume.origin_snapshot_id, volume.generation, count)

    def volume_create(self, name: str) -> int:
        self._check_name(name)
        self._check_name_is_free(name)
        volume = Volume(self._new_id(), name, {})
        self._state.volumes[volume.id] = volume
        self._done()
        return volume.id

    def volume_find(self, name: str) -> VolumeInfo:
        for volume in self._state.volumes.values():
            if volume.name == name and not volume.destroyed:
                return self._volume_info(volume)
        fail(errno.ENOENT)

    def volume_get(self, volume_id: int) -> VolumeInfo:
        return self._volume_info(self._volume(volume_id))

    def volumes(self) -> list[VolumeInfo]:
        return [self._volume_info(volume) for volume in self._state.volumes.values() if not volume.destroyed]

    def volume_destroy(self, volume_id: int) -> None:
        volume = self._volume(volume_id)
        visible = self._visible_snapshots(volume_id)
        if any(snapshot.hold_count for snapshot in visible):
            fail(errno.EBUSY)
        for snapshot in visible:
            self._state.snapshots[snapshot.id] = dataclasses.replace(snapshot, hidden=True)
        self._state.volumes[volume_id] = dataclasses.replace(volume, tree={}, destroyed=True)
        self._drop_unused()
        self._done()

    # ---- properties

    def property_set(self, volume_id: int, name: str, value: bytes) -> None:
        length = len(os.fsencode(name))
        if length == 0 or "\0" in name:
            fail(errno.EINVAL)
        if length > PROPERTY_NAME_LENGTH_MAX:
            fail(errno.ENAMETOOLONG)
        if len(value) > PROPERTY_LENGTH_MAX:
            fail(errno.EMSGSIZE)
        volume = self._volume(volume_id)
        properties = {each: old for each, old in volume.properties.items() if each != name}
        if value:
            if len(properties) >= PROPERTIES_MAX:
                fail(errno.E2BIG)
            properties[name] = value
        self._state.volumes[volume_id] = dataclasses.replace(volume, properties=properties)
        self._done()

    def property_get(self, volume_id: int, name: str) -> bytes | None:
        return self._volume(volume_id).properties.get(name)

    def properties(self, volume_id: int) -> dict[str, bytes]:
        found = self._volume(volume_id).properties
        return {name: found[name] for name in sorted(found, key=os.fsencode)}

    def _clone_count(self, snapshot_id: int) -> int:
        return sum(volume.origin_snapshot_id == snapshot_id for volume in self._state.volumes.values())

    def _drop_unused(self) -> None:
        """Hidden snapshots go with their last clone, destroyed volumes with their last snapshot, in turn."""
        state = self._state
        while True:
            snapshots = [each.id for each in state.snapshots.values() if each.hidden and not self._clone_count(each.id)]
            for snapshot_id in snapshots:
                del state.snapshots[snapshot_id]
            used = {each.volume_id for each in state.snapshots.values()}
            volumes = [each.id for each in state.volumes.values() if each.destroyed and each.id not in used]
            for volume_id in volumes:
                del state.volumes[volume_id]
            if not snapshots and not volumes:
                return

    # ---- snapshots

    def _snapshot(self, snapshot_id: int) -> Snapshot:
        snapshot = self._state.snapshots.get(snapshot_id)
        if snapshot is None or snapshot.hidden:
            fail(errno.ENOENT)
        return snapshot

    def _snapshot_info(self, snapshot: Snapshot) -> SnapshotInfo:
        return SnapshotInfo(
            snapshot.id,
            snapshot.volume_id,
            snapshot.name,
            0,
            0,
            self._clone_count(snapshot.id),
            snapshot.hold_count,
            snapshot.annotation,
        )

    def _freeze(self, volume: Volume, name: str) -> Snapshot:
        if any(snapshot.name == name for snapshot in self._visible_snapshots(volume.id)):
            fail(errno.EEXIST)
        snapshot = Snapshot(self._new_id(), volume.id, name, volume.tree)
        self._state.snapshots[snapshot.id] = snapshot
        return snapshot

    def snapshot(self, volume_id: int, name: str, *, sync: bool = True) -> SnapshotInfo:
        self._check_name(name)
        snapshot = self._freeze(self._volume(volume_id), name)
        self._done()
        if sync:
            self.commit()
        return self._snapshot_info(snapshot)

    def snapshot_find(self, volume_id: int, name: str) -> SnapshotInfo:
        self._volume(volume_id)
        for snapshot in self._visible_snapshots(volume_id):
            if snapshot.name == name:
                return self._snapshot_info(snapshot)
        fail(errno.ENOENT)

    def snapshot_get(self, snapshot_id: int) -> SnapshotInfo:
        return self._snapshot_info(self._snapshot(snapshot_id))

    def snapshots(
        self, volume_id: int, *, after_id: int = 0, before_id: int = 0, limit: int = 0
    ) -> list[SnapshotInfo]:
        self._volume(volume_id)
        visible = self._visible_snapshots(volume_id)
        if before_id:
            visible = [each for each in reversed(visible) if each.id < before_id]
        found = [self._snapshot_info(each) for each in visible if each.id > after_id]
        return found[:limit] if limit else found

    def snapshot_delete(self, snapshot_id: int) -> None:
        snapshot = self._snapshot(snapshot_id)
        if snapshot.hold_count:
            fail(errno.EBUSY)
        self._state.snapshots[snapshot_id] = dataclasses.replace(snapshot, hidden=True)
        self._drop_unused()
        self._done()

    def snapshot_annotate(self, snapshot_id: int, hold_count: int, annotation: bytes) -> None:
        if len(annotation) > ANNOTATION_LENGTH_MAX:
            fail(errno.EMSGSIZE)
        snapshot = self._snapshot(snapshot_id)
        self._state.snapshots[snapshot_id] = dataclasses.replace(snapshot, hold_count=hold_count, annotation=annotation)
        self._done()

    def clone(self, snapshot_id: int, name: str) -> int:
        self._check_name(name)
        snapshot = self._snapshot(snapshot_id)
        self._check_name_is_free(name)
        properties = self._volume(snapshot.volume_id).properties
        volume = Volume(
            self._new_id(), name, snapshot.tree, origin_snapshot_id=snapshot_id, properties=properties
        )
        self._state.volumes[volume.id] = volume
        self._done()
        return volume.id

    def rollback(self, volume_id: int, snapshot_id: int, guard_name: str) -> SnapshotInfo:
        self._check_name(guard_name)
        volume = self._volume(volume_id)
        snapshot = self._snapshot(snapshot_id)
        if snapshot.volume_id != volume_id:
            fail(errno.ENOENT)
        guard = self._freeze(volume, guard_name)
        self._state.volumes[volume_id] = dataclasses.replace(
            volume, tree=snapshot.tree, generation=volume.generation + 1
        )
        self._done()
        return self._snapshot_info(guard)
