"""Mounting, unmounting, and what the kernel knows about mounts.

As root the daemon opens /dev/fuse and calls mount(2) itself; libfuse takes the descriptor as mountpoint "/dev/fd/N".
So it holds the descriptor and can send the kernel notifications that libfuse does not know. Others mount through
fusermount3, which passes the descriptor on.
"""

import ctypes
import errno
import os
import socket
import stat
import struct
import subprocess
from typing import NamedTuple

from cowfs.errors import CowfsError
from cowfs.mount_options import (
    MS_DIRSYNC,
    MS_LAZYTIME,
    MS_NOATIME,
    MS_NODEV,
    MS_NODIRATIME,
    MS_NOEXEC,
    MS_NOSUID,
    MS_NOSYMFOLLOW,
    MS_RDONLY,
    MS_STRICTATIME,
    MS_SYNCHRONOUS,
    MountOptions,
)

FILE_SYSTEM_TYPE = "fuse.cowfs"
READ_LENGTH_MAX_BYTES = 1 << 20

MNT_FORCE = 1
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8
PR_SET_IO_FLUSHER = 57
# malloc.h
M_ARENA_MAX = -8
MALLOC_ARENAS = 2

# linux/fuse.h: enum fuse_notify_code; INC_EPOCH since protocol 7.44, Linux 6.16.
NOTIFY_INVAL_INODE = 2
NOTIFY_INVAL_ENTRY = 3
NOTIFY_INC_EPOCH = 8
_HEADER = struct.Struct("<IiQ")
_INVAL_INODE = struct.Struct("<IiQQqq")
_INVAL_ENTRY = struct.Struct("<IiQQII")


class MountEntry(NamedTuple):
    """One line of /proc/self/mountinfo."""

    mountpoint: str
    device: str
    """major:minor, which also names the mount in /sys/class/bdi."""
    kind: str
    source: str


def _unescape(field: str) -> str:
    """Space, tab, newline and backslash are \\ooo there."""
    parts = field.split("\\")
    return parts[0] + "".join(chr(int(part[:3], 8)) + part[3:] for part in parts[1:])


def mount_entries() -> list[MountEntry]:
    """All mounts that this process sees, in the order of mounting: of two on one place the later one is on top."""
    entries = []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            before, _, after = line.partition(" - ")
            left, right = before.split(" "), after.split(" ")
            entries.append(MountEntry(_unescape(left[4]), left[2], right[0], _unescape(right[1])))
    return entries


def real_mountpoint(directory: str) -> str:
    """Absolute path without symbolic links. The last component is not looked at when it cannot be, as on a mount
    whose daemon is gone."""
    parent, name = os.path.split(os.path.abspath(directory))
    candidate = os.path.join(os.path.realpath(parent), name)
    return os.path.realpath(candidate) if os.path.islink(candidate) else candidate


def mount_at(directory: str) -> MountEntry | None:
    """What is mounted exactly at this directory (the uppermost), of any type."""
    place = real_mountpoint(directory)
    return next((entry for entry in reversed(mount_entries()) if entry.mountpoint == place), None)


def cowfs_mounts() -> list[MountEntry]:
    return [entry for entry in mount_entries() if entry.kind == FILE_SYSTEM_TYPE]


def mount_above(path: str) -> MountEntry | None:
    """The mount that a path lies on, judged by names alone: works when its daemon is gone."""
    place = real_mountpoint(path)
    containing = [entry for entry in mount_entries()
                  if place == entry.mountpoint or place.startswith(entry.mountpoint.rstrip("/") + "/")]
    return max(reversed(containing), key=lambda entry: len(entry.mountpoint), default=None)


def is_dead(mountpoint: str) -> bool:
    """Whether the daemon behind a mount is gone. Waits for the daemon when it is alive but slow. (stat(2) would not
    tell: the kernel answers it from what it has cached.)"""
    try:
        os.statvfs(mountpoint)
    except OSError as error:
        return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False


