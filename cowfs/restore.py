"""Brings files and directories back out of a snapshot, as the user who asks: through the mount, under its permissions.

A new file shares the blocks that the present one still has in common with the old one; one that is restored in place is
only written where its bytes differ. Metadata comes back too: owner, mode, times and extended attributes.
"""

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Iterator

from cowfs.errors import CowfsError

_PIECE_BYTES = 1 << 20
_BLOCK_BYTES = 4096
_INODE_MASK = (1 << 40) - 1
# What says that a file system cannot copy between these two, rather than that it failed.
_NOT_COPIED_BY_KERNEL = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF}


class Restorer:
    """One restoration: what it did and what it could not do."""

    def __init__(self, *, delete: bool = False) -> None:
        self.files = 0
        self.written_bytes = 0
        self.notes: list[str] = []
        self._delete = delete
        self._links: dict[int, str] = {}

    # ---- content

    def _copy(self, source: int, target: int, size: int) -> None:
        """All of a file into an empty one; holes stay holes."""
        offset = 0
        try:
            while offset < size:
                copied = os.copy_file_range(source, target, size - offset, offset, offset)
                if copied == 0:
                    break
                offset += copied
        except OSError as error:
            if error.errno not in _NOT_COPIED_BY_KERNEL:
                raise
            self._copy_by_hand(source, target, offset, size)
        self.written_bytes += size
        os.ftruncate(target, size)

    def _copy_by_hand(self, source: int, target: int, offset: int, size: int) -> None:
        while offset < size:
            try:
                offset = os.lseek(source, offset, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                return  # nothing but a hole follows
            end = os.lseek(source, offset, os.SEEK_HOLE)
            while offset < end:
                piece = os.pread(source, min(_PIECE_BYTES, end - offset), offset)
                if not piece:
                    return
                _write(target, piece, offset)
                offset += len(piece)

    def _patch(self, source: int, target: int, size: int) -> None:
        """Makes a file's bytes the source's; writes the blocks that differ."""
        for offset in range(0, size, _PIECE_BYTES):
            wanted = os.pread(source, min(_PIECE_BYTES, size - offset), offset)
            present = os.pread(target, len(wanted), offset)
            if wanted == present:
                continue
            at = 0
            while at < len(wanted):
                end = at
                while end < len(wanted) and wanted[end:end + _BLOCK_BYTES] != present[end:end + _BLOCK_BYTES]:
                    end = min(end + _BLOCK_BYTES, len(wanted))
                if end > at:
                    _write(target, wanted[at:end], offset + at)
                    self.written_bytes += end - at
                at = max(end, at + _BLOCK_BYTES)
        os.ftruncate(target, size)

    # ---- metadata

    def _metadata(self, source: str, target: str, found: os.stat_result) -> None:
        try:
            os.chown(target, found.st_uid, found.st_gid, follow_symlinks=False)
        except PermissionError:
            if (found.st_uid, found.st_gid) != (os.geteuid(), os.getegid()):
                self.notes.append(f"{target}: its owner could not be restored")
        self._attributes(source, target)
        if not stat.S_ISLNK(found.st_mode):
            os.chmod(target, stat.S_IMODE(found.st_mode))
        os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns), follow_symlinks=False)

    def _attributes(self, source: str, target: str) -> None:
        try:
            wanted = {name: os.getxattr(source, name, follow_symlinks=False)
                      for name in os.listxattr(source, follow_symlinks=False)}
            present = os.listxattr(target, follow_symlinks=False)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            self.notes.append(f"{target}: its file system has no extended attributes")
            return
        try:
            for name in present:
                if name not in wanted:
                    os.removexattr(target, name, follow_symlinks=False)
            for name, value in wanted.items():
                os.setxattr(target, name, value, follow_symlinks=False)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EACCES, errno.EOPNOTSUPP):
                raise
            self.notes.append(f"{target}: extended attributes could not be restored: {error.strerror}")

    # ---- making what is not there

    def make(self, source: str, target: str, present: str) -> None:
        """Restores to a path where nothing is. `present` is where the same thing lies now, if it still does."""
        found = os.lstat(source)
        if stat.S_ISDIR(found.st_mode):
            os.mkdir(target, 0o700)
            for name in sorted(os.listdir(source)):
                self.make(os.path.join(source, name), os.path.join(target, name), os.path.join(present, name))
        elif found.st_nlink > 1 and found.st_ino in self._links:
            os.link(self._links[found.st_ino], target, follow_symlinks=False)
            return
        elif stat.S_ISREG(found.st_mode):
            self._make_file(source, target, present, found)
        elif stat.S_ISLNK(found.st_mode):
            os.symlink(os.readlink(source), target)
        else:
            os.mknod(target, found.st_mode, found.st_rdev)
        self.files += 1
        if found.st_nlink > 1 and not stat.S_ISDIR(found.st_mode):
            self._links[found.st_ino] = target
        self._metadata(source, target, found)

    def _make_file(self, source: str, target: str, present: str, found: os.stat_result) -> None:
        with _opened(source, os.O_RDONLY | os.O_NOFOLLOW) as old, \
                _opened(target, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600) as new:
            if found.st_size >= _BLOCK_BYTES and self._share(present, new, found):
                self._patch(old, new, found.st_size)
            else:
                self._copy(old, new, found.st_size)

    @staticmethod
    def _share(present: str, new: int, wanted: os.stat_result) -> bool:
        """Begins a file as a copy of the present state of the same one, whose blocks it then shares."""
        try:
            with _opened(present, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK) as now:
                found = os.fstat(now)
                if found.st_ino & _INODE_MASK != wanted.st_ino & _INODE_MASK or found.st_dev != os.fstat(new).st_dev:
                    return False
                offset = 0
                while offset < min(found.st_size, wanted.st_size):
                    copied = os.copy_file_range(now, new, found.st_size - offset, offset, offset)
                    if copied == 0:
                        break
                    offset += copied
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES, *_NOT_COPIED_BY_KERNEL):
                return False
            raise
        return True

    # ---- in place

    def overwrite(self, source: str, target: str) -> None:
        """Makes what lies at a path what the source is. Names that the source does not have stay, unless `delete`."""
        # Of several names of one file, those that are there keep it; the others become further names of it.
        for folder, _folders, names in os.walk(source):
            for name in names:
                old = os.path.join(folder, name)
                now = os.path.join(target, os.path.relpath(old, source))
                found = os.lstat(old)
                if found.st_nlink > 1 and os.path.lexists(now) and stat.S_IFMT(os.lstat(now).st_mode) == stat.S_IFMT(
                        found.st_mode):
                    self._links.setdefault(found.st_ino, now)
        self._overwrite(source, target)

    def _overwrite(self, source: str, target: str) -> None:
        found = os.lstat(source)
        try:
            present = os.lstat(target)
        except FileNotFoundError:
            self.make(source, target, target)
            return
        if stat.S_IFMT(found.st_mode) != stat.S_IFMT(present.st_mode):
            if not self._delete:
                raise CowfsError("exists", f"{target} was of another type (file, directory, symbolic link)",
                                 "move it away, or pass --delete, which replaces it")
            _remove(target)
            self.make(source, target, target)
            return
        if stat.S_ISDIR(found.st_mode):
            self._overwrite_directory(source, target)
        elif not os.path.samestat(present, os.lstat(self._links.get(found.st_ino, target))):
            os.unlink(target)
            os.link(self._links[found.st_ino], target, follow_symlinks=False)
            return
        elif _same(found, present):
            return
        elif stat.S_ISREG(found.st_mode):
            with _opened(source, os.O_RDONLY | os.O_NOFOLLOW) as old, \
                    _opened(target, os.O_RDWR | os.O_NOFOLLOW) as new:
                self._patch(old, new, found.st_size)
            self.files += 1
        else:
            os.unlink(target)
            self.make(source, target, target)
            return
        self._metadata(source, target, found)

    def _overwrite_directory(self, source: str, target: str) -> None:
        names = sorted(os.listdir(source))
        if self._delete:
            for name in sorted(set(os.listdir(target)) - set(names)):
                _remove(os.path.join(target, name))
        for name in names:
            self._overwrite(os.path.join(source, name), os.path.join(target, name))


