"""The file system's verbs in C, over a btree store. Every call releases the GIL; errors are OSError with errno set.

Node ids. A FUSE node id is (view << 40) | inode number. A view is one tree as this mount shows it: the mounted
volume, one generation of it; a snapshot; another volume. View 0 is the mounted volume as it was at mount; a rollback
gives a volume a new view, and node ids of the old one answer ESTALE. Node id 1 always means the root of the mounted
volume's present view. Inode number 1 is the root directory of every tree.
"""

from typing import Final, Self, final

from btree import Store

VIEW_SHIFT: Final = 40
ROOT_INODE: Final = 1
INLINE_LENGTH_MAX: Final[int]

# (node_id, mode, nlink, uid, gid, rdev, size, blocks_512, atime_ns, mtime_ns, ctime_ns, birth_ns, flags)
Attributes = tuple[int, int, int, int, int, int, int, int, int, int, int, int, int]

# (inode, kinds, attributes in the old tree or None, in the new one, [(offset, length) of bytes that differ],
# [(whether added, inode of the parent, name)]); kinds: 1 content, 2 metadata, 4 times, 8 extended attributes, 16 names,
# 32 entries of a directory
Difference = tuple[int, int, Attributes | None, Attributes | None, list[tuple[int, int]], list[tuple[bool, int, bytes]]]

