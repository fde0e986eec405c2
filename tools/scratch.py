"""Pools in temporary files, the commands as subprocesses, and mounts that are always taken down again: what the
mounted tests, the benchmarks and the demonstration stand on. Everything has a time limit, and only what was started
here is ended here."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import cowfs
from cowfs.daemon import log_path_of
from cowfs.scrub import state_path

COMMANDS = pathlib.Path(sys.executable).parent
COMMAND_TIMEOUT_S = 60
MIB = 1 << 20
# What every mount made here is mounted with: the tests choose the transport by it.
mount_options: list[str] = []


class CommandFailed(Exception):
    """A command ended with an exit code other than 0; the text has what it printed."""


def run(
    name: str, *arguments: object, check: bool = True, timeout_s: float = COMMAND_TIMEOUT_S, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Runs a command of the project (when there is one of that name beside the interpreter) or of the system."""
    own = COMMANDS / name
    program = str(own) if own.exists() else name
    words = [program, *(os.fspath(word) if isinstance(word, os.PathLike) else str(word) for word in arguments)]
    result = subprocess.run(
        words, check=False, text=True, capture_output=True, timeout=timeout_s, stdin=subprocess.DEVNULL, **options
    )
    if check and result.returncode != 0:
        raise CommandFailed(f"{' '.join(words)} exited {result.returncode}\n{result.stdout}\n{result.stderr}")
    return result


def run_json(name: str, *arguments: object) -> Any:
    return json.loads(run(name, *arguments, "--json").stdout)


def is_mounted(directory: pathlib.Path) -> bool:
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        return any(line.split()[4] == str(directory).replace(" ", "\\040") for line in table)


def wait_until(condition: Any, what: str, timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout_s} s in vain: {what}")
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended but was not waited for does not."""
    try:
        text = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return text.rsplit(")", 1)[1].split()[0] not in "ZX"


def processes_of(pool: pathlib.Path) -> list[int]:
    """Processes whose command line names this pool: the pool's path is this test's own, so they are this test's."""
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            words = pathlib.Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
            if os.fsencode(pool) in words and is_alive(int(entry)):
                found.append(int(entry))
    return found


class Mount:
    """One mount of a pool."""

    def __init__(self, pool: "Pool", directory: pathlib.Path) -> None:
        self.pool = pool
        self.directory = directory
        self.clients: list[cowfs.Client] = []

    def client(self) -> cowfs.Client:
        """Closed with the pool."""
        client = cowfs.connect(str(self.directory))
        self.clients.append(client)
        return client

    def snapshot_directory(self, name: str) -> pathlib.Path:
        return self.directory / ".cowfs" / "snapshot" / name

    def unmount(self) -> None:
        run("cowfs", "umount", self.directory)
        assert not is_mounted(self.directory)

    def kill_daemon(self) -> None:
        """kill -9, and takes the dead mount down."""
        for pid in self.pool.daemons():
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not self.pool.daemons(), "the daemon is gone")
        self.detach()

    def detach(self) -> None:
        run("umount", "-l", self.directory)

    def daemon_pid(self) -> int:
        (pid,) = self.pool.daemons()
        return pid


class Pool:
    """A pool in a sparse file, and the mounts made of it."""

    def __init__(self, folder: pathlib.Path, name: str = "pool", size_bytes: int = 1024 * MIB) -> None:
        self.path = folder / name
        self.size_bytes = size_bytes
        self.folder = folder
        self.mounts: list[Mount] = []
        self.is_sound = True  # set to False by tests that damage the pool on purpose

    def make(self, *options: object) -> "Pool":
        run("mkfs.cowfs", *options, self.path, "--size", self.size_bytes)
        return self

    def mount(self, *options: object, directory: pathlib.Path | None = None) -> Mount:
        if directory is None:
            directory = self.folder / f"{self.path.name}-mount-{len(self.mounts)}"
            directory.mkdir()
        run("mount.cowfs", self.path, directory, *mount_options, *options)
        assert is_mounted(directory)
        mount = Mount(self, directory)
        self.mounts.append(mount)
        return mount

    def daemons(self) -> list[int]:
        return processes_of(self.path)

    def check(self) -> str:
        """fsck.cowfs must find nothing, in data that it reads whole too."""
        return run("fsck.cowfs", "--data", self.path, timeout_s=300).stdout

    def close(self) -> None:
        """Unmounts what is still mounted, ends what is still running, and then the pool must be clean."""
        problems = []
        for mount in self.mounts:
            for client in mount.clients:
                client.close()
            pathlib.Path(log_path_of(str(mount.directory))).unlink(missing_ok=True)
            if not is_mounted(mount.directory):
                continue
            result = run("cowfs", "umount", mount.directory, check=False)
            if result.returncode != 0 or is_mounted(mount.directory):
                problems.append(f"cowfs umount exited {result.returncode}: {result.stderr}")
                with contextlib.suppress(CommandFailed):
                    mount.detach()
        with contextlib.suppress(TimeoutError):
            wait_until(lambda: not self.daemons(), "daemons end after unmounting", timeout_s=10)
        for pid in self.daemons():
            problems.append(f"daemon {pid} outlived its mount")
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self.path.exists():
            with open(self.path, "rb") as file:
                slots = [file.read(4096) for _ in range(16)]
            for uuid in {slot[16:32].hex() for slot in slots if slot.startswith(b"COWFSPL1")}:
                pathlib.Path(state_path(uuid)).unlink(missing_ok=True)
        try:
            if self.is_sound and self.path.exists():
                self.check()
        finally:
            self.path.unlink(missing_ok=True)
        assert not problems, problems


def memory_peak_bytes(pid: int) -> int:
    """Largest resident size the process has had."""
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"no VmHWM of {pid}")


@contextlib.contextmanager
def working_directory(path: pathlib.Path) -> Iterator[None]:
    before = os.getcwd()
    os.chdir(path)
    try:
        yield
    finally:
        os.chdir(before)