def _same(found: os.stat_result, present: os.stat_result) -> bool:
    """The inode has not been touched since the snapshot."""
    return (found.st_ino & _INODE_MASK, found.st_ctime_ns, found.st_size, found.st_mode) == (
        present.st_ino & _INODE_MASK, present.st_ctime_ns, present.st_size, present.st_mode)


def _remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)


def _write(descriptor: int, content: bytes, offset: int) -> None:
    written = 0
    while written < len(content):
        written += os.pwrite(descriptor, content[written:], offset + written)


@contextlib.contextmanager
def _opened(path: str, flags: int, mode: int = 0o600) -> Iterator[int]:
    descriptor = os.open(path, flags | os.O_CLOEXEC, mode)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def restore_beside(restorer: Restorer, source: str, target: str, present: str) -> None:
    """Restores to a path where nothing may be. It appears there whole or not at all."""
    folder, name = os.path.split(target)
    temporary = os.path.join(folder, f".{name[:200]}.restore-{os.getpid()}")
    try:
        restorer.make(source, temporary, present)
        if os.path.isdir(temporary) and not os.path.islink(temporary):
            if os.path.lexists(target):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target)
            os.rename(temporary, target)
        else:
            os.link(temporary, target, follow_symlinks=False)
            os.unlink(temporary)
    except BaseException:
        if os.path.lexists(temporary):
            _remove(temporary)
        raise
