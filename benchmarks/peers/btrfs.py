"""Btrfs: copy-on-write with checksums. Its snapshots are taken through ioctls, without a process for each."""

import fcntl
import os
import pathlib
import struct
import time
from typing import ClassVar

from benchmarks.ground import Disk
from benchmarks.peers.base import (
    CONTENT,
    DISK,
    SNAPSHOTS,
    KernelPeer,
    KernelVolume,
    Snapshots,
    Volume,
    command,
    first_line,
    missing_program,
)

# linux/btrfs.h
BTRFS_IOC_SNAP_DESTROY = 0x5000940F
BTRFS_IOC_SUBVOL_CREATE = 0x5000940E
BTRFS_IOC_SNAP_CREATE_V2 = 0x50009417
BTRFS_SUBVOL_RDONLY = 2
CLEANING_POLL_S = 0.02
_VOLUME_ARGUMENTS = struct.Struct("=q4088s")
_VOLUME_ARGUMENTS_V2 = struct.Struct("=qQQ32s4040s")


class BtrfsSnapshots:
    """Of the subvolume `live`, as its siblings in `snapshots`."""

    def __init__(self, top: pathlib.Path) -> None:
        self.top = top
        self.folder = top / "snapshots"
        self._folder_descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._top_descriptor = os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._live_descriptor = os.open(top / "live", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def _create(self, source: int, into: int, name: str, flags: int) -> None:
        arguments = bytearray(_VOLUME_ARGUMENTS_V2.pack(source, 0, flags, b"", name.encode()))
        fcntl.ioctl(into, BTRFS_IOC_SNAP_CREATE_V2, arguments)

    def take(self, name: str) -> None:
        self._create(self._live_descriptor, self._folder_descriptor, name, BTRFS_SUBVOL_RDONLY)

    def take_quickly(self, name: str) -> None:
        """Every Btrfs snapshot commits a transaction."""
        self.take(name)

    def destroy(self, name: str) -> None:
        arguments = _VOLUME_ARGUMENTS.pack(0, name.encode())
        fcntl.ioctl(self._folder_descriptor, BTRFS_IOC_SNAP_DESTROY, bytearray(arguments))

    def wait_destroyed(self) -> None:
        # Without the sync the cleaner waits for the next commit, up to 30 s; it then does all there is.
        command("btrfs", "filesystem", "sync", self.top)
        while command("btrfs", "subvolume", "list", "-d", self.top):
            time.sleep(CLEANING_POLL_S)

    def clone(self, name: str, clone: str) -> None:
        source = os.open(self.folder / name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._create(source, self._folder_descriptor, clone, 0)
        finally:
            os.close(source)

    def destroy_clone(self, clone: str) -> None:
        self.destroy(clone)

    def rollback(self, name: str) -> None:
        """As its users do: a writable snapshot of the snapshot takes the place of the subvolume, whose old content is
        kept under another name; whoever has files open goes on with the old one."""
        self.clone(name, "rolled-back")
        kept = f"before-{os.urandom(6).hex()}"
        os.rename(self.top / "live", self.folder / kept)
        os.rename(self.folder / "rolled-back", self.top / "live")
        os.close(self._live_descriptor)
        self._live_descriptor = os.open(self.top / "live", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def names(self) -> list[str]:
        return os.listdir(self.folder)

    def close(self) -> None:
        for descriptor in (self._folder_descriptor, self._top_descriptor, self._live_descriptor):
            os.close(descriptor)


class BtrfsVolume(KernelVolume):
    @property
    def directory(self) -> pathlib.Path:
        return self.mountpoint / "live"

    def make_layout(self) -> None:
        top = os.open(self.mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(top, BTRFS_IOC_SUBVOL_CREATE, bytearray(_VOLUME_ARGUMENTS.pack(0, b"live")))
        finally:
            os.close(top)
        (self.mountpoint / "snapshots").mkdir()

    def snapshots(self) -> Snapshots:
        return BtrfsSnapshots(self.mountpoint)


class Btrfs(KernelPeer):
    name: ClassVar[str] = "btrfs"
    title: ClassVar[str] = "Btrfs"
    abilities = frozenset({CONTENT, DISK, SNAPSHOTS})
    kind = "btrfs"
    format_words = ("mkfs.btrfs", "-q", "-f", "-K")
    mount_options: ClassVar[str] = "noatime,nodiscard"

    def absent(self) -> str | None:
        return super().absent() or missing_program("btrfs")

    def version(self) -> str:
        return first_line("mkfs.btrfs", "--version")

    def volume(self, disk: Disk, mountpoint: pathlib.Path) -> BtrfsVolume:
        return BtrfsVolume(disk, mountpoint, self.kind, self.mount_options)

    def make(self, disk: Disk, mountpoint: pathlib.Path) -> Volume:
        command(*self.format_words, disk.path)
        disk.fill_holes()
        volume = self.volume(disk, mountpoint)
        volume.mount()
        try:
            volume.make_layout()
        except BaseException:
            volume.close()
            raise
        return volume


class BtrfsCompressed(Btrfs):
    """Compared where cowfs compresses too."""

    name = "btrfs_zstd"
    title = "Btrfs zstd:1"
    mount_options = "noatime,nodiscard,compress=zstd:1"

    def absent(self) -> str | None:
        from benchmarks.peers.cowfs import compresses

        return super().absent() or (None if compresses() else "cowfs does not compress: there is nothing to compare")
