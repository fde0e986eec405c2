"""Records that the store's Python API returns; plain tuples with names, made by the C binding and by the twin."""

from typing import NamedTuple


class VolumeInfo(NamedTuple):
    """A writable tree."""

    id: int
    name: str
    created_ns: int
    origin_snapshot_id: int
    """0: not a clone."""
    generation: int
    """Raised by each rollback."""
    snapshot_count: int


class SnapshotInfo(NamedTuple):
    """A frozen tree."""

    id: int
    volume_id: int
    name: str
    epoch: int
    created_ns: int
    clone_count: int
    hold_count: int
    """Above 0 the snapshot cannot be deleted."""
    annotation: bytes


class StorageEvent(NamedTuple):
    """One write or flush that a recorder saw succeed, in the order in which the storage saw them."""

    kind: str
    """'write' or 'flush'."""
    offset_bytes: int
    bytes: bytes
