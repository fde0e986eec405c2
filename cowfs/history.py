"""The `.cowfs` tree: snapshots and volumes as directories, in the root of a mount and hidden from its listing.

    .cowfs/snapshot/NAME/   the volume as it was; mkdir takes a snapshot, rmdir deletes one
    .cowfs/volume/NAME/     the other volumes of the pool, writable; the mounted one is a symbolic link
    .cowfs/socket           a symbolic link to the daemon's control socket, by which commands find it

Its own directories are virtual: their node ids have the highest view number, which no tree ever gets. Plain functions
without trio; those that say "waits" are called from worker threads.
"""

import errno
import os
import stat

from cowfs._native import ROOT_INODE, VIEW_SHIFT, Attributes
from cowfs.errors import CowfsError
from cowfs.volumes import MountedPool

NAME = b".cowfs"
VIRTUAL_VIEW = (1 << 23) - 1
INODE_MASK = (1 << VIEW_SHIFT) - 1

_BASE = VIRTUAL_VIEW << VIEW_SHIFT
TOP_NODE = _BASE | 1
SNAPSHOTS_NODE = _BASE | 2
VOLUMES_NODE = _BASE | 3
SOCKET_NODE = _BASE | 4
MOUNTED_VOLUME_NODE = _BASE | 5

# Cookies 1 and 2 are those of "." and "..", in every directory.
FIRST_COOKIE = 3

Entry = tuple[bytes, int, Attributes]

_ERRNO_OF_CODE = {
    "not_found": errno.ENOENT,
    "exists": errno.EEXIST,
    "busy": errno.EBUSY,
    "held": errno.EBUSY,
    "no_space": errno.ENOSPC,
    "permission": errno.EPERM,
    "read_only": errno.EROFS,
    "name": errno.EINVAL,
}


def is_virtual(node: int) -> bool:
    return node >> VIEW_SHIFT == VIRTUAL_VIEW


def is_reserved(parent: int, name: bytes) -> bool:
    """Whether a name is `.cowfs` in the root of any tree: there it can be neither made nor taken away."""
    return name == NAME and parent & INODE_MASK == ROOT_INODE


def _not_found() -> OSError:
    return OSError(errno.ENOENT, os.strerror(errno.ENOENT))


def _as_os_error(error: CowfsError) -> OSError:
    number = _ERRNO_OF_CODE.get(error.code, errno.EIO)
    return OSError(number, os.strerror(number))


def _decode_name(name: bytes) -> str:
    if len(name) > 255:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    try:
        return name.decode()
    except UnicodeDecodeError:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL)) from None


class History:
    """The verbs on virtual nodes, in the shape of those of FileSystem. Like there, lookup, mkdir and readdir raise
    the lookup count of the tree roots that they return; virtual nodes have none."""

    def __init__(self, pool: MountedPool) -> None:
        self._pool = pool
        root = pool.filesystem.getattr(ROOT_INODE)
        self._uid, self._gid = root[3], root[4]
        pool.snapshots_node = SNAPSHOTS_NODE
        pool.volumes_node = VOLUMES_NODE

    # ---- attributes

    def _attributes(self, node: int, kind: int, permissions: int, nlink: int, size: int) -> Attributes:
        time_ns = self._pool.history_changed_ns if node in (SNAPSHOTS_NODE, VOLUMES_NODE) else self._pool.started_ns
        return (node, kind | permissions, nlink, self._uid, self._gid, 0, size, 0,
                time_ns, time_ns, time_ns, self._pool.started_ns, 0)

    def _directory(self, node: int) -> Attributes:
        return self._attributes(node, stat.S_IFDIR, 0o755, 2, 0)

    def _link(self, node: int) -> Attributes:
        return self._attributes(node, stat.S_IFLNK, 0o777, 1, len(self.readlink(node)))

    def getattr(self, node: int) -> Attributes:
        if node in (TOP_NODE, SNAPSHOTS_NODE, VOLUMES_NODE):
            return self._directory(node)
        return self._link(node)

    def readlink(self, node: int) -> bytes:
        if node == SOCKET_NODE:
            return os.fsencode(self._pool.socket_path)
        if node == MOUNTED_VOLUME_NODE:
            return b"../.."
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    # ---- names

    def lookup(self, parent: int, name: bytes) -> Attributes:
        if name == b".":
            return self.getattr(parent)
        if name == b"..":
            return self._directory(TOP_NODE) if parent != TOP_NODE else self._pool.filesystem.lookup(ROOT_INODE, b".")
        if parent == TOP_NODE:
            node = {b"snapshot": SNAPSHOTS_NODE, b"volume": VOLUMES_NODE, b"socket": SOCKET_NODE}.get(name)
            if node is None:
                raise _not_found()
            return self.getattr(node)
        try:
            text = _decode_name(name)
            if parent == SNAPSHOTS_NODE:
                return self._snapshot_root(self._pool.store.snapshot_find(self._pool.volume_id, text).id)
            if parent == VOLUMES_NODE:
                return self._volume_root(self._pool.store.volume_find(text).id)
        except OSError as error:
            # A name that cannot be made is not there, whatever is wrong with it.
            raise (_not_found() if error.errno == errno.EINVAL else error) from None
        raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))

    def _snapshot_root(self, snapshot_id: int) -> Attributes:
        filesystem = self._pool.filesystem
        return filesystem.lookup(filesystem.view_of_snapshot(snapshot_id), b".")

    def _volume_root(self, volume_id: int) -> Attributes:
        if volume_id == self._pool.volume_id:
            return self._link(MOUNTED_VOLUME_NODE)
        filesystem = self._pool.filesystem
        return filesystem.lookup(filesystem.view_of_volume(volume_id), b".")

    def readdir(self, node: int, cookie: int, limit: int) -> list[Entry]:
        """Entries after a cookie, without "." and "..". What vanishes meanwhile is left out."""
        after = cookie - FIRST_COOKIE if cookie >= FIRST_COOKIE else -1
        if node == TOP_NODE:
            names = ((b"snapshot", SNAPSHOTS_NODE), (b"volume", VOLUMES_NODE), (b"socket", SOCKET_NODE))
            return [(name, FIRST_COOKIE + index, self.getattr(child))
                    for index, (name, child) in enumerate(names) if index > after]
        entries: list[Entry] = []
        while not entries:
            if node == SNAPSHOTS_NODE:
                found = [(snapshot.name, snapshot.id) for snapshot in
                         self._pool.store.snapshots(self._pool.volume_id, after_id=max(after, 0), limit=limit)]
            else:
                found = [(volume.name, volume.id) for volume in self._pool.store.volumes() if volume.id > after][:limit]
            if not found:
                break
            root = self._snapshot_root if node == SNAPSHOTS_NODE else self._volume_root
            for name, object_id in found:
                try:
                    entries.append((name.encode(), FIRST_COOKIE + object_id, root(object_id)))
                except FileNotFoundError:
                    continue  # deleted since it was listed
            after = found[-1][1]
        return entries

    def mkdir(self, parent: int, name: bytes) -> Attributes:
        """Waits: takes a durable snapshot."""
        if parent != SNAPSHOTS_NODE:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        try:
            taken = self._pool.take_snapshot(None, _decode_name(name), sync=True)
        except CowfsError as error:
            raise _as_os_error(error) from None
        return self._snapshot_root(taken["id"])

    def rmdir(self, parent: int, name: bytes) -> None:
        """Waits: deletes a snapshot."""
        if parent != SNAPSHOTS_NODE:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        try:
            self._pool.delete_snapshot(None, _decode_name(name))
        except CowfsError as error:
            raise _as_os_error(error) from None
