"""Storage by itself: files, memory, the recorder and its faults."""

import errno
import os
import pathlib
import subprocess
import sys
import threading

import pytest

from btree import Storage, StorageEvent

SIZE_BYTES = 1 << 20


@pytest.fixture
def pool_path(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "pool"
    with path.open("wb") as file:
        file.truncate(SIZE_BYTES)
    return path


@pytest.fixture(params=["file", "memory", "recorder"])
def storage(request: pytest.FixtureRequest, pool_path: pathlib.Path) -> Storage:
    if request.param == "file":
        return Storage.open_file(pool_path)
    memory = Storage.open_memory(SIZE_BYTES)
    return memory if request.param == "memory" else Storage.open_recorder(memory)


def expect_errno(error: int, function, *arguments, **keywords) -> None:
    with pytest.raises(OSError) as caught:
        function(*arguments, **keywords)
    assert caught.value.errno == error, caught.value


class TestEveryStorage:
    def test_reads_back_what_was_written(self, storage: Storage) -> None:
        assert storage.size() == SIZE_BYTES
        assert storage.read(SIZE_BYTES - 5, 5) == bytes(5)
        storage.write(4095, b"across blocks")
        storage.flush()
        assert storage.read(4094, 15) == b"\0across blocks\0"
        assert storage.read(SIZE_BYTES, 0) == b""

    @pytest.mark.parametrize(
        ("offset_bytes", "length_bytes"),
        [(SIZE_BYTES, 1), (SIZE_BYTES - 1, 2), (0, SIZE_BYTES + 1), (2**64 - 1, 1), (2**64 - 4096, 4096)],
    )
    def test_transfers_past_the_end_fail_whole(self, storage: Storage, offset_bytes: int, length_bytes: int) -> None:
        expect_errno(errno.EIO, storage.read, offset_bytes, length_bytes)
        expect_errno(errno.EIO, storage.write, offset_bytes, b"x" * length_bytes)
        assert storage.read(SIZE_BYTES - 4096, 4096) == bytes(4096)

    def test_closed_is_closed(self, storage: Storage) -> None:
        storage.close()
        storage.close()
        for call in (lambda: storage.read(0, 1), lambda: storage.write(0, b"x"), storage.flush, storage.size):
            with pytest.raises(ValueError, match="Storage is closed"):
                call()

    def test_closing_waits_for_calls_in_progress(self, storage: Storage) -> None:
        errors: list[BaseException] = []

        def use() -> None:
            try:
                while True:
                    storage.write(0, b"x" * SIZE_BYTES)
                    storage.read(0, SIZE_BYTES)
            except ValueError as error:
                assert "is closed" in str(error)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=use) for _ in range(3)]
        for thread in threads:
            thread.start()
        storage.close()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
        assert errors == []

    def test_negative_numbers_are_refused(self, storage: Storage) -> None:
        with pytest.raises(OverflowError):
            storage.read(-1, 1)
        with pytest.raises(OverflowError):
            storage.write(-1, b"x")


class TestFile:
    def test_is_locked_against_others(self, pool_path: pathlib.Path) -> None:
        storage = Storage.open_file(pool_path)
        expect_errno(errno.EBUSY, Storage.open_file, pool_path)
        expect_errno(errno.EBUSY, Storage.open_file, pool_path, read_only=True)
        storage.close()
        Storage.open_file(pool_path).close()

    def test_readers_share(self, pool_path: pathlib.Path) -> None:
        first = Storage.open_file(pool_path, read_only=True)
        second = Storage.open_file(pool_path, read_only=True)
        expect_errno(errno.EBUSY, Storage.open_file, pool_path)
        first.close()
        second.close()
        Storage.open_file(pool_path).close()

    def test_the_lock_holds_between_processes_and_is_not_inherited(self, pool_path: pathlib.Path) -> None:
        storage = Storage.open_file(pool_path)
        program = "import sys; from btree import Storage; Storage.open_file(sys.argv[1])"
        command = [sys.executable, "-c", program, str(pool_path)]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        assert answer.returncode != 0
        assert f"[Errno {errno.EBUSY}]" in answer.stderr
        with subprocess.Popen(["sleep", "30"], close_fds=False) as child:
            storage.close()
            Storage.open_file(pool_path).close()
            child.kill()

    def test_read_only_refuses_writes(self, pool_path: pathlib.Path) -> None:
        storage = Storage.open_file(pool_path, read_only=True)
        expect_errno(errno.EROFS, storage.write, 0, b"x")
        assert storage.read(0, 1) == b"\0"
        storage.close()

    def test_what_cannot_be_a_pool(self, tmp_path: pathlib.Path) -> None:
        expect_errno(errno.ENOENT, Storage.open_file, tmp_path / "absent")
        expect_errno(errno.EISDIR, Storage.open_file, tmp_path)
        os.mkfifo(tmp_path / "fifo")
        expect_errno(errno.EINVAL, Storage.open_file, tmp_path / "fifo")
        expect_errno(errno.EINVAL, Storage.open_file, "/dev/null")

    def test_the_error_names_the_file(self, tmp_path: pathlib.Path) -> None:
        with pytest.raises(FileNotFoundError) as caught:
            Storage.open_file(tmp_path / "absent")
        assert caught.value.filename == str(tmp_path / "absent")

    def test_a_file_cut_while_open_is_an_error(self, pool_path: pathlib.Path) -> None:
        storage = Storage.open_file(pool_path)
        os.truncate(pool_path, 4096)
        expect_errno(errno.EIO, storage.read, 0, 8192)
        assert storage.read(0, 4096) == bytes(4096)
        storage.close()

    def test_paths_may_be_bytes_and_strings(self, pool_path: pathlib.Path) -> None:
        Storage.open_file(str(pool_path)).close()
        Storage.open_file(os.fsencode(pool_path)).close()


