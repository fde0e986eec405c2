"""The store's Python API: what each call answers and which errors it raises."""

import contextlib
import errno
import gc
import pathlib
import struct
import sys
import threading
from collections.abc import Iterator

import pytest

from btree import SnapshotInfo, Storage, StorageEvent, Store, StoreError, VolumeInfo
from tests.unit.store_helpers import BLOCK, NO_SUCH_ID, POOL_SIZE_BYTES, expect_errno


@pytest.fixture
def storage() -> Storage:
    memory = Storage.open_memory(POOL_SIZE_BYTES)
    Store.format(memory)
    return memory


@pytest.fixture
def store(storage: Storage) -> Iterator[Store]:
    """Every test ends with a sound pool."""
    with Store(storage, background=False) as store:
        yield store
        assert store.check(read_data=True) == []


@pytest.fixture
def volume(store: Store) -> int:
    return store.volume_create("main")


@pytest.fixture
def recorder() -> Storage:
    recorder = Storage.open_recorder(Storage.open_memory(POOL_SIZE_BYTES))
    Store.format(recorder)
    return recorder


class TestFormat:
    def test_parameters_are_kept(self) -> None:
        storage = Storage.open_memory(32 << 20)
        uuid = bytes(range(16))
        Store.format(
            storage, node_size_bytes=8192, metadata_copies=1, journal_size_bytes=2 << 20, label="ünï", uuid=uuid
        )
        with Store(storage) as store:
            statistics = store.statistics()
        assert statistics["node_size_bytes"] == 8192
        assert statistics["metadata_copies"] == 1
        assert statistics["journal_size_bytes"] <= 2 << 20
        assert statistics["label"] == "ünï"
        assert statistics["uuid"] == uuid
        assert statistics["size_blocks"] == (32 << 20) // BLOCK

    def test_defaults(self, store: Store) -> None:
        statistics = store.statistics()
        assert statistics["node_size_bytes"] == 4096
        assert statistics["metadata_copies"] == 2
        assert statistics["label"] == ""
        assert statistics["uuid"] != bytes(16)
        assert statistics["failed_errno"] == 0
        assert statistics["read_only"] is False
        assert store.volumes() == []

    @pytest.mark.parametrize(
        "parameters",
        [
            {"node_size_bytes": 1000},
            {"node_size_bytes": 32768},
            {"metadata_copies": 3},
            {"journal_size_bytes": POOL_SIZE_BYTES},
        ],
    )
    def test_impossible_parameters(self, parameters: dict[str, int]) -> None:
        storage = Storage.open_memory(POOL_SIZE_BYTES)
        with pytest.raises(StoreError) as caught:
            Store.format(storage, **parameters)
        assert caught.value.errno == errno.EINVAL
        assert len(caught.value.strerror) > 20

    def test_too_small(self) -> None:
        with pytest.raises(StoreError) as caught:
            Store.format(Storage.open_memory(POOL_SIZE_BYTES - BLOCK))
        assert caught.value.errno in (errno.EINVAL, errno.ENOSPC)
        assert "16" in caught.value.strerror

    def test_label_and_uuid_are_checked(self) -> None:
        storage = Storage.open_memory(POOL_SIZE_BYTES)
        for label in ("x" * 64, "a\0b"):
            with pytest.raises(ValueError, match="label"):
                Store.format(storage, label=label)
        with pytest.raises(ValueError, match="uuid"):
            Store.format(storage, uuid=b"short")
        Store.format(storage, label="x" * 63)

    def test_the_storage_stays_the_callers(self) -> None:
        storage = Storage.open_memory(POOL_SIZE_BYTES)
        Store.format(storage)
        Store.format(storage)
        with Store(storage), pytest.raises(ValueError, match="in use"):
            Store.format(storage)

    def test_a_write_that_fails_is_said(self) -> None:
        recorder = Storage.open_recorder(Storage.open_memory(POOL_SIZE_BYTES))
        for kind in ("write", "flush"):
            recorder.fail(kind, 0, errno.ENOSPC)
            with pytest.raises(StoreError) as caught:
                Store.format(recorder)
            assert caught.value.errno == errno.ENOSPC


