"""cache=back: the kernel keeps what is written, and a snapshot holds it all the same."""

import concurrent.futures
import contextlib
import errno
import fcntl
import json
import mmap
import os
import pathlib
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable

import pytest

import cowfs
from cowfs.errors import CowfsError
from cowfs.mount_options import parse_options
from cowfs.serving import check_cache
from tests.mount.test_posix import fails_with
from tests.mount.test_requests import IOC_SNAPSHOT, SNAPSHOT_NO_SYNC, opened
from tools.scratch import MIB, Mount, Pool, run, wait_until

ROOT = pathlib.Path(__file__).parents[2]
SEED = int(os.environ.get("COWFS_TEST_SEED", "1"))
OPTIONS = ("-o", "cache=back")
SNAPSHOTS = 1000
WRITERS = 4
OPERATIONS = 6
FS_IOC_SETFLAGS, FS_IMMUTABLE_FL, FS_APPEND_FL = 0x40086602, 0x10, 0x20

Books = dict[str, list[int]]


@pytest.fixture(autouse=True)
def needs_the_pump(transport: str) -> None:
    if transport == "nopump":
        pytest.skip("cache=back needs the pump")
    if os.geteuid() != 0:
        pytest.skip("cache=back is for root")


@pytest.fixture
def mount(pool: Pool) -> Mount:
    return pool.mount(*OPTIONS)


def snapshot_by_ioctl(descriptor: int, name: str, flags: int = SNAPSHOT_NO_SYNC) -> None:
    fcntl.ioctl(descriptor, IOC_SNAPSHOT, struct.pack("II256s", flags, 0, name.encode()))


def set_flags(descriptor: int, flags: int) -> None:
    fcntl.ioctl(descriptor, FS_IOC_SETFLAGS, struct.pack("I", flags))


def requests(client: cowfs.Client) -> dict[str, int]:
    return {row["request"]: row["count"] for row in client.status()["requests"] if row["answered_in"] == "c"}


# ---- exactness


