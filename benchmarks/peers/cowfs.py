"""cowfs itself, from this checkout; its snapshots are taken through the Python client."""

import contextlib
import importlib
import importlib.metadata
import os
import pathlib
import signal
import sys
import time
from typing import ClassVar

import cowfs
from benchmarks.ground import Disk, drop_caches
from benchmarks.peers.base import (
    CONTENT,
    DISK,
    SNAPSHOTS,
    UNSYNCED,
    Peer,
    PeerFailed,
    Snapshots,
    Volume,
    command,
    process_memory_bytes,
)
from cowfs.daemon import log_path_of

COMMANDS = pathlib.Path(sys.executable).parent
MKFS, MOUNT, COWFS = COMMANDS / "mkfs.cowfs", COMMANDS / "mount.cowfs", COMMANDS / "cowfs"
ENDING_TIMEOUT_S = 60


def compresses() -> bool:
    return "--compression" in command(MKFS, "--help")


class CowfsSnapshots:
    def __init__(self, client: cowfs.Client) -> None:
        self.client = client

    def take(self, name: str) -> None:
        self.client.snapshot(name)

    def take_quickly(self, name: str) -> None:
        self.client.snapshot(name, sync=False)

    def destroy(self, name: str) -> None:
        self.client.destroy(name)

    def wait_destroyed(self) -> None:
        self.client.sync()

    def clone(self, name: str, clone: str) -> None:
        self.client.clone(name, clone)

    def destroy_clone(self, clone: str) -> None:
        self.client.destroy_volume(clone)

    def rollback(self, name: str) -> None:
        self.client.rollback(name)

    def names(self) -> list[str]:
        return [snapshot["name"] for snapshot in self.client.iterate()]

    def close(self) -> None:
        self.client.close()


class CowfsVolume(Volume):
    def __init__(self, disk: Disk, mountpoint: pathlib.Path, mount_options: str) -> None:
        super().__init__(disk, mountpoint)
        self.mount_options = mount_options
        self._pid = 0

    def mount(self) -> None:
        command(MOUNT, self.disk.path, self.mountpoint, "-o", self.mount_options)
        with cowfs.connect(str(self.mountpoint)) as client:
            self._pid = client.daemon_pid()

    def unmount(self) -> None:
        for attempt in range(50):
            try:
                command(COWFS, "umount", self.mountpoint)
                return
            except PeerFailed:
                if attempt == 49 or not os.path.ismount(self.mountpoint):
                    raise
                time.sleep(0.1)

    def close(self) -> None:
        try:
            if os.path.ismount(self.mountpoint):
                self.unmount()
        except PeerFailed:
            command("umount", "-l", self.mountpoint)
            raise
        finally:
            pathlib.Path(log_path_of(str(self.mountpoint))).unlink(missing_ok=True)

    def server_pid(self) -> int:
        return self._pid

    def memory_bytes(self) -> int:
        return process_memory_bytes(self._pid)

    def crash(self) -> float:
        os.kill(self._pid, signal.SIGKILL)
        deadline = time.monotonic() + ENDING_TIMEOUT_S
        while is_running(self._pid):
            if time.monotonic() > deadline:
                raise PeerFailed(f"the daemon {self._pid} does not end")
            time.sleep(0.01)
        command("umount", "-l", self.mountpoint)
        drop_caches()
        started = time.perf_counter()
        self.mount()
        os.listdir(self.directory)
        return time.perf_counter() - started

    def sync(self) -> None:
        with cowfs.connect(str(self.mountpoint)) as client:
            client.sync()

    def snapshots(self) -> Snapshots:
        return CowfsSnapshots(cowfs.connect(str(self.mountpoint)))


def is_running(pid: int) -> bool:
    """A process that has ended but was not waited for runs no more."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


class Cowfs(Peer):
    name: ClassVar[str] = "cowfs"
    title: ClassVar[str] = "cowfs"
    abilities = frozenset({CONTENT, DISK, SNAPSHOTS, UNSYNCED})
    mount_options: ClassVar[str] = "noatime,uring=on"
    make_options: ClassVar[tuple[str, ...]] = ()

    def absent(self) -> str | None:
        try:
            for module in ("pyfuse3", "cowfs._native", "btree._store"):
                importlib.import_module(module)
        except ImportError as error:
            return f"not built: {error}"
        return None if os.path.exists("/dev/fuse") else "there is no /dev/fuse"

    def version(self) -> str:
        return f"cowfs {importlib.metadata.version('cowfs-fs')}"

    def options(self) -> str:
        return f"{' '.join(['mkfs.cowfs', '-f', *self.make_options])} DEVICE; mount.cowfs -o {self.mount_options}"

    def make(self, disk: Disk, mountpoint: pathlib.Path) -> Volume:
        command(MKFS, "-f", "-q", *self.make_options, disk.path)
        disk.fill_holes()
        volume = CowfsVolume(disk, mountpoint, self.mount_options)
        try:
            volume.mount()
        except BaseException:
            volume.close()
            raise
        return volume


class CowfsDevice(Cowfs):
    """The pump over /dev/fuse, which is what there is on kernels before 6.14."""

    name = "cowfs_device"
    title = "cowfs /dev/fuse"
    mount_options = "noatime,uring=off"


class CowfsBack(Cowfs):
    """With the kernel's writeback cache."""

    name = "cowfs_back"
    title = "cowfs cache=back"
    mount_options = "noatime,uring=on,cache=back"


class CowfsCompressed(Cowfs):
    name = "cowfs_zstd"
    title = "cowfs zstd:1"
    make_options = ("--compression", "zstd:1")

    def absent(self) -> str | None:
        return super().absent() or (None if compresses() else "it does not compress")


class CowfsWithoutPump(Cowfs):
    """Every request served by Python, which is what there is where the pump cannot run."""

    name = "cowfs_nopump"
    title = "cowfs nopump"
    mount_options = "noatime,nopump"
