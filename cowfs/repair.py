"""Repairs the items of a volume's tree: names, link counts, sizes, extents. For fsck.cowfs, on an unmounted pool.

One pass goes through all items in the order of their keys, so that all of an inode comes together, looks at the other
end of each link, and writes what is wrong anew, each change a transaction of its own. Passes are repeated until one
finds nothing. No blocks are freed here: what is in use is found out by walking when the pool is opened the next time.
Nothing that can be read is taken away: what two files own is copied, what has no name gets one in lost+found.
"""

import contextlib
import errno
import os
import stat
import struct
import time
from collections.abc import Callable, Iterator

import xxhash

from btree import Store
from cowfs._native import ROOT_INODE, FileSystem

BLOCK_SIZE_BYTES = 4096
PASSES_MAX = 12
LOST_AND_FOUND = b"lost+found"
_PAGE_ITEMS = 512
_DEPTH_MAX = 65536
# docs/FORMAT.md, "Items of a file system's tree"
_INODE, _INLINE, _XATTR, _BACKREF, _ENTRY, _EXTENT, _ORPHAN, _SHARED, _REFERENCES = 1, 2, 3, 4, 5, 7, 8, 9, 10
_INDEX_FIRST = 0x10
_VOLUME = 0
_INODE_FORMAT = struct.Struct("<4I2Q4q4IQ2IQ8x")
_INLINE_FLAG, _TRUNCATING, _CAPABILITY, _UNNAMED, _UNCUT = 1 << 8, 1 << 9, 1 << 10, 1 << 11, 1 << 12
_FLAGS_KNOWN = 0x1F03
_BORROWED = 1
_ENTRY_SIZE_BYTES = 64
_INLINE_MAX, _TARGET_MAX, _LINKS_MAX, _SIZE_MAX, _NUMBER_MAX = 800, 4095, 0x7FFFFFFF, 1 << 60, (1 << 40) - 1
_UNLINKED_KIND, _TRUNCATING_KIND = 1, 2
_EXTENT_BLOCKS_MAX = 32
_COLLISION_BITS = 7
_TYPES = {stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK}
_CAPABILITY_NAME = b"security.capability"

Say = Callable[[str], None]


def _key(inode: int, kind: int, rest: bytes = b"") -> bytes:
    return inode.to_bytes(8, "big") + bytes([kind]) + rest


def _number(inode: int, kind: int, number: int) -> bytes:
    return _key(inode, kind, number.to_bytes(8, "big"))


class Inode:
    """The fields of an inode item, in the order in which they are stored."""

    def __init__(self, value: bytes) -> None:
        fields = _INODE_FORMAT.unpack(value)
        self.mode, self.uid, self.gid, self.nlink, self.size, self.blocks = fields[:6]
        self.times = list(fields[6:14])
        self.rdev, self.flags, self.inline_length, self.parent = fields[14:]

    @classmethod
    def parse(cls, value: bytes | None) -> "Inode | None":
        """None for what cannot be an inode."""
        if value is None or len(value) != _INODE_FORMAT.size:
            return None
        inode = cls(value)
        return inode if inode._is_valid() else None

    def _is_valid(self) -> bool:
        longest = {stat.S_IFLNK: _TARGET_MAX, stat.S_IFREG: _INLINE_MAX}.get(stat.S_IFMT(self.mode), 0)
        return (
            stat.S_IFMT(self.mode) in _TYPES and self.mode >> 16 == 0
            and self.nlink <= _LINKS_MAX and self.size <= _SIZE_MAX and self.blocks <= _SIZE_MAX // BLOCK_SIZE_BYTES
            and self.flags & ~_FLAGS_KNOWN == 0 and all(nanoseconds < 10**9 for nanoseconds in self.times[4:])
            and self.inline_length <= min(longest, self.size) and self.parent <= _NUMBER_MAX
            and self.is_directory == (self.parent != 0)
        )

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    def encode(self) -> bytes:
        return _INODE_FORMAT.pack(self.mode, self.uid, self.gid, self.nlink, self.size, self.blocks, *self.times,
                                  self.rdev, self.flags, self.inline_length, self.parent)

    @classmethod
    def new(cls, mode: int, parent: int) -> "Inode":
        inode = cls(bytes(_INODE_FORMAT.size))
        inode.mode, inode.parent = mode, parent if stat.S_ISDIR(mode) else 0
        inode.nlink = 2 if inode.is_directory else 1
        inode.times = [int(time.time())] * 4 + [0] * 4
        return inode