class Load:
    """Processes that write to several files and never sync."""

    def __init__(self, root: pathlib.Path) -> None:
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.mount.cache_load", root, str(number), str(SEED)],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for number in range(WRITERS)
        ]

    def work(self) -> list[Books]:
        """All write at once. Returns what their files hold when every operation has returned."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(f"{OPERATIONS}\n")
            process.stdin.flush()
        return [json.loads(process.stdout.readline()) for process in self._processes if process.stdout is not None]

    def __enter__(self) -> "Load":
        return self

    def __exit__(self, *details: object) -> None:
        for process in self._processes:
            process.communicate(timeout=20)  # closes its input, at which it ends


def verify(view: pathlib.Path, written: list[Books]) -> None:
    contents: dict[str, bytes] = {}
    for books in written:
        for name, (offset, length, checksum) in books.items():
            if name not in contents:
                contents[name] = (view / name).read_bytes()
            content = contents[name]
            part = content[offset : offset + length]
            assert (len(part), zlib.crc32(part)) == (length, checksum), f"{view / name} at {offset}, seed {SEED}"
            assert offset or name == "shared" or len(content) == length, f"{view / name} is too long, seed {SEED}"


def test_a_thousand_snapshots_hold_what_was_never_synced(mount: Mount) -> None:
    client = mount.client()
    before: tuple[str, list[Books]] | None = None
    with Load(mount.directory) as load, opened(mount.directory / "for ioctl") as descriptor:
        for number in range(SNAPSHOTS):
            written = load.work()
            if before is not None:
                # Looked at when more has been written since.
                verify(mount.snapshot_directory(before[0]), before[1])
            name = f"s{number}"
            match number % 4:
                case 0:
                    client.snapshot(name)
                case 1:
                    snapshot_by_ioctl(descriptor, name)
                case 2:
                    mount.snapshot_directory(name).mkdir()
                case 3 if number % 100 == 3:
                    run("cowfs", "snapshot", mount.directory, name)
                case 3:
                    client.snapshot(name, sync=False)
            before = name, written
    assert before is not None
    verify(mount.snapshot_directory(before[0]), before[1])
    assert client.status()["events"] == {"unexpected": 0, "io_error": 0}


def test_snapshots_while_others_write(mount: Mount) -> None:
    """Each holds at least what had returned before the call, in the order of writing, and nothing that began after."""
    client = mount.client()
    counts = [0, 0, 0]
    stop = threading.Event()

    def append(writer: int) -> None:
        with opened(mount.directory / f"log-{writer}", os.O_CREAT | os.O_WRONLY | os.O_APPEND) as descriptor:
            while not stop.is_set():
                os.write(descriptor, struct.pack("<I", counts[writer]))
                counts[writer] += 1

    with concurrent.futures.ThreadPoolExecutor(len(counts)) as pool:
        writers = [pool.submit(append, writer) for writer in range(len(counts))]
        try:
            wait_until(lambda: all(counts), "all write")
            bounds = []
            for number in range(100):
                least = [*counts]
                client.snapshot(f"s{number}", sync=False)
                bounds.append((least, [count + 1 for count in counts]))
        finally:
            stop.set()
        for future in writers:
            future.result(timeout=20)
    for number, (least, most) in enumerate(bounds):
        for writer in range(len(counts)):
            content = (mount.snapshot_directory(f"s{number}") / f"log-{writer}").read_bytes()
            held = len(content) // 4
            assert least[writer] <= held <= most[writer]
            assert content == struct.pack(f"<{held}I", *range(held))


def test_times_and_sizes_are_those_that_programs_saw(mount: Mount, pool: Pool) -> None:
    client = mount.client()
    path = mount.directory / "file"
    with opened(path) as descriptor:
        os.write(descriptor, b"one")
        seen = os.fstat(descriptor)
        time.sleep(0.05)
        client.snapshot("first")
        held = (mount.snapshot_directory("first") / "file").stat()
        assert (held.st_mtime_ns, held.st_ctime_ns, held.st_size) == (seen.st_mtime_ns, seen.st_ctime_ns, 3)
        os.write(descriptor, b"two")
        os.utime(descriptor, ns=(10**18, 10**18 + 1))
        os.pwrite(descriptor, b"T", 3)
        os.utime(descriptor, ns=(10**18, 10**18 + 2))
        client.snapshot("second")
        assert (mount.snapshot_directory("second") / "file").stat().st_mtime_ns == 10**18 + 2
        os.write(descriptor, b"three")
        seen = os.fstat(descriptor)
    client.close()
    mount.unmount()
    found = (pool.mount(*OPTIONS).directory / "file").stat()
    assert (found.st_mtime_ns, found.st_size) == (seen.st_mtime_ns, 11)


def test_other_volumes_are_flushed_too(mount: Mount) -> None:
    client = mount.client()
    client.snapshot("origin")
    client.clone("origin", "other")
    folder = mount.directory / ".cowfs" / "volume" / "other"
    with opened(folder / "file") as descriptor:
        os.write(descriptor, b"never synced")
        snapshot_by_ioctl(descriptor, "of other")
        with cowfs.connect(str(folder)) as other:
            other.snapshot("of other too")
            assert [snapshot["name"] for snapshot in other.list()] == ["of other", "of other too"]
            for name in ("of other", "of other too"):
                other.clone(name, f"clone {name}")
                copy = mount.directory / ".cowfs" / "volume" / f"clone {name}" / "file"
                assert copy.read_bytes() == b"never synced"


def test_a_rollback_keeps_what_was_there_in_its_guard(mount: Mount) -> None:
    client = mount.client()
    path = mount.directory / "file"
    path.write_bytes(b"old")
    client.snapshot("old")
    with opened(path) as descriptor:
        os.pwrite(descriptor, b"new and never synced", 0)
        guard = client.rollback("old")["guard"]["name"]
        assert path.read_bytes() == b"old"
        assert (mount.snapshot_directory(guard) / "file").read_bytes() == b"new and never synced"
        # Its tree is gone, and what the kernel kept since has no place to go: the next snapshot is none the worse.
        with contextlib.suppress(OSError):
            os.pwrite(descriptor, b"written to nowhere", 0)
        client.snapshot("after")
        assert (mount.snapshot_directory("after") / "file").read_bytes() == b"old"
        with contextlib.suppress(OSError):
            os.fsync(descriptor)


# ---- waiting


def test_more_snapshots_at_once_than_a_ring_has_entries(mount: Mount) -> None:
    """They wait for pages that come the same way. Those that find too many waiting are told so at once."""
    results: list[int] = []

    def take(number: int) -> None:
        path = mount.directory / f"file-{number}"
        with opened(path) as descriptor:
            for turn in range(5):
                os.pwrite(descriptor, b"%d" % turn * 5000, 0)
                try:
                    snapshot_by_ioctl(descriptor, f"s{number}-{turn}")
                except OSError as error:
                    results.append(error.errno)
                    continue
                results.append(0)
                held = (mount.snapshot_directory(f"s{number}-{turn}") / path.name).read_bytes()
                assert held == b"%d" % turn * 5000

    with concurrent.futures.ThreadPoolExecutor(60) as pool:
        for future in [pool.submit(take, number) for number in range(60)]:
            future.result(timeout=60)
    assert set(results) <= {0, errno.EBUSY} and results.count(0) >= 50


def test_memory_may_be_dirty(mount: Mount) -> None:
    device = os.stat(mount.directory).st_dev
    bdi = pathlib.Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}")
    wait_until(lambda: (bdi / "max_ratio").read_text() == "100\n", "the device is tuned")
    assert (bdi / "strict_limit").read_text() == "0\n"
    client = mount.client()
    with opened(mount.directory / "file") as descriptor:
        for _ in range(4096):
            os.write(descriptor, bytes(4096))
        assert requests(client).get("write", 0) < 1000
    assert client.status()["transport"]["cache"] == "back"


# ---- the end


def test_unmounting_brings_everything(mount: Mount, pool: Pool) -> None:
    content = os.urandom(8 * MIB)
    (mount.directory / "file").write_bytes(content)
    with open(mount.directory / "mapped", "w+b") as file:
        file.truncate(MIB)
        with mmap.mmap(file.fileno(), MIB) as mapping:
            mapping[:] = content[:MIB]
    mount.unmount()
    directory = pool.mount().directory
    assert (directory / "file").read_bytes() == content
    assert (directory / "mapped").read_bytes() == content[:MIB]


def test_killed_with_dirty_pages(pool: Pool) -> None:
    """What was synced in any way is there; the rest is lost at most."""
    for turn in range(3):
        mount = pool.mount(*OPTIONS)
        root, client = mount.directory, mount.client()
        content = os.urandom(300_000)
        descriptors = [os.open(root / f"{turn}-{name}", os.O_CREAT | os.O_RDWR) for name in ("a", "b", "c", "d")]
        for descriptor in descriptors:
            os.write(descriptor, content)
        os.fsync(descriptors[0])
        os.write(descriptors[1], b"more")
        client.sync()
        os.write(descriptors[2], b"more")
        client.snapshot(f"s{turn}")
        os.write(descriptors[3], b"never synced")
        client.close()
        mount.kill_daemon()
        for descriptor in descriptors:
            with contextlib.suppress(OSError):
                os.close(descriptor)
        root = pool.mount(directory=root).directory
        assert (root / f"{turn}-a").read_bytes() == content
        assert (root / f"{turn}-b").read_bytes() == content + b"more"
        assert (root / f"{turn}-c").read_bytes() == content + b"more"
        assert (root / f"{turn}-d").read_bytes() in (content, content + b"never synced")
        assert (root / ".cowfs" / "snapshot" / f"s{turn}" / f"{turn}-c").read_bytes() == content + b"more"
        pool.mounts[-1].unmount()


def test_killed_while_it_flushes(pool: Pool) -> None:
    """The thread that waits for its own process does not keep the mount, or the pool, from ending."""
    for turn in range(6):
        mount = pool.mount(*OPTIONS)
        stop = threading.Event()

        def write_and_take(number: int, mount: Mount = mount, stop: threading.Event = stop) -> None:
            with (
                contextlib.suppress(OSError, CowfsError),
                cowfs.connect(str(mount.directory)) as client,
                opened(mount.directory / f"file-{number}") as descriptor,
            ):
                for taken in range(1 << 20):
                    if stop.is_set():
                        return
                    os.pwrite(descriptor, bytes(2 * MIB), 0)
                    if number % 2:
                        client.snapshot(f"s{number}-{taken}", sync=False)
                    else:
                        snapshot_by_ioctl(descriptor, f"s{number}-{taken}")

        with concurrent.futures.ThreadPoolExecutor(4) as threads:
            futures = [threads.submit(write_and_take, number) for number in range(4)]
            try:
                time.sleep(0.3 + 0.05 * turn)
                mount.kill_daemon()
            finally:
                stop.set()
            for future in futures:
                future.result(timeout=20)


def test_ended_by_a_signal_while_it_flushes(mount: Mount, pool: Pool) -> None:
    client = mount.client()
    # Closing tells that the connection has ended.
    with contextlib.suppress(OSError), opened(mount.directory / "file") as descriptor:
        os.pwrite(descriptor, bytes(16 * MIB), 0)
        client.snapshot("s")
        with concurrent.futures.ThreadPoolExecutor(1) as threads:

            def take() -> None:
                with contextlib.suppress(OSError, CowfsError):
                    for number in range(100):
                        os.pwrite(descriptor, bytes(4 * MIB), 0)
                        client.snapshot(f"s{number}", sync=False)

            future = threads.submit(take)
            time.sleep(0.1)
            os.kill(mount.daemon_pid(), signal.SIGTERM)
            future.result(timeout=30)
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    wait_until(lambda: not pool.daemons(), "the daemon has ended")


def test_a_mount_that_cannot_be_reached_refuses(mount: Mount) -> None:
    """Unmounted lazily: files are still written, and no snapshot claims to hold what cannot be fetched."""
    client = mount.client()
    with opened(mount.directory / "file") as descriptor:
        os.write(descriptor, b"kept by the kernel")
        mount.detach()
        with fails_with(errno.ENXIO):
            snapshot_by_ioctl(descriptor, "by ioctl")
        with pytest.raises(CowfsError, match="does not lead to the mount"):
            client.snapshot("by client")
    client.close()


# ---- what the kernel does instead of the daemon


def test_no_space_is_told_by_fsync_and_once_by_a_snapshot(new_pool: Callable[..., Pool]) -> None:
    mount = new_pool(size_bytes=64 * MIB).make().mount(*OPTIONS)
    client = mount.client()
    with opened(mount.directory / "file") as descriptor:
        with contextlib.suppress(OSError):
            for number in range(128):
                os.pwrite(descriptor, os.urandom(MIB), number * MIB)
        with contextlib.suppress(CowfsError):
            client.snapshot("may fail")
        with fails_with(errno.ENOSPC, errno.EIO):
            os.fsync(descriptor)
        os.ftruncate(descriptor, 0)
    with contextlib.suppress(CowfsError):
        client.destroy("may fail")
    wait_until(lambda: client.df()["available_bytes"] > 16 * MIB, "the space is free again")
    (mount.directory / "file").write_bytes(b"the mount goes on")
    client.snapshot("after")
    assert (mount.snapshot_directory("after") / "file").read_bytes() == b"the mount goes on"


def test_flags_that_came_after_the_write(mount: Mount) -> None:
    """What the kernel accepted arrives, though the file would not take it any more."""
    client = mount.client()
    path = mount.directory / "file"
    for flag, name in ((FS_IMMUTABLE_FL, "immutable"), (FS_APPEND_FL, "append")):
        with opened(path) as descriptor:
            os.pwrite(descriptor, name.encode(), 0)
            set_flags(descriptor, flag)
            client.snapshot(name)
            assert (mount.snapshot_directory(name) / "file").read_bytes() == name.encode()
            set_flags(descriptor, 0)
            os.ftruncate(descriptor, 0)
    with opened(path) as descriptor:
        set_flags(descriptor, FS_APPEND_FL)
        with opened(path, os.O_WRONLY | os.O_APPEND) as appending:
            for number in range(3):
                os.write(appending, b"%d" % number)
                client.snapshot(f"appended {number}")
        assert (mount.snapshot_directory("appended 2") / "file").read_bytes() == b"012"
        with fails_with(errno.EPERM):
            os.open(path, os.O_WRONLY)
        set_flags(descriptor, 0)


@pytest.mark.parametrize("how", ["write", "map"])
def test_privileges_go_with_a_write(pool: Pool, how: str) -> None:
    """As on other file systems: written by somebody who may not keep them, setuid bits are gone; the owner's mapping
    leaves them alone."""
    mount = pool.mount("-o", "cache=back,allow_other,suid")
    path = mount.directory / "program"
    path.write_bytes(bytes(5000))
    os.chown(path, 1234, 1234)
    path.chmod(0o6777)
    os.setxattr(path, "security.capability", bytes.fromhex("0100000200200000000000000000000000000000"))
    script = (
        "import mmap, os, sys\n"
        "os.setgid(1234); os.setuid(1234)\n"
        "file = os.open(sys.argv[1], os.O_RDWR)\n"
        "if sys.argv[2] == 'write': os.pwrite(file, b'changed', 100)\n"
        "else: mmap.mmap(file, 5000)[100:107] = b'changed'\n"
    )
    run("python3", "-c", script, path, how)
    assert path.read_bytes()[100:107] == b"changed"
    mount.unmount()
    mount = pool.mount("-o", "cache=back,allow_other,suid")
    path = mount.directory / "program"
    assert path.stat().st_mode & 0o7777 == (0o777 if how == "write" else 0o6777)
    assert path.read_bytes()[100:107] == b"changed"
    if how == "write":
        assert "security.capability" not in os.listxattr(path)


def test_what_is_kept_is_no_hole(mount: Mount, tmp_path: pathlib.Path) -> None:
    path = mount.directory / "file"
    with opened(path) as descriptor:
        os.ftruncate(descriptor, 4 * MIB)
        os.pwrite(descriptor, b"data" * 1000, MIB)
        assert os.lseek(descriptor, 0, os.SEEK_DATA) <= MIB
        assert os.lseek(descriptor, MIB, os.SEEK_DATA) == MIB
        with fails_with(errno.ENXIO):
            os.lseek(descriptor, 4 * MIB, os.SEEK_DATA)
        run("cp", "--sparse=auto", path, tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == path.read_bytes()
        shutil.copyfile(path, mount.directory / "copy")  # copy_file_range where Python has it
        run("cp", "--reflink=auto", path, mount.directory / "second copy")
        for copy in ("copy", "second copy"):
            assert (mount.directory / copy).read_bytes() == path.read_bytes()


def test_only_root_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1234)
    check_cache(parse_options(["cache=through"]))
    with pytest.raises(CowfsError, match="is for root"):
        check_cache(parse_options(["cache=back"]))