@final
class FileSystem:
    """One mounted volume and whatever other trees are looked at through it."""

    def __new__(cls, store: Store, volume_id: int, *, read_only: bool = False) -> Self:
        """Makes the root directory when the volume is empty, and finishes interrupted truncations and removals of
        unlinked files left by a crash (unless read_only)."""
    @staticmethod
    def initialize(store: Store, volume_id: int, *, uid: int, gid: int, mode: int = 0o755) -> None:
        """Writes the root directory of a new volume (mkfs)."""

    # views
    def view_of_snapshot(self, snapshot_id: int) -> int:
        """Node id of the root of a snapshot's tree; the same one each time. ENOENT."""
    def view_of_volume(self, volume_id: int) -> int:
        """Node id of the root of another volume's tree, writable. The mounted volume gives 1."""
    def forget_snapshot(self, snapshot_id: int) -> None:
        """The snapshot is deleted: its node ids answer ESTALE from now on."""
    def rolled_back(self, volume_id: int) -> tuple[list[int], int]:
        """The volume's content was replaced: starts a new view for it and makes the old one stale. Returns the node
        ids of the old view that are open, and the view's number for held_nodes(). Takes as long as there are open
        nodes, however many the kernel holds."""
    def held_nodes(self, view: int, cursor: int) -> tuple[list[int], int]:
        """One short step through the node ids of a view that the kernel holds (lookup count above zero), open ones
        included. The cursor is 0 for the first step, and returned as 0 by the last. What is held all the time is
        returned at least once."""
    def is_read_only_node(self, node_id: int) -> bool: ...
    def is_stale(self, node_id: int) -> bool: ...
    def is_settling(self, node_id: int) -> bool:
        """Whether the blocks that it takes may change without a request, because it is being compressed."""
    def opened(self, node_id: int) -> int:
        """Of a file or directory, by a front end; each needs one closed() with the handle it returns. MemoryError."""
    def closed(self, node_id: int, handle: int) -> None: ...
    def open_nodes(self) -> int:
        """How many nodes of any tree are open."""

    # names
    def lookup(self, parent: int, name: bytes) -> Attributes:
        """Also "." and "..". Raises the lookup count of the node by one; ENOENT, ENOTDIR, ENAMETOOLONG, ESTALE."""
    def create(self, parent: int, name: bytes, mode: int, uid: int, gid: int, rdev: int = 0,
               target: bytes | None = None) -> Attributes:
        """Makes an inode of any type (mode holds the type; target for symlinks) and its name. setgid directories hand
        on their group (and the bit, to directories). Raises the lookup count. EEXIST, ENOSPC, EMLINK."""
    def create_unnamed(self, parent: int, mode: int, uid: int, gid: int) -> Attributes:
        """O_TMPFILE: a regular file that no name leads to, gone with its last lookup unless link gives it one. Raises
        the lookup count."""
    def link(self, node: int, new_parent: int, new_name: bytes) -> Attributes:
        """A further name. Raises the lookup count. EPERM for directories, EMLINK, EXDEV across views."""
    def unlink(self, parent: int, name: bytes) -> None: ...
    def rmdir(self, parent: int, name: bytes) -> None: ...
    def rename(self, old_parent: int, old_name: bytes, new_parent: int, new_name: bytes, flags: int) -> None:
        """flags: 0, 1 (NOREPLACE) or 2 (EXCHANGE); others EINVAL. A directory into itself: EINVAL."""
    def readlink(self, node: int) -> bytes: ...
    def readdir(self, node: int, cookie: int, limit: int, lookup: bool) -> list[tuple[bytes, int, Attributes]]:
        """Entries after `cookie` (0: from the start): (name, cookie of this entry, attributes). "." and ".." are not
        included. Cookies stay valid while entries come and go. With `lookup` each entry's lookup count is raised by
        one; the caller gives back, by forget(), those that it did not pass on."""
    def parent(self, node: int) -> int:
        """Node id of a directory's parent (the root's is itself)."""
    def path(self, node: int) -> bytes:
        """One path of this inode from the root of its tree, by back-references: b"/a/b", b"/" for the root. ENOENT when
        it has none left."""

    # inodes
    def getattr(self, node: int) -> Attributes: ...
    def setattr(self, node: int, *, mode: int = -1, uid: int = -1, gid: int = -1, size: int = -1,
                atime_ns: int | None = None, mtime_ns: int | None = None, ctime_ns: int | None = None) -> Attributes:
        """-1 and None leave a field alone. ctime is set to now unless given. Changing the size zeroes, extends
        sparsely, or frees; EFBIG past the largest file. chown and size changes clear setuid and setgid as POSIX and
        Linux do (the kernel does not ask for it separately)."""
    def setflags(self, node: int, flags: int) -> None:
        """1 immutable, 2 append-only; others EOPNOTSUPP. What they forbid answers EPERM."""
    def may_open(self, node: int, flags: int) -> None:
        """1 for writing, 2 with O_APPEND, 4 with O_TRUNC: EPERM when the inode's flags forbid it."""
    def forget(self, node: int, count: int) -> None:
        """Lowers the lookup count. An unlinked inode whose count comes to zero is removed with its space."""
    def lookup_count(self, node: int) -> int: ...
    def release_all(self) -> None:
        """At unmount: removes what is unlinked but still open, forgets every lookup count."""

    # data
    def read(self, node: int, offset: int, length: int) -> bytes: ...
    def write(self, node: int, offset: int, data: bytes, append: bool = False) -> int:
        """Returns len(data) or raises: ENOSPC, EFBIG, EROFS, ESTALE, EIO, EPERM. Clears setuid/setgid. `append` says
        that the file was opened with O_APPEND."""
    def seek(self, node: int, offset: int, hole: bool) -> int:
        """SEEK_DATA, with `hole` SEEK_HOLE. ENXIO at or past the end of the file and when no data follows."""
    def allocate(self, node: int, mode: int, offset: int, length: int) -> None:
        """fallocate(2): modes 0, 1 (KEEP_SIZE), 3 (PUNCH_HOLE), 0x10 and 0x11 (ZERO_RANGE); others EOPNOTSUPP. Sets
        no space aside: ENOSPC when the range certainly does not fit now."""
    def copy_range(self, node_in: int, offset_in: int, node_out: int, offset_out: int, length: int) -> int:
        """copy_file_range(2): how many bytes, 0 only at the end of node_in. Whole blocks within one tree are shared.
        EINVAL when the ranges overlap in one file."""
    def fsync(self, node: int, handle: int = 0) -> None:
        """Durable when it returns. The store is one journal, so this commits everything before it. OSError with EIO
        when a write or flush has failed: once for each handle, always without one."""

    # extended attributes
    def getxattr(self, node: int, name: bytes) -> bytes:
        """ENODATA."""
    def setxattr(self, node: int, name: bytes, value: bytes, flags: int = 0) -> None:
        """flags: 1 XATTR_CREATE (EEXIST), 2 XATTR_REPLACE (ENODATA). Up to 64 KiB (E2BIG), names to 255 (ERANGE)."""
    def removexattr(self, node: int, name: bytes) -> None: ...
    def listxattr(self, node: int) -> list[bytes]: ...

    def statfs(self) -> tuple[int, int, int, int, int]:
        """(block_size, blocks, blocks_free, blocks_available, name_length_max)."""
    def set_compression(self, volume_id: int, algorithm: int, level: int) -> None:
        """How what is written is compressed; volume id 0: where no other is set."""
    def compression(self) -> tuple[int, int]:
        """Bytes of content that this mount has stored compressed so far, and what they took on the medium."""
    def gather_start(self) -> None:
        """Compresses what came in small writes, from now on and beside everything else, until release_all()."""
    def gather(self) -> None:
        """Compresses now what waits for that."""

    # trees by the store's object ids
    def diff(self, old_object_id: int, new_object_id: int, *, first_inode: int = 0, last_inode: int = ...,
             limit: int = 1000) -> list[Difference]:
        """What differs between two trees, in the order of inodes; fewer than `limit` are all there are. The cost
        follows what differs."""
    def trace(self, object_id: int, path: bytes) -> tuple[Attributes | None, int]:
        """Attributes (with the inode number as node) of what a path leads to, None for nothing; and the epoch since
        which each snapshot of the tree's line has the same there. Symlinks are not followed."""
    def object_path(self, object_id: int, inode: int) -> bytes:
        """One path of an inode: b"/a/b". ENOENT when it has none."""
    def check(self, object_id: int) -> list[str]:
        """Problems in one tree at file-system level: entries without inodes, link counts, back-references, extents
        that overlap or pass the end, orphans without records. Empty when sound."""

