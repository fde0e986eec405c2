"""pyfuse3's request handlers over the verbs in cowfs._native: thin, and never the end of the mount.

What reads or writes memory mostly (lookups, reads, writes) calls the verb directly on the event loop; what always waits
for the medium goes to a worker thread (docs/CONCURRENCY.md lists both). A handler changes nothing but through one verb,
so that every await is safe.
"""

import errno
import functools
import logging
import os
import stat
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, ReaddirToken, RequestContext, SetattrFields, StatvfsData

from cowfs._native import ROOT_INODE, Attributes, FileSystem
from cowfs.history import NAME, TOP_NODE, Entry, History, is_reserved, is_virtual
from cowfs.volumes import MountedPool

log = logging.getLogger("cowfs")

# The daemon is the only one who changes anything, so what the kernel has cached stays true.
CACHE_TIMEOUT_S = 3600.0
# The directories in `.cowfs` change by commands, too.
VIRTUAL_TIMEOUT_S = 1.0
NAME_LENGTH_MAX_BYTES = 255
READDIR_BATCH = 32
DOT_COOKIE, DOT_DOT_COOKIE = 1, 2
# Without FUSE's own support for ACLs nobody would enforce them.
ACL_PREFIX = b"system.posix_acl_"

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
Handler = Callable[Concatenate["Operations", Parameters], Coroutine[Any, Any, Result]]


def guarded(handler: Handler[Parameters, Result]) -> Handler[Parameters, Result]:
    """Turns the verbs' OSError into the reply's errno, and anything unexpected into EIO and a logged event: an
    exception of another kind would end pyfuse3's loop, and with it the mount."""

    @functools.wraps(handler)
    async def wrapper(self: "Operations", /, *arguments: Parameters.args, **keywords: Parameters.kwargs) -> Result:
        started_ns = time.perf_counter_ns()
        try:
            return await handler(self, *arguments, **keywords)
        except FUSEError:
            raise
        except OSError as error:
            number = error.errno or errno.EIO
            if number in (errno.EIO, errno.EUCLEAN):
                self.pool.events["io_error"] += 1
                log.error("%s%r: %s", handler.__name__, arguments[:2], error)
                number = errno.EIO
            raise FUSEError(number) from None
        except Exception:
            self.pool.events["unexpected"] += 1
            log.exception("%s%r met something unexpected and answered EIO", handler.__name__, arguments[:2])
            raise FUSEError(errno.EIO) from None
        finally:
            self.pool.handler_latencies.add(handler.__name__, time.perf_counter_ns() - started_ns)

    return wrapper


def negative_entry() -> EntryAttributes:
    """"There is no such name", to be remembered by the kernel."""
    entry = EntryAttributes()
    entry.st_ino = 0
    entry.entry_timeout = CACHE_TIMEOUT_S
    return entry


