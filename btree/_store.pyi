"""The store's Python API (C extension). Every call that may block releases the GIL. Errors are OSError with errno, and
for opening and formatting StoreError, an OSError whose strerror says what is wrong and what to do next."""

from collections.abc import Iterable
from os import PathLike
from typing import Any, final

from btree.records import SnapshotInfo as SnapshotInfo
from btree.records import StorageEvent as StorageEvent
from btree.records import VolumeInfo as VolumeInfo

class StoreError(OSError): ...

@final
class Storage:
    """Owned by whoever opened it until a Store or a recorder takes it over, and closed with that. Memory, and a
    recorder over memory, outlives its Store as a medium would: it can be opened again until its own close(). Reading
    and writing are possible while a Store works on it (to damage it, in tests). Methods are thread-safe; after
    closing they raise ValueError."""

    @classmethod
    def open_file(cls, path: str | bytes | PathLike[str], *, read_only: bool = False) -> Storage:
        """A regular file or block device, locked: exclusively, or with read_only against writers. EBUSY when another
        process has it, EINVAL when it is something else, EISDIR."""
    @classmethod
    def open_memory(cls, size_bytes: int) -> Storage:
        """Zero-filled memory."""
    @classmethod
    def open_recorder(cls, inner: Storage, *, record: bool = True) -> Storage:
        """Counts operations on `inner`, which it takes over, keeps what was written (record) and can fail them."""
    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        """All of the bytes; EIO past the end."""
    def write(self, offset_bytes: int, data: bytes | bytearray | memoryview) -> None:
        """All of the bytes; EIO past the end. Durable after flush()."""
    def flush(self) -> None: ...
    def size(self) -> int:
        """Bytes."""
    def close(self) -> None:
        """Waits for calls in progress. Closing again does nothing; ValueError while a Store or recorder uses it."""
    def fail(self, kinds: str, index: int, error: int, *, forever: bool = False) -> None:
        """From now on operation number `index` of these kinds, counted from 0, fails with the errno `error`; with
        `forever` all later ones too. kinds: any of the words 'read', 'write', 'flush', joined by '|'. index -1 clears.
        Only on a recorder, as the two below: ValueError."""
    def events(self) -> list[StorageEvent]:
        """The writes and flushes that succeeded, in the order in which `inner` saw them. A write that comes before a
        flush was complete before that flush began."""
    def counts(self) -> tuple[int, int, int]:
        """(reads, writes, flushes) asked for, failed ones included."""

