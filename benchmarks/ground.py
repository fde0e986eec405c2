"""The ground that every peer stands on: one loop device over a file of fixed size, in memory or on disk.

The file is written once, whole, and never discarded: a copy-on-write file system that writes to new places pays for
no allocation below it that an overwriting one is spared. Where a peer's mkfs has the kernel zero a part (BLKZEROOUT),
the loop driver makes a hole of it, or an extent that counts as unwritten: such parts are written again before anything
is measured, since whoever came to write there first, this peer or a later one, would pay for the allocation.

The file's name is removed as soon as the device has it, and the device clears itself when nobody has it open: neither
can stay behind.
"""

import array
import contextlib
import errno
import fcntl
import itertools
import mmap
import os
import pathlib
import re
import struct
import subprocess
from collections.abc import Iterator
from typing import NamedTuple

from benchmarks.isolation import backing_prefix

MIB = 1 << 20
BLOCK_SIZE_BYTES = 4096
SECTOR_SIZE_BYTES = 512
# stat(2): what st_blocks counts in.
STAT_BLOCK_BYTES = 512
# What holds the labels and superblocks of every peer, at both ends.
WIPED_BYTES = 8 * MIB
# More than any job's file and what is buffered of it.
BACKED_BYTES = 512 * MIB
# What is left for everybody else when an image is taken into memory.
IMAGE_SPARE_BYTES = 1024 * MIB

# linux/loop.h
LOOP_CTL_GET_FREE = 0x4C82
LOOP_CONFIGURE = 0x4C0A
LOOP_CLR_FD = 0x4C01
LO_FLAGS_AUTOCLEAR = 4
LO_FLAGS_DIRECT_IO = 16
# struct loop_config: fd, block_size, struct loop_info64 (of which only lo_flags is set), reserved
_LOOP_CONFIG = struct.Struct("=II 5Q 3I I 160s 2Q 64s")
BLKFLSBUF = 0x1261

MEDIA = {"memory": pathlib.Path("/dev/shm"), "disk": pathlib.Path("/var/tmp")}
"""Folders for the files: a tmpfs, and a folder that is expected to be on a disk."""


class DeviceCounts(NamedTuple):
    """What has reached the device since it was made."""

    written_bytes: int
    read_bytes: int
    write_count: int
    flush_count: int

    def since(self, earlier: "DeviceCounts") -> "DeviceCounts":
        return DeviceCounts(*(now - then for now, then in zip(self, earlier, strict=True)))


class Disk:
    """A loop device and the file behind it."""

    def __init__(self, path: str, backing: int, descriptor: int, size_bytes: int, medium: str, *, sparse: bool) -> None:
        self.path = path
        self.is_sparse = sparse
        self.size_bytes = size_bytes
        self.medium = medium
        self._backing = backing
        self._descriptor = descriptor

    @property
    def name(self) -> str:
        return os.path.basename(self.path)

    def counts(self) -> DeviceCounts:
        fields = [int(word) for word in pathlib.Path(f"/sys/block/{self.name}/stat").read_text().split()]
        return DeviceCounts(fields[6] * SECTOR_SIZE_BYTES, fields[2] * SECTOR_SIZE_BYTES, fields[4], fields[15])

    def is_direct(self) -> bool:
        return pathlib.Path(f"/sys/block/{self.name}/loop/dio").read_text().strip() == "1"

    def wipe(self) -> None:
        """No file system is found on it any more; its blocks stay allocated below."""
        subprocess.run(["wipefs", "--all", "--force", "--quiet", self.path], check=True, timeout=60)
        zeros = bytes(WIPED_BYTES)
        device = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        try:
            for offset in (0, self.size_bytes - WIPED_BYTES):
                os.pwrite(device, zeros, offset)
            os.fsync(device)
        finally:
            os.close(device)
        self.forget_cache()
        self.fill_holes()

    def fill_holes(self) -> None:
        """Writes zeros where the file behind it has holes, unless it is sparse by intent. For after mkfs: nothing may
        be mounted from it."""
        if self.is_sparse:
            return
        zeros = bytes(MIB)
        data = [(0, 0), *_data_of(self._backing, 0, self.size_bytes), (self.size_bytes, self.size_bytes)]
        for (_, hole), (hole_end, _) in itertools.pairwise(data):
            for offset in range(hole, hole_end, MIB):
                os.pwrite(self._backing, zeros[: hole_end - offset], offset)
        os.fsync(self._backing)

    def forget_cache(self) -> None:
        """Drops what the kernel has cached of the device."""
        fcntl.ioctl(self._descriptor, BLKFLSBUF)

    def allocated_bytes(self) -> int:
        """What the file behind it takes; of a sparse one less than its size."""
        return os.fstat(self._backing).st_blocks * STAT_BLOCK_BYTES

    def image(self) -> int:
        """Copies what has reached the device by now, which is what a power failure would leave, into memory; the
        descriptor of the copy is the caller's to close."""
        needed_bytes = self.allocated_bytes()
        if needed_bytes + IMAGE_SPARE_BYTES > available_bytes():
            raise OSError(errno.ENOMEM, f"a copy of the device, {needed_bytes // MIB:,} MiB, does not fit in memory")
        copy = os.memfd_create("image", os.MFD_CLOEXEC)
        try:
            os.ftruncate(copy, self.size_bytes)
            for start, end in _data_of(self._backing, 0, self.size_bytes):
                _copy(self._backing, copy, start, end)
        except BaseException:
            os.close(copy)
            raise
        return copy

    def restore(self, image: int) -> None:
        """The device's content becomes the image's. Nothing may be mounted from it. A device of which little has been
        written stays sparse: the image of 16 GiB twice in memory is more than many a machine has."""
        hole = 0
        for start, end in [*_data_of(image, 0, self.size_bytes), (self.size_bytes, self.size_bytes)]:
            for written in _data_of(self._backing, hole, start):
                _copy(image, self._backing, *written)
            _copy(image, self._backing, start, end)
            hole = end
        os.fsync(self._backing)
        self.forget_cache()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            # When something still holds the device it clears itself after that.
            fcntl.ioctl(self._descriptor, LOOP_CLR_FD)
        os.close(self._descriptor)
        os.close(self._backing)


