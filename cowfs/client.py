"""The Python client: snapshots and what belongs to them, for programs.

    with cowfs.connect("/mnt/data") as client:
        before = client.snapshot()
        ...
        client.rollback(before["name"])

Plain blocking sockets over one connection that is kept; one thread at a time. Errors are cowfs.CowfsError with
`code`, `message`, `hint` and `exit_code`.
"""

import errno
import fcntl
import json
import os
import socket
import struct
from collections.abc import Iterator
from typing import Any

from cowfs.errors import CowfsError
from cowfs.snapshots import NAME_LENGTH_MAX_BYTES, NameSource

_RECEIVE_LENGTH_BYTES = 1 << 16
_PAGE_LENGTH = 1000
_ID_MAX = (1 << 63) - 1
# cowfs/native/ioctl.h
_IN = struct.Struct("=II256s")
_TAKEN = struct.Struct("=II256sQQQ")
_IOC_SNAPSHOT_TAKE = 3 << 30 | _TAKEN.size << 16 | 0xC002
_IOC_SNAPSHOT_DESTROY = 1 << 30 | _IN.size << 16 | 0xC003
_NO_SYNC = 1
# The node id of `.cowfs`, which is its inode number: the highest view, first node (cowfs.history).
_TOP_INODE_NUMBER = ((1 << 23) - 1) << 40 | 1


def find_root(path: str) -> str:
    """The root of the cowfs mount that a path lies on. CowfsError when it lies on none, or on a dead one."""
    try:
        place = os.path.realpath(path, strict=True)
        device = os.stat(place).st_dev
        while place != "/" and os.stat(os.path.dirname(place)).st_dev == device:
            place = os.path.dirname(place)
        top = os.lstat(os.path.join(place, ".cowfs"))
    except OSError as error:
        if error.errno == errno.ENOENT and os.path.lexists(path):
            raise _not_cowfs(path) from None
        if error.errno in (errno.ENOTCONN, errno.ECONNABORTED):
            raise dead_error(path) from None
        raise CowfsError.from_os_error(error, f"use {path}", "check the path") from None
    if top.st_ino != _TOP_INODE_NUMBER:
        raise _not_cowfs(path)
    return place


def _not_cowfs(path: str) -> CowfsError:
    return CowfsError("not_cowfs", f"{path} is not on a cowfs mount", "'cowfs status' lists the mounts")


def dead_error(path: str) -> CowfsError:
    """The daemon of the mount that `path` lies on is gone."""
    from cowfs.mounting import mount_above

    entry = mount_above(path)
    place = entry.mountpoint if entry else path
    return CowfsError("dead", f"the daemon of the mount at {place} is gone",
                      f"unmount with 'cowfs umount {place}', then mount the pool again: it recovers by itself")


def find_volume(path: str, root: str) -> str | None:
    """The name of the volume that a path inside a mount is in; None for the mounted one."""
    parts = os.path.relpath(os.path.realpath(path), root).split("/")
    return parts[2] if len(parts) >= 3 and parts[:2] == [".cowfs", "volume"] else None


def connect(path: str) -> "Client":
    """A client for the mount (and the volume) that `path` lies on."""
    root = find_root(path)
    return Client(root, find_volume(path, root))


def locate(path: str) -> tuple[str, str]:
    """A part of a path that exists, as far down as possible, and the whole path, real but for its last component. What
    it leads to may be gone."""
    absolute = os.path.abspath(path)
    above = absolute
    while not os.path.lexists(above) or os.path.islink(above):
        above = os.path.dirname(above)
    rest = os.path.relpath(absolute, above)
    parent = os.path.realpath(os.path.dirname(absolute))
    return above, os.path.realpath(absolute) if rest == "." else os.path.join(parent, os.path.basename(absolute))


def connect_to(path: str) -> tuple["Client", str]:
    """A client for the volume that a path lies on, and the path from that volume's root, "" for the root itself. What
    the path leads to may be gone; a symbolic link stands for itself."""
    existing, whole = locate(path)
    client = connect(existing)
    inside = os.path.relpath(whole, os.path.realpath(client.directory))
    return client, "" if inside == "." else inside


def _encode_name(name: str) -> bytes:
    """For an ioctl; empty when it can be no name, which the control socket puts into words."""
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        return b""
    return encoded if len(encoded) <= NAME_LENGTH_MAX_BYTES and b"\0" not in encoded else b""


