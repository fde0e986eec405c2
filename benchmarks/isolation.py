"""Runs the benchmarks in PID and mount namespaces of their own, so that nothing can stay behind: when the first process
in there ends, for whatever reason, the kernel ends every daemon and drops every mount, and with the last mount the
loop devices, which clear themselves.

The processes are these: the front (the program that was called) and the maker of the namespace, which wait and pass
signals on; the first process of the namespace, which only collects the dead; and the worker, which does all else. The
maker is there because a process that has made a PID namespace for its children can start no threads.
"""

import contextlib
import ctypes
import os
import pathlib
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NamedTuple

CLONE_NEWNS = 0x20000
CLONE_NEWPID = 0x20000000
MS_NOSUID_NODEV = 0x2 | 0x4
MS_PRIVATE_RECURSIVE = (1 << 18) | 0x4000
PR_SET_PDEATHSIG = 1

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
CLEARING_TIMEOUT_S = 20
URING_PARAMETER = pathlib.Path("/sys/module/fuse/parameters/enable_uring")

_libc = ctypes.CDLL(None, use_errno=True)


class Interrupted(BaseException):
    """A signal, as an exception, so that everything is taken down on the way out."""


class Surroundings(NamedTuple):
    """What the worker is given of the world outside."""

    outer_proc: int
    """A directory descriptor of the /proc that shows every process of the machine."""
    folder: pathlib.Path
    """An empty tmpfs that nobody else sees, for mount points, sockets and scratch files."""


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(source: str, target: str, kind: str, flags: int = 0) -> None:
    """mount(2)."""
    words = (source.encode(), target.encode(), kind.encode())
    _check(_libc.mount(*words, ctypes.c_ulong(flags), None), f"mount {kind} at {target}")


_interrupted_by: list[str] = []


def _raise_once(number: int, frame: FrameType | None) -> None:
    """What follows the first signal must not interrupt the taking down."""
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    _interrupted_by.append(signal.Signals(number).name)
    check_interrupted()


def check_interrupted() -> None:
    """Raises Interrupted again when a signal has come. For whoever goes on after a failure: taking down may have failed
    because of the signal, and its exception is then all that is seen."""
    if _interrupted_by:
        raise Interrupted(_interrupted_by[0])


def _exit_code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


@contextlib.contextmanager
def _forwarding(child: int) -> Iterator[None]:
    def forward(number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)

    before = {number: signal.signal(number, forward) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run_worker(work: Callable[[Surroundings], int], surroundings: Surroundings) -> int:
    for number in SIGNALS:
        signal.signal(number, _raise_once)
    try:
        return work(surroundings)
    except Interrupted as interruption:
        print(f"\nbenchmarks: ended by {interruption}; everything is taken down", file=sys.stderr)
        return 130


def _fork(run: Callable[[], int]) -> int:
    """The child's pid; the child runs what it is given and ends with its exit code."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        code = run()
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _die_with_parent() -> None:
    _check(_libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")


def _run_maker(work: Callable[[Surroundings], int], surroundings: Surroundings) -> int:
    _die_with_parent()
    _check(_libc.unshare(CLONE_NEWPID), "unshare")
    first = _fork(lambda: _run_first(work, surroundings))
    with _forwarding(first):
        return _exit_code(os.waitpid(first, 0)[1])


def _run_first(work: Callable[[Surroundings], int], surroundings: Surroundings) -> int:
    """Process 1 of the namespace."""
    _die_with_parent()
    _check(_libc.unshare(CLONE_NEWNS), "unshare")
    mount("none", "/", "none", MS_PRIVATE_RECURSIVE)
    mount("proc", "/proc", "proc", MS_NOSUID_NODEV)
    mount("benchmarks", str(surroundings.folder), "tmpfs")
    # Sockets of daemons that this machine may run itself are not to be met, nor to be left.
    mount("benchmarks", "/run", "tmpfs")
    os.mkdir("/run/lock")
    worker = _fork(lambda: _run_worker(work, surroundings))
    with _forwarding(worker):
        while True:
            ended, status = os.wait()
            if ended == worker:
                return _exit_code(status)


def loop_devices_of(prefix: pathlib.Path) -> list[str]:
    """Loop devices whose backing file is, or was, below this path."""
    found = []
    for path in pathlib.Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            if path.read_text().startswith(f"{prefix}"):
                found.append(path.parts[3])
    return found


def backing_prefix(folder: pathlib.Path, medium_folder: pathlib.Path) -> pathlib.Path:
    """Where a run keeps the files of its volumes on a medium: named after its own temporary folder, which is unique."""
    return medium_folder / folder.name


def run_isolated(work: Callable[[Surroundings], int], medium_folders: list[pathlib.Path]) -> int:
    """Runs `work` in there and returns its exit code; 1 when something stayed behind after all. Needs root."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="cowfs-benchmarks-"))
    uring = URING_PARAMETER.read_text() if URING_PARAMETER.exists() else None
    outer_proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    prefixes = [backing_prefix(folder, medium_folder) for medium_folder in medium_folders]
    try:
        maker = _fork(lambda: _run_maker(work, Surroundings(outer_proc, folder)))
        with _forwarding(maker):
            code = _exit_code(os.waitpid(maker, 0)[1])
    finally:
        os.close(outer_proc)
        os.rmdir(folder)
        for prefix in prefixes:
            shutil.rmtree(prefix, ignore_errors=True)
        if uring is not None and URING_PARAMETER.read_text() != uring:
            URING_PARAMETER.write_text(uring)
    deadline = time.monotonic() + CLEARING_TIMEOUT_S
    while left := [device for prefix in prefixes for device in loop_devices_of(prefix)]:
        if time.monotonic() > deadline:
            print(f"benchmarks: these loop devices stayed behind: {', '.join(left)}", file=sys.stderr)
            return code or 1
        time.sleep(0.05)
    return code
