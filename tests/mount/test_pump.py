"""What the pump does for those whom it forwards to, and what becomes of a mount whose pump fails."""

import contextlib
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
from tools.scratch import Mount, Pool, is_mounted, run, wait_until


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


def holds_awake(pid: int) -> bool:
    """Whether the daemon asks the kernel that no CPU halts."""
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            if os.readlink(f"/proc/{pid}/fd/{name}") == "/dev/cpu_dma_latency":
                return True
    return False


def test_cpus_are_kept_awake_only_while_requests_come(pool: Pool, transport: str) -> None:
    if transport == "nopump":
        pytest.skip("without the pump a request takes longer than waking a CPU")
    if not os.access("/dev/cpu_dma_latency", os.W_OK):
        pytest.skip("there is no /dev/cpu_dma_latency, or only root may ask for latencies")
    mount = pool.mount("-o", "awake=on")
    pid = mount.daemon_pid()
    time.sleep(0.2)
    assert not holds_awake(pid)
    beginning, seen = time.monotonic(), False
    while time.monotonic() < beginning + 10 and not seen:
        for _ in range(200):
            os.statvfs(mount.directory)
        seen = holds_awake(pid)
    assert seen
    wait_until(lambda: not holds_awake(pid), "CPUs may halt again")
    for _ in range(200):
        os.statvfs(mount.directory)


def test_cpus_may_halt_when_the_mount_says_so(pool: Pool, transport: str) -> None:
    mount = pool.mount("-o", "awake=off")
    for _ in range(20):
        for _ in range(200):
            os.statvfs(mount.directory)
        assert not holds_awake(mount.daemon_pid())