PUMP_EVENT_ENDED: int
PUMP_EVENT_FAILED: int
PUMP_EVENT_ERROR: int

@final
class Pump:
    """Threads that answer the kernel's requests without Python. Freeing it stops them."""

    def __new__(cls, filesystem: FileSystem, device: int, forward: int, reserved: bytes, *, uring: bool = False,
                threads: int = 2, awake: bool = False, writeback: bool = False, honours_setuid: bool = False,
                mountpoint: bytes | None = None) -> Self:
        """Waits for the kernel's INIT on `device` and answers it. `forward`: one end of a SOCK_SEQPACKET pair, where
        requests that C does not answer go as messages of /dev/fuse, a synthetic INIT first. The descriptors stay the
        caller's and must stay open until this is freed. `reserved`: a name in the root that leads to a forwarded
        node. `awake`: over io_uring, CPUs that make requests do not halt in between. `mountpoint`: needed with
        `writeback`. OSError."""
    def start(self) -> None:
        """Starts the threads."""
    def stop(self) -> None:
        """Ends them when what they are doing is done. May be called again."""
    def flush(self) -> None:
        """With `writeback`: waits until what programs have written before has come here from the kernel's cache. Calls
        for requests that this answers: not from whoever serves `forward`. OSError: ENXIO when the mountpoint does not
        lead to the mount any more and there may be something to flush; or that of a file whose pages were refused."""
    def next_event(self) -> tuple[int, str, int, int] | None:
        """(kind, request, node, negative errno); None when there is none."""
    def latencies(self) -> list[tuple[str, bool, tuple[int, int, list[tuple[int, int]]]]]:
        """(request, whether forwarded, (count, total_ns, [(upper bound in ns, count), …])) of each that came."""
    @property
    def uses_uring(self) -> bool: ...
    @property
    def reason(self) -> str:
        """Why io_uring was wanted and is not used."""
    @property
    def open_files(self) -> int: ...
    @property
    def event_descriptor(self) -> int:
        """Readable when there is an event."""
    @property
    def protocol_minor(self) -> int: ...
