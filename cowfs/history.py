"""The `.cowfs` tree: snapshots and volumes as directories, in the root of a mount and hidden from its listing.

    .cowfs/snapshot/NAME/   the volume as it was; mkdir takes a snapshot, rmdir deletes one
    .cowfs/volume/NAME/     the other volumes of the pool, writable; the mounted one is a symbolic link
    .cowfs/at/TIME          a symbolic link to the newest snapshot at or before a time, see cowfs.travel; not listed
    .cowfs/versions/PATH/   one symbolic link for each version of what lies at PATH, see cowfs.versions
    .cowfs/socket           a symbolic link to the daemon's control socket, by which commands find it

Its own directories are virtual: their node ids have the highest view number, which no tree ever gets. Plain functions
without trio; those that say "waits" are called from worker threads.

Links, not further names of the snapshots' directories and files: the kernel knows one place of a directory only, and on
the way through a snapshot it asks for the permissions that were in force then.
"""

import errno
import os
import stat
import threading
from collections import OrderedDict
from typing import NamedTuple

from cowfs._native import ROOT_INODE, VIEW_SHIFT, Attributes
from cowfs.errors import CowfsError
from cowfs.travel import format_time_ns, snapshot_at
from cowfs.versions import Version, versions
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
AT_NODE = _BASE | 6
VERSIONS_NODE = _BASE | 7
# From here on nodes are given out as they are asked for.
_FIRST_NODE = _BASE | 16
_NODES_MAX = 1 << 16

_FIXED = {b"snapshot": SNAPSHOTS_NODE, b"volume": VOLUMES_NODE, b"at": AT_NODE, b"versions": VERSIONS_NODE,
          b"socket": SOCKET_NODE}

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


class _Link(NamedTuple):
    """A symbolic link to a snapshot or into one."""

    target: bytes


class _Versions(NamedTuple):
    """A directory in `.cowfs/versions`: of a directory, with a directory for each entry, or of anything else."""

    path: bytes
    """From the root of the volume, b"" for that."""


_Meaning = _Link | _Versions


