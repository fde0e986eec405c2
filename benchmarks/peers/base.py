"""What every peer can be asked for."""

import abc
import os
import pathlib
import shutil
import subprocess
import time
from typing import ClassVar, Protocol

from benchmarks.ground import Disk, drop_caches

COMMAND_TIMEOUT_S = 300

# What a job may need of a peer.
CONTENT = "content"
DISK = "disk"
SNAPSHOTS = "snapshots"
UNSYNCED = "unsynced"
LACKS = {
    CONTENT: "keeps no content",
    DISK: "uses no disk",
    SNAPSHOTS: "has no snapshots",
    UNSYNCED: "all its snapshots are durable",
}


class PeerFailed(Exception):
    """A command of a peer failed; the text has what it printed."""


def command(*words: object, timeout_s: float = COMMAND_TIMEOUT_S, cwd: pathlib.Path | None = None) -> str:
    """Runs it and returns what it printed."""
    texts = [str(word) for word in words]
    result = subprocess.run(
        texts,
        check=False,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        timeout=timeout_s,
        cwd=cwd,
    )
    if result.returncode != 0:
        raise PeerFailed(f"{' '.join(texts)} exited {result.returncode}: {result.stdout.strip()}")
    return result.stdout


def first_line(*words: str) -> str:
    return command(*words).strip().partition("\n")[0]


def missing_program(*names: str) -> str | None:
    """A reason to be absent when one of these is not installed."""
    missing = [name for name in names if shutil.which(name) is None]
    return f"not installed: {', '.join(missing)}" if missing else None


def process_memory_bytes(pid: int) -> int:
    """Resident now."""
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise PeerFailed(f"process {pid} has no memory: it is gone")


def sync_directory(directory: pathlib.Path) -> None:
    """syncfs(2), through the program that calls it."""
    command("sync", "--file-system", directory)


class Snapshots(Protocol):
    """Every call returns when its effect is durable, as far as the peer offers that."""

    def take(self, name: str) -> None: ...

    def take_quickly(self, name: str) -> None:
        """Exact at once, and durable later where the peer offers that (UNSYNCED)."""

    def destroy(self, name: str) -> None:
        """Gone for users; its space may come back later."""

    def wait_destroyed(self) -> None:
        """Returns when the space of what was destroyed is back."""

    def clone(self, name: str, clone: str) -> None: ...

    def destroy_clone(self, clone: str) -> None: ...

    def rollback(self, name: str) -> None:
        """The live files become the snapshot's."""

    def names(self) -> list[str]: ...

    def close(self) -> None: ...


class Volume(abc.ABC):
    """A peer's freshly made file system on the disk, mounted."""

    def __init__(self, disk: Disk, mountpoint: pathlib.Path) -> None:
        self.disk = disk
        self.mountpoint = mountpoint

    @property
    def directory(self) -> pathlib.Path:
        """Where files go."""
        return self.mountpoint

    @abc.abstractmethod
    def mount(self) -> None: ...

    @abc.abstractmethod
    def unmount(self) -> None:
        """Returns when everything is on the device and no process is left."""

    def close(self) -> None:
        """Unmounts, whatever state the volume is in."""
        self.unmount()

    def remount(self) -> float:
        """Unmounts, empties every cache and mounts again; seconds that mounting took."""
        self.unmount()
        drop_caches()
        self.disk.forget_cache()
        started = time.perf_counter()
        self.mount()
        os.listdir(self.directory)
        return time.perf_counter() - started

    def crash(self) -> float:
        """Loses what is not on the device, as kill -9 or a power failure would, and recovers: seconds that mounting
        took."""
        image = self.disk.image()
        try:
            self.unmount()
            self.disk.restore(image)
        finally:
            os.close(image)
        drop_caches()
        started = time.perf_counter()
        self.mount()
        os.listdir(self.directory)
        return time.perf_counter() - started

    def sync(self) -> None:
        """Everything that returned before is on the device when this returns."""
        sync_directory(self.directory)

    def used_bytes(self) -> int:
        """Of the device, after a sync."""
        self.sync()
        found = os.statvfs(self.directory)
        return (found.f_blocks - found.f_bfree) * found.f_frsize

    def memory_bytes(self) -> int | None:
        """Of the process that serves; None where the kernel does."""
        return None

    def server_pid(self) -> int | None:
        """Of the process that serves; None where the kernel does."""
        return None

    def snapshots(self) -> Snapshots | None:
        return None


class Peer(abc.ABC):
    name: ClassVar[str]
    title: ClassVar[str]
    abilities: ClassVar[frozenset[str]] = frozenset({CONTENT, DISK})
    """Without CONTENT, reads return anything; without DISK, it answers from memory, and the medium plays no part."""

    def lacks(self, needs: frozenset[str]) -> str | None:
        """Why a job with these needs cannot be done; None when it can."""
        missing = [LACKS[need] for need in LACKS if need in needs - self.abilities]
        return ", ".join(missing) or None

    @abc.abstractmethod
    def absent(self) -> str | None:
        """Why it cannot run here; None when it can."""

    @abc.abstractmethod
    def version(self) -> str: ...

    @abc.abstractmethod
    def options(self) -> str:
        """How it is made and mounted, in words that can be typed."""

    @abc.abstractmethod
    def make(self, disk: Disk, mountpoint: pathlib.Path) -> Volume:
        """Makes the file system on the wiped disk and mounts it. When that fails nothing is left."""


class KernelVolume(Volume):
    """Mounted by mount(8)."""

    def __init__(self, disk: Disk, mountpoint: pathlib.Path, kind: str, mount_options: str) -> None:
        super().__init__(disk, mountpoint)
        self.kind = kind
        self.mount_options = mount_options

    def mount(self) -> None:
        command("mount", "-t", self.kind, "-o", self.mount_options, self.disk.path, self.mountpoint)

    def unmount(self) -> None:
        # A process that has just ended may hold it for a moment more.
        for attempt in range(50):
            try:
                command("umount", self.mountpoint)
                return
            except PeerFailed:
                if attempt == 49 or not os.path.ismount(self.mountpoint):
                    raise
                time.sleep(0.1)

    def close(self) -> None:
        if os.path.ismount(self.mountpoint):
            self.unmount()


class KernelPeer(Peer):
    """A file system in the kernel with nothing special about it."""

    format_words: ClassVar[tuple[str, ...]]
    mount_options: ClassVar[str]
    kind: ClassVar[str]

    def absent(self) -> str | None:
        kinds = {line.split()[-1] for line in pathlib.Path("/proc/filesystems").read_text().splitlines()}
        if self.kind not in kinds:
            loaded = shutil.which("modprobe") and subprocess.run(
                ["modprobe", "--quiet", self.kind], check=False, timeout=30
            )
            if not loaded or loaded.returncode != 0:
                return f"the kernel has no {self.kind}"
        return missing_program(self.format_words[0])

    def options(self) -> str:
        return f"{' '.join(self.format_words)} DEVICE; mount -t {self.kind} -o {self.mount_options}"

    def volume(self, disk: Disk, mountpoint: pathlib.Path) -> Volume:
        return KernelVolume(disk, mountpoint, self.kind, self.mount_options)

    def make(self, disk: Disk, mountpoint: pathlib.Path) -> Volume:
        command(*self.format_words, disk.path)
        disk.fill_holes()
        volume = self.volume(disk, mountpoint)
        volume.mount()
        return volume
