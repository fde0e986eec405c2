"""What the store does when its storage fails, and what its calls cost, counted."""

import errno

import pytest

from btree import Storage, Store
from tests.unit.store_helpers import BLOCK, POOL_SIZE_BYTES, expect_errno


@pytest.fixture
def recorder() -> Storage:
    recorder = Storage.open_recorder(Storage.open_memory(POOL_SIZE_BYTES))
    Store.format(recorder)
    return recorder


class TestFailures:
    def test_a_failed_flush_makes_the_store_read_only(self, recorder: Storage) -> None:
        store = Store(recorder, background=False)
        volume = store.volume_create("main")
        store.put(volume, b"key", b"value")
        store.commit()
        store.put(volume, b"key", b"in doubt")
        recorder.fail("flush", 0, errno.EIO)
        expect_errno(errno.EIO, store.commit)
        flushes = recorder.counts()[2]
        assert store.statistics()["failed_errno"] == errno.EIO
        expect_errno(errno.EROFS, store.put, volume, b"other", b"value")
        expect_errno(errno.EROFS, store.snapshot, volume, "s")
        expect_errno(errno.EROFS, store.volume_create, "x")
        expect_errno(errno.EIO, store.commit)
        expect_errno(errno.EIO, store.checkpoint)
        # A flush that failed is not tried again: the system may have dropped the pages and would answer 0.
        assert recorder.counts()[2] == flushes
        assert store.get(volume, b"key") == b"in doubt"
        assert store.scan(volume) == [(b"key", b"in doubt")]
        expect_errno(errno.EIO, store.close)
        with Store(recorder) as store:
            assert store.get(volume, b"key") in (b"value", b"in doubt")
            assert store.check() == []

    @pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
    def test_a_failed_write(self, recorder: Storage, error: int) -> None:
        store = Store(recorder, background=False)
        volume = store.volume_create("main")
        store.put(volume, b"key", b"value")
        store.commit()
        store.put(volume, b"key", b"lost")
        recorder.fail("write", 0, error, forever=True)
        with pytest.raises(OSError) as caught:
            store.commit()
        assert caught.value.errno in (error, errno.EIO)
        assert store.statistics()["failed_errno"] != 0
        expect_errno(errno.EROFS, store.put, volume, b"other", b"value")
        assert store.get(volume, b"key") == b"lost"
        store.abandon()
        recorder.fail("write", -1, 0)
        with Store(recorder) as store:
            assert store.get(volume, b"key") == b"value"

    def test_a_failed_read_is_an_error_of_that_call_alone(self, recorder: Storage) -> None:
        with Store(recorder, background=False, cache_bytes_max=1 << 16) as store:
            volume = store.volume_create("main")
            store.bulk_load(volume, [(b"%06d" % number, b"v" * 100) for number in range(10_000)])
            store.checkpoint()
            recorder.fail("read", 0, errno.EIO, forever=True)
            expect_errno(errno.EIO, store.scan, volume)
            recorder.fail("read", -1, 0)
            assert len(store.scan(volume)) == 10_000
            assert store.statistics()["failed_errno"] == 0

    @pytest.mark.parametrize("kind", ["write", "flush"])
    def test_a_checkpoint_cut_at_every_operation_loses_nothing_committed(self, kind: str) -> None:
        for index in range(200):
            recorder = Storage.open_recorder(Storage.open_memory(POOL_SIZE_BYTES), record=False)
            Store.format(recorder)
            store = Store(recorder, background=False)
            volume = store.volume_create("main")
            store.bulk_load(volume, [(b"%04d" % number, b"v" * 20) for number in range(500)])
            store.write_extent(volume, b"x", b"data" * 3000)
            store.snapshot(volume, "s")
            store.delete(volume, b"0001")
            store.commit()
            recorder.fail(kind, index, errno.EIO, forever=True)
            try:
                store.checkpoint()
                failed = False
            except OSError as error:
                assert error.errno == errno.EIO
                failed = True
            store.abandon()
            recorder.fail(kind, -1, 0)
            with Store(recorder) as store:
                assert len(store.scan(volume)) == 500
                assert store.read_extent(volume, b"x")[:12000] == b"data" * 3000
                assert len(store.scan(store.snapshot_find(volume, "s").id)) == 501
                assert store.check(read_data=True) == []
            if not failed:
                assert index > 0
                return
        pytest.fail("the checkpoint never succeeded")