class Operations(pyfuse3.Operations):
    """One mount. A file handle leads to a node id, which is what the verbs need. There is no `flush` (ENOSYS makes the
    kernel leave it out: a write has arrived when write(2) returns) and no `access` (default_permissions)."""

    supports_dot_lookup = True
    enable_writeback_cache = False
    enable_acl = False

    def __init__(self, pool: MountedPool, *, honours_setuid: bool = False) -> None:
        super().__init__()
        self.pool = pool
        self.filesystem: FileSystem = pool.filesystem
        self.history = History(pool)
        self._honours_setuid = honours_setuid
        self._open_nodes: dict[int, int] = {}
        """By handle; of those in `.cowfs` the handle is the node."""

    def entry(self, attributes: Attributes, *, kept: bool = True) -> EntryAttributes:
        """The verbs' attributes as pyfuse3 wants them; `kept`: the kernel may remember the name, too. In
        read-only trees setuid and setgid bits of files are left out where the mount would honour them: an old version
        of a program may have the hole that was closed since."""
        node, mode, nlink, uid, gid, rdev, size, blocks, atime_ns, mtime_ns, ctime_ns, _birth_ns, _flags = attributes
        entry = EntryAttributes()
        entry.st_ino = node
        entry.st_mode = mode
        entry.st_nlink = nlink
        entry.st_uid = uid
        entry.st_gid = gid
        entry.st_rdev = rdev
        entry.st_size = size
        entry.st_blocks = blocks
        entry.st_atime_ns = atime_ns
        entry.st_mtime_ns = mtime_ns
        entry.st_ctime_ns = ctime_ns
        entry.entry_timeout = CACHE_TIMEOUT_S if kept else 0
        if is_virtual(node):
            entry.attr_timeout = VIRTUAL_TIMEOUT_S
        else:
            entry.attr_timeout = 0 if self.filesystem.is_settling(node) else CACHE_TIMEOUT_S
        if self._honours_setuid and mode & 0o6000 and stat.S_ISREG(mode) and self.filesystem.is_read_only_node(node):
            entry.st_mode = mode & ~0o6000
        return entry

    # ---- names

    @guarded
    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        if is_virtual(parent_inode):
            # Not remembered when missing: snapshots and volumes come by commands.
            kept = self.history.is_kept(parent_inode)
            if self.history.waits(parent_inode):
                return self.entry(await trio.to_thread.run_sync(self.history.lookup, parent_inode, name), kept=kept)
            return self.entry(self.history.lookup(parent_inode, name), kept=kept)
        if name == NAME and parent_inode == ROOT_INODE:
            return self.entry(self.history.getattr(TOP_NODE))
        try:
            return self.entry(self.filesystem.lookup(parent_inode, name))
        except FileNotFoundError:
            return negative_entry()

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for node, count in inode_list:
            if is_virtual(node):
                continue
            try:
                self.filesystem.forget(node, count)
            except Exception:
                # Nobody waits for an answer; what could not be removed now is removed at the next mount.
                self.pool.events["unexpected"] += 1
                log.exception("forget(%d, %d)", node, count)

    def _check_new_name(self, parent: int, name: bytes) -> None:
        if len(name) > NAME_LENGTH_MAX_BYTES:
            raise FUSEError(errno.ENAMETOOLONG)
        if is_virtual(parent) or is_reserved(parent, name):
            raise FUSEError(errno.EPERM)

    def _create(self, parent: int, name: bytes, mode: int, ctx: RequestContext, rdev: int = 0,
                target: bytes | None = None) -> Attributes:
        self._check_new_name(parent, name)
        return self.filesystem.create(parent, name, mode, ctx.uid, ctx.gid, rdev, target)

    @guarded
    async def mknod(self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext) -> EntryAttributes:
        return self.entry(self._create(parent_inode, name, mode, ctx, rdev))

    @guarded
    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        if is_virtual(parent_inode):
            return self.entry(await trio.to_thread.run_sync(self.history.mkdir, parent_inode, name))
        return self.entry(self._create(parent_inode, name, stat.S_IFDIR | stat.S_IMODE(mode), ctx))

    @guarded
    async def symlink(self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext) -> EntryAttributes:
        return self.entry(self._create(parent_inode, name, stat.S_IFLNK | 0o777, ctx, 0, target))

    @guarded
    async def link(self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext) -> EntryAttributes:
        if is_virtual(inode):
            raise FUSEError(errno.EPERM)
        self._check_new_name(new_parent_inode, new_name)
        return self.entry(self.filesystem.link(inode, new_parent_inode, new_name))

    @guarded
    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        if is_virtual(parent_inode):
            raise FUSEError(errno.EPERM)
        self.filesystem.unlink(parent_inode, name)

    @guarded
    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        if is_virtual(parent_inode):
            await trio.to_thread.run_sync(self.history.rmdir, parent_inode, name)
        elif is_reserved(parent_inode, name):
            raise FUSEError(errno.EPERM)
        else:
            self.filesystem.rmdir(parent_inode, name)

    @guarded
    async def rename(self, parent_inode_old: int, name_old: bytes, parent_inode_new: int, name_new: bytes,
                     flags: int, ctx: RequestContext) -> None:
        if is_virtual(parent_inode_old) or is_reserved(parent_inode_old, name_old):
            raise FUSEError(errno.EPERM)
        self._check_new_name(parent_inode_new, name_new)
        self.filesystem.rename(parent_inode_old, name_old, parent_inode_new, name_new, flags)

    @guarded
    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        return self.history.readlink(inode) if is_virtual(inode) else self.filesystem.readlink(inode)

    # ---- inodes

    @guarded
    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        if is_virtual(inode) and self.history.waits(inode):
            return self.entry(await trio.to_thread.run_sync(self.history.getattr, inode))
        return self.entry(self.history.getattr(inode) if is_virtual(inode) else self.filesystem.getattr(inode))

    @guarded
    async def setattr(self, inode: int, attr: EntryAttributes, fields: SetattrFields, fh: int | None,
                      ctx: RequestContext) -> EntryAttributes:
        if is_virtual(inode):
            raise FUSEError(errno.EPERM)
        return self.entry(self.filesystem.setattr(
            inode,
            mode=stat.S_IMODE(attr.st_mode) if fields.update_mode else -1,
            uid=attr.st_uid if fields.update_uid else -1,
            gid=attr.st_gid if fields.update_gid else -1,
            size=attr.st_size if fields.update_size else -1,
            atime_ns=attr.st_atime_ns if fields.update_atime else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
            ctime_ns=attr.st_ctime_ns if fields.update_ctime else None,
        ))

    # ---- files

    def _opened(self, node: int, flags: int) -> FileInfo:
        """O_TRUNC comes along with the open: libfuse asks the kernel for that."""
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_TRUNC) and self.filesystem.is_read_only_node(node):
            raise FUSEError(errno.ESTALE if self.filesystem.is_stale(node) else errno.EROFS)
        if self.filesystem.is_stale(node):
            raise FUSEError(errno.ESTALE)
        handle = self._handle_of(node)
        if flags & os.O_TRUNC:  # last: an open that fails must not have taken the content
            try:
                self.filesystem.setattr(node, size=0, mtime_ns=time.time_ns())
            except BaseException:
                self.filesystem.closed(self._open_nodes.pop(handle), handle)
                raise
        self.pool.open_files += 1
        return FileInfo(fh=handle, keep_cache=True)

    def _handle_of(self, node: int) -> int:
        handle = self.filesystem.opened(node)
        self._open_nodes[handle] = node
        return handle

    @guarded
    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        return self._opened(inode, flags)

    @guarded
    async def create(self, parent_inode: int, name: bytes, mode: int, flags: int,
                     ctx: RequestContext) -> tuple[FileInfo, EntryAttributes]:
        try:
            attributes = self._create(parent_inode, name, stat.S_IFREG | stat.S_IMODE(mode), ctx)
        except FileExistsError:
            if flags & os.O_EXCL:
                raise
            # The kernel remembered that the name was missing, and a rollback has just brought it back. With ESTALE it
            # looks the name up anew, checks permissions and opens: creating must not skip that.
            raise FUSEError(errno.ESTALE) from None
        try:
            return self._opened(attributes[0], flags & ~os.O_TRUNC), self.entry(attributes)
        except BaseException:
            self.filesystem.forget(attributes[0], 1)
            raise

    async def release(self, fh: int) -> None:
        self.pool.open_files -= 1
        self.filesystem.closed(self._open_nodes.pop(fh), fh)

    @guarded
    async def read(self, fh: int, off: int, size: int) -> bytes:
        return self.filesystem.read(self._open_nodes[fh], off, size)

    @guarded
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        return self.filesystem.write(self._open_nodes[fh], off, buf)

    @guarded
    async def fsync(self, fh: int, datasync: bool) -> None:
        await trio.to_thread.run_sync(self.filesystem.fsync, self._open_nodes[fh], fh)

    # ---- directories

    @guarded
    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        if not is_virtual(inode) and self.filesystem.is_stale(inode):
            raise FUSEError(errno.ESTALE)
        return inode if is_virtual(inode) else self._handle_of(inode)

    async def releasedir(self, fh: int) -> None:
        if not is_virtual(fh):
            self.filesystem.closed(self._open_nodes.pop(fh), fh)

    @guarded
    async def readdir(self, fh: int, start_id: int, token: ReaddirToken) -> None:
        node = fh if is_virtual(fh) else self._open_nodes[fh]
        cookie = start_id
        if cookie < DOT_DOT_COOKIE:
            cookie = self._reply_dots(node, cookie, token)
            if cookie < DOT_DOT_COOKIE:
                return
        while True:
            try:
                if is_virtual(node) and self.history.waits(node):
                    entries = await trio.to_thread.run_sync(self._entries_after, node, cookie)
                else:
                    entries = self._entries_after(node, cookie)
            except OSError:
                if cookie == start_id:
                    raise
                return  # the lookups of what is in the reply count: the error is for the next call
            if not entries:
                return
            for index, (name, next_cookie, attributes) in enumerate(entries):
                entry = self.entry(attributes, kept=not is_virtual(node) or self.history.is_kept(node))
                if not pyfuse3.readdir_reply(token, name, entry, next_cookie):
                    await self.forget([(listed[2][0], 1) for listed in entries[index:]])
                    return
                cookie = next_cookie

    def _entries_after(self, node: int, cookie: int) -> list[Entry]:
        if is_virtual(node):
            return self.history.readdir(node, cookie, READDIR_BATCH)
        return self.filesystem.readdir(node, cookie if cookie > DOT_DOT_COOKIE else 0, READDIR_BATCH, True)

    def _reply_dots(self, node: int, cookie: int, token: ReaddirToken) -> int:
        """Reports "." and "..", for which no lookup is counted, and returns the cookie reached."""
        if is_virtual(node):
            here = self.history.getattr(node)
            above = self.history.getattr(TOP_NODE) if node != TOP_NODE else self.filesystem.getattr(ROOT_INODE)
        else:
            here = self.filesystem.getattr(node)
            above = self.filesystem.getattr(self.filesystem.parent(node))
        for name, attributes, next_cookie in ((b".", here, DOT_COOKIE), (b"..", above, DOT_DOT_COOKIE)):
            if cookie < next_cookie:
                if not pyfuse3.readdir_reply(token, name, self.entry(attributes), next_cookie):
                    break
                cookie = next_cookie
        return cookie

    @guarded
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        if is_virtual(fh):
            await trio.to_thread.run_sync(self.pool.store.commit)
        else:
            await trio.to_thread.run_sync(self.filesystem.fsync, self._open_nodes[fh], fh)

    # ---- extended attributes

    @guarded
    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        if name.startswith(ACL_PREFIX):
            raise FUSEError(errno.EOPNOTSUPP)
        if is_virtual(inode):
            raise FUSEError(errno.ENODATA)
        return self.filesystem.getxattr(inode, name)

    @guarded
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        if name.startswith(ACL_PREFIX):
            raise FUSEError(errno.EOPNOTSUPP)
        if is_virtual(inode):
            raise FUSEError(errno.EPERM)
        self.filesystem.setxattr(inode, name, value)

    @guarded
    async def listxattr(self, inode: int, ctx: RequestContext) -> Sequence[bytes]:
        return [] if is_virtual(inode) else self.filesystem.listxattr(inode)

    @guarded
    async def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> None:
        if name.startswith(ACL_PREFIX):
            raise FUSEError(errno.EOPNOTSUPP)
        if is_virtual(inode):
            raise FUSEError(errno.EPERM)
        self.filesystem.removexattr(inode, name)

    @guarded
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        block_size, blocks, blocks_free, blocks_available, name_length_max = self.filesystem.statfs()
        result = StatvfsData()
        result.f_bsize = result.f_frsize = block_size
        result.f_blocks, result.f_bfree, result.f_bavail = blocks, blocks_free, blocks_available
        result.f_namemax = name_length_max
        return result
