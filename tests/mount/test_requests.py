"""What the pump answers and pyfuse3 cannot receive, and who answers what."""

import contextlib
import ctypes
import errno
import fcntl
import os
import pathlib
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.mount.test_posix import fails_with
from tools.scratch import Mount, Pool, run, run_json

MIB = 1 << 20
FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE = 1, 2, 16
IOC_SNAPSHOT = 0x4108C001  # _IOW(0xC0, 1, struct cowfs_snapshot), cowfs/native/ioctl.h
SNAPSHOT_NO_SYNC = 1
LIBC = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def pumped(transport: str, mount: Mount) -> pathlib.Path:
    if transport == "nopump":
        pytest.skip("pyfuse3 receives none of these requests")
    return mount.directory


@contextlib.contextmanager
def opened(path: pathlib.Path, flags: int = os.O_CREAT | os.O_RDWR) -> Iterator[int]:
    descriptor = os.open(path, flags, 0o644)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def fallocate(descriptor: int, mode: int, offset: int, length: int) -> None:
    result = LIBC.fallocate(descriptor, mode, ctypes.c_int64(offset), ctypes.c_int64(length))
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def snapshot_by_ioctl(descriptor: int, name: str, flags: int = 0) -> None:
    fcntl.ioctl(descriptor, IOC_SNAPSHOT, struct.pack("II256s", flags, 0, name.encode()))


# ---- ranges


def test_allocating_makes_a_file_longer(pumped: pathlib.Path) -> None:
    with opened(pumped / "file") as file:
        os.write(file, b"start")
        os.posix_fallocate(file, 0, 3 * MIB)
        assert os.fstat(file).st_size == 3 * MIB
        fallocate(file, FALLOC_KEEP_SIZE, 0, 9 * MIB)
        assert os.fstat(file).st_size == 3 * MIB
        assert os.pread(file, 10, 0) == b"start" + bytes(5)
        with fails_with(errno.EOPNOTSUPP):
            fallocate(file, 0x08, 0, 4096)  # collapse
        with fails_with(errno.ENOSPC):
            os.posix_fallocate(file, 0, 1 << 40)


def test_punching_gives_space_back(pumped: pathlib.Path) -> None:
    content = os.urandom(2 * MIB)
    with opened(pumped / "file") as file:
        os.write(file, content)
        blocks = os.fstat(file).st_blocks
        fallocate(file, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, 5000, MIB)
        expected = content[:5000] + bytes(MIB) + content[5000 + MIB :]
        assert os.pread(file, 2 * MIB, 0) == expected
        assert os.fstat(file).st_blocks < blocks - 2000
        fallocate(file, FALLOC_ZERO_RANGE, 2 * MIB - 100, 1000)
        assert os.pread(file, 3 * MIB, 0) == expected[:-100] + bytes(1000)
        os.fsync(file)


def test_data_and_holes_are_found(pumped: pathlib.Path) -> None:
    with opened(pumped / "file") as file:
        os.pwrite(file, b"x", 5 * MIB)
        os.ftruncate(file, 9 * MIB)
        assert os.lseek(file, 0, os.SEEK_DATA) == 5 * MIB
        assert os.lseek(file, 0, os.SEEK_HOLE) == 0
        hole = os.lseek(file, 5 * MIB, os.SEEK_HOLE)
        assert 5 * MIB < hole <= 5 * MIB + 4096
        with fails_with(errno.ENXIO):
            os.lseek(file, 6 * MIB, os.SEEK_DATA)


