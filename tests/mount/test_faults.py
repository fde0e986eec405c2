"""A mount on a storage that fails: who must hear of it hears, the mount turns read-only where it can no longer keep its
word and says so, and what was durable is there at the next mount."""

import contextlib
import errno
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from typing import IO

import pytest

from tests.mount.test_posix import fails_with
from tools import scratch
from tools.scratch import MIB, Pool, is_mounted, run, run_json, wait_until

KEPT = b"kept " * 10_000
CHANGED = b"other" * 10_000


class FailingMount:
    def __init__(self, pool: Pool, directory: pathlib.Path, log: IO[bytes]) -> None:
        self.pool = pool
        self.directory = directory
        self.log = pathlib.Path(log.name)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.mount.failing_storage", *scratch.mount_options, pool.path, directory],
            cwd=pathlib.Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        self._wait_for_line()

    def _wait_for_line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def fail(self, kinds: str, error: int, how_often: str, index: int = 0) -> None:
        assert self.process.stdin is not None
        print(kinds, index, error, how_often, file=self.process.stdin, flush=True)
        assert self._wait_for_line() == "done\n"

    def status(self) -> dict[str, object]:
        return dict(run_json("cowfs", "status", self.directory))

    def close(self) -> None:
        if is_mounted(self.directory):
            run("cowfs", "umount", self.directory, check=False)
        try:
            self.process.wait(timeout=20)
        finally:
            self.process.kill()
            self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout):
                assert pipe is not None
                pipe.close()
            if is_mounted(self.directory):
                run("umount", "-l", self.directory)


@pytest.fixture
def failing(pool: Pool) -> Iterator[FailingMount]:
    directory = pool.folder / "failing"
    directory.mkdir()
    with open(pool.folder / "log", "wb") as log:
        mount = FailingMount(pool, directory, log)
        try:
            wait_until(lambda: is_mounted(directory), "mounted")
            yield mount
        finally:
            mount.close()


def opened(path: pathlib.Path, flags: int = os.O_RDWR) -> int:
    return os.open(path, flags)


def line_of_all_mounts(directory: pathlib.Path) -> str:
    """What 'cowfs status' says of this mount among all. Its exit code is theirs too: another's may be dead."""
    lines = run("cowfs", "status", check=False).stdout.splitlines()
    (line,) = (line for line in lines if line.split()[:1] == [str(directory)])
    return line


def assert_read_only_and_said(failing: FailingMount, error: int) -> None:
    status = failing.status()
    assert status["failure"] == os.strerror(error)
    assert status["read_only"] is True
    assert f"failed: {os.strerror(error)}" in run("cowfs", "status", failing.directory).stdout
    assert f"failed: {os.strerror(error)}" in line_of_all_mounts(failing.directory)
    wait_until(lambda: "read-only from now on" in failing.log.read_text(), "the log says so")
    for change in (
        lambda: (failing.directory / "new").write_text("x"),
        lambda: (failing.directory / "kept").unlink(),
        lambda: (failing.directory / "kept").rename(failing.directory / "moved"),
        lambda: (failing.directory / ".cowfs" / "snapshot" / "s").mkdir(),
    ):
        with fails_with(errno.EROFS):
            change()
    assert (failing.directory / "kept").read_bytes() == KEPT


@pytest.fixture(
    params=[("write", errno.EIO, "once"), ("write", errno.ENOSPC, "forever"), ("flush", errno.EIO, "once")],
    ids=["write", "no space", "flush"],
)
def failure(request: pytest.FixtureRequest, transport: str) -> tuple[str, int, str]:
    chosen: tuple[str, int, str] = request.param
    if transport != "io_uring" and chosen[:2] != ("write", errno.EIO):
        pytest.skip("the store is the same behind each transport: one of them has all failures")
    return chosen


