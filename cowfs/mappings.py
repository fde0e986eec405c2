"""Files of a mount that processes have mapped shared and writable.

What is written through such a mapping stays in the kernel until it writes the pages back: a snapshot cannot hold it
before. fsync(2) on any descriptor of the file brings all of it to the daemon.
"""

import os
from collections.abc import Iterator


def shared_writable_mappings(device: int) -> Iterator[str]:
    """Paths under /proc by which each such file of the mount with this st_dev can be opened, once per file, deleted
    ones too. Only of processes whose mappings the caller may see: for root all, for others their own."""
    number = f"{os.major(device):02x}:{os.minor(device):02x}"
    found: set[bytes] = set()
    for process in os.listdir("/proc"):
        if not process.isdigit():
            continue
        try:
            with open(f"/proc/{process}/maps", "rb") as lines:
                fields = [line.split(None, 5) for line in lines]
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        for place, permissions, _offset, where, inode, *_path in fields:
            if permissions[1:2] != b"w" or permissions[3:4] != b"s" or where.decode() != number or inode in found:
                continue
            found.add(inode)
            yield f"/proc/{process}/map_files/{place.decode()}"


def flush_shared_mappings(directory: str) -> int:
    """Brings what was written through shared mappings of files on the mount of `directory` to its daemon.
    Returns the number of files. OSError when one cannot be flushed: a snapshot would lack what it has."""
    flushed = 0
    for path in shared_writable_mappings(os.stat(directory).st_dev):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, ProcessLookupError):
            continue  # unmapped between the two looks
        try:
            os.fsync(descriptor)
            flushed += 1
        finally:
            os.close(descriptor)
    return flushed
