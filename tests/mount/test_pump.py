"""What the pump does for those whom it forwards to, and what becomes of a mount whose pump fails."""

import errno
import fcntl
import os
import pathlib
import struct
import subprocess
import sys
import time

import pytest

from tests.mount.test_requests import IOC_SNAPSHOT
from tools.scratch import Mount, Pool, is_mounted, run


def test_stat_in_the_virtual_tree(root: pathlib.Path) -> None:
    """stat(1) asks for the time of birth, which makes another request of it than ls(1) does."""
    for _ in range(2):
        for name in (".cowfs", ".cowfs/snapshot", ".cowfs/volume"):
            assert run("stat", "--format=%F %a", root / name).stdout.startswith("directory")
        assert "symbolic link" in run("stat", "--format=%F", root / ".cowfs/socket").stdout
        time.sleep(1.2)  # the kernel asks again


def test_snapshot_names_are_text(mount: Mount, transport: str) -> None:
    """Others read them as text: the listing of all snapshots failed for one whose name is none."""
    if transport == "nopump":
        pytest.skip("pyfuse3 passes no ioctls on")
    descriptor = os.open(mount.directory, os.O_RDONLY)
    try:
        for name in (b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc3", b"\n", b"\xc2\x85", b"\x7f"):
            with pytest.raises(OSError) as caught:
                fcntl.ioctl(descriptor, IOC_SNAPSHOT, struct.pack("II256s", 0, 0, name))
            assert caught.value.errno == errno.EINVAL, name
        names = ["plain", "\u00e4\u20ac\U0001d11e", " \u00a0"]
        for text in names:
            fcntl.ioctl(descriptor, IOC_SNAPSHOT, struct.pack("II256s", 0, 0, text.encode()))
        with pytest.raises(OSError):
            fcntl.ioctl(descriptor, IOC_SNAPSHOT, struct.pack("II256s", 0, 1, b"reserved"))
    finally:
        os.close(descriptor)
    assert sorted(os.listdir(mount.directory / ".cowfs/snapshot")) == sorted(names)


def test_mount_whose_pump_fails(pool: Pool, transport: str) -> None:
    if transport != "io_uring":
        pytest.skip("this fails the threads of the rings")
    directory = pool.folder / "failing"
    directory.mkdir()
    daemon = subprocess.run(
        [sys.executable, "-m", "tests.mount.failing_pump", pool.path, directory],
        cwd=pathlib.Path(__file__).parents[2],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert daemon.returncode != 0
    assert "could not be served: Too many open files" in daemon.stderr
    assert not is_mounted(directory)


def idle_threads(pid: int) -> list[int]:
    """Threads that run only where nothing else does."""
    return [
        thread for thread in map(int, os.listdir(f"/proc/{pid}/task")) if os.sched_getscheduler(thread) == os.SCHED_IDLE
    ]


def seconds_run(pid: int, threads: list[int]) -> float:
    texts = (pathlib.Path(f"/proc/{pid}/task/{thread}/schedstat").read_text() for thread in threads)
    return sum(int(text.split()[0]) for text in texts) / 1e9


def test_cpus_are_kept_awake_only_while_requests_come(pool: Pool, transport: str) -> None:
    if transport != "io_uring":
        pytest.skip("only rings are tied to CPUs")
    if os.cpu_count() == 1:
        pytest.skip("with one CPU whoever asked is always woken on it")
    mount = pool.mount()
    pid = mount.daemon_pid()
    threads = idle_threads(pid)
    assert sorted(min(os.sched_getaffinity(thread)) for thread in threads) == sorted(range(os.cpu_count() or 1))
    before, beginning = seconds_run(pid, threads), time.monotonic()
    while time.monotonic() < beginning + 1:
        os.stat(mount.directory)
        os.statvfs(mount.directory)
    assert seconds_run(pid, threads) > before
    time.sleep(0.1)
    before = seconds_run(pid, threads)
    time.sleep(0.5)
    assert seconds_run(pid, threads) - before < 0.01


def test_cpus_may_halt_when_the_mount_says_so(pool: Pool, transport: str) -> None:
    if transport != "io_uring":
        pytest.skip("only rings are tied to CPUs")
    assert not idle_threads(pool.mount("-o", "noawake").daemon_pid())