class TestRecorder:
    @pytest.fixture
    def recorder(self) -> Storage:
        return Storage.open_recorder(Storage.open_memory(SIZE_BYTES))

    def test_records_writes_and_flushes_in_order(self, recorder: Storage) -> None:
        recorder.write(10, b"one")
        recorder.flush()
        recorder.write(20, b"two")
        recorder.read(0, 1)
        assert recorder.events() == [
            StorageEvent("write", 10, b"one"),
            StorageEvent("flush", 0, b""),
            StorageEvent("write", 20, b"two"),
        ]
        assert recorder.counts() == (1, 2, 1)

    def test_only_counts_when_told_not_to_record(self) -> None:
        recorder = Storage.open_recorder(Storage.open_memory(SIZE_BYTES), record=False)
        recorder.write(0, b"x")
        recorder.flush()
        assert recorder.events() == []
        assert recorder.counts() == (0, 1, 1)

    def test_the_record_is_a_copy(self, recorder: Storage) -> None:
        data = bytearray(b"before")
        recorder.write(0, data)
        data[:] = b"after!"
        assert recorder.events()[0].bytes == b"before"

    def test_fails_one_operation_and_changes_nothing(self, recorder: Storage) -> None:
        recorder.fail("write", 1, errno.ENOSPC)
        recorder.write(0, b"a")
        recorder.flush()
        expect_errno(errno.ENOSPC, recorder.write, 0, b"b")
        assert recorder.read(0, 1) == b"a"
        recorder.write(0, b"c")
        assert recorder.read(0, 1) == b"c"
        assert [event.bytes for event in recorder.events()] == [b"a", b"", b"c"]
        assert recorder.counts() == (2, 3, 1)

    def test_fails_forever(self, recorder: Storage) -> None:
        recorder.fail("write|flush", 1, errno.EIO, forever=True)
        recorder.write(0, b"a")
        expect_errno(errno.EIO, recorder.flush)
        expect_errno(errno.EIO, recorder.write, 0, b"b")
        assert recorder.read(0, 1) == b"a"
        recorder.fail("write", -1, 0)
        recorder.write(0, b"b")
        recorder.flush()

    def test_counts_only_the_kinds_asked_for(self, recorder: Storage) -> None:
        recorder.fail("read", 2, errno.EIO)
        recorder.read(0, 1)
        recorder.write(0, b"x")
        recorder.flush()
        recorder.read(0, 1)
        expect_errno(errno.EIO, recorder.read, 0, 1)

    @pytest.mark.parametrize("kinds", ["", "reads", "read|", "|write", "read,write"])
    def test_unknown_kinds(self, recorder: Storage, kinds: str) -> None:
        with pytest.raises(ValueError, match="kinds must be"):
            recorder.fail(kinds, 0, errno.EIO)

    def test_an_error_number_is_needed(self, recorder: Storage) -> None:
        with pytest.raises(ValueError, match="positive errno"):
            recorder.fail("read", 0, 0)

    def test_takes_the_inner_storage_over(self) -> None:
        inner = Storage.open_memory(SIZE_BYTES)
        recorder = Storage.open_recorder(inner)
        with pytest.raises(ValueError, match="in use"):
            inner.close()
        with pytest.raises(ValueError, match="in use"):
            Storage.open_recorder(inner)
        recorder.write(0, b"x")
        assert inner.read(0, 1) == b"x"
        recorder.close()
        assert inner.read(0, 1) == b"x"
        inner.close()

    def test_closes_a_file_below_it(self, pool_path: pathlib.Path) -> None:
        recorder = Storage.open_recorder(Storage.open_file(pool_path))
        recorder.close()
        Storage.open_file(pool_path).close()

    def test_others_are_no_recorders(self) -> None:
        memory = Storage.open_memory(SIZE_BYTES)
        for call in (memory.events, memory.counts, lambda: memory.fail("read", 0, errno.EIO)):
            with pytest.raises(ValueError, match="not a recorder"):
                call()


class TestMemory:
    def test_cannot_be_empty(self) -> None:
        expect_errno(errno.EINVAL, Storage.open_memory, 0)

    def test_is_freed_with_the_object(self) -> None:
        # 64 times 1 GiB written sparsely: stays small only if each is unmapped, and only what is written takes memory.
        for _ in range(64):
            Storage.open_memory(1 << 30).write((1 << 30) - 1, b"x")

    def test_too_much_is_an_error(self) -> None:
        expect_errno(errno.ENOMEM, Storage.open_memory, 2**62)

    def test_threads_may_use_it_at_once(self) -> None:
        memory = Storage.open_memory(SIZE_BYTES)
        patterns = [bytes([value]) * 65536 for value in range(4)]

        def write(pattern: bytes) -> None:
            for _ in range(50):
                memory.write(0, pattern)
                assert memory.read(0, 65536) in patterns

        threads = [threading.Thread(target=write, args=(pattern,)) for pattern in patterns]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert memory.read(0, 65536) in patterns