def test_copies_share_space(pumped: pathlib.Path) -> None:
    """`cp --reflink=auto`, and whoever else calls copy_file_range(2)."""
    content = os.urandom(64 * MIB)
    (pumped / "original").write_bytes(content)
    run("cowfs", "sync", pumped)
    before = os.statvfs(pumped).f_bfree
    run("cp", "--reflink=auto", pumped / "original", pumped / "copy")
    run("cowfs", "sync", pumped)
    taken = (before - os.statvfs(pumped).f_bfree) * 4096
    assert taken < 4 * MIB, f"the copy takes {taken >> 20} MiB of its own"
    with opened(pumped / "copy") as copy:
        os.pwrite(copy, b"changed", 10 * MIB)
    assert (pumped / "original").read_bytes() == content, "the original is not touched by a change of the copy"
    changed = content[: 10 * MIB] + b"changed" + content[10 * MIB + 7 :]
    assert (pumped / "copy").read_bytes() == changed
    run("cowfs", "snapshot", pumped, "both")
    (pumped / "original").unlink()
    assert (pumped / "copy").read_bytes() == changed
    (pumped / "copy").unlink()
    assert (pumped / ".cowfs/snapshot/both/original").read_bytes() == content


def test_copies_from_snapshots(pumped: pathlib.Path) -> None:
    (pumped / "file").write_bytes(os.urandom(300_000))
    content = (pumped / "file").read_bytes()
    run("cowfs", "snapshot", pumped, "then")
    (pumped / "file").write_bytes(b"later")
    run("cp", "--reflink=auto", pumped / ".cowfs/snapshot/then/file", pumped / "restored")
    assert (pumped / "restored").read_bytes() == content


# ---- files without a name, flags


def test_a_file_without_a_name(pumped: pathlib.Path, mount: Mount) -> None:
    with opened(pumped, os.O_TMPFILE | os.O_RDWR) as file, opened(pathlib.Path("/"), os.O_RDONLY) as anywhere:
        os.write(file, b"content")
        assert os.listdir(pumped) == []
        os.link(f"/proc/self/fd/{file}", pumped / "named", src_dir_fd=anywhere)
    assert (pumped / "named").read_bytes() == b"content"
    with opened(pumped, os.O_TMPFILE | os.O_RDWR) as file:
        os.write(file, os.urandom(MIB))
    assert os.listdir(pumped) == ["named"]
    mount.unmount()  # and the fixture's fsck finds nothing left over


def test_immutable_and_append_only(pumped: pathlib.Path) -> None:
    path = pumped / "file"
    path.write_text("content")
    run("chattr", "+i", path)
    assert "i" in run("lsattr", path).stdout.split()[0]
    for change in (path.unlink, lambda: path.chmod(0o600), lambda: path.write_text("new"),
                   lambda: path.rename(pumped / "other"), lambda: os.link(path, pumped / "link")):  # fmt: skip
        with fails_with(errno.EPERM):
            change()
    run("chattr", "-i", "+a", path)
    with fails_with(errno.EPERM):
        path.write_text("new")
    with open(path, "a", encoding="ascii") as file:
        file.write(", more")
    run("chattr", "-a", path)
    assert path.read_text() == "content, more"
    with pytest.raises(Exception, match="Operation not supported"):
        run("chattr", "+c", path)


def test_the_time_of_birth(pumped: pathlib.Path) -> None:
    before = time.time()
    (pumped / "file").write_text("content")
    os.utime(pumped / "file", (1, 1))
    born = float(run("stat", "--format=%.W", pumped / "file").stdout)
    assert before - 1 <= born <= time.time() + 1


# ---- snapshots by ioctl


def test_a_snapshot_by_ioctl(pumped: pathlib.Path, mount: Mount) -> None:
    with opened(pumped / "file") as file:
        for number in range(200):
            os.pwrite(file, f"{number:05}".encode() * 100, 0)
            snapshot_by_ioctl(file, f"s{number}", SNAPSHOT_NO_SYNC)
        snapshot_by_ioctl(file, "durable")
        with fails_with(errno.EEXIST):
            snapshot_by_ioctl(file, "durable")
        with fails_with(errno.EINVAL):
            snapshot_by_ioctl(file, "a/b")
        with fails_with(errno.EINVAL):
            snapshot_by_ioctl(file, "x", 0x80)
        with pytest.raises(OSError, match="Inappropriate ioctl"):
            fcntl.ioctl(file, IOC_SNAPSHOT + 1, bytes(264))
    for number in (0, 57, 199):
        content = (mount.snapshot_directory(f"s{number}") / "file").read_text()
        assert content == f"{number:05}" * 100
    mount.kill_daemon()
    again = mount.pool.mount()
    assert (again.snapshot_directory("durable") / "file").read_text() == "00199" * 100


