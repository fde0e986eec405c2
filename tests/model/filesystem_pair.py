"""A FileSystem over a pool in memory and a plain directory of the host, driven together.

Every operation goes to both, and what they answer is compared: results, errors, and at intervals the whole trees with
contents, names, modes, modification times, link counts, xattrs. Modification times are set explicitly after each
change, since the two sides have clocks of their own. Snapshots are compared with copies of the host's tree.
"""

import ctypes
import dataclasses
import errno
import os
import pathlib
import random
import shutil
import stat
import subprocess
from collections.abc import Callable
from typing import Any, NamedTuple

from btree import Storage, Store
from cowfs._native import ROOT_INODE, FileSystem
from tests.unit.filesystem_pool import held_nodes

POOL_SIZE_BYTES = 192 << 20
MODE, NLINK, SIZE, MTIME = 1, 2, 6, 9
"""Places in an Attributes tuple; the node id comes first."""
NAMES = [b"a", b"b", b"c", b"d", "é".encode(), b"n" * 255]
XATTR_NAMES = ["user.a", "user.b", "user.a.b"]
SIZES = [0, 1, 799, 800, 801, 4095, 4096, 4097, 8192, 40_000, 131_072, 200_001]
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 3, 0x10
SNAPSHOTS_MAX = 5
HANDLES_MAX = 4

_libc = ctypes.CDLL(None, use_errno=True)


def host_rename(old: bytes, new: bytes, flags: int) -> None:
    if _libc.renameat2(-100, old, -100, new, flags) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class Entry(NamedTuple):
    """What is compared of one name."""

    mode: int
    nlink: int
    mtime_ns: int
    content: bytes | None
    xattrs: tuple[tuple[str, bytes], ...]
    first_name: bytes
    """The least of all names of the inode: hard links are links to the same inode."""


Picture = dict[bytes, Entry]


@dataclasses.dataclass
class Handle:
    """A file that is open on both sides, perhaps without a name."""

    node: int
    descriptor: int


@dataclasses.dataclass
class Snapshot:
    id: int
    copy: pathlib.Path


def _link_names(inodes: dict[bytes, int]) -> dict[bytes, bytes]:
    least: dict[int, bytes] = {}
    for path in sorted(inodes, reverse=True):
        least[inodes[path]] = path
    return {path: least[inode] for path, inode in inodes.items()}


def host_picture(root: pathlib.Path) -> Picture:
    found: Picture = {}
    inodes: dict[bytes, int] = {}

    def add(path: bytes, status: os.stat_result) -> int:
        full = os.path.join(os.fsencode(root), path)
        content, subdirectories = None, 0
        if stat.S_ISREG(status.st_mode):
            content = pathlib.Path(os.fsdecode(full)).read_bytes()
        elif stat.S_ISLNK(status.st_mode):
            content = os.readlink(full)
        elif stat.S_ISDIR(status.st_mode):
            for item in sorted(os.listdir(full)):
                child = os.path.join(path, item) if path else item
                subdirectories += add(child, os.lstat(os.path.join(full, item)))
        xattrs = {}
        if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):
            xattrs = {name: os.getxattr(full, name) for name in os.listxattr(full) if name.startswith("user.")}
        # Some host file systems give every directory the link count 1.
        nlink = 2 + subdirectories if stat.S_ISDIR(status.st_mode) else status.st_nlink
        found[path] = Entry(status.st_mode, nlink, status.st_mtime_ns, content, tuple(sorted(xattrs.items())), b"")
        inodes[path] = status.st_ino
        return int(stat.S_ISDIR(status.st_mode))

    add(b"", os.lstat(root))
    names = _link_names(inodes)
    return {path: entry._replace(first_name=names[path]) for path, entry in found.items()}


def file_system_picture(file_system: FileSystem, root: int) -> Picture:
    found: Picture = {}
    inodes: dict[bytes, int] = {}

    def add(path: bytes, attributes: tuple[int, ...]) -> None:
        node, mode = attributes[0], attributes[MODE]
        content = None
        if stat.S_ISREG(mode):
            content = file_system.read(node, 0, attributes[SIZE] + 1)
            assert len(content) == attributes[SIZE]
        elif stat.S_ISLNK(mode):
            content = file_system.readlink(node)
        elif stat.S_ISDIR(mode):
            cookie = 0
            # Few at a time, so that going on at a cookie is exercised.
            while entries := file_system.readdir(node, cookie, 3, False):
                for name, cookie, child in entries:  # noqa: B007
                    add(os.path.join(path, name) if path else name, child)
        xattrs = {name.decode(): file_system.getxattr(node, name) for name in file_system.listxattr(node)}
        found[path] = Entry(mode, attributes[NLINK], attributes[MTIME], content, tuple(sorted(xattrs.items())), b"")
        inodes[path] = node

    add(b"", file_system.getattr(root))
    names = _link_names(inodes)
    return {path: entry._replace(first_name=names[path]) for path, entry in found.items()}