def check_mountpoint(directory: str) -> str:
    """The mountpoint's real path when something can be mounted there. What a killed cowfs daemon left there is
    unmounted first."""
    entry = mount_at(directory)
    if entry is not None and entry.kind == FILE_SYSTEM_TYPE and is_dead(entry.mountpoint):
        unmount(entry.mountpoint, lazy=True)
        entry = mount_at(directory)
    if entry is not None and entry.kind != "autofs":
        raise CowfsError("busy", f"{entry.source} ({entry.kind}) is mounted at {directory} already",
                         "unmount it first or choose another directory")
    try:
        mode = os.stat(directory).st_mode
    except OSError as error:
        raise CowfsError.from_os_error(error, f"use the mountpoint {directory}", "create the directory first") from None
    if not stat.S_ISDIR(mode):
        raise CowfsError("usage", f"the mountpoint {directory} is not a directory", "name a directory")
    return os.path.realpath(directory)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def mount_as_root(pool: str, mountpoint: str, options: MountOptions) -> int:
    """Mounts and returns the /dev/fuse descriptor, which the caller hands to libfuse as "/dev/fd/N"."""
    try:
        device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise CowfsError.from_os_error(error, "open /dev/fuse", "load the fuse module: modprobe fuse") from None
    root_mode = stat.S_IFMT(os.stat(mountpoint).st_mode)
    data = (f"fd={device},rootmode={root_mode:o},user_id={os.getuid()},group_id={os.getgid()},"
            f"default_permissions,allow_other,max_read={READ_LENGTH_MAX_BYTES}")
    result = _libc().mount(os.fsencode(pool), os.fsencode(mountpoint), FILE_SYSTEM_TYPE.encode(),
                           ctypes.c_ulong(options.flags), data.encode())
    if result != 0:
        number = ctypes.get_errno()
        os.close(device)
        raise CowfsError.from_os_error(OSError(number, os.strerror(number)), f"mount at {mountpoint}",
                                       "check 'dmesg' for the kernel's reason")
    return device


# fusermount3's table mount_flags[] (libfuse, util/fusermount.c). suid and dev it ignores when a user asks for them.
_FUSERMOUNT_WORDS = {
    MS_RDONLY: "ro", MS_NOSUID: "nosuid", MS_NODEV: "nodev", MS_NOEXEC: "noexec", MS_SYNCHRONOUS: "sync",
    MS_DIRSYNC: "dirsync", MS_NOATIME: "noatime",
}  # fmt: skip
# relatime is not among them: it is what the kernel does by itself.
_ROOT_ONLY_WORDS = {
    MS_NOSYMFOLLOW: "nosymfollow", MS_NODIRATIME: "nodiratime", MS_STRICTATIME: "strictatime",
    MS_LAZYTIME: "lazytime",
}  # fmt: skip


def fusermount_options(pool: str, options: MountOptions) -> set[str]:
    """Options for fusermount3; CowfsError for those that it cannot pass on."""
    refused = [word for flag, word in _ROOT_ONLY_WORDS.items() if options.flags & flag]
    refused += [word for flag, word in ((MS_NOSUID, "suid"), (MS_NODEV, "dev")) if not options.flags & flag]
    if refused:
        raise CowfsError("usage", f"fusermount3 cannot mount with the option '{refused[0]}'",
                         "leave it out, or mount as root")
    words = {"subtype=cowfs", "default_permissions"}
    words |= {word for flag, word in _FUSERMOUNT_WORDS.items() if options.flags & flag}
    if pool.isascii():
        words.add("fsname=" + pool.replace("\\", "\\\\").replace(",", "\\,"))
    if options.allow_other:
        words.add("allow_other")
    return words


def mount_as_user(pool: str, mountpoint: str, options: MountOptions) -> int:
    """Mounts through fusermount3, which is setuid and passes the /dev/fuse descriptor back over a socket (libfuse,
    lib/mount.c)."""
    words = fusermount_options(pool, options)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        os.set_inheritable(theirs.fileno(), True)
        command = ["fusermount3", "-o", ",".join(sorted(words)), "--", mountpoint]
        try:
            finished = subprocess.run(command, capture_output=True, text=True, check=False, pass_fds=(theirs.fileno(),),
                                      env={**os.environ, "LC_ALL": "C", "_FUSE_COMMFD": str(theirs.fileno())})
        except FileNotFoundError:
            raise CowfsError("error", "fusermount3 was not found", "install fuse3, or mount as root") from None
        if finished.returncode != 0:
            raise CowfsError("permission", f"fusermount3 could not mount at {mountpoint}: {finished.stderr.strip()}",
                             "check that the directory is yours; '-o allow_other' needs user_allow_other in "
                             "/etc/fuse.conf")
        _message, descriptors, _flags, _address = socket.recv_fds(ours, 1, 1)
    if not descriptors:
        raise CowfsError("error", "fusermount3 passed no descriptor", "check the version of fuse3: 3.10 or later")
    os.set_inheritable(descriptors[0], False)
    return descriptors[0]


URING_PARAMETER = "/sys/module/fuse/parameters/enable_uring"