class _Nodes:
    """What the nodes that were given out mean. The kernel does not say which it has forgotten, so those not asked for
    the longest go when there are too many: they answer ESTALE, and whoever used them looks the name up again."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._meanings: OrderedDict[int, _Meaning] = OrderedDict()
        self._numbers: dict[_Meaning, int] = {}
        self._next = _FIRST_NODE

    def number(self, meaning: _Meaning) -> int:
        with self._lock:
            number = self._numbers.get(meaning)
            if number is None:
                number = self._next
                self._next += 1
                self._numbers[meaning] = number
            self._meanings[number] = meaning
            self._meanings.move_to_end(number)
            if len(self._meanings) > _NODES_MAX:
                _number, oldest = self._meanings.popitem(last=False)
                del self._numbers[oldest]
            return number

    def meaning(self, number: int) -> _Meaning:
        with self._lock:
            meaning = self._meanings.get(number)
            if meaning is None:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            self._meanings.move_to_end(number)
            return meaning


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
        self._nodes = _Nodes()
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

    @staticmethod
    def is_kept(parent: int) -> bool:
        """Whether the kernel may remember what names in a directory lead to: not where that follows the clock."""
        return parent not in (AT_NODE, VERSIONS_NODE) and parent < _FIRST_NODE

    @staticmethod
    def waits(node: int) -> bool:
        """Whether what is asked about a directory, or a name in it, may take long."""
        return node == VERSIONS_NODE or node >= _FIRST_NODE

    def getattr(self, node: int) -> Attributes:
        """Waits where waits() says so."""
        if node in (TOP_NODE, SNAPSHOTS_NODE, VOLUMES_NODE, AT_NODE, VERSIONS_NODE):
            return self._directory(node)
        if node >= _FIRST_NODE and isinstance(meaning := self._nodes.meaning(node), _Versions):
            return self._versions_directory(node, self._present(meaning.path))
        return self._link(node)

    def readlink(self, node: int) -> bytes:
        if node == SOCKET_NODE:
            return os.fsencode(self._pool.socket_path)
        if node == MOUNTED_VOLUME_NODE:
            return b"../.."
        if node >= _FIRST_NODE and isinstance(meaning := self._nodes.meaning(node), _Link):
            return meaning.target
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    # ---- names

    def lookup(self, parent: int, name: bytes) -> Attributes:
        """Waits where waits() says so."""
        if name == b".":
            return self.getattr(parent)
        if parent >= _FIRST_NODE or parent == VERSIONS_NODE:
            return self._lookup_versions(parent, name)
        if name == b"..":
            return self._directory(TOP_NODE) if parent != TOP_NODE else self._pool.filesystem.lookup(ROOT_INODE, b".")
        if parent == TOP_NODE:
            node = _FIXED.get(name)
            if node is None:
                raise _not_found()
            return self.getattr(node)
        if parent == AT_NODE:
            return self._lookup_time(name)
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
        """Entries after a cookie, without "." and "..". What vanishes meanwhile is left out. Waits where waits() says
        so."""
        after = cookie - FIRST_COOKIE if cookie >= FIRST_COOKIE else -1
        if node == TOP_NODE:
            return [(name, FIRST_COOKIE + index, self.getattr(child))
                    for index, (name, child) in enumerate(_FIXED.items()) if index > after]
        if node == AT_NODE:
            return []
        if node == VERSIONS_NODE or node >= _FIRST_NODE:
            return self._list_versions(node, cookie, limit)
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

    # ---- travel

    def _link_to(self, target: bytes) -> Attributes:
        return self._link(self._nodes.number(_Link(target)))

    def _lookup_time(self, name: bytes) -> Attributes:
        snapshot = snapshot_at(self._pool.store, self._pool.volume_id, name.decode(errors="replace"))
        if snapshot is None:
            raise _not_found()
        if snapshot.volume_id == self._pool.volume_id:
            return self._link_to(b"../snapshot/" + snapshot.name.encode())
        # Another volume's, by its id: this is the one place where it is.
        return self._snapshot_root(snapshot.id)

    # ---- versions

    def _versions_path(self, node: int) -> bytes:
        if node == VERSIONS_NODE:
            return b""
        meaning = self._nodes.meaning(node)
        if not isinstance(meaning, _Versions):
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return meaning.path

    def _present(self, path: bytes) -> Attributes:
        """What lies at a path, or else what did last."""
        attributes, _birth = self._pool.filesystem.trace(self._pool.volume_id, path)
        if attributes is None:
            found = [version.state.attributes for version in self._versions(path)]
            attributes = next((state for state in reversed(found) if state is not None), None)
        if attributes is None:
            raise _not_found()
        return attributes

    def _versions(self, path: bytes) -> list[Version]:
        return versions(self._pool, self._pool.volume_id, path)[0]

    def _versions_directory(self, node: int, shown: Attributes) -> Attributes:
        """As open to others as the directory that it stands for; that of a file to those who could see its name."""
        permissions = stat.S_IMODE(shown[1]) & 0o777 if stat.S_ISDIR(shown[1]) else 0o555
        time_ns = self._pool.history_changed_ns
        return (node, stat.S_IFDIR | permissions, 2, shown[3], shown[4], 0, 0, 0, time_ns, time_ns, time_ns,
                self._pool.started_ns, 0)

    def _links_of(self, path: bytes) -> dict[bytes, bytes]:
        """Names and targets of the versions of a file."""
        up = b"../" * (path.count(b"/") + 2)
        return {format_time_ns(version.snapshot.created_ns).encode():
                up + b"snapshot/" + version.snapshot.name.encode() + b"/" + path
                for version in self._versions(path)
                if version.snapshot is not None and version.state.attributes is not None}

    def _lookup_versions(self, parent: int, name: bytes) -> Attributes:
        path = self._versions_path(parent)
        if name == b"..":
            above, _slash, _name = path.rpartition(b"/")
            if not path:
                return self._directory(TOP_NODE)
            return self.getattr(self._nodes.number(_Versions(above)) if above else VERSIONS_NODE)
        if path and not stat.S_ISDIR(self._present(path)[1]):
            target = self._links_of(path).get(name)
            if target is None:
                raise _not_found()
            return self._link_to(target)
        child = path + b"/" + name if path else name
        shown = self._present(child)
        return self._versions_directory(self._nodes.number(_Versions(child)), shown)

    def _list_versions(self, node: int, cookie: int, limit: int) -> list[Entry]:
        path = self._versions_path(node)
        if path and not stat.S_ISDIR(self._present(path)[1]):
            links = sorted(self._links_of(path).items())
            first = max(0, cookie - FIRST_COOKIE + 1)
            return [(name, FIRST_COOKIE + index, self._link_to(target))
                    for index, (name, target) in enumerate(links[first:first + limit], first)]
        filesystem = self._pool.filesystem
        directory = ROOT_INODE
        try:
            for name in path.split(b"/") if path else ():
                above, directory = directory, filesystem.lookup(directory, name)[0]
                if above != ROOT_INODE:
                    filesystem.forget(above, 1)
            found = filesystem.readdir(directory, cookie if cookie >= FIRST_COOKIE else 0, limit, False)
        except FileNotFoundError:
            return []  # of a directory that is gone, names have to be known
        finally:
            if directory != ROOT_INODE:
                filesystem.forget(directory, 1)
        prefix = path + b"/" if path else b""
        return [(name, next_cookie, self._versions_directory(self._nodes.number(_Versions(prefix + name)), attributes))
                for name, next_cookie, attributes in found]