def assert_told_once(descriptor: int) -> None:
    """Though not more often by another descriptor of the same open file, nor by fdatasync."""
    same = os.dup(descriptor)
    try:
        with fails_with(errno.EIO):
            os.fsync(descriptor)
        os.fsync(same)
        os.fdatasync(descriptor)
    finally:
        os.close(same)


def test_a_lost_write_is_told_to_everyone_once(failure: tuple[str, int, str], failing: FailingMount) -> None:
    """fsync fails once for every file that was open, whichever asks first."""
    kinds, error, how_often = failure
    for name in ("kept", "changed"):
        (failing.directory / name).write_bytes(KEPT)
    run("cowfs", "sync", failing.directory)
    with contextlib.ExitStack() as stack:

        def opened(name: str, flags: int) -> int:
            descriptor = os.open(failing.directory / name, flags)
            stack.callback(os.close, descriptor)  # which tells nothing
            return descriptor

        first, second, other = opened("changed", os.O_RDWR), opened("changed", os.O_RDONLY), opened("kept", os.O_RDWR)
        directory = opened(".", os.O_RDONLY | os.O_DIRECTORY)
        os.pwrite(first, CHANGED, 0)
        failing.fail(kinds, error, how_often)
        for descriptor in (first, second, other, directory):
            assert_told_once(descriptor)
        for descriptor in (first, other):
            with fails_with(errno.EROFS):
                os.pwrite(descriptor, b"more", 0)
        assert os.pread(second, len(CHANGED), 0) == CHANGED  # as the page cache of another file system would have it
        # What has nothing to lose can be synced; what is in memory alone, whoever reads it there is told.
        for name in (".", "kept"):
            os.fsync(opened(name, os.O_RDONLY))
        assert_told_once(opened("changed", os.O_RDONLY))
        for _ in range(2):
            assert run("cowfs", "sync", failing.directory, check=False).returncode != 0
        assert_read_only_and_said(failing, error)
    failing.close()
    again = failing.pool.mount()
    assert (again.directory / "kept").read_bytes() == KEPT
    assert (again.directory / "changed").read_bytes() in (KEPT, CHANGED)
    if kinds == "write":
        assert (again.directory / "changed").read_bytes() == KEPT
    assert not (again.directory / "new").exists()


def test_a_failure_in_the_background_is_told_too(failing: FailingMount) -> None:
    """Nobody waits when the data leaves: the next fsync hears of it."""
    (failing.directory / "kept").write_bytes(KEPT)
    run("cowfs", "sync", failing.directory)
    failing.fail("write", errno.EIO, "once")
    descriptor = opened(failing.directory / "lost", os.O_CREAT | os.O_WRONLY)
    try:
        os.write(descriptor, CHANGED)
        wait_until(lambda: failing.status()["failure"] is not None, "the commit of the interval fails")
        assert_told_once(descriptor)
    finally:
        os.close(descriptor)
    for name in ("lost", "."):  # its entry was lost with it
        descriptor = opened(failing.directory / name, os.O_RDONLY)
        try:
            assert_told_once(descriptor)
        finally:
            os.close(descriptor)
    assert_read_only_and_said(failing, errno.EIO)


def test_a_failed_read_is_an_error_of_that_read_alone(failing: FailingMount) -> None:
    content = os.urandom(8 * MIB)
    (failing.directory / "kept").write_bytes(KEPT)
    (failing.directory / "file").write_bytes(content)
    run("cowfs", "sync", failing.directory)
    os.sync()
    descriptor = opened(failing.directory / "file")
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        failing.fail(
            "read", errno.EIO, "forever"
        )  # a single one would be the kernel's, which reads ahead and tries again
        with fails_with(errno.EIO):
            os.pread(descriptor, MIB, MIB)
        failing.fail("read", errno.EIO, "once", index=-1)
        assert os.pread(descriptor, len(content), 0) == content
    finally:
        os.close(descriptor)
    assert failing.status()["failure"] is None
    (failing.directory / "more").write_text("still writable")
    run("cowfs", "sync", failing.directory)
    assert "Input/output error" in failing.log.read_text()
