"""An embedded, ordered, copy-on-write key/value store with constant-time snapshots, writable clones and data extents.

Usable by itself. ``Storage`` is where a pool lives (file, block device, memory, or the recorder that tests put in
between), ``Store`` is an open pool. ``btree.reference.ReferenceStore`` is the same API in plain Python, which tests
compare this one with.
"""

from btree._store import Storage, Store, StoreError
from btree.records import SnapshotInfo, StorageEvent, VolumeInfo

__all__ = ["SnapshotInfo", "Storage", "StorageEvent", "Store", "StoreError", "VolumeInfo"]