class _Extent:
    def __init__(self, key: bytes, value: bytes) -> None:
        self.key = key
        self.logical = int.from_bytes(key[9:], "big")
        self.address, _birth, self.blocks, _logical_blocks, self.compression, self.flags = struct.unpack_from(
            "<QQHHBB", value)
        self.logical_blocks = _logical_blocks
        self.first = self.logical
        """First block that no extent before it has, too."""


class _Group:
    """What was seen of one inode's items."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.value: bytes | None = None
        self.inline: dict[int, int] = {}
        self.xattrs: dict[bytes, set[int]] = {}
        self.names: list[tuple[int, bytes, bytes]] = []
        """(parent, name, key) of each back-reference."""
        self.entries = 0
        self.subdirectories = 0
        self.extents: list[_Extent] = []

    @property
    def is_empty(self) -> bool:
        return not (self.inline or self.xattrs or self.names or self.entries or self.extents)


class TreeRepair:
    """Repairs one volume. `say` is told of each repair, in words."""

    def __init__(self, store: Store, volume_id: int, say: Say) -> None:
        self._store = store
        self._volume_id = volume_id
        self._say = say
        self._seed = 0
        self._fixes = 0
        self._refused: set[tuple[int, int]] = set()

    def run(self) -> int:
        """How many repairs there were. OSError (EIO) when the tree has nodes that cannot be read."""
        total = 0
        for _ in range(PASSES_MAX):
            self._fixes = 0
            self._pass()
            total += self._fixes
            if self._fixes == 0:
                break
        return total

    # ---- access

    def _apply(self, message: str, *changes: tuple[bytes, bytes | None]) -> None:
        self._store.apply(self._volume_id, changes, keep_blocks=True)
        self._fixes += 1
        self._say(message)

    def _get(self, key: bytes) -> bytes | None:
        return self._store.get(self._volume_id, key)

    def _inode(self, number: int) -> Inode | None:
        return Inode.parse(self._get(_key(number, _INODE)))

    def _items(self) -> Iterator[tuple[bytes, bytes]]:
        start = b""
        while page := self._store.scan(self._volume_id, start, limit=_PAGE_ITEMS):
            yield from page
            start = page[-1][0] + b"\0"

    def _cookie_base(self, name: bytes) -> int:
        return ((xxhash.xxh3_64_intdigest(name, seed=self._seed) >> 8) or 1) << _COLLISION_BITS

    def _find(self, directory: int, name: bytes) -> tuple[int, int | None]:
        """(cookie, child) of a name; (free cookie, None) when it is not there."""
        base = self._cookie_base(name)
        free = base
        for key, value in self._store.scan(self._volume_id, _number(directory, _ENTRY, base),
                                           _number(directory, _ENTRY, base + (1 << _COLLISION_BITS))):
            cookie = int.from_bytes(key[9:], "big")
            if value[9:] == name:
                return cookie, int.from_bytes(value[:8], "little")
            if cookie == free:
                free += 1
        return free, None

    def _attach(self, message: str, directory: int, name: bytes, child: int, inode: Inode) -> None:
        """A new name for an inode."""
        cookie, _ = self._find(directory, name)
        entry = child.to_bytes(8, "little") + bytes([inode.mode >> 12]) + name
        changes = [(_number(directory, _ENTRY, cookie), entry),
                   (_key(child, _BACKREF, directory.to_bytes(8, "big") + name), cookie.to_bytes(8, "little"))]
        if inode.is_directory and inode.parent != directory:
            inode.parent = directory
            changes.append((_key(child, _INODE), inode.encode()))
        self._apply(message, *changes)

    def _lost_and_found(self) -> int:
        """Its inode number; made when missing."""
        _cookie, child = self._find(ROOT_INODE, LOST_AND_FOUND)
        if child is not None:
            found = self._inode(child)
            if found is not None and found.is_directory:
                return child
            raise OSError(errno.EEXIST, "/lost+found is not a directory")
        last = self._store.scan(self._volume_id, reverse=True, limit=1)[0][0]
        number = int.from_bytes(last[:8], "big") + 1
        inode = Inode.new(stat.S_IFDIR | 0o700, ROOT_INODE)
        self._store.apply(self._volume_id, [(_key(number, _INODE), inode.encode())])
        self._attach("made /lost+found", ROOT_INODE, LOST_AND_FOUND, number, inode)
        return number

    def _rescue(self, number: int, inode: Inode) -> None:
        directory = self._lost_and_found()
        if number != directory:
            name = b"#%d" % number
            self._attach(f"inode {number}: moved to /lost+found/{name.decode()}", directory, name, number, inode)

    # ---- one pass

    def _pass(self) -> None:
        self._check_foundation()
        self._runs: dict[int, int] = {}
        """Shared blocks: address of the run to its number of blocks."""
        self._counts: dict[int, int] = {}
        self._borrowed: dict[int, int] = {}
        self._owned = bytearray(self._store.statistics()["size_blocks"] // 8 + 2)
        self._reachable = {ROOT_INODE}
        self._rewrites: list[tuple[int, _Extent]] = []
        group = _Group(_VOLUME)
        for key, value in self._items():
            if len(key) < 9 or int.from_bytes(key[:8], "big") > _NUMBER_MAX:
                self._apply("removed an item that is none of a file system", (key, None))
                continue
            number = int.from_bytes(key[:8], "big")
            if number != group.number:
                self._end(group)
                group = _Group(number)
            self._take(group, key, value)
        self._end(group)
        self._check_runs()
        self._rewrite()

    def _check_foundation(self) -> None:
        record = self._get(_key(_VOLUME, _INODE))
        if record is None or len(record) < 16 or record[:4] == bytes(4):
            record = (2).to_bytes(8, "little") + bytes(8)
            self._apply("wrote a new volume record", (_key(_VOLUME, _INODE), record))
        self._seed = int.from_bytes(record[8:16], "little")
        root = self._inode(ROOT_INODE)
        if root is None or not root.is_directory or root.parent != ROOT_INODE:
            new = Inode.new(stat.S_IFDIR | 0o755, ROOT_INODE)
            self._apply("wrote a new root directory", (_key(ROOT_INODE, _INODE), new.encode()))

    def _take(self, group: _Group, key: bytes, value: bytes) -> None:
        kind, rest, number = key[8], key[9:], group.number
        if number == _VOLUME:
            self._take_volume_item(key, value)
        elif kind == _INODE and not rest:
            group.value = value
        elif kind == _INLINE and len(rest) == 1:
            group.inline[rest[0]] = len(value)
        elif kind == _XATTR and 3 <= len(rest) <= 257 and rest[-2] == 0 and 0 not in rest[:-2] and len(value) <= 512:
            group.xattrs.setdefault(rest[:-2], set()).add(rest[-1])
        elif kind == _BACKREF and 8 < len(rest) <= 263 and len(value) == 8:
            self._take_name(group, key, value)
        elif kind == _ENTRY and len(rest) == 8:
            self._take_entry(group, key, value)
        elif kind == _EXTENT and len(rest) == 8 and len(value) >= 32:
            self._take_extent(group, _Extent(key, value))
        elif kind < _INDEX_FIRST:
            self._apply(f"inode {number}: removed a damaged item of type {kind}", (key, None))

    # ---- the volume's own items

    def _take_volume_item(self, key: bytes, value: bytes) -> None:
        kind, number = key[8], int.from_bytes(key[9:], "big")
        if kind == _SHARED and len(key) == 17 and len(value) >= 32:
            run = _Extent(key, value)
            self._runs[run.address] = run.blocks
            self._own(run)
        elif kind == _REFERENCES and len(key) == 17 and len(value) == 4:
            self._counts[number] = int.from_bytes(value, "little")
        elif kind == _ORPHAN and len(key) == 17:
            inode = self._inode(number)
            right = bytes([self._orphan_kinds(inode)]) if inode else b"\0"
            if value != right:
                self._apply(f"inode {number}: corrected its orphan record",
                            (key, right if right != b"\0" else None))
        elif kind not in (_INODE,) and kind < _INDEX_FIRST:
            self._apply(f"removed a damaged item of type {kind} of the volume", (key, None))

    @staticmethod
    def _orphan_kinds(inode: Inode) -> int:
        return (_UNLINKED_KIND if inode.nlink == 0 else 0) | (_TRUNCATING_KIND if inode.flags & _TRUNCATING else 0)

    def _own(self, extent: _Extent) -> bool:
        """Whether nobody else owned these blocks."""
        first, shift = extent.address // 8, extent.address % 8
        length = (shift + extent.blocks + 7) // 8
        bits = int.from_bytes(self._owned[first : first + length], "little")
        mask = ((1 << extent.blocks) - 1) << shift
        self._owned[first : first + length] = (bits | mask).to_bytes(length, "little")
        return not bits & mask

    def _check_runs(self) -> None:
        """How often each run is borrowed. One whose blocks are borrowed unequally often is given up: its borrowers get
        copies."""
        for address in self._counts.keys() - self._runs.keys():
            self._apply(f"removed a count of references to block {address}, where no shared blocks begin",
                        (_number(_VOLUME, _REFERENCES, address), None))
        for address, blocks in self._runs.items():
            counts = {self._borrowed.get(block, 0) for block in range(address, address + blocks)}
            key = _number(_VOLUME, _REFERENCES, address)
            if counts == {0}:
                self._apply(f"removed shared blocks at {address}, which nobody refers to",
                            (_number(_VOLUME, _SHARED, address), None), (key, None))
            elif len(counts) == 1 and counts != {self._counts.get(address)}:
                (count,) = counts
                self._apply(f"shared blocks at {address}: {count} references", (key, count.to_bytes(4, "little")))
            elif len(counts) > 1:
                self._give_up_run(address, blocks)

    def _give_up_run(self, address: int, blocks: int) -> None:
        for key, value in self._items():
            if len(key) == 17 and key[8] == _EXTENT and len(value) >= 32:
                extent = _Extent(key, value)
                if extent.flags & _BORROWED and extent.address < address + blocks and (
                        address < extent.address + extent.blocks):
                    self._rewrites.append((int.from_bytes(key[:8], "big"), extent))

    # ---- links

    def _take_entry(self, group: _Group, key: bytes, value: bytes) -> None:
        where, name, child = f"directory {group.number}", value[9:], int.from_bytes(value[:8], "little")
        shown = os.fsdecode(name)
        if not name or len(name) > 255 or b"/" in name or b"\0" in name or not ROOT_INODE < child <= _NUMBER_MAX:
            self._apply(f"{where}: removed a damaged entry", (key, None))
            return
        inode = self._inode(child)
        backref = _key(child, _BACKREF, group.number.to_bytes(8, "big") + name)
        if inode is None:
            if self._store.scan(self._volume_id, _key(child, 0), _key(child + 1, 0), limit=1):
                group.entries += 1
                return  # its inode item is written anew when its turn comes
            self._apply(f"{where}: removed the entry '{shown}' to inode {child}, which is none", (key, None),
                        (backref, None))
            return
        cookie = int.from_bytes(key[9:], "big")
        if cookie >> _COLLISION_BITS != self._cookie_base(name) >> _COLLISION_BITS:
            _, other = self._find(group.number, name)
            self._apply(f"{where}: took out the entry '{shown}', which lay in a wrong place", (key, None),
                        (backref, None))
            if other is None:
                self._attach(f"{where}: put '{shown}' where it belongs", group.number, name, child, inode)
                group.entries += 1
                group.subdirectories += inode.is_directory
            return
        if value[8] != inode.mode >> 12:
            self._apply(f"{where}: corrected the type of '{shown}'",
                        (key, value[:8] + bytes([inode.mode >> 12]) + name))
        named = self._get(backref)
        right = cookie.to_bytes(8, "little")
        if named != right:
            if named is not None and self._leads_to(group.number, int.from_bytes(named, "little"), child, name):
                self._apply(f"{where}: removed the second entry '{shown}'", (key, None))
                return
            self._apply(f"inode {child}: wrote its back-reference to '{shown}'", (backref, right))
        group.entries += 1
        group.subdirectories += inode.is_directory

    def _leads_to(self, directory: int, cookie: int, child: int, name: bytes) -> bool:
        if cookie >> 63:
            return False
        value = self._get(_number(directory, _ENTRY, cookie))
        return value is not None and value[:8] == child.to_bytes(8, "little") and value[9:] == name

    def _take_name(self, group: _Group, key: bytes, value: bytes) -> None:
        """A back-reference: it stays when there is an entry, or one can be made."""
        parent, name = int.from_bytes(key[9:17], "big"), key[17:]
        if self._leads_to(parent, int.from_bytes(value, "little"), group.number, name):
            group.names.append((parent, name, key))
            return
        own, directory = self._inode(group.number), self._inode(parent)
        cookie, child = self._find(parent, name)
        if child == group.number:
            self._apply(f"inode {group.number}: corrected a back-reference", (key, cookie.to_bytes(8, "little")))
            group.names.append((parent, name, key))
        elif child is None and directory is not None and directory.is_directory and own is not None and (
                own.nlink and not (own.is_directory and (group.names or own.parent != parent))):
            self._attach(f"directory {parent}: wrote the entry '{os.fsdecode(name)}' again", parent, name,
                         group.number, own)
            group.names.append((parent, name, key))
        elif own is not None or child is not None or directory is None:
            self._apply(f"inode {group.number}: removed a back-reference to directory {parent}", (key, None))
        else:
            group.names.append((parent, name, key))

    # ---- content

    def _take_extent(self, group: _Group, extent: _Extent) -> None:
        number = group.number
        end = max((before.logical + before.logical_blocks for before in group.extents[-1:]), default=0)
        overlaps = extent.logical < end
        extent.first = max(extent.logical, end)
        group.extents.append(extent)
        if extent.flags & _BORROWED:
            for block in range(extent.address, extent.address + extent.blocks):
                self._borrowed[block] = self._borrowed.get(block, 0) + 1
            shared = all(self._run_of(block) for block in (extent.address, extent.address + extent.blocks - 1))
            if not shared or overlaps:
                self._rewrites.append((number, extent))
        elif not self._own(extent) or overlaps:
            self._rewrites.append((number, extent))

    def _run_of(self, block: int) -> bool:
        """Shared items come before all files, so they are all known."""
        return any(block < address + self._runs.get(address, 0) for address in range(max(0, block - 31), block + 1))

    def _rewrite(self) -> None:
        """What extents hold that cannot stay: read, and written to blocks of its own. What cannot be read stays."""
        wanted = [(number, extent) for number, extent in self._rewrites
                  if (number, extent.logical) not in self._refused]
        if not wanted:
            return
        filesystem = FileSystem(self._store, self._volume_id)
        for number, extent in wanted:
            offset = extent.first * BLOCK_SIZE_BYTES
            end = (extent.logical + extent.logical_blocks) * BLOCK_SIZE_BYTES
            try:
                content = filesystem.read(number, offset, max(0, end - offset))
            except OSError as error:
                self._refused.add((number, extent.logical))
                self._say(f"inode {number}: block {extent.logical} is not its own and cannot be read: {error.strerror}")
                continue
            self._apply(f"inode {number}: copied blocks from {extent.logical} on that were not its own",
                        (extent.key, None))
            if content:
                filesystem.write(number, offset, content)

    # ---- the end of an inode

    def _end(self, group: _Group) -> None:
        if group.number == _VOLUME:
            return
        inode = Inode.parse(group.value)
        if inode is None:
            inode = self._make_inode(group)
            if inode is None:
                return
        number, before = group.number, inode.encode()
        if inode.nlink == 0 and not group.names:
            self._check_orphan(number, inode)
            return
        self._count_names(group, inode)
        if inode.is_directory:
            inode.size = group.entries * _ENTRY_SIZE_BYTES
            inode.nlink = 2 + group.subdirectories
        self._count_content(group, inode)
        self._check_xattrs(group, inode)
        if inode.encode() != before:
            self._apply(f"inode {number}: corrected link count, size or blocks", (_key(number, _INODE), inode.encode()))
        self._check_orphan(number, inode)
        if not group.names and number != ROOT_INODE:
            self._rescue(number, inode)
        elif inode.is_directory:
            self._check_reachable(group, inode)

    def _make_inode(self, group: _Group) -> Inode | None:
        """For items whose inode item is missing or damaged."""
        if group.is_empty and group.value is None:
            return None
        kind = stat.S_IFREG
        for parent, name, _key_bytes in group.names:
            cookie, child = self._find(parent, name)
            entry = self._get(_number(parent, _ENTRY, cookie)) if child == group.number else None
            if entry is not None and entry[8] << 12 in _TYPES:
                kind = entry[8] << 12
        kind = stat.S_IFDIR if group.entries else kind
        parent = group.names[0][0] if group.names else ROOT_INODE
        inode = Inode.new(kind | (0o700 if kind == stat.S_IFDIR else 0o600), parent)
        if group.value is not None and len(group.value) == _INODE_FORMAT.size:
            old = Inode(group.value)
            inode.uid, inode.gid = old.uid, old.gid
            inode.size = old.size if old.size <= _SIZE_MAX and kind != stat.S_IFDIR else 0
        if kind == stat.S_IFREG and group.inline and not group.extents:
            inode.flags |= _INLINE_FLAG
        if not inode.size and group.extents:
            inode.size = max(extent.logical + extent.logical_blocks for extent in group.extents) * BLOCK_SIZE_BYTES
        inode.nlink = len(group.names) or 1
        self._apply(f"inode {group.number}: wrote its inode item anew", (_key(group.number, _INODE), inode.encode()))
        return inode

    def _count_names(self, group: _Group, inode: Inode) -> None:
        if not inode.is_directory:
            inode.nlink = len(group.names) or 1
            inode.flags &= ~_UNNAMED
            return
        keep = None
        if group.number != ROOT_INODE and group.names:
            keep = next((name for name in group.names if name[0] == inode.parent), group.names[0])
        for name in [name for name in group.names if name is not keep]:
            self._detach(group, name)
        group.names = [keep] if keep else []
        if keep:
            inode.parent = keep[0]

    def _detach(self, group: _Group, name: tuple[int, bytes, bytes]) -> None:
        cookie, child = self._find(name[0], name[1])
        entries = [(_number(name[0], _ENTRY, cookie), None)] if child == group.number else []
        self._apply(f"inode {group.number}: removed its name '{os.fsdecode(name[1])}' in directory {name[0]}",
                    (name[2], None), *entries)

    def _count_content(self, group: _Group, inode: Inode) -> None:
        may_have_extents = stat.S_ISREG(inode.mode) and not inode.flags & _INLINE_FLAG
        if group.extents and not may_have_extents and stat.S_ISREG(inode.mode) and not group.inline:
            inode.flags &= ~_INLINE_FLAG
            may_have_extents = True
        if group.extents and not may_have_extents:
            self._apply(f"inode {group.number}: removed extents that nothing can read",
                        *((extent.key, None) for extent in group.extents))
            group.extents = []
        inode.blocks = sum(extent.blocks for extent in group.extents)
        end = max((extent.logical + extent.logical_blocks for extent in group.extents), default=0)
        if not may_have_extents:
            inode.flags &= ~_UNCUT
        more = _EXTENT_BLOCKS_MAX if inode.flags & _UNCUT else 0
        if end > -(-inode.size // BLOCK_SIZE_BYTES) + more and not inode.flags & _TRUNCATING:
            inode.size = end * BLOCK_SIZE_BYTES
        may_have_inline = stat.S_ISLNK(inode.mode) or (stat.S_ISREG(inode.mode) and inode.flags & _INLINE_FLAG)
        wrong = [chunk for at, chunk in enumerate(sorted(group.inline)) if chunk != at or not may_have_inline]
        if wrong:
            self._apply(f"inode {group.number}: removed inline bytes that nothing can read",
                        *((_key(group.number, _INLINE, bytes([chunk])), None) for chunk in wrong))
        inode.inline_length = sum(length for chunk, length in group.inline.items() if chunk not in wrong)
        if stat.S_ISLNK(inode.mode):
            inode.size = inode.inline_length
        inode.size = max(inode.size, inode.inline_length)

    def _check_xattrs(self, group: _Group, inode: Inode) -> None:
        for name, chunks in group.xattrs.items():
            if chunks != set(range(len(chunks))):
                self._apply(f"inode {group.number}: removed the extended attribute {os.fsdecode(name)}, which lacks a "
                            "part", *((_key(group.number, _XATTR, name + bytes([0, chunk])), None)
                                            for chunk in chunks))
            elif name == _CAPABILITY_NAME:
                inode.flags |= _CAPABILITY

    def _check_orphan(self, number: int, inode: Inode) -> None:
        key, kinds = _number(_VOLUME, _ORPHAN, number), self._orphan_kinds(inode)
        if kinds and self._get(key) != bytes([kinds]):
            self._apply(f"inode {number}: wrote its orphan record", (key, bytes([kinds])))

    def _check_reachable(self, group: _Group, inode: Inode) -> None:
        trail = [group.number]
        number, found = group.number, inode
        while number not in self._reachable:
            number = found.parent
            above = self._inode(number)
            if above is None or not above.is_directory or number in trail or len(trail) > _DEPTH_MAX:
                break
            trail.append(number)
            found = above
        if number in self._reachable:
            self._reachable |= set(trail)
            return
        for name in group.names:
            self._detach(group, name)
        with contextlib.suppress(FileNotFoundError):
            self._rescue(group.number, inode)