def test_only_the_owner_takes_snapshots_by_ioctl(pumped: pathlib.Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can act as somebody else")
    pumped.chmod(0o755)
    script = (
        "import fcntl, os, struct, sys\n"
        "os.setgid(65534); os.setuid(65534)\n"
        f"fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), {IOC_SNAPSHOT}, struct.pack('II256s', 0, 0, b'stolen'))\n"
    )
    result = run("python3", "-c", script, pumped, check=False)
    assert result.returncode == 1
    assert "Operation not permitted" in result.stderr


# ---- who answers, and how often the medium is flushed


def requests(mount: Mount) -> dict[tuple[str, str], Any]:
    rows = run_json("cowfs", "status", mount.directory)["requests"]
    return {(row["request"], row["answered_in"]): row for row in rows}


def test_hot_requests_are_answered_in_c(transport: str, mount: Mount) -> None:
    root = mount.directory
    shutil.copytree(pathlib.Path(__file__).parent, root / "tree")
    for path in sorted((root / "tree").rglob("*.py")):
        path.read_bytes()
        os.rename(path, path.with_suffix(".moved"))
    with opened(root / "file") as file:
        os.write(file, b"content")
        os.fsync(file)
    os.symlink("target", root / "link")
    os.readlink(root / "link")
    os.listdir(root / ".cowfs")
    shutil.rmtree(root / "tree")
    found = requests(mount)
    where = "python" if transport == "nopump" else "c"
    names = ("lookup", "create", "write", "read", "mkdir", "unlink", "rmdir", "setattr", "fsync", "symlink", "getattr")
    for name in names:
        assert found[name, where]["count"] > 0, name
        row = found[name, where]
        assert 0 < row["p50_us"] <= row["p99_us"]
        assert row["mean_us"] > 0
    if where == "c":
        hot = {name for name, answered_in in found if answered_in == "python"}
        # `.cowfs` alone: its socket is how commands find the daemon
        assert hot <= {"lookup", "getattr", "readlink", "opendir", "readdirplus", "releasedir"}
        assert found["lookup", "python"]["count"] < found["lookup", "c"]["count"]


def test_the_transport_is_shown(transport: str, mount: Mount) -> None:
    shown = run_json("cowfs", "status", mount.directory)["transport"]
    assert shown["kind"] == ("io_uring" if transport == "io_uring" else "/dev/fuse")
    assert shown["pump"] == (transport != "nopump")
    assert bool(shown["io_uring_refused"]) == (transport != "io_uring")


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_an_fsync_costs_one_flush(pool: Pool, mount: Mount, tmp_path: pathlib.Path) -> None:
    """Seen from outside the daemon: each fsync of a changed file is one fdatasync of the pool."""
    count = 50
    run("cowfs", "sync", mount.directory)
    trace = tmp_path / "trace"
    with opened(mount.directory / "file") as file:
        os.write(file, bytes(4096))
        os.fsync(file)
        tracer = subprocess.Popen(
            ["strace", "-f", "-e", "trace=fdatasync,fsync,sync_file_range", "-o", trace, "-p", str(mount.daemon_pid())],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)  # fmt: skip
        try:
            assert tracer.stdout is not None
            assert "attached" in tracer.stdout.readline()
            for number in range(count):
                os.pwrite(file, number.to_bytes(4, "little") * 1024, number % 7 * 4096)
                os.fsync(file)
        finally:
            tracer.send_signal(signal.SIGINT)
            tracer.wait(timeout=20)
            assert tracer.stdout is not None
            tracer.stdout.close()
    flushes = trace.read_text().count("fdatasync(")
    # The commit interval may add its own: one a second.
    assert count <= flushes <= count + 5, f"{flushes} flushes for {count} fsyncs"
    assert "sync_file_range" not in trace.read_text()