@final
class Store:
    """One pool. Methods are thread-safe. Used as a context manager it is closed at the end. After closing every
    method but close() and abandon() raises ValueError."""

    @classmethod
    def format(cls, storage: Storage, *, node_size_bytes: int = 0, metadata_copies: int = 0,
               journal_size_bytes: int = 0, label: str = "", uuid: bytes = b"") -> None:
        """Writes an empty pool, without volumes; what the storage held is lost. 0 and empty mean the default (a random
        uuid). The storage stays the caller's. StoreError."""
    def __new__(cls, storage: Storage, *, cache_bytes_max: int = 0, dirty_bytes_max: int = 0,
                buffer_bytes_max: int = 0, commit_interval_ms: int = 0, read_only: bool = False,
                background: bool = True, rebuild_space: bool = False, sequence_max: int = 0) -> Store:
        """Opens and recovers; with `rebuild_space` what is in use and what is dead is found out by walking, with
        `sequence_max` no newer superblock is taken. The Store takes the storage over: closed with it, but memory (see
        Storage). StoreError: EINVAL no pool, EPROTONOSUPPORT a newer version, EIO unreadable, EUCLEAN damaged; then the
        storage is still the caller's."""
    def close(self) -> None:
        """Waits for calls in progress, commits, writes a checkpoint, closes the storage. What fails of that is raised
        (OSError); closed it is in any case. Closing again does nothing."""
    def abandon(self) -> None:
        """Drops everything in memory unwritten, as kill -9 would."""
    def __enter__(self) -> Store: ...
    def __exit__(self, *details: object) -> None: ...

    # Objects are volumes and snapshots; ENOENT when there is none of that id, EROFS for changes to a snapshot.
    # A value that is an extent reads as its encoded form here, and is freed when put() or delete() replaces it.
    def get(self, object_id: int, key: bytes) -> bytes | None: ...
    def put(self, volume_id: int, key: bytes, value: bytes) -> None: ...
    def delete(self, volume_id: int, key: bytes) -> None:
        """Deleting an absent key is no error."""
    def apply(self, volume_id: int, changes: Iterable[tuple[bytes, bytes | None]], *,
              keep_blocks: bool = False) -> None:
        """One transaction: all of the puts (value) and deletes (None), in order, or none of them. E2BIG above 512
        changes (a replaced extent counts twice) or 160 KiB. With `keep_blocks` what replaced extents named is not
        freed: for repairs, after which what is in use is found out anew."""
    def bulk_load(self, volume_id: int, items: Iterable[tuple[bytes, bytes]]) -> int:
        """Many puts, in transactions of some hundred; returns how many items."""
    def scan(self, object_id: int, start: bytes = b"", stop: bytes | None = None, *, reverse: bool = False,
             limit: int = 0) -> list[tuple[bytes, bytes]]:
        """Items with start <= key < stop, ascending or, reversed, descending; at most `limit` when it is not 0. Read in
        pages of some hundred items: whoever scans while others write sees each page at one moment, and gets all of it
        at one moment from a snapshot."""
    def write_extent(self, volume_id: int, key: bytes, data: bytes) -> None:
        """Stores 1 byte to 32 blocks of data (else EINVAL) as one extent under key; replaces and frees what was there.
        ENOSPC also when no free run is long enough."""
    def read_extent(self, object_id: int, key: bytes) -> bytes | None:
        """The verified data, padded to blocks with zeros; None without such a key, EINVAL when it is no extent, EIO
        when a checksum does not match."""
    def delete_extent(self, volume_id: int, key: bytes) -> None:
        """EINVAL when the key is no extent; an absent one is no error."""

    def volume_create(self, name: str) -> int: ...
    def volume_find(self, name: str) -> VolumeInfo: ...
    def volume_get(self, volume_id: int) -> VolumeInfo: ...
    def volumes(self) -> list[VolumeInfo]: ...
    def volume_destroy(self, volume_id: int) -> None: ...
    def snapshot(self, volume_id: int, name: str, *, sync: bool = True) -> SnapshotInfo: ...
    def volume_changed(self, volume_id: int) -> bool:
        """Whether the volume may have changed since a snapshot of it was last taken, or since it began as a clone."""
    def snapshot_find(self, volume_id: int, name: str) -> SnapshotInfo: ...
    def snapshot_get(self, snapshot_id: int) -> SnapshotInfo: ...
    def snapshots(self, volume_id: int, *, after_id: int = 0, before_id: int = 0,
                  limit: int = 0) -> list[SnapshotInfo]:
        """By id, those after one; with before_id descending, those before that."""
    def snapshot_delete(self, snapshot_id: int) -> None: ...
    def snapshot_annotate(self, snapshot_id: int, hold_count: int, annotation: bytes) -> None: ...
    def snapshots_space(self, snapshot_ids: list[int]) -> int:
        """Blocks that come free when all of these are deleted, exactly. Writes a checkpoint."""
    def snapshots_unique(self, snapshot_ids: list[int]) -> list[int | None]:
        """Blocks that come free when one of them alone is deleted, of what is written by now; None: not known."""
    def snapshot_written(self, snapshot_id: int, items_max: int) -> int | None:
        """Blocks of data that it has and the one before did not; None when more than so many items differ."""
    def clone(self, snapshot_id: int, name: str) -> int: ...
    def rollback(self, volume_id: int, snapshot_id: int, guard_name: str) -> SnapshotInfo: ...

    # Properties belong to a volume, not to its content: a rollback leaves them, a clone begins with a copy.
    def property_set(self, volume_id: int, name: str, value: bytes) -> None:
        """An empty value removes it. The name has 1 to 64 bytes (EINVAL, ENAMETOOLONG), the value at most 512
        (EMSGSIZE); E2BIG when the volume has 256 already. Durable after commit()."""
    def property_get(self, volume_id: int, name: str) -> bytes | None: ...
    def properties(self, volume_id: int) -> dict[str, bytes]:
        """By name, in the order of the names' bytes."""

    def snapshot_at(self, volume_id: int, time_ns: int) -> int | None:
        """Id of the volume's newest snapshot taken at or before a time."""
    def snapshot_before(self, volume_id: int, before_id: int) -> int | None:
        """Id of the volume's newest snapshot that is older than another."""
    def snapshot_since(self, object_id: int, epoch: int) -> int | None:
        """Id of the oldest snapshot between an epoch and the object (itself included) with no rollback or clone between
        it and the object: whatever of the object was born up to that epoch is in it."""
    def promote(self, volume_id: int) -> None:
        """The snapshots up to a clone's origin become its own, and the volume that had them a clone. EINVAL: it is no
        clone, or they are; EEXIST: it has one of the same name as one of them."""
    def heads(self, volume_id: int) -> list[tuple[int, int, int]]:
        """(id, id of the snapshot it began at or 0, id of the guard snapshot that a rollback took first or 0) of each
        content that the volume has had since it was made, the oldest first."""

    def diff(self, old_object_id: int, new_object_id: int, *, start: bytes = b"",
             limit: int = 0) -> list[tuple[bytes, bytes | None, bytes | None]]:
        """(key, old value, new value) of keys >= start that differ; None where absent. Shared subtrees are skipped."""
    def commit(self) -> None: ...
    def checkpoint(self) -> None: ...
    def check(self, *, read_data: bool = False) -> list[str]: ...
    def damages(self, after: int = 0) -> tuple[list[dict[str, Any]], int]:
        """The places last found damaged (at most 256) with a sequence above `after`, as struct store_damage has them,
        and how often damage was met in all."""
    def scrub(self, position: bytes = b"", bytes_max: int = 1 << 20) -> tuple[bytes, dict[str, Any],
                                                                           list[dict[str, Any]]]:
        """Reads and verifies a further part of the pool: (where to go on, figures as in struct scrub_result, damage).
        The position stays good when trees change and over closing and opening."""
    def statistics(self) -> dict[str, Any]:
        """The fields of struct store_statistics by name; uuid as bytes, label as str."""
    def stalls(self) -> dict[str, dict[str, dict[str, int]]]:
        """struct store_stalls: "holds" and "waits", each by name; counts and maxima since opening."""
    def _capsule(self) -> object:
        """PyCapsule named "btree.store" holding the struct store pointer; valid while this Store is open."""
