"""Files of a mount that processes have mapped shared and writable.

What is written through such a mapping stays in the kernel until it writes the pages back: a snapshot cannot hold it
before. fsync(2) on any descriptor of the file brings all of it to the daemon.
"""

import errno
import os
from typing import NamedTuple

PROC = "/proc"


class SharedMapping(NamedTuple):
    """One process's shared writable mapping of a file."""

    link: str
    """Under /proc, by which the file can be opened, also when it has no name any more."""
    path: str
    """The file's name when it was mapped, or what it was renamed to. A deleted one's ends in " (deleted)"."""


def shared_writable_mappings(device: int) -> dict[int, list[SharedMapping]]:
    """Such mappings of files on the mount with this st_dev, by inode number. Only of processes whose mappings the
    caller may see: for root all, for others their own."""
    number = f"{os.major(device):02x}:{os.minor(device):02x}".encode()
    found: dict[int, list[SharedMapping]] = {}
    for process in os.listdir(PROC):
        if not process.isdigit():
            continue
        try:
            with open(f"{PROC}/{process}/maps", "rb") as lines:
                fields = [line.rstrip(b"\n").split(None, 5) for line in lines]
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        for place, permissions, _offset, where, inode, *path in fields:
            if permissions[1:2] == b"w" and permissions[3:4] == b"s" and where == number and path:
                # The kernel writes a newline in a name as \012 there, and nothing else so.
                name = os.fsdecode(path[0].replace(b"\\012", b"\n"))
                mapping = SharedMapping(f"{PROC}/{process}/map_files/{place.decode()}", name)
                found.setdefault(int(inode), []).append(mapping)
    return found


def flush_shared_mappings(directory: str) -> list[str]:
    """Brings what was written through shared mappings of files on the mount of `directory` to its daemon. Returns the
    names of files that could not be opened for that: those that are deleted, or out of reach, when the caller may not
    use /proc/PID/map_files. OSError when a file cannot be flushed: a snapshot would lack what it has."""
    device = os.stat(directory).st_dev
    left_out = []
    for inode, mappings in shared_writable_mappings(device).items():
        try:
            descriptor = _open_mapped(mappings, device, inode)
            if descriptor is None:
                continue
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except PermissionError:
            left_out.append(mappings[0].path)
        except OSError as error:
            # The file belongs to a tree that a rollback replaced: its pages have no place to go, and no snapshot of
            # what is there now can hold them.
            if error.errno != errno.ESTALE:
                raise
    return left_out


def _open_mapped(mappings: list[SharedMapping], device: int, inode: int) -> int | None:
    """A descriptor of the file behind these mappings; None when none of them exists any more. PermissionError when
    it cannot be opened in any way."""
    refusal: PermissionError | None = None
    for mapping in mappings:
        try:
            return os.open(mapping.link, os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, ProcessLookupError):
            continue  # unmapped between the two looks
        except PermissionError as error:
            # Those links need CAP_CHECKPOINT_RESTORE, which containers and ordinary users lack.
            refusal = error
        descriptor = _open_named(mapping.path, device, inode)
        if descriptor is not None:
            return descriptor
    if refusal is not None:
        raise refusal
    return None


def _open_named(path: str, device: int, inode: int) -> int | None:
    """A descriptor of what has this name, when it is the file that is looked for."""
    try:
        # Another file may have taken the name: one that must not be waited for, or a link.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENXIO):
            return None
        raise
    found = os.fstat(descriptor)
    if (found.st_dev, found.st_ino) == (device, inode):
        return descriptor
    os.close(descriptor)
    return None