class TestDamage:
    @staticmethod
    def value(number: int) -> bytes:
        return b"value %06d " % number * 8

    def pool(self, copies: int) -> tuple[Storage, int, dict[int, bytes]]:
        """A closed pool of many nodes, its volume, and the nodes' blocks by their place in bytes."""
        recorder = Storage.open_recorder(Storage.open_memory(POOL_SIZE_BYTES))
        Store.format(recorder, metadata_copies=copies)
        with Store(recorder, background=False) as store:
            volume = store.volume_create("main")
            store.bulk_load(volume, [(b"%06d" % number, self.value(number)) for number in range(5000)])
        nodes: dict[int, bytes] = {}
        for event in recorder.events():
            for at in range(0, len(event.bytes), BLOCK):
                if event.kind == "write":
                    nodes[event.offset_bytes + at] = event.bytes[at : at + BLOCK]
        return recorder, volume, {at: block for at, block in nodes.items() if block[:4] == b"BTND"}

    def test_a_damaged_copy_of_a_node_is_repaired_from_the_other(self) -> None:
        recorder, volume, nodes = self.pool(2)
        places: dict[bytes, list[int]] = {}
        for at, block in nodes.items():
            places.setdefault(block, []).append(at)
        first_copies = [min(pair) for pair in places.values()]
        assert len(first_copies) > 100
        for at in first_copies:
            recorder.write(at + 100, b"rot")
        with Store(recorder, background=False) as store:
            assert len(store.scan(volume)) == 5000
            statistics = store.statistics()
            assert statistics["repairs"] >= 100
            assert statistics["checksum_mismatches"] == statistics["repairs"]
            assert statistics["failed_errno"] == 0
            assert store.check() == []
        with Store(recorder, read_only=True) as store:
            assert len(store.scan(volume)) == 5000
            assert store.statistics()["checksum_mismatches"] == 0

    @pytest.mark.parametrize("copies", [1, 2])
    def test_a_lost_node_is_an_error_and_the_rest_stays_readable(self, copies: int) -> None:
        recorder, volume, nodes = self.pool(copies)
        lost = next(block for block in nodes.values() if self.value(2500) in block)
        for at, block in nodes.items():
            if block == lost:
                recorder.write(at + 100, b"rot")
        with Store(recorder, read_only=True) as store:
            expect_errno(errno.EIO, store.get, volume, b"002500")
            assert store.get(volume, b"000001") == self.value(1)
            assert store.get(volume, b"004999") == self.value(4999)
            expect_errno(errno.EIO, store.scan, volume)
            assert store.statistics()["checksum_mismatches"] > 0
            assert any("damaged" in problem or "cannot be read" in problem for problem in store.check())

    def test_a_read_only_store_does_not_repair(self) -> None:
        recorder, volume, nodes = self.pool(2)
        at = min(nodes)
        recorder.write(at + 100, b"rot")
        writes = recorder.counts()[1]
        with Store(recorder, read_only=True) as store:
            assert len(store.scan(volume)) == 5000
        assert recorder.counts()[1] == writes


class TestCosts:
    def test_one_flush_for_a_commit_and_none_for_nothing(self, recorder: Storage) -> None:
        with Store(recorder, background=False) as store:
            volume = store.volume_create("main")
            store.commit()
            for number in range(5):
                store.put(volume, b"key", b"%d" % number)
                store.write_extent(volume, b"x", b"data" * 5000)
                flushes = recorder.counts()[2]
                store.commit()
                assert recorder.counts()[2] == flushes + 1
                writes = recorder.counts()[1]
                store.commit()
                assert recorder.counts()[1:] == (writes, flushes + 1)
            store.snapshot(volume, "s")
            assert recorder.counts()[2] == flushes + 2
            kinds = [event.kind for event in recorder.events()]
            assert kinds[-1] == "flush"

    def test_reading_writes_nothing(self, recorder: Storage) -> None:
        with Store(recorder, background=False) as store:
            volume = store.volume_create("main")
            store.put(volume, b"key", b"value")
            store.checkpoint()
            counts = recorder.counts()[1:]
            store.scan(volume)
            store.statistics()
            store.check(read_data=True)
            store.commit()
            assert recorder.counts()[1:] == counts

    def test_a_snapshot_costs_the_same_with_10_and_with_10_000_present(self) -> None:
        storage = Storage.open_memory(64 << 20)
        Store.format(storage)
        names = ("nodes_touched", "nodes_copied", "nodes_read", "nodes_written", "storage_reads", "storage_writes")
        with Store(storage, background=False) as store:
            volume = store.volume_create("main")
            store.bulk_load(volume, [(b"%06d" % number, b"v" * 20) for number in range(2000)])

            def cost(name: str) -> dict[str, int]:
                store.checkpoint()
                store.put(volume, b"000500", name.encode())
                before = store.statistics()
                store.snapshot(volume, name, sync=False)
                store.put(volume, b"000500", b"after")
                after = store.statistics()
                return {each: after[each] - before[each] for each in names}

            for number in range(10):
                store.snapshot(volume, f"early{number}", sync=False)
            with_10 = cost("measured with 10")
            for number in range(10_000 - 11):
                if number % 10 == 0:  # content that differs costs about 20 KiB each; 10,000 of it is not the point
                    store.put(volume, b"%06d" % (number % 2000), b"%d" % number)
                store.snapshot(volume, f"s{number}", sync=False)
            assert store.volume_get(volume).snapshot_count == 10_000
            with_10_000 = cost("measured with 10,000")
            assert with_10_000 == with_10
            assert with_10["storage_writes"] == 0
            # The change after the snapshot copies one path; the snapshot itself copies nothing.
            assert 0 < with_10["nodes_copied"] <= 4