def available_bytes() -> int:
    """Memory that can be had without swapping."""
    found = re.search(r"^MemAvailable:\s*(\d+) kB$", pathlib.Path("/proc/meminfo").read_text(), re.MULTILINE)
    return int(found[1]) << 10 if found else 0


def _data_of(file: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Where the file may hold something else than zeros: the parts, from and to, that are no holes."""
    while start < end:
        try:
            start = os.lseek(file, start, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:  # no data from here to the end
                raise
            return
        if start < end:
            hole = min(os.lseek(file, start, os.SEEK_HOLE), end)
            yield start, hole
            start = hole


def _copy(source: int, target: int, start: int, end: int) -> None:
    while start < end:
        content = os.pread(source, min(8 * MIB, end - start), start)
        if not content:
            raise OSError(errno.EIO, "the image is too short")
        start += os.pwrite(target, content, start)


def _attach(backing: int) -> tuple[str, int]:
    """Path and descriptor of a free loop device, which now has the file."""
    flags = LO_FLAGS_AUTOCLEAR | LO_FLAGS_DIRECT_IO
    config = array.array(
        "B", _LOOP_CONFIG.pack(backing, BLOCK_SIZE_BYTES, 0, 0, 0, 0, 0, 0, 0, 0, flags, b"", 0, 0, b"")
    )
    with open("/dev/loop-control", "rb", buffering=0) as control:
        while True:
            path = f"/dev/loop{fcntl.ioctl(control, LOOP_CTL_GET_FREE)}"
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.ioctl(descriptor, LOOP_CONFIGURE, config)
            except OSError as error:
                os.close(descriptor)
                if error.errno != errno.EBUSY:  # somebody else was quicker
                    raise
            except BaseException:
                os.close(descriptor)
                raise
            else:
                return path, descriptor


def _fill(backing: int, size_bytes: int) -> None:
    """With something, so that every block is there."""
    content = os.urandom(MIB)
    for offset in range(0, size_bytes, MIB):
        os.pwrite(backing, content[: size_bytes - offset], offset)
    os.fsync(backing)


@contextlib.contextmanager
def make_disk(medium: str, folder: pathlib.Path, size_bytes: int, *, sparse: bool = False) -> Iterator[Disk]:
    """A loop device, gone at the end; `folder` is the run's own, whose name makes that of the file unique. A sparse
    one is for what does not depend on the speed of the device."""
    directory = backing_prefix(folder, MEDIA[medium])
    directory.mkdir(mode=0o700, exist_ok=True)
    path = directory / f"disk-{os.urandom(4).hex()}"
    backing = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(backing, size_bytes)
        if not sparse:
            _fill(backing, size_bytes)
        device_path, descriptor = _attach(backing)
    except BaseException:
        os.close(backing)
        raise
    finally:
        path.unlink()
    disk = Disk(device_path, backing, descriptor, size_bytes, medium, sparse=sparse)
    try:
        yield disk
    finally:
        disk.close()


def drop_caches() -> None:
    """The kernel's page, dentry and inode caches; what is dirty is written first. Then memory is taken and given back:
    a virtual machine hands blocks that have been free for two seconds to its host (free page reporting of
    virtio_balloon), and to have a page again takes 10 us, so that whoever wrote first after a pause, and nobody else,
    wrote at 400 MiB/s. In huge pages it comes from large blocks, in small ones from what is left of split ones."""
    os.sync()
    pathlib.Path("/proc/sys/vm/drop_caches").write_text("3\n")
    size_bytes = max(mmap.PAGESIZE, min(BACKED_BYTES, available_bytes() // 4))
    with contextlib.ExitStack() as taken:
        for advice in (mmap.MADV_HUGEPAGE, mmap.MADV_NOHUGEPAGE):
            memory = taken.enter_context(mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
            memory.madvise(advice)
            for offset in range(0, size_bytes, mmap.PAGESIZE):
                memory[offset] = 1


def medium_free_bytes(medium: str) -> int:
    found = os.statvfs(MEDIA[medium])
    return found.f_bavail * found.f_frsize
