"""Where mounted tests keep their pools, and what a run of tests that was killed left mounted in such folders: the next
run takes it down, or a dead mount would stay for every `df` and `cowfs status` of the machine to meet."""

import contextlib
import fcntl
import os
import pathlib
import shutil
import signal
import tempfile

from cowfs.mounting import mount_entries, unmount
from tools.scratch import processes_of, run, wait_until

PREFIX = "cowfs-test-"
SHARED_MEMORY = pathlib.Path("/dev/shm")
FREE_BYTES_MIN = 4 << 30
DAEMON_TIMEOUT_S = 1  # what is in the pool goes with it: no need to let it be written
# Descriptors of this process's folders, each with a lock on it: no lock, nobody's folder any more.
_locks: dict[pathlib.Path, int] = {}


def _parents() -> list[pathlib.Path]:
    """In memory where there is room, since pools are large and most of these tests are about meaning, not speed."""
    roomy = SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).free > FREE_BYTES_MIN
    return [*([SHARED_MEMORY] if roomy else []), pathlib.Path(tempfile.gettempdir())]


def _open_directory(path: pathlib.Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def temporary_folder() -> pathlib.Path:
    """A folder of this process, until remove_folder()."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix=PREFIX, dir=_parents()[0]))
    _locks[folder] = _open_directory(folder)
    fcntl.flock(_locks[folder], fcntl.LOCK_EX)
    folder.chmod(0o711)  # tests that act as another user must get through
    return folder


def mounts_inside(folder: pathlib.Path) -> list[str]:
    """The last mounted first."""
    return [entry.mountpoint for entry in reversed(mount_entries()) if entry.mountpoint.startswith(f"{folder}/")]


def remove_folder(folder: pathlib.Path) -> None:
    """Never walks into something that is still mounted."""
    try:
        inside = mounts_inside(folder)
        assert not inside, f"still mounted: {inside}"
        shutil.rmtree(folder)
    finally:
        os.close(_locks.pop(folder))


def _take_down(folder: pathlib.Path) -> None:
    for mountpoint in mounts_inside(folder):
        unmount(mountpoint, lazy=True)
    for path in folder.iterdir():
        if path.is_file():
            _end_daemons(path)
            for device in _loop_devices(path):
                _end_daemons(device)
                run("losetup", "--detach", device)
    shutil.rmtree(folder)


def _loop_devices(backing: pathlib.Path) -> list[pathlib.Path]:
    if os.geteuid() != 0 or shutil.which("losetup") is None:
        return []
    listing = run("losetup", "--noheadings", "--output", "NAME", "--associated", backing).stdout
    return [pathlib.Path(line) for line in listing.split()]


def _end_daemons(pool: pathlib.Path) -> None:
    """A daemon ends by itself when nothing is mounted any more, unless somebody has a file of it open."""
    try:
        wait_until(lambda: not processes_of(pool), "the daemon ends", timeout_s=DAEMON_TIMEOUT_S)
    except TimeoutError:
        for pid in processes_of(pool):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not processes_of(pool), "the daemon is gone")


def clear_abandoned_folders() -> list[pathlib.Path]:
    """Unmounts and removes what runs of this user left that are no more; those that run have their locks."""
    cleared = []
    for parent in _parents():
        for folder in sorted(parent.glob(f"{PREFIX}*")):
            try:
                lock = _open_directory(folder)
            except (FileNotFoundError, NotADirectoryError, PermissionError):
                continue  # another run has just removed it, or it is another user's
            try:
                if os.fstat(lock).st_uid == os.geteuid():
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if os.fstat(lock).st_nlink:  # 0: another run removed it meanwhile
                        _take_down(folder)
                        cleared.append(folder)
            except BlockingIOError:
                continue  # in use
            finally:
                os.close(lock)
    return cleared
