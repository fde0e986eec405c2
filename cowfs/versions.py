"""The versions of one path: in which snapshots what lies there changed, found without looking at the others.

From the newest snapshot on, each look into one (FileSystem.trace) tells since which epoch nothing there has changed;
the next look is into the snapshot before that. So looks follow the changes near the file, not the snapshots.
"""

import contextlib
from typing import Any, NamedTuple

from btree import SnapshotInfo
from cowfs._native import Attributes, FileSystem
from cowfs.differences import CONTENT, ENTRIES, NAMES, describe_difference
from cowfs.volumes import MountedPool

_INODE, _MODE, _SIZE, _MTIME = 0, 1, 6, 9
LOOKS_MAX = 1_000_000


class State(NamedTuple):
    """What a path led to in one tree."""

    object_id: int
    attributes: Attributes | None
    birth: int


class Version(NamedTuple):
    """A stretch of snapshots with the same at the path; `snapshot` is the first of them, None for what is in none."""

    snapshot: SnapshotInfo | None
    state: State
    change: dict[str, Any]


def _compare(filesystem: FileSystem, old: State, new: State) -> dict[str, Any] | None:
    """What changed, or None for nothing."""
    if new.attributes is None:
        return None if old.attributes is None else {"kind": "removed"}
    if old.attributes is None:
        return {"kind": "added"}
    if old.attributes[_INODE] != new.attributes[_INODE]:
        return {"kind": "replaced"}
    inode = new.attributes[_INODE]
    try:
        found = filesystem.diff(old.object_id, new.object_id, first_inode=inode, last_inode=inode, limit=1)
    except FileNotFoundError:  # one of the two was deleted meanwhile: their attributes are still here
        return None if old.attributes == new.attributes else {"kind": "modified"}
    if not found:
        return None
    _inode, kinds, before, after, ranges, _names = found[0]
    if before is None or after is None or not kinds & ~NAMES:
        return None  # other places of the same bytes, another hard link, or a change time alone
    detail = describe_difference(kinds, before, after, ranges)
    return {"kind": "modified" if kinds & (CONTENT | ENTRIES) else "metadata", **detail}


def versions(pool: MountedPool, volume_id: int, path: bytes) -> tuple[list[Version], int]:
    """The versions of what lies at a path, the oldest first, and how many trees were looked at. Waits."""
    store, filesystem = pool.store, pool.filesystem
    looks = 0

    def look(object_id: int) -> State:
        nonlocal looks
        looks += 1
        attributes, birth = filesystem.trace(object_id, path)
        return State(object_id, attributes, birth)

    def before(snapshot_id: int) -> SnapshotInfo | None:
        """The snapshot before another that is still there."""
        while (found := store.snapshot_before(volume_id, snapshot_id)) is not None:
            with contextlib.suppress(FileNotFoundError):  # deleted since it was found
                return store.snapshot_get(found)
            snapshot_id = found
        return None

    found: list[Version] = []
    current = look(volume_id)
    first: SnapshotInfo | None = None  # the oldest snapshot so far that has `current`
    while looks < LOOKS_MAX:
        # As far back as nothing near the path has changed, in the line of this tree.
        since = store.snapshot_since(current.object_id, current.birth)
        if since is not None and since != current.object_id:
            with contextlib.suppress(FileNotFoundError):
                first = store.snapshot_get(since)
        older = before(first.id if first is not None else (1 << 63) - 1)
        if older is None:
            break
        try:
            state = look(older.id)
        except FileNotFoundError:
            continue
        change = _compare(filesystem, state, current)
        if change is not None:
            found.append(Version(first, current, change))
        first, current = older, state
    found.append(Version(first, current, {"kind": "added"}))
    return _distinct(filesystem, found), looks


def _distinct(filesystem: FileSystem, newest_first: list[Version]) -> list[Version]:
    """The oldest first, without what a rollback brought back, and without the time before there was anything."""
    kept: list[Version] = []
    seen: dict[Attributes, State] = {}
    for version in reversed(newest_first):
        attributes = version.state.attributes
        if attributes is None:
            if kept and kept[-1].state.attributes is not None:
                kept.append(version)
            continue
        twin = seen.setdefault(attributes, version.state)
        if twin is version.state or _compare(filesystem, twin, version.state) is not None:
            kept.append(version)
    return kept


def describe_versions(pool: MountedPool, volume_id: int, path: bytes) -> dict[str, Any]:
    """For programs: versions, the oldest first, and how many trees were looked at. Waits."""
    found, looks = versions(pool, volume_id, path)
    return {"versions": [_describe(version) for version in found], "looks": looks}


def _describe(version: Version) -> dict[str, Any]:
    snapshot, attributes = version.snapshot, version.state.attributes
    return {"snapshot": snapshot.name if snapshot else None, "snapshot_id": snapshot.id if snapshot else None,
            "created_ns": snapshot.created_ns if snapshot else None,
            "size": attributes[_SIZE] if attributes else None, "mtime_ns": attributes[_MTIME] if attributes else None,
            "mode": attributes[_MODE] if attributes else None, **version.change}
