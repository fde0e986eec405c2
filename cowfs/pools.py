"""Opening pools, and saying clearly why one cannot be opened."""

import errno
import os
import stat
import subprocess
import time
from typing import TYPE_CHECKING

from cowfs.errors import CowfsError
from cowfs.mounting import FILE_SYSTEM_TYPE, MountEntry, mount_entries

if TYPE_CHECKING:
    from btree import Storage, Store

PROBE_LENGTH_BYTES = 1 << 20
# A daemon lets go of its pool some moments after its mount is gone: when the last checkpoint is on disk.
BUSY_WAIT_MAX_S = 5.0
_BUSY_RETRY_INTERVAL_S = 0.1
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40, "P": 1 << 50}


def parse_size(text: str) -> int:
    """Bytes of N[K|M|G|T|P], powers of 1024, with an optional "iB" or "B"."""
    upper = text.strip().upper().removesuffix("B").removesuffix("I")
    digits, unit = (upper[:-1], upper[-1]) if upper[-1:] in _UNITS and upper[-1:] else (upper, "")
    if not (digits.isascii() and digits.isdigit() and int(digits) > 0):
        raise CowfsError("usage", f"'{text}' is not a size", "write a whole number with K, M, G or T, as in 20G")
    return int(digits) * _UNITS[unit]


def check_pool_path(path: str) -> os.stat_result:
    """What the path names, when it can be a pool at all: a regular file or block device."""
    try:
        found = os.stat(path)
    except OSError as error:
        raise CowfsError.from_os_error(error, f"open the pool {path}",
                                       "make one with mkfs.cowfs, or check the path") from None
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISBLK(found.st_mode)):
        raise CowfsError("not_cowfs", f"{path} is neither a file nor a block device", "name the pool itself")
    return found


def lock_holder(path: str) -> int | None:
    """Pid of a process that holds a lock on the pool, as far as this process may see it."""
    found = os.stat(path)
    wanted = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    with open("/proc/locks", encoding="ascii") as lines:
        for line in lines:
            fields = line.split()
            if len(fields) >= 6 and "->" not in fields and fields[5] == wanted:
                return int(fields[4])
    return None


def _mount_of(path: str) -> MountEntry | None:
    """A mount of the pool, or of whatever else is on the device."""
    real_path = os.path.realpath(path)
    return next((entry for entry in mount_entries() if entry.source == real_path), None)


def busy_error(path: str) -> CowfsError:
    """The pool is open elsewhere: says by whom, and where it is mounted if it is."""
    entry = _mount_of(path)
    holder = lock_holder(path)
    by = f" by process {holder}" if holder and holder > 0 else ""
    at = f", mounted at {entry.mountpoint}" if entry else ""
    if entry is None:
        hint = "it may still be writing after an unmount: try again in a moment"
    elif entry.kind == FILE_SYSTEM_TYPE:
        place = entry.mountpoint
        hint = (f"use its volumes at {place}/.cowfs/volume/ (a bind mount puts one elsewhere), or unmount it with "
                f"'cowfs umount {place}' first")
    else:
        hint = f"it holds a {entry.kind} file system: unmount that first, or check the path"
    return CowfsError("busy", f"the pool {path} is in use{by}{at}", hint)


def open_storage(path: str, *, read_only: bool) -> "Storage":
    """Opens and locks the pool's file or device, without looking into it. Waits up to BUSY_WAIT_MAX_S for one that is
    in use but not mounted, as just after an unmount."""
    from btree import Storage

    check_pool_path(path)
    deadline = time.monotonic() + BUSY_WAIT_MAX_S
    while True:
        try:
            return Storage.open_file(path, read_only=read_only)
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.EAGAIN):
                hint = ""
                if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ETXTBSY) and not read_only:
                    hint = "use '-o ro' if it is meant to be read-only, else check its permissions and its file system"
                raise CowfsError.from_os_error(error, f"open the pool {path}", hint) from None
        if _mount_of(path) is not None or time.monotonic() >= deadline:
            raise busy_error(path)
        time.sleep(_BUSY_RETRY_INTERVAL_S)


def open_store(path: str, *, read_only: bool, cache_bytes_max: int = 0, commit_interval_ms: int = 0,
               rebuild_space: bool = False, sequence_max: int = 0) -> "Store":
    """Opens a pool and recovers it. CowfsError says what is wrong with it and what to do."""
    from btree import Store

    storage = open_storage(path, read_only=read_only)
    try:
        return Store(storage, read_only=read_only, cache_bytes_max=cache_bytes_max,
                     commit_interval_ms=commit_interval_ms, rebuild_space=rebuild_space, sequence_max=sequence_max)
    except OSError as error:
        storage.close()
        is_foreign = error.errno in (errno.EINVAL, errno.EPROTONOSUPPORT)
        raised = CowfsError.from_os_error(error, f"open the pool {path}", "check the path" if is_foreign else "")
        raise CowfsError("not_cowfs" if is_foreign else raised.code, raised.message, raised.hint) from None


def describe_content(path: str) -> str | None:
    """What a file or device holds, in words; None when it holds nothing but zeros where anything would keep its mark
    (in a file: anywhere)."""
    known = _probe_signature(path)
    if known is not None:
        return known
    with open(path, "rb") as target:
        if stat.S_ISREG(os.fstat(target.fileno()).st_mode):
            return "data" if _has_data(target.fileno()) else None
        length_bytes = target.seek(0, os.SEEK_END)
        for offset_bytes in (0, max(0, length_bytes - PROBE_LENGTH_BYTES)):
            target.seek(offset_bytes)
            if any(target.read(PROBE_LENGTH_BYTES)):
                return "data"
    return None


def _has_data(descriptor: int) -> bool:
    """Whether a file has a byte that is not zero; its holes are skipped."""
    offset_bytes = 0
    while True:
        try:
            offset_bytes = os.lseek(descriptor, offset_bytes, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return False
            raise
        chunk = os.pread(descriptor, PROBE_LENGTH_BYTES, offset_bytes)
        if not chunk:
            return False
        if chunk.count(0) != len(chunk):
            return True
        offset_bytes += len(chunk)


def _probe_signature(path: str) -> str | None:
    """What a cowfs pool or blkid(8) says it is."""
    try:
        with open_store(path, read_only=True):
            return "a cowfs pool"
    except CowfsError as error:
        if error.code in ("damaged", "busy"):
            return "a cowfs pool" if error.code == "busy" else "a damaged cowfs pool"
    try:
        found = subprocess.run(["blkid", "-p", "-o", "export", "--", path], capture_output=True, text=True, check=False,
                               env={**os.environ, "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"})
    except FileNotFoundError:
        return None  # without blkid any byte that is not zero counts as content
    fields = dict(line.partition("=")[::2] for line in found.stdout.splitlines())
    kind = fields.get("TYPE") or fields.get("PTTYPE")
    return f"a {kind} file system or partition table" if kind else None