def uring_parameter(*, switch_on: bool = False) -> bool | None:
    """Whether the kernel offers FUSE over io_uring; None where it has no such thing."""
    try:
        if switch_on:
            with open(URING_PARAMETER, "w", encoding="ascii") as parameter:
                parameter.write("Y")
        with open(URING_PARAMETER, encoding="ascii") as parameter:
            return parameter.read(1) in "Y1"
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CowfsError.from_os_error(error, "switch FUSE over io_uring on", "only root may") from None


def unmount(mountpoint: str, *, lazy: bool = False, force: bool = False) -> None:
    """Takes the mount away from the tree; the daemon may still be writing when this returns."""
    if os.geteuid() == 0:
        flags = UMOUNT_NOFOLLOW | (MNT_DETACH if lazy else 0) | (MNT_FORCE if force else 0)
        if _libc().umount2(os.fsencode(mountpoint), flags) == 0:
            return
        number = ctypes.get_errno()
        if number == errno.EBUSY:
            raise _busy(mountpoint)
        raise CowfsError.from_os_error(OSError(number, os.strerror(number)), f"unmount {mountpoint}")
    command = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", mountpoint]
    try:
        finished = subprocess.run(command, capture_output=True, text=True, check=False,
                                  env={**os.environ, "LC_ALL": "C"})
    except FileNotFoundError:
        raise CowfsError("error", "fusermount3 was not found", "install fuse3, or unmount as root") from None
    if finished.returncode != 0:
        if "busy" in finished.stderr:
            raise _busy(mountpoint)
        raise CowfsError("permission", f"cannot unmount {mountpoint}: {finished.stderr.strip()}",
                         "unmount as root or as the user who mounted it")


def _busy(mountpoint: str) -> CowfsError:
    return CowfsError("busy", f"{mountpoint} is in use",
                      f"close what uses it ('fuser -vm {mountpoint}' lists it) or pass --lazy")


def limit_malloc_arenas() -> None:
    """Before any thread is started: all of them take memory from the same few places (of glibc). Nodes are allocated by
    one thread and freed by another, so what one has given back to a place of its own the others could not use."""
    if "MALLOC_ARENA_MAX" not in os.environ and hasattr(_libc(), "mallopt"):
        _libc().mallopt(M_ARENA_MAX, MALLOC_ARENAS)


def set_io_flusher() -> bool:
    """Tells the kernel that this process writes back for others, so that its own allocations never wait for
    writeback through itself. False where that is not permitted."""
    return bool(_libc().prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) == 0)


def tune_device(mountpoint: str, *, cache_back: bool = False) -> list[str]:
    """Raises readahead and the number of background requests from the kernel's defaults (128 KiB and 12), which
    only root may; with `cache_back` also the share of memory that may be dirty, which is 1 percent of what all file
    systems together may have. Returns what could not be set, for the log."""
    device = os.stat(mountpoint).st_dev
    bdi = f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}"
    settings = {
        f"{bdi}/read_ahead_kb": "1024",
        f"/sys/fs/fuse/connections/{os.minor(device)}/max_background": "256",
        f"/sys/fs/fuse/connections/{os.minor(device)}/congestion_threshold": "192",
    }
    if cache_back:
        settings |= {f"{bdi}/max_ratio": "100", f"{bdi}/strict_limit": "0"}
    failures = []
    for path, value in settings.items():
        try:
            with open(path, "w", encoding="ascii") as setting:
                setting.write(value)
        except OSError as error:
            failures.append(f"{path}: {error.strerror}")
    return failures


class Notifier:
    """Messages to the kernel about what it has cached. They may wait for requests that are under way: called from
    worker threads only, never from a handler, never holding a lock."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def _send(self, message: bytes) -> bool:
        """False when the kernel has nothing cached under that name or node."""
        try:
            os.write(self._descriptor, message)
        except FileNotFoundError:
            return False
        return True

    def increase_epoch(self) -> bool:
        """Makes every directory entry of the mount stale at once. False on kernels before 6.16."""
        try:
            return self._send(_HEADER.pack(_HEADER.size, NOTIFY_INC_EPOCH, 0))
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOSYS):
                return False
            raise

    def invalidate_inode(self, node: int) -> bool:
        """Drops the cached attributes and pages of a node."""
        return self._send(_INVAL_INODE.pack(_INVAL_INODE.size, NOTIFY_INVAL_INODE, 0, node, 0, 0))

    def invalidate_entry(self, parent: int, name: bytes) -> bool:
        """Drops a cached name, and everything below it."""
        length = _INVAL_ENTRY.size + len(name) + 1
        message = _INVAL_ENTRY.pack(length, NOTIFY_INVAL_ENTRY, 0, parent, len(name), 0) + name + b"\0"
        return self._send(message)