class Client:
    """One connection to a daemon. Snapshots are dicts: name, id, created_ns, epoch, holds, hold_count, clone_count."""

    def __init__(self, mountpoint: str, volume: str | None = None) -> None:
        self.mountpoint = mountpoint
        self.volume = volume
        self._buffer = b""
        self._quick = True
        self._names = NameSource()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.connect(os.readlink(os.path.join(mountpoint, ".cowfs", "socket")))
        except OSError as error:
            self._socket.close()
            if error.errno in (errno.ECONNREFUSED, errno.ENOENT, errno.ENOTCONN):
                raise dead_error(mountpoint) from None
            raise CowfsError.from_os_error(error, f"reach the daemon of {mountpoint}") from None

    @property
    def directory(self) -> str:
        """The root of the volume that this client is for."""
        return os.path.join(self.mountpoint, ".cowfs", "volume", self.volume) if self.volume else self.mountpoint

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def request(self, verb: str, **arguments: object) -> Any:
        """Sends one request and returns its result. The verbs and their arguments are in cowfs.control."""
        message = json.dumps({"verb": verb, "arguments": arguments}).encode() + b"\n"
        try:
            self._socket.sendall(message)
            while b"\n" not in self._buffer:
                received = self._socket.recv(_RECEIVE_LENGTH_BYTES)
                if not received:
                    raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
                self._buffer += received
        except (BrokenPipeError, ConnectionResetError):
            raise CowfsError("dead", f"the daemon of {self.mountpoint} ended during '{verb}'",
                             f"see its log, and check with 'cowfs status {self.mountpoint}'") from None
        line, _, self._buffer = self._buffer.partition(b"\n")
        reply = json.loads(line)
        if not reply["ok"]:
            raise CowfsError.from_json(reply["error"])
        return reply["result"]

    # ---- the quick way: ioctls, answered by the pump without Python

    def _ioctl(self, request: int, argument: bytes) -> bytes | None:
        """None when it was not done, whatever the reason: the control socket does it or tells why not. Opened for each
        call, so that a client does not keep a mount from being taken down."""
        if not self._quick:
            return None
        try:
            descriptor = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return None  # the request over the socket finds out what is wrong
        try:
            return fcntl.ioctl(descriptor, request, argument)
        except OSError as error:
            # Without the pump, or with cache=back. (Also for one snapshot that somebody has looked at.)
            if error.errno == errno.ENOTTY and request == _IOC_SNAPSHOT_TAKE:
                self._quick = False
            return None
        finally:
            os.close(descriptor)

    def _take(self, name: str | None, sync: bool) -> dict[str, Any] | None:
        """A snapshot by ioctl, or None."""
        wanted = _encode_name(name if name is not None else self._names.next_name())
        found = wanted and self._ioctl(_IOC_SNAPSHOT_TAKE, _TAKEN.pack(0 if sync else _NO_SYNC, 0, wanted, 0, 0, 0))
        if not found:
            return None
        _flags, _reserved, text, snapshot_id, epoch, created_ns = _TAKEN.unpack(found)
        return {"name": text.rstrip(b"\0").decode(), "id": snapshot_id, "created_ns": created_ns, "epoch": epoch,
                "clone_count": 0, "hold_count": 0, "holds": []}

    # ---- snapshots

    def snapshot(self, name: str | None = None, sync: bool = True, *, message: str = "",
                 tags: dict[str, str] | None = None, for_ns: int = 0) -> dict[str, Any]:
        """Captures every operation that returned before the call. Durable when it returns, unless not `sync`.
        Destroyed by itself after `for_ns`, if that is not 0."""
        if not message and not tags and not for_ns and (taken := self._take(name, sync)) is not None:
            return taken
        result: dict[str, Any] = self.request("snapshot", name=name, sync=sync, volume=self.volume, message=message,
                                              tags=tags or {}, for_ns=for_ns)
        return result

    def iterate(self, *, sizes: bool = False, limit: int = 0, after: int = 0,
                newest_first: bool = False) -> Iterator[dict[str, Any]]:
        """The volume's snapshots, oldest first, fetched in pages; at most `limit`, and only those after (newest first:
        before) the one with the id `after`. With `sizes` also what each brought and what destroying it alone would
        free."""
        left = limit or 1 << 62
        while left > 0:
            wanted = min(left, _PAGE_LENGTH)
            where = {"before": after or _ID_MAX} if newest_first else {"after": after}
            page = self.request("list", limit=wanted, sizes=sizes, volume=self.volume, **where)
            yield from page
            if len(page) < wanted:
                return
            left -= wanted
            after = page[-1]["id"]

    def list(self) -> list[dict[str, Any]]:
        """The volume's snapshots, oldest first."""
        return [*self.iterate()]

    def rollback(self, name: str) -> dict[str, Any]:
        """The volume's content becomes the snapshot's; what it was is kept in the snapshot result["guard"]["name"].
        Files that are open keep their handles, which answer ESTALE."""
        result: dict[str, Any] = self.request("rollback", name=name, volume=self.volume)
        return result

    def undo(self) -> dict[str, Any]:
        """Takes the last rollback (or redo) back. The result is that of rollback()."""
        result: dict[str, Any] = self.request("undo", volume=self.volume)
        return result

    def redo(self) -> dict[str, Any]:
        """Takes the last undo back."""
        result: dict[str, Any] = self.request("redo", volume=self.volume)
        return result

    def log(self) -> dict[str, Any]:
        """What happened to the volume as a whole ("events"), and the snapshots that "undo" and "redo" lead to."""
        result: dict[str, Any] = self.request("log", volume=self.volume)
        return result

    def destroy(self, name: str) -> None:
        """Deletes a snapshot."""
        wanted = _encode_name(name)
        if wanted and self._ioctl(_IOC_SNAPSHOT_DESTROY, _IN.pack(0, 0, wanted)) is not None:
            return
        self.request("destroy", name=name, volume=self.volume)

    def destroy_many(self, target: str = "*", *, older_than_ns: int = 0, keep: str = "",
                     dry_run: bool = False) -> dict[str, Any]:
        """Deletes what `target` (a name, FIRST..LAST, a pattern) and the other conditions select: those that are older
        than so long, those that a retention rule does not keep. The result has count, names (the first 1000), held
        (the same), and with `dry_run`, which deletes nothing, freed_bytes."""
        result: dict[str, Any] = self.request("destroy_many", target=target, older_than_ns=older_than_ns, keep=keep,
                                              dry_run=dry_run, volume=self.volume)
        return result

    def hold(self, name: str, tag: str) -> dict[str, Any]:
        """Keeps a snapshot from being destroyed until the hold of this tag is released."""
        result: dict[str, Any] = self.request("hold", name=name, tag=tag, volume=self.volume)
        return result

    def release(self, name: str, tag: str) -> dict[str, Any]:
        result: dict[str, Any] = self.request("release", name=name, tag=tag, volume=self.volume)
        return result

    # ---- properties

    def set_properties(self, changes: dict[str, str | None]) -> dict[str, Any]:
        """Sets properties of the volume, or with None unsets them; all, or with one that is refused none."""
        result: dict[str, Any] = self.request("set", properties=changes, volume=self.volume)
        return result

    # ---- travel

    def resolve(self, at: str) -> dict[str, Any]:
        """The snapshot that a name, "@ID" or a time ("-5s", "2026-11-22T11:45:10Z") stands for."""
        result: dict[str, Any] = self.request("resolve", at=at, volume=self.volume)
        return result

    def diff(self, old: str, new: str = "", path: str = "") -> Iterator[dict[str, Any]]:
        """What changed between two references ("" for now) at a path from the volume's root; see cowfs.differences."""
        first: int | None = 0
        while first is not None:
            page = self.request("diff", old=old, new=new, path=path, first_inode=first, volume=self.volume)
            yield from page["changes"]
            first = page["next_inode"]

    # The method `list` hides the type of this name in what follows.
    def versions(self, path: str) -> "Any":
        """The versions of what lies at a path from the volume's root, the oldest first; see cowfs.versions."""
        return self.request("versions", path=path, volume=self.volume)["versions"]

    # ---- volumes

    def clone(self, snapshot: str, name: str) -> dict[str, Any]:
        """A new volume whose content is the snapshot's, at `.cowfs/volume/NAME/` at once. mount.cowfs -o volume=NAME
        mounts it after the pool was unmounted."""
        result: dict[str, Any] = self.request("clone", name=snapshot, clone=name, volume=self.volume)
        return result

    def promote(self) -> dict[str, Any]:
        """Gives the clone that this client is for the snapshots up to the one it was made of, and makes the volume that
        had them a clone."""
        result: dict[str, Any] = self.request("promote", volume=self.volume)
        return result

    def destroy_volume(self, name: str) -> None:
        """Deletes a volume and all its snapshots; not the mounted one."""
        self.request("destroy_volume", volume=name)

    # The method `list` hides the type of this name in what follows.
    def volumes(self) -> "Any":
        """The pool's volumes as dicts: name, id, created_ns, snapshot_count, origin_snapshot_id, mounted."""
        return self.request("volumes")

    def properties(self) -> "Any":
        """The volume's properties as dicts: name, value, set (or what holds without it), summary."""
        return self.request("get", volume=self.volume)

    # ---- the pool

    def df(self) -> dict[str, Any]:
        result: dict[str, Any] = self.request("df")
        return result

    def status(self) -> dict[str, Any]:
        result: dict[str, Any] = self.request("status")
        return result

    def scrub(self, action: str = "status", rate_bytes: int | None = None) -> dict[str, Any]:
        """start, pause, cancel or status. Returns the state; what was found is in status()["damage"]."""
        result: dict[str, Any] = self.request("scrub", action=action, rate_bytes=rate_bytes)
        return result

    def sync(self) -> None:
        """Everything that returned before is durable when this returns."""
        self.request("sync")

    # ---- the daemon's end

    def daemon_pid(self) -> int:
        """Of the process that listens at the other end."""
        credentials = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        return int.from_bytes(credentials[:4], "little", signed=True)

    def announce_wait(self) -> None:
        """Asks to be told when the daemon has ended; to be followed by wait_unmounted()."""
        self.request("wait_unmounted")

    def wait_unmounted(self) -> None:
        """Returns when everything is on disk after an unmount; CowfsError when that failed."""
        received = self._buffer
        while chunk := self._socket.recv(_RECEIVE_LENGTH_BYTES):
            received += chunk
        if not received:
            raise CowfsError("damaged", "the daemon ended without saying that everything is on disk",
                             "mount again, which recovers, or run fsck.cowfs")
        reply = json.loads(received)
        if not reply["ok"]:
            raise CowfsError.from_json(reply["error"])