def copy_tree(source: pathlib.Path, target: pathlib.Path) -> None:
    subprocess.run(["cp", "-a", "--sparse=never", "--", str(source), str(target)], check=True)


class FileSystemPair:
    def __init__(
        self,
        folder: pathlib.Path,
        *,
        background: bool = False,
        cache_bytes_max: int = 0,
        compression: tuple[int, int] = (0, 0),
    ) -> None:
        self.folder = folder
        self.compression = compression
        self.host = folder / "live"
        self.host.mkdir()
        self.background = background
        self.cache_bytes_max = cache_bytes_max
        self.storage = Storage.open_memory(POOL_SIZE_BYTES)
        Store.format(self.storage)
        self.snapshots: list[Snapshot] = []
        self.handles: list[Handle] = []
        self.serial = 0
        self._open()
        self.volume_id = self.store.volume_create("main")
        FileSystem.initialize(self.store, self.volume_id, uid=os.geteuid(), gid=os.getegid())
        self._open_file_system()
        os.chmod(self.host, 0o755)
        self.set_mtime(b"", 1_000_000_000)

    def _open(self) -> None:
        self.store = Store(self.storage, background=self.background, cache_bytes_max=self.cache_bytes_max)

    def _open_file_system(self) -> None:
        self.file_system = FileSystem(self.store, self.volume_id)
        self.file_system.set_compression(0, *self.compression)

    def some_bytes(self, rng: random.Random, length: int) -> bytes:
        """On a compressed volume mostly such as can be compressed."""
        if self.compression == (0, 0) or rng.random() < 0.3:
            return rng.randbytes(length)
        return (rng.randbytes(rng.choice([1, 100, 3000])) * length)[:length]

    def close(self) -> None:
        self.release_handles()
        self.file_system.release_all()
        self.store.close()
        shutil.rmtree(self.folder / "live")
        for snapshot in self.snapshots:
            shutil.rmtree(snapshot.copy)

    # ---- both sides

    def host_path(self, path: bytes) -> bytes:
        return os.path.join(os.fsencode(self.host), path) if path else os.fsencode(self.host)

    def node(self, path: bytes) -> int:
        """The node behind a path, with no lookup count held: valid while nobody removes it."""
        node = ROOT_INODE
        for name in path.split(b"/") if path else []:
            node = self.file_system.lookup(node, name)[0]
            self.file_system.forget(node, 1)
        return node

    def both(self, ours: Callable[[], Any], host: Callable[[], Any], what: str) -> bool:
        """Runs both; the same error on both sides or none. True when it worked."""
        errors: list[str] = []
        for side in (ours, host):
            try:
                side()
                errors.append("")
            except OSError as error:
                errors.append(errno.errorcode[error.errno or 0])
        assert errors[0] == errors[1], f"{what}: file system {errors[0] or 'works'}, host {errors[1] or 'works'}"
        return not errors[0]

    def set_mtime(self, path: bytes, mtime_ns: int) -> None:
        os.utime(self.host_path(path), ns=(mtime_ns, mtime_ns), follow_symlinks=False)
        self.file_system.setattr(self.node(path), atime_ns=mtime_ns, mtime_ns=mtime_ns)

    def touch(self, rng: random.Random, *paths: bytes) -> None:
        for path in paths:
            self.set_mtime(path, rng.randrange(0, 1 << 32) * 1_000_000_000 + rng.randrange(1_000_000_000))

    # ---- choosing

    def paths(self, wanted: Callable[[int], bool] = lambda mode: True) -> list[bytes]:
        found = []
        for folder, directories, files in os.walk(self.host_path(b"")):
            for name in directories + files:
                full = os.path.join(folder, name)
                if wanted(os.lstat(full).st_mode):
                    found.append(os.path.relpath(full, self.host_path(b"")))
        return sorted(found)

    def directories(self) -> list[bytes]:
        return [b"", *self.paths(stat.S_ISDIR)]

    def new_path(self, rng: random.Random) -> bytes:
        directory = rng.choice(self.directories())
        name = rng.choice(NAMES)
        # A host limits paths to 4,096 bytes, and deep trees make for few collisions.
        if directory.count(b"/") >= 3:
            directory = b""
        return os.path.join(directory, name) if directory else name

    def any_path(self, rng: random.Random) -> bytes:
        return rng.choice(self.paths() or [b"missing"])

    # ---- operations: each takes its choices from rng

    def create(self, rng: random.Random) -> None:
        path = self.new_path(rng)
        parent, name = os.path.split(path)
        mode = rng.randrange(0o1000) | 0o600
        kind = rng.choice([stat.S_IFREG, stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK])
        target = rng.choice([b"x", b"../somewhere", b"t" * 801, b"/" + b"long/" * 700])
        full = self.host_path(path)
        if kind == stat.S_IFDIR:
            mode |= 0o700

        def host() -> None:
            if kind == stat.S_IFDIR:
                os.mkdir(full)
                # mkdir hands setgid on; chmod would take it away.
                os.chmod(full, mode | (os.stat(full).st_mode & stat.S_ISGID))
            elif kind == stat.S_IFLNK:
                os.symlink(target, full)
            else:
                os.mknod(full, kind | 0o600)
                os.chmod(full, mode)

        def ours() -> None:
            type_and_mode = kind | (0o777 if kind == stat.S_IFLNK else mode)
            attributes = self.file_system.create(
                self.node(parent),
                name,
                type_and_mode,
                os.geteuid(),
                os.getegid(),
                target=target if kind == stat.S_IFLNK else None,
            )
            self.file_system.forget(attributes[0], 1)

        if self.both(ours, host, f"create {path!r}"):
            self.touch(rng, path, parent)

    def link(self, rng: random.Random) -> None:
        path, new = self.any_path(rng), self.new_path(rng)
        parent, name = os.path.split(new)

        def ours() -> None:
            attributes = self.file_system.link(self.node(path), self.node(parent), name)
            self.file_system.forget(attributes[0], 1)

        def host() -> None:
            os.link(self.host_path(path), self.host_path(new), follow_symlinks=False)

        if self.both(ours, host, f"link {path!r} {new!r}"):
            self.touch(rng, parent)

    def _remove(self, rng: random.Random, path: bytes, *, directory: bool) -> None:
        parent, name = os.path.split(path)
        call = self.file_system.rmdir if directory else self.file_system.unlink
        host = os.rmdir if directory else os.unlink
        if self.both(lambda: call(self.node(parent), name), lambda: host(self.host_path(path)), f"remove {path!r}"):
            self.touch(rng, parent)

    def unlink(self, rng: random.Random) -> None:
        self._remove(rng, self.any_path(rng), directory=False)

    def rmdir(self, rng: random.Random) -> None:
        self._remove(rng, rng.choice(self.paths(stat.S_ISDIR) or [b"missing"]), directory=True)

    def rename(self, rng: random.Random) -> None:
        old, new = self.any_path(rng), rng.choice([self.new_path, self.any_path])(rng)
        flags = rng.choice([0, 0, 0, 1, 2])
        (old_parent, old_name), (new_parent, new_name) = os.path.split(old), os.path.split(new)

        def ours() -> None:
            self.file_system.rename(self.node(old_parent), old_name, self.node(new_parent), new_name, flags)

        def host() -> None:
            host_rename(self.host_path(old), self.host_path(new), flags)

        if self.both(ours, host, f"rename {old!r} {new!r} {flags}"):
            parents = {parent for parent in (old_parent, new_parent) if os.path.isdir(self.host_path(parent))}
            self.touch(rng, *sorted(parents))

    def _change_file(self, rng: random.Random, ours: Callable[[int], Any], host: Callable[[int], Any]) -> None:
        """On a file that has a name, or on an open one that may have none."""
        files = self.paths(stat.S_ISREG)
        if self.handles and (not files or rng.random() < 0.3):
            handle = rng.choice(self.handles)
            self.both(lambda: ours(handle.node), lambda: host(handle.descriptor), "change of an open file")
            mtime_ns = rng.randrange(1 << 32) * 1_000_000_000
            os.utime(handle.descriptor, ns=(mtime_ns, mtime_ns))
            self.file_system.setattr(handle.node, mtime_ns=mtime_ns)
            status = os.fstat(handle.descriptor)
            assert self.file_system.getattr(handle.node)[NLINK] == status.st_nlink
            assert self.file_system.read(handle.node, 0, 1 << 24) == os.pread(handle.descriptor, 1 << 24, 0)
        elif files:
            path = rng.choice(files)
            descriptor = os.open(self.host_path(path), os.O_RDWR)
            try:
                self.both(lambda: ours(self.node(path)), lambda: host(descriptor), f"change of {path!r}")
            finally:
                os.close(descriptor)
            self.touch(rng, path)

    def write(self, rng: random.Random) -> None:
        offset = rng.choice([0, rng.randrange(300_000), rng.choice(SIZES), rng.randrange(40) * 4096])
        length = rng.choice([rng.randrange(1, 900), rng.randrange(1, 20_000), rng.randrange(1, 20) * 4096])
        data = self.some_bytes(rng, length)
        self._change_file(
            rng,
            lambda node: self.file_system.write(node, offset, data),
            lambda descriptor: os.pwrite(descriptor, data, offset),
        )

    def append(self, rng: random.Random) -> None:
        pieces = [self.some_bytes(rng, rng.randrange(1, 3000)) for _ in range(rng.randrange(1, 6))]

        def ours(node: int) -> None:
            for piece in pieces:
                self.file_system.write(node, self.file_system.getattr(node)[SIZE], piece)

        def host(descriptor: int) -> None:
            for piece in pieces:
                os.pwrite(descriptor, piece, os.fstat(descriptor).st_size)

        self._change_file(rng, ours, host)

    def truncate(self, rng: random.Random) -> None:
        size = rng.choice([rng.choice(SIZES), rng.randrange(300_000)])
        self._change_file(
            rng,
            lambda node: self.file_system.setattr(node, size=size),
            lambda descriptor: os.ftruncate(descriptor, size),
        )

    def allocate(self, rng: random.Random) -> None:
        """The host's side is done by hand: not every host file system has every mode."""
        mode = rng.choice([0, KEEP_SIZE, PUNCH_HOLE, PUNCH_HOLE, ZERO_RANGE, ZERO_RANGE | KEEP_SIZE])
        offset = rng.choice([0, rng.randrange(300_000), rng.choice(SIZES), rng.randrange(40) * 4096])
        length = rng.choice([rng.randrange(1, 9000), rng.randrange(1, 20) * 4096, 300_000])

        def host(descriptor: int) -> None:
            size = os.fstat(descriptor).st_size
            if mode in (PUNCH_HOLE, ZERO_RANGE, ZERO_RANGE | KEEP_SIZE):
                os.pwrite(descriptor, bytes(max(0, min(offset + length, size) - offset)), offset)
            if mode in (0, ZERO_RANGE):
                os.ftruncate(descriptor, max(size, offset + length))

        self._change_file(rng, lambda node: self.file_system.allocate(node, mode, offset, length), host)

    def copy_range(self, rng: random.Random) -> None:
        """From a file, now and then one of a snapshot, to another or itself.."""
        files = self.paths(stat.S_ISREG)
        if not files:
            return
        path = rng.choice(files)
        node, host_path = self.node(path), self.host_path(path)
        if self.snapshots and rng.random() < 0.2:
            snapshot = rng.choice(self.snapshots)
            host_path = os.path.join(os.fsencode(snapshot.copy), path)
            if not os.path.isfile(host_path) or os.path.islink(host_path):
                return
            node = self.file_system.view_of_snapshot(snapshot.id)
            for name in path.split(b"/"):
                node = self.file_system.lookup(node, name)[0]
                self.file_system.forget(node, 1)
        offset_in = rng.choice([0, 0, rng.randrange(100_000), rng.randrange(20) * 4096])
        offset_out = rng.choice([offset_in, 0, rng.randrange(100_000), rng.randrange(20) * 4096])
        length = rng.choice([1 << 24, rng.randrange(1, 20_000), rng.randrange(1, 20) * 4096])
        with open(host_path, "rb") as file:
            file.seek(offset_in)
            data = file.read(length)

        def ours(target: int) -> None:
            done = 0
            while done < len(data):
                got = self.file_system.copy_range(node, offset_in + done, target, offset_out + done, length - done)
                assert 0 < got <= len(data) - done
                done += got

        def host(descriptor: int) -> None:
            same = os.path.samestat(os.fstat(descriptor), os.stat(host_path))
            if data and same and abs(offset_in - offset_out) < len(data):
                raise OSError(errno.EINVAL, "the ranges overlap")
            os.pwrite(descriptor, data, offset_out)

        self._change_file(rng, ours, host)

    def seek(self, rng: random.Random) -> None:
        """What is said to be a hole reads as zeros; data and holes alternate to the end."""
        files = self.paths(stat.S_ISREG)
        if not files:
            return
        path = rng.choice(files)
        content, node = pathlib.Path(os.fsdecode(self.host_path(path))).read_bytes(), self.node(path)
        at = rng.randrange(len(content) + 1)
        while at < len(content):
            try:
                data = self.file_system.seek(node, at, False)
            except OSError as error:
                assert error.errno == errno.ENXIO
                data = len(content)
            assert at <= data <= len(content)
            assert not any(content[at:data])
            if data < len(content):
                assert self.file_system.seek(node, data, False) == data
                hole = self.file_system.seek(node, data, True)
                assert data < hole <= len(content)
                data = hole
            assert data == len(content) or self.file_system.seek(node, data, True) == data
            at = data

    def chmod(self, rng: random.Random) -> None:
        path = rng.choice(self.paths(lambda mode: not stat.S_ISLNK(mode)) or [b""])
        mode = rng.randrange(0o1000) | 0o600
        if os.path.isdir(self.host_path(path)):
            mode |= 0o700 | rng.choice([0, stat.S_ISVTX, stat.S_ISGID])
        os.chmod(self.host_path(path), mode)
        self.file_system.setattr(self.node(path), mode=mode)

    def utime(self, rng: random.Random) -> None:
        self.touch(rng, self.any_path(rng) if self.paths() else b"")

    def xattr(self, rng: random.Random) -> None:
        path = rng.choice(self.paths(lambda mode: stat.S_ISREG(mode) or stat.S_ISDIR(mode)) or [b""])
        name, value = rng.choice(XATTR_NAMES), rng.randbytes(rng.choice([0, 1, 100, 700]))
        flags = rng.choice([0, os.XATTR_CREATE, os.XATTR_REPLACE])
        full, node = self.host_path(path), self.node(path)
        if rng.random() < 0.3:
            self.both(
                lambda: self.file_system.removexattr(node, name.encode()),
                lambda: os.removexattr(full, name),
                f"removexattr {path!r}",
            )
        else:
            self.both(
                lambda: self.file_system.setxattr(node, name.encode(), value, flags),
                lambda: os.setxattr(full, name, value, flags),
                f"setxattr {path!r}",
            )

    def open_handle(self, rng: random.Random) -> None:
        files = self.paths(stat.S_ISREG)
        if not files or len(self.handles) >= HANDLES_MAX:
            return
        path = rng.choice(files)
        parent, name = os.path.split(path)
        node = self.file_system.lookup(self.node(parent), name)[0]
        self.handles.append(Handle(node, os.open(self.host_path(path), os.O_RDWR)))

    def close_handle(self, rng: random.Random) -> None:
        if self.handles:
            handle = self.handles.pop(rng.randrange(len(self.handles)))
            os.close(handle.descriptor)
            self.file_system.forget(handle.node, 1)

    def release_handles(self) -> None:
        """Both sides lose what was open: an unlinked file is gone."""
        for handle in self.handles:
            os.close(handle.descriptor)
        self.handles.clear()

    # ---- the pool

    def copy_host(self) -> pathlib.Path:
        self.serial += 1
        copy = self.folder / f"copy{self.serial}"
        copy_tree(self.host, copy)
        return copy

    def snapshot(self, rng: random.Random) -> None:
        if len(self.snapshots) >= SNAPSHOTS_MAX:
            self.delete_snapshot(rng)
        copy = self.copy_host()
        taken = self.store.snapshot(self.volume_id, f"snapshot{self.serial}", sync=rng.random() < 0.5)
        self.snapshots.append(Snapshot(taken.id, copy))

    def delete_snapshot(self, rng: random.Random) -> None:
        if self.snapshots:
            snapshot = self.snapshots.pop(rng.randrange(len(self.snapshots)))
            root = self.file_system.view_of_snapshot(snapshot.id)
            self.store.snapshot_delete(snapshot.id)
            self.file_system.forget_snapshot(snapshot.id)
            assert self.file_system.is_stale(root)
            shutil.rmtree(snapshot.copy)

    def compare_snapshot(self, rng: random.Random) -> None:
        if self.snapshots:
            snapshot = rng.choice(self.snapshots)
            root = self.file_system.view_of_snapshot(snapshot.id)
            self._same(file_system_picture(self.file_system, root), host_picture(snapshot.copy), "snapshot")

    def rollback(self, rng: random.Random) -> None:
        if not self.snapshots:
            return
        if len(self.snapshots) >= SNAPSHOTS_MAX:
            self.delete_snapshot(rng)
        snapshot = rng.choice(self.snapshots)
        copy = self.copy_host()
        guard = self.store.rollback(self.volume_id, snapshot.id, f"guard{self.serial}")
        _opened, view = self.file_system.rolled_back(self.volume_id)
        assert set(held_nodes(self.file_system, view)) == {handle.node for handle in self.handles}
        for handle in self.handles:
            try:
                self.file_system.getattr(handle.node)
            except OSError as error:
                assert error.errno == errno.ESTALE
            else:
                raise AssertionError("a handle of the old tree still answers")
            self.file_system.forget(handle.node, 1 << 40)
        self.release_handles()
        self.snapshots.append(Snapshot(guard.id, copy))
        shutil.rmtree(self.host)
        copy_tree(snapshot.copy, self.host)
        self.compare()

    def clone(self, rng: random.Random) -> None:
        if not self.snapshots:
            return
        snapshot = rng.choice(self.snapshots)
        self.serial += 1
        volume_id = self.store.clone(snapshot.id, f"clone{self.serial}")
        root = self.file_system.view_of_volume(volume_id)
        self._same(file_system_picture(self.file_system, root), host_picture(snapshot.copy), "clone")
        node = self.file_system.create(root, b"new in clone", stat.S_IFREG | 0o600, 0, 0)[0]
        self.file_system.write(node, 5000, b"written to the clone alone")
        assert self.file_system.check(volume_id) == []
        self.store.volume_destroy(volume_id)

    def remount(self, rng: random.Random) -> None:
        if rng.random() < 0.5:
            self.file_system.release_all()
        self.release_handles()
        self.store.close()
        self._open()
        self._open_file_system()
        self.compare()

    def crash(self, rng: random.Random) -> None:
        """After an fsync nothing may be lost."""
        if rng.random() < 0.2:
            self.store.checkpoint()
        self.file_system.fsync(ROOT_INODE)
        self.release_handles()
        self.store.abandon()
        self._open()
        self._open_file_system()
        self.compare()

    def checkpoint(self, rng: random.Random) -> None:
        self.store.checkpoint()

    # ---- comparing

    def _same(self, ours: Picture, host: Picture, what: str) -> None:
        assert sorted(ours) == sorted(host), f"{what}: names differ"
        for path, entry in host.items():
            for field in Entry._fields:
                if stat.S_ISLNK(entry.mode) and field == "mode":
                    continue
                a, b = getattr(ours[path], field), getattr(entry, field)
                if a != b and field == "content" and a is not None and b is not None:
                    at = next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
                    raise AssertionError(f"{what}: {path!r}: lengths {len(a)}, {len(b)}, bytes differ from {at}")
                assert a == b, f"{what}: {path!r}: {field}: file system {a!r}, host {b!r}"

    def compare(self) -> None:
        self._same(file_system_picture(self.file_system, ROOT_INODE), host_picture(self.host), "live tree")

    def check(self) -> None:
        self.compare()
        for object_id in [self.volume_id, *(snapshot.id for snapshot in self.snapshots)]:
            assert self.file_system.check(object_id) == []
        for snapshot in self.snapshots:
            root = self.file_system.view_of_snapshot(snapshot.id)
            self._same(file_system_picture(self.file_system, root), host_picture(snapshot.copy), "snapshot")
        if not self.background:
            self.store.checkpoint()
            assert self.store.check(read_data=True) == []


OPERATIONS: dict[str, int] = {
    "create": 10,
    "link": 4,
    "unlink": 4,
    "rmdir": 2,
    "rename": 10,
    "write": 14,
    "append": 6,
    "truncate": 7,
    "allocate": 6,
    "seek": 3,
    "copy_range": 8,
    "chmod": 3,
    "utime": 2,
    "xattr": 6,
    "open_handle": 4,
    "close_handle": 2,
    "snapshot": 2,
    "delete_snapshot": 1,
    "compare_snapshot": 1,
    "rollback": 1,
    "clone": 1,
    "remount": 1,
    "crash": 1,
    "checkpoint": 1,
}
"""Methods of FileSystemPair that take a random.Random, and how often each is chosen."""