class TestOpen:
    def expect_no_pool(self, storage: Storage, *errors: int) -> str:
        with pytest.raises(StoreError) as caught:
            Store(storage)
        assert caught.value.errno in errors, caught.value
        storage.read(0, 1)  # it is still the caller's, and open
        return str(caught.value)

    def test_no_pool(self) -> None:
        assert "pool" in self.expect_no_pool(Storage.open_memory(POOL_SIZE_BYTES), errno.EINVAL)

    def test_noise(self) -> None:
        storage = Storage.open_memory(POOL_SIZE_BYTES)
        storage.write(0, bytes(range(256)) * (POOL_SIZE_BYTES // 256))
        self.expect_no_pool(storage, errno.EINVAL)

    @pytest.mark.parametrize("size_bytes", [1, 4095, 4096, 65536, 1 << 20])
    def test_too_small_to_be_one(self, size_bytes: int) -> None:
        self.expect_no_pool(Storage.open_memory(size_bytes), errno.EINVAL, errno.EIO)

    @pytest.mark.parametrize("size_bytes", [64 << 10, 1 << 20, POOL_SIZE_BYTES - BLOCK])
    def test_truncated(self, tmp_path: pathlib.Path, size_bytes: int) -> None:
        path = tmp_path / "pool"
        with path.open("wb") as file:
            file.truncate(POOL_SIZE_BYTES)
        storage = Storage.open_file(path)
        Store.format(storage)
        storage.close()
        with path.open("r+b") as file:
            file.truncate(size_bytes)
        storage = Storage.open_file(path)
        message = self.expect_no_pool(storage, errno.EIO, errno.EINVAL)
        assert len(message) > 30
        storage.close()
        assert path.stat().st_size == size_bytes

    def test_a_grown_file_is_still_a_pool(self, tmp_path: pathlib.Path) -> None:
        path = tmp_path / "pool"
        with path.open("wb") as file:
            file.truncate(POOL_SIZE_BYTES)
        storage = Storage.open_file(path)
        Store.format(storage)
        storage.close()
        with path.open("r+b") as file:
            file.truncate(2 * POOL_SIZE_BYTES)
        with Store(Storage.open_file(path)) as store:
            assert store.statistics()["size_blocks"] == POOL_SIZE_BYTES // BLOCK

    def test_unreadable(self, recorder: Storage) -> None:
        recorder.fail("read", 0, errno.EIO, forever=True)
        with pytest.raises(StoreError) as caught:
            Store(recorder)
        assert caught.value.errno == errno.EIO

    def test_one_store_at_a_time(self, storage: Storage) -> None:
        with Store(storage):
            with pytest.raises(ValueError, match="in use"):
                Store(storage)
            with pytest.raises(ValueError, match="in use"):
                storage.close()

    def test_arguments(self, storage: Storage) -> None:
        with pytest.raises(TypeError):
            Store("pool")  # type: ignore[arg-type]
        with pytest.raises(OverflowError):
            Store(storage, cache_bytes_max=-1)
        with pytest.raises(ValueError, match="commit_interval_ms"):
            Store(storage, commit_interval_ms=2**32)

    def test_a_file_is_closed_with_its_store(self, tmp_path: pathlib.Path) -> None:
        path = tmp_path / "pool"
        with path.open("wb") as file:
            file.truncate(POOL_SIZE_BYTES)
        storage = Storage.open_file(path)
        Store.format(storage)
        storage.close()
        for end in (Store.close, Store.abandon):
            storage = Storage.open_file(path)
            end(Store(storage))
            with pytest.raises(ValueError, match="Storage is closed"):
                storage.size()

    def test_read_only(self, storage: Storage) -> None:
        with Store(storage) as store:
            volume = store.volume_create("main")
            store.put(volume, b"key", b"value")
            snapshot = store.snapshot(volume, "before")
        content = storage.read(0, POOL_SIZE_BYTES)
        with Store(storage, read_only=True) as store:
            assert store.statistics()["read_only"] is True
            assert store.get(volume, b"key") == b"value"
            assert store.check(read_data=True) == []
            for call in (
                lambda: store.put(volume, b"key", b"other"),
                lambda: store.delete(volume, b"key"),
                lambda: store.write_extent(volume, b"x", b"data"),
                lambda: store.volume_create("other"),
                lambda: store.volume_destroy(volume),
                lambda: store.snapshot(volume, "other"),
                lambda: store.snapshot_delete(snapshot.id),
                lambda: store.snapshot_annotate(snapshot.id, 1, b""),
                lambda: store.clone(snapshot.id, "clone"),
                lambda: store.rollback(volume, snapshot.id, "guard"),
            ):
                expect_errno(errno.EROFS, call)
        assert storage.read(0, POOL_SIZE_BYTES) == content


class TestClosing:
    def test_everything_is_durable_after_close(self, storage: Storage) -> None:
        with Store(storage) as store:
            volume = store.volume_create("main")
            store.put(volume, b"key", b"value")
        with Store(storage) as store:
            assert store.get(volume, b"key") == b"value"
            assert store.statistics()["replayed_groups"] == 0

    def test_after_closing(self, storage: Storage) -> None:
        store = Store(storage)
        volume = store.volume_create("main")
        store.close()
        store.close()
        store.abandon()
        for call in (
            lambda: store.get(volume, b"k"),
            lambda: store.put(volume, b"k", b"v"),
            lambda: store.apply(volume, []),
            lambda: store.bulk_load(volume, []),
            lambda: store.scan(volume),
            lambda: store.diff(volume, volume),
            lambda: store.write_extent(volume, b"k", b"v"),
            lambda: store.read_extent(volume, b"k"),
            lambda: store.delete_extent(volume, b"k"),
            lambda: store.volume_create("x"),
            lambda: store.volume_find("x"),
            lambda: store.volume_get(volume),
            store.volumes,
            lambda: store.volume_destroy(volume),
            lambda: store.snapshot(volume, "x"),
            lambda: store.snapshot_find(volume, "x"),
            lambda: store.snapshot_get(1),
            lambda: store.snapshots(volume),
            lambda: store.snapshot_delete(1),
            lambda: store.snapshot_annotate(1, 0, b""),
            lambda: store.clone(1, "x"),
            lambda: store.rollback(volume, 1, "x"),
            store.commit,
            store.checkpoint,
            store.check,
            store.statistics,
            store._capsule,
            store.__enter__,
        ):
            with pytest.raises(ValueError, match="Store is closed"):
                call()

    def test_closing_waits_for_calls_in_progress(self, storage: Storage) -> None:
        store = Store(storage)
        volume = store.volume_create("main")
        errors: list[BaseException] = []
        acknowledged: list[bytes] = []

        def use(number: int) -> None:
            try:
                for count in range(10**6):
                    key = b"%d/%d" % (number, count)
                    store.put(volume, key, b"value")
                    acknowledged.append(key)
                    store.scan(volume, limit=100)
            except ValueError as error:
                if "is closed" not in str(error):
                    errors.append(error)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=use, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        while len(acknowledged) < 100:
            pass
        closers = [threading.Thread(target=store.close) for _ in range(2)]
        for thread in closers + threads:
            if thread in closers:
                thread.start()
        for thread in closers + threads:
            thread.join(30)
            assert not thread.is_alive()
        assert errors == []
        with Store(storage) as store:
            assert {key for key, _ in store.scan(volume)} == set(acknowledged)
            assert store.check() == []

    def test_abandon_drops_what_was_not_committed(self, storage: Storage) -> None:
        store = Store(storage, background=False)
        volume = store.volume_create("main")
        store.put(volume, b"durable", b"1")
        store.commit()
        store.put(volume, b"lost", b"2")
        store.abandon()
        with Store(storage) as store:
            assert store.scan(volume) == [(b"durable", b"1")]
            assert store.statistics()["replayed_groups"] > 0

    def test_a_forgotten_store_is_closed_with_a_warning(self, storage: Storage) -> None:
        store = Store(storage)
        volume = store.volume_create("main")
        store.put(volume, b"key", b"value")
        with pytest.warns(ResourceWarning, match="not closed"):
            del store
            gc.collect()
        with Store(storage) as store:
            assert store.get(volume, b"key") == b"value"

    def test_a_failing_close_says_so_and_is_closed(self, recorder: Storage) -> None:
        store = Store(recorder, background=False)
        store.volume_create("main")
        recorder.fail("flush", 0, errno.EIO)
        expect_errno(errno.EIO, store.close)
        with pytest.raises(ValueError, match="Store is closed"):
            store.statistics()
        store.close()
        Store(recorder).close()


class TestItems:
    def test_get_put_delete(self, store: Store, volume: int) -> None:
        assert store.get(volume, b"key") is None
        store.put(volume, b"key", b"")
        assert store.get(volume, b"key") == b""
        store.put(volume, b"key", b"value")
        assert store.get(volume, b"key") == b"value"
        store.delete(volume, b"key")
        store.delete(volume, b"key")
        assert store.get(volume, b"key") is None

    def test_limits_of_keys_and_values(self, store: Store, volume: int) -> None:
        expect_errno(errno.EINVAL, store.put, volume, b"", b"value")
        expect_errno(errno.EINVAL, store.put, volume, b"k" * 321, b"value")
        expect_errno(errno.EINVAL, store.scan, volume, b"k" * 321)
        store.put(volume, b"k" * 320, b"v" * 600)
        assert store.get(volume, b"k" * 320) == b"v" * 600
        expect_errno(errno.EMSGSIZE, store.put, volume, b"k" * 320, b"v" * 700)
        assert store.get(volume, b"k" * 320) == b"v" * 600
        assert store.get(volume, b"") is None
        assert store.get(volume, b"k" * 100_000) is None

    def test_no_such_object(self, store: Store) -> None:
        for call in (
            lambda: store.get(NO_SUCH_ID, b"k"),
            lambda: store.put(NO_SUCH_ID, b"k", b"v"),
            lambda: store.delete(NO_SUCH_ID, b"k"),
            lambda: store.apply(NO_SUCH_ID, [(b"k", b"v")]),
            lambda: store.bulk_load(NO_SUCH_ID, []),
            lambda: store.scan(NO_SUCH_ID),
            lambda: store.diff(NO_SUCH_ID, NO_SUCH_ID),
            lambda: store.write_extent(NO_SUCH_ID, b"k", b"v"),
            lambda: store.read_extent(NO_SUCH_ID, b"k"),
            lambda: store.delete_extent(NO_SUCH_ID, b"k"),
            lambda: store.snapshot(NO_SUCH_ID, "x"),
            lambda: store.snapshots(NO_SUCH_ID),
            lambda: store.snapshot_find(NO_SUCH_ID, "x"),
            lambda: store.snapshot_get(NO_SUCH_ID),
            lambda: store.snapshot_delete(NO_SUCH_ID),
            lambda: store.snapshot_annotate(NO_SUCH_ID, 0, b""),
            lambda: store.clone(NO_SUCH_ID, "x"),
            lambda: store.rollback(NO_SUCH_ID, NO_SUCH_ID, "x"),
            lambda: store.volume_get(NO_SUCH_ID),
            lambda: store.volume_destroy(NO_SUCH_ID),
            lambda: store.volume_find("absent"),
        ):
            expect_errno(errno.ENOENT, call)

    def test_snapshots_do_not_change(self, store: Store, volume: int) -> None:
        snapshot = store.snapshot(volume, "frozen")
        for call in (
            lambda: store.put(snapshot.id, b"k", b"v"),
            lambda: store.delete(snapshot.id, b"k"),
            lambda: store.write_extent(snapshot.id, b"k", b"v"),
        ):
            expect_errno(errno.EROFS, call)

    def test_apply_is_all_or_nothing(self, store: Store, volume: int) -> None:
        store.apply(volume, [(b"a", b"1"), (b"b", b"2"), (b"a", None), (b"c", b"3"), (b"c", b"4")])
        assert store.scan(volume) == [(b"b", b"2"), (b"c", b"4")]
        expect_errno(errno.EMSGSIZE, store.apply, volume, [(b"b", None), (b"d", b"v" * 4096)])
        expect_errno(errno.EINVAL, store.apply, volume, [(b"b", None), (b"", b"v")])
        expect_errno(errno.E2BIG, store.apply, volume, [(b"%d" % number, b"v") for number in range(513)])
        assert store.scan(volume) == [(b"b", b"2"), (b"c", b"4")]
        store.apply(volume, [(b"%04d" % number, b"v") for number in range(512)])
        assert len(store.scan(volume)) == 514

    def test_apply_refuses_other_types_before_changing_anything(self, store: Store, volume: int) -> None:
        def broken() -> Iterator[tuple[bytes, bytes]]:
            yield b"k", b"v"
            raise RuntimeError("source failed")

        for changes, error in (
            ([(b"k", b"v"), (b"k", "v")], TypeError),
            ([(b"k", b"v"), ("k", b"v")], TypeError),
            ([(b"k", b"v"), (b"k",)], TypeError),
            ([(b"k", b"v"), 7], TypeError),
            (7, TypeError),
            (broken(), RuntimeError),
        ):
            with pytest.raises(error):
                store.apply(volume, changes)  # type: ignore[arg-type]
        assert store.scan(volume) == []

    def test_bulk_load(self, store: Store, volume: int) -> None:
        items = [(b"%06d" % number, b"v" * (number % 100)) for number in range(10_000)]
        assert store.bulk_load(volume, iter(items)) == 10_000
        assert store.scan(volume) == items
        assert store.bulk_load(volume, []) == 0
        with pytest.raises(TypeError):
            store.bulk_load(volume, [(b"k", None)])  # type: ignore[list-item]

    def test_scan(self, store: Store, volume: int) -> None:
        items = [(b"%05d" % number, b"%d" % number) for number in range(1000)]
        store.bulk_load(volume, items)
        assert store.scan(volume) == items
        assert store.scan(volume, reverse=True) == items[::-1]
        for first, last in ((0, 1000), (5, 6), (100, 700), (999, 1000), (500, 500)):
            start = b"%05d" % first
            stop = b"%05d" % last
            assert store.scan(volume, start, stop) == items[first:last]
            assert store.scan(volume, start, stop, reverse=True) == items[first:last][::-1]
            for limit in (1, 255, 256, 257, 600):
                assert store.scan(volume, start, stop, limit=limit) == items[first:last][:limit]
                assert store.scan(volume, start, stop, reverse=True, limit=limit) == items[first:last][::-1][:limit]
        assert store.scan(volume, b"00500x", limit=1) == items[501:502]
        assert store.scan(volume, b"", b"00500x", reverse=True, limit=1) == items[500:501]
        assert store.scan(volume, b"x") == []
        assert store.scan(volume, b"00700", b"00300") == []

    def test_types(self, store: Store, volume: int) -> None:
        for arguments in ((volume, "key"), ("1", b"key"), (1.5, b"key"), (volume, None)):
            with pytest.raises(TypeError):
                store.get(*arguments)  # type: ignore[arg-type]
        for number in (-1, 2**64):
            with pytest.raises(OverflowError):
                store.get(number, b"key")


class TestDiff:
    def test_tells_what_differs(self, store: Store, volume: int) -> None:
        store.bulk_load(volume, [(b"%04d" % number, b"old") for number in range(2000)])
        before = store.snapshot(volume, "before")
        store.put(volume, b"0100", b"new")
        store.delete(volume, b"0200")
        store.put(volume, b"0300x", b"more")
        store.put(volume, b"0400", b"old")
        expected = [(b"0100", b"old", b"new"), (b"0200", b"old", None), (b"0300x", None, b"more")]
        assert store.diff(before.id, volume) == expected
        assert store.diff(volume, before.id) == [(key, new, old) for key, old, new in expected]
        assert store.diff(before.id, before.id) == []
        assert store.diff(before.id, volume, limit=2) == expected[:2]
        assert store.diff(before.id, volume, start=b"0101") == expected[1:]
        expect_errno(errno.EINVAL, store.diff, before.id, volume, start=b"x" * 321)

    def test_pages(self, store: Store, volume: int) -> None:
        empty = store.snapshot(volume, "empty")
        items = [(b"%05d" % number, b"v" * 50) for number in range(3000)]
        store.bulk_load(volume, items)
        assert store.diff(empty.id, volume) == [(key, None, value) for key, value in items]
        assert store.diff(volume, empty.id, limit=300) == [(key, value, None) for key, value in items[:300]]

    def test_shared_subtrees_are_skipped(self, store: Store, volume: int) -> None:
        store.bulk_load(volume, [(b"%06d" % number, b"v" * 100) for number in range(20_000)])
        before = store.snapshot(volume, "before")
        store.put(volume, b"010000", b"changed")
        touched = store.statistics()["nodes_touched"]
        assert [key for key, _, _ in store.diff(before.id, volume)] == [b"010000"]
        # 20,000 items fill several hundred nodes; two paths of a tree of height four at most are looked at.
        assert store.statistics()["nodes_touched"] - touched < 40


class TestExtents:
    @pytest.mark.parametrize("length", [1, 4095, 4096, 4097, 32 * BLOCK])
    def test_write_and_read(self, store: Store, volume: int, length: int) -> None:
        data = bytes(range(1, 256)) * (length // 255 + 1)
        store.write_extent(volume, b"x", data[:length])
        padded = data[:length] + bytes(-length % BLOCK)
        assert store.read_extent(volume, b"x") == padded
        store.checkpoint()
        assert store.read_extent(volume, b"x") == padded

    def test_errors(self, store: Store, volume: int) -> None:
        expect_errno(errno.EINVAL, store.write_extent, volume, b"x", b"")
        expect_errno(errno.EINVAL, store.write_extent, volume, b"x", bytes(32 * BLOCK + 1))
        expect_errno(errno.EINVAL, store.write_extent, volume, b"", b"data")
        assert store.read_extent(volume, b"x") is None
        store.delete_extent(volume, b"x")
        store.put(volume, b"plain", b"value")
        expect_errno(errno.EINVAL, store.read_extent, volume, b"plain")
        expect_errno(errno.EINVAL, store.delete_extent, volume, b"plain")
        # What failed holds no space.
        store.checkpoint()
        used = store.statistics()["used_blocks"]
        for _ in range(100):
            expect_errno(errno.EINVAL, store.write_extent, volume, b"", bytes(32 * BLOCK))
        store.checkpoint()
        assert store.statistics()["used_blocks"] == used

    def test_replaced_and_deleted_extents_are_freed(self, store: Store, volume: int) -> None:
        store.put(volume, b"y", b"there")
        store.checkpoint()
        free = store.statistics()["free_blocks"]
        # 300 times 128 KiB are more than twice the pool.
        for number in range(300):
            store.write_extent(volume, b"x", bytes([number % 256]) * (32 * BLOCK))
        for end in (
            lambda: store.delete_extent(volume, b"x"),
            lambda: store.delete(volume, b"x"),
            lambda: store.apply(volume, [(b"x", None)]),
            lambda: store.put(volume, b"x", b"plain"),
        ):
            end()
            store.write_extent(volume, b"x", bytes(32 * BLOCK))
        store.delete(volume, b"x")
        for _ in range(3):
            store.checkpoint()
        assert abs(store.statistics()["free_blocks"] - free) < 16

    def test_snapshots_keep_their_extents(self, store: Store, volume: int) -> None:
        store.write_extent(volume, b"x", b"old" * 1000)
        snapshot = store.snapshot(volume, "old")
        store.write_extent(volume, b"x", b"new" * 1000)
        for _ in range(200):
            store.write_extent(volume, b"z", bytes(32 * BLOCK))
        assert store.read_extent(snapshot.id, b"x")[:3000] == b"old" * 1000
        assert store.read_extent(volume, b"x")[:3000] == b"new" * 1000

    def test_damage_is_found_and_never_returned(self, storage: Storage) -> None:
        data = bytes(range(256)) * 32
        with Store(storage) as store:
            volume = store.volume_create("main")
            store.write_extent(volume, b"x", data)
            value = store.get(volume, b"x")
            assert value is not None
            address = struct.unpack_from("<Q", value)[0]
        with Store(storage) as store:
            storage.write(address * BLOCK + 5000, b"rot")
            expect_errno(errno.EIO, store.read_extent, volume, b"x")
            assert store.statistics()["checksum_mismatches"] == 1
            assert len(store.check(read_data=True)) == 1
            storage.write(address * BLOCK, data)
            assert store.read_extent(volume, b"x") == data

    def test_a_full_pool_can_be_emptied(self, store: Store, volume: int) -> None:
        count = 0
        with pytest.raises(OSError) as caught:
            while True:
                store.write_extent(volume, b"%06d" % count, bytes(8 * BLOCK))
                count += 1
        assert caught.value.errno == errno.ENOSPC
        assert count > 200
        expect_errno(errno.ENOSPC, store.snapshot, volume, "full")
        for number in range(16):
            store.delete_extent(volume, b"%06d" % number)
        store.snapshot(volume, "full")
        for number in range(16, count):
            store.delete_extent(volume, b"%06d" % number)
        store.snapshot_delete(store.snapshot_find(volume, "full").id)
        for _ in range(3):
            store.checkpoint()
        assert store.scan(volume) == []
        for number in range(count - 16):
            store.write_extent(volume, b"%06d" % number, bytes(8 * BLOCK))

    def test_writers_and_readers_at_once(self, store: Store, volume: int) -> None:
        store.write_extent(volume, b"x", bytes(8 * BLOCK))
        stop = threading.Event()
        errors: list[BaseException] = []

        def read() -> None:
            try:
                while not stop.is_set():
                    data = store.read_extent(volume, b"x")
                    assert data is not None
                    assert data == data[:1] * (8 * BLOCK)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=read) for _ in range(2)]
        for thread in threads:
            thread.start()
        for number in range(500):
            store.write_extent(volume, b"x", bytes([number % 256]) * (8 * BLOCK))
            if number % 50 == 0:
                store.checkpoint()
        stop.set()
        for thread in threads:
            thread.join()
        assert errors == []
        assert store.statistics()["checksum_mismatches"] == 0


class TestVolumesAndSnapshots:
    BAD_NAMES = (("", errno.EINVAL), (".", errno.EINVAL), ("..", errno.EINVAL), ("a/b", errno.EINVAL),
                 ("a\0b", errno.EINVAL), ("n" * 256, errno.ENAMETOOLONG), ("é" * 128, errno.ENAMETOOLONG))  # fmt: skip

    @pytest.mark.parametrize(("name", "error"), BAD_NAMES)
    def test_names_are_checked(self, store: Store, volume: int, name: str, error: int) -> None:
        snapshot = store.snapshot(volume, "good")
        expect_errno(error, store.volume_create, name)
        expect_errno(error, store.snapshot, volume, name)
        expect_errno(error, store.clone, snapshot.id, name)
        expect_errno(error, store.rollback, volume, snapshot.id, name)
        assert [each.name for each in store.volumes()] == ["main"]
        assert [each.name for each in store.snapshots(volume)] == ["good"]

    def test_long_and_odd_names(self, store: Store) -> None:
        names = ["n" * 255, "é" * 127, "a b\n", "\udcff", "..."]
        for name in names:
            volume = store.volume_create(name)
            store.snapshot(volume, name)
            assert store.volume_find(name).id == volume
            assert store.snapshot_find(volume, name).volume_id == volume
        assert [each.name for each in store.volumes()] == names

    def test_names_are_taken_once(self, store: Store, volume: int) -> None:
        snapshot = store.snapshot(volume, "s")
        expect_errno(errno.EEXIST, store.volume_create, "main")
        expect_errno(errno.EEXIST, store.snapshot, volume, "s")
        expect_errno(errno.EEXIST, store.clone, snapshot.id, "main")
        expect_errno(errno.EEXIST, store.rollback, volume, snapshot.id, "s")
        other = store.volume_create("other")
        store.snapshot(other, "s")
        store.snapshot_delete(snapshot.id)
        store.snapshot(volume, "s")
        store.volume_destroy(other)
        store.volume_create("other")

    def test_what_a_volume_is(self, store: Store, volume: int) -> None:
        info = store.volume_get(volume)
        assert info == store.volume_find("main") == store.volumes()[0]
        assert (info.id, info.name, info.origin_snapshot_id, info.snapshot_count) == (volume, "main", 0, 0)
        assert info.created_ns > 1_600_000_000 * 10**9
        snapshot = store.snapshot(volume, "s")
        assert snapshot == store.snapshot_get(snapshot.id) == store.snapshot_find(volume, "s")
        assert (snapshot.volume_id, snapshot.name, snapshot.clone_count, snapshot.hold_count, snapshot.annotation) == (
            volume, "s", 0, 0, b"")  # fmt: skip
        assert snapshot.created_ns >= info.created_ns
        assert store.volume_get(volume).snapshot_count == 1
        clone = store.clone(snapshot.id, "clone")
        assert store.volume_get(clone).origin_snapshot_id == snapshot.id
        assert store.snapshot_get(snapshot.id).clone_count == 1

    def test_listing(self, store: Store, volume: int) -> None:
        ids = [store.snapshot(volume, f"s{number}", sync=False).id for number in range(200)]
        assert ids == sorted(ids)
        assert [each.id for each in store.snapshots(volume)] == ids
        for limit in (1, 63, 64, 65, 128, 199, 200, 201):
            assert [each.id for each in store.snapshots(volume, limit=limit)] == ids[:limit]
            assert [each.id for each in store.snapshots(volume, after_id=ids[50], limit=limit)] == ids[51:][:limit]
        assert store.snapshots(volume, after_id=ids[-1]) == []

    def test_snapshots_are_frozen(self, store: Store, volume: int) -> None:
        ids = []
        for number in range(50):
            store.put(volume, b"key", b"%d" % number)
            ids.append(store.snapshot(volume, f"s{number}", sync=False).id)
        store.delete(volume, b"key")
        assert [store.get(each, b"key") for each in ids] == [b"%d" % number for number in range(50)]

    def test_annotations_and_holds(self, store: Store, volume: int) -> None:
        snapshot = store.snapshot(volume, "s")
        store.snapshot_annotate(snapshot.id, 2, b"a" * 512)
        info = store.snapshot_get(snapshot.id)
        assert (info.hold_count, info.annotation) == (2, b"a" * 512)
        expect_errno(errno.EBUSY, store.snapshot_delete, snapshot.id)
        expect_errno(errno.EBUSY, store.volume_destroy, volume)
        expect_errno(errno.EMSGSIZE, store.snapshot_annotate, snapshot.id, 0, b"a" * 513)
        with pytest.raises(OverflowError):
            store.snapshot_annotate(snapshot.id, 2**32, b"")
        store.snapshot_annotate(snapshot.id, 0, b"")
        store.snapshot_delete(snapshot.id)

    def test_an_origin_is_hidden_until_its_last_clone_goes(self, store: Store, volume: int) -> None:
        store.write_extent(volume, b"x", b"content")
        snapshot = store.snapshot(volume, "s")
        clone = store.clone(snapshot.id, "clone")
        store.snapshot_delete(snapshot.id)
        for call in (
            lambda: store.snapshot_get(snapshot.id),
            lambda: store.snapshot_find(volume, "s"),
            lambda: store.snapshot_delete(snapshot.id),
            lambda: store.snapshot_annotate(snapshot.id, 1, b""),
            lambda: store.clone(snapshot.id, "another"),
            lambda: store.rollback(volume, snapshot.id, "guard"),
            lambda: store.get(snapshot.id, b"x"),
        ):
            expect_errno(errno.ENOENT, call)
        assert store.snapshots(volume) == []
        store.volume_destroy(volume)
        assert store.read_extent(clone, b"x")[:7] == b"content"
        store.volume_destroy(clone)
        for _ in range(4):
            store.checkpoint()
        statistics = store.statistics()
        assert (statistics["snapshot_count"], statistics["volume_count"]) == (0, 0)
        assert (statistics["dead_blocks"], statistics["deletion_queue_length"]) == (0, 0)

    def test_rollback(self, store: Store, volume: int) -> None:
        store.put(volume, b"key", b"old")
        old = store.snapshot(volume, "old")
        store.put(volume, b"key", b"new")
        new = store.snapshot(volume, "new")
        store.put(volume, b"key", b"newest")
        generation = store.volume_get(volume).generation
        guard = store.rollback(volume, old.id, "guard")
        assert store.get(volume, b"key") == b"old"
        assert store.get(guard.id, b"key") == b"newest"
        assert store.volume_get(volume).generation == generation + 1
        assert [each.id for each in store.snapshots(volume)] == [old.id, new.id, guard.id]
        store.rollback(volume, guard.id, "undo")
        assert store.get(volume, b"key") == b"newest"

    def test_rollback_only_to_own_snapshots(self, store: Store, volume: int) -> None:
        other = store.volume_create("other")
        snapshot = store.snapshot(other, "s")
        expect_errno(errno.ENOENT, store.rollback, volume, snapshot.id, "guard")
        expect_errno(errno.ENOENT, store.rollback, volume, other, "guard")
        assert store.snapshots(volume) == []


class TestReferences:
    def test_calls_that_succeed_or_fail_keep_no_references(self) -> None:
        """A reference that is lost shows in the count of its type, or of None, times the rounds."""

        def use() -> None:
            recorder = Storage.open_recorder(Storage.open_memory(POOL_SIZE_BYTES))
            Store.format(recorder, label="label")
            with Store(recorder, background=False) as store:
                volume = store.volume_create("main")
                store.apply(volume, [(b"a", b"b"), (b"c", None)])
                store.bulk_load(volume, [(b"%d" % number, b"v" * 50) for number in range(300)])
                store.write_extent(volume, b"x", b"data" * 3000)
                snapshot = store.snapshot(volume, "s")
                store.rollback(volume, snapshot.id, "guard")
                store.volume_destroy(store.clone(snapshot.id, "clone"))
                for call in (
                    lambda: store.get(volume, b"absent"),
                    lambda: store.scan(volume, reverse=True),
                    lambda: store.diff(snapshot.id, volume),
                    lambda: store.read_extent(volume, b"x"),
                    lambda: store.snapshots(volume),
                    store.volumes,
                    store.check,
                    store.statistics,
                    recorder.events,
                    recorder.counts,
                    lambda: store.get(NO_SUCH_ID, b"a"),
                    lambda: store.put(volume, b"", b""),
                    lambda: store.apply(volume, [(1, 2)]),  # type: ignore[list-item]
                    lambda: store.apply(volume, 5),  # type: ignore[arg-type]
                    lambda: store.volume_create("a\0b"),
                    lambda: store.snapshot(volume, "s"),
                    lambda: store.rollback(volume, snapshot.id, 7),  # type: ignore[arg-type]
                    lambda: store.snapshot_annotate(snapshot.id, 2**33, b""),
                    lambda: recorder.fail("x", 0, errno.EIO),
                    lambda: Store(recorder),
                    lambda: Store.format(recorder),
                    lambda: Storage.open_file("/absent"),
                ):
                    with contextlib.suppress(OSError, TypeError, ValueError, OverflowError):
                        call()

        def counts() -> list[int]:
            gc.collect()
            watched = (Store, Storage, StoreError, StorageEvent, VolumeInfo, SnapshotInfo, None)
            return [sys.getrefcount(each) for each in watched]

        use()
        before = counts()
        for _ in range(50):
            use()
        assert all(abs(now - then) < 40 for now, then in zip(counts(), before, strict=True)), (before, counts())
