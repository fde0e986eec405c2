"""The log of a volume's heads: how its content came to be what it is, and what undo and redo lead back to.

Nothing is kept for it: each rollback leaves a head in the store, which names the snapshot it began at and the guard
snapshot that was taken first, and the guard's name says whether it was a rollback, an undo or a redo.
"""

from typing import Any, NamedTuple

from btree import SnapshotInfo
from cowfs.errors import CowfsError
from cowfs.snapshots import REDO_GUARD_PREFIX, UNDO_GUARD_PREFIX
from cowfs.volumes import MountedPool


class Event(NamedTuple):
    """A rollback, undo or redo. A snapshot that was destroyed since is None."""

    kind: str
    to: SnapshotInfo | None
    guard: SnapshotInfo | None
    """What the content was before."""


def _snapshot(pool: MountedPool, snapshot_id: int) -> SnapshotInfo | None:
    try:
        return pool.store.snapshot_get(snapshot_id)
    except FileNotFoundError:
        return None


def events(pool: MountedPool, volume_id: int) -> list[Event]:
    """The oldest first. One of whose former content no snapshot is left is gone, but never the last."""
    found = []
    for _head, origin_id, guard_id in pool.store.heads(volume_id):
        if guard_id == 0:
            continue  # the volume's first
        guard = _snapshot(pool, guard_id)
        kind = "rollback"
        if guard is not None:
            kind = {UNDO_GUARD_PREFIX: "undo", REDO_GUARD_PREFIX: "redo"}.get(
                guard.name[: len(UNDO_GUARD_PREFIX)], "rollback")
        found.append(Event(kind, _snapshot(pool, origin_id), guard))
    return found


def _stacks(log: list[Event]) -> tuple[list[Event], list[Event]]:
    """What can be undone and what redone, the next one last: as in an editor, a new rollback ends what could be redone.
    An undo can be redone and a redo undone, each by the guard that it took itself."""
    undoable: list[Event] = []
    redoable: list[Event] = []
    for event in log:
        source, sink = (redoable, undoable) if event.kind == "redo" else (undoable, redoable)
        if event.kind == "rollback":
            undoable.append(event)
            redoable.clear()
            continue
        if source:
            source.pop()
        sink.append(event)
    return undoable, redoable


def find_step(pool: MountedPool, volume_id: int, step: str) -> SnapshotInfo:
    """The snapshot that an "undo" or a "redo" leads to; CowfsError when there is none."""
    undoable, redoable = _stacks(events(pool, volume_id))
    stack = undoable if step == "undo" else redoable
    if not stack:
        raise CowfsError("not_found", f"there is nothing to {step}", "'cowfs log DIR' lists the rollbacks")
    guard = stack[-1].guard
    if guard is None:
        raise CowfsError("not_found", f"the snapshot that {step} would lead to was destroyed",
                         "'cowfs list DIR' lists those that are left, for 'cowfs rollback'")
    return guard


def describe_log(pool: MountedPool, volume_id: int) -> dict[str, Any]:
    """What happened to the volume as a whole, the oldest first. Waits."""
    volume = pool.store.volume_get(volume_id)
    made: dict[str, Any] = {"event": "created", "time_ns": volume.created_ns, "snapshot": None, "volume": volume.name,
                            "guard": None}
    if volume.origin_snapshot_id:
        made["event"] = "cloned"
        origin = _snapshot(pool, volume.origin_snapshot_id)
        if origin is not None:
            made |= {"snapshot": origin.name, "volume": pool.store.volume_get(origin.volume_id).name}
    entries = [made]
    log = events(pool, volume_id)
    for event in log:
        entries.append({"event": event.kind, "time_ns": event.guard.created_ns if event.guard else None,
                        "snapshot": event.to.name if event.to else None, "volume": volume.name,
                        "guard": event.guard.name if event.guard else None})
    for other in pool.store.volumes():
        origin = _snapshot(pool, other.origin_snapshot_id) if other.origin_snapshot_id else None
        if origin is not None and origin.volume_id == volume_id:
            entries.append({"event": "clone", "time_ns": other.created_ns, "snapshot": origin.name,
                            "volume": other.name, "guard": None})
    latest_ns = 0
    order = {}
    for index, entry in enumerate(entries):  # one without a time stays behind the one before it
        latest_ns = entry["time_ns"] if entry["time_ns"] is not None else latest_ns
        order[index] = (latest_ns, index)
    undoable, redoable = _stacks(log)
    return {"events": [entries[index] for index in sorted(order, key=lambda index: order[index])],
            "undo": undoable[-1].guard.name if undoable and undoable[-1].guard else None,
            "redo": redoable[-1].guard.name if redoable and redoable[-1].guard else None}
