"""Damages a pool in a named way, with all checksums right where the damage is not about them: what fsck.cowfs is tested
on.

    python -m tools.break_pool POOL KIND      (without KIND: lists the kinds)

The pool must not be mounted. Meant for small pools; a volume called main has to have a file with extents, a directory
with a file in it, a small file and one with an extended attribute, as tests/unit/test_fsck.py makes it.
"""

import argparse
import struct
import sys
from collections.abc import Callable

import xxhash

from btree import Storage, Store

BLOCK = 4096
RING_SLOTS = 16
# docs/FORMAT.md
_SEQUENCE, _SIZE_BLOCKS, _NODE_SIZE, _BITMAP, _ROOT, _DIGEST, _CHECKSUM = 96, 112, 120, 144, 192, 232, 4088
_INODE, _INLINE, _XATTR, _BACKREF, _ENTRY, _EXTENT, _ORPHAN = 1, 2, 3, 4, 5, 7, 8
_SYSTEM_VOLUME, _SYSTEM_CHAIN, _SYSTEM_DEAD = 1, 2, 4
_POINTER_LENGTH, _CHAIN_ROOT_AT, _HEAD_CHAIN_AT = 32, 24, 24

Edit = Callable[[bytes], bytes]


def _u64(page: bytes | bytearray, at: int) -> int:
    return int.from_bytes(page[at : at + 8], "little")


def _hash(content: bytes | bytearray) -> int:
    return int(xxhash.xxh3_64_intdigest(bytes(content)))


class Patcher:
    """Changes values of a closed pool in place, and makes the checksums above them right again."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        slots = [self.block(slot) for slot in range(RING_SLOTS)]
        self.slot = max(range(RING_SLOTS), key=lambda slot: _u64(slots[slot], _SEQUENCE))
        self.superblock = bytearray(slots[self.slot])
        self.node_size = int.from_bytes(self.superblock[_NODE_SIZE : _NODE_SIZE + 4], "little")

    def block(self, number: int) -> bytes:
        return self.storage.read(number * BLOCK, BLOCK)

    def slot_blocks(self) -> list[int]:
        """Both places of the newest superblock."""
        return [self.slot, _u64(self.superblock, _SIZE_BLOCKS) - RING_SLOTS + self.slot]

    def finish(self) -> None:
        self.superblock[_CHECKSUM:] = _hash(self.superblock[:_CHECKSUM]).to_bytes(8, "little")
        for block in self.slot_blocks():
            self.storage.write(block * BLOCK, self.superblock)

    # ---- trees

    def items(self, pointer: bytes) -> list[tuple[bytes, bytes]]:
        """All items below a pointer."""
        if _u64(pointer, 0) == 0:
            return []
        page = self._node(pointer)
        found = [(key, bytes(page[at : at + length])) for key, at, length in self._slots(page)]
        if page[4] == 0:
            return found
        return [item for _, value in found for item in self.items(value)]

    def _node(self, pointer: bytes) -> bytearray:
        return bytearray(self.storage.read(_u64(pointer, 0) * BLOCK, self.node_size))

    @staticmethod
    def _slots(page: bytearray) -> list[tuple[bytes, int, int]]:
        """(key, offset of the value, its length) of each item."""
        (count, prefix_at, prefix_length) = struct.unpack_from("<3H", page, 6)
        prefix = bytes(page[prefix_at : prefix_at + prefix_length])
        slots = [struct.unpack_from("<3H", page, 24 + 6 * slot) for slot in range(count)]
        return [
            (prefix + bytes(page[at : at + key_length]), at + key_length, value_length & 0x7FFF)
            for at, key_length, value_length in slots
        ]

    def _patch(self, pointer: bytes, key: bytes, edit: Edit) -> bytes:
        """The pointer with its new checksum."""
        page = self._node(pointer)
        slots = self._slots(page)
        _, at, length = [slot for slot in slots if slot[0] <= key][-1]
        old = bytes(page[at : at + length])
        page[at : at + length] = edit(old) if page[4] == 0 else self._patch(old, key, edit)
        for address in (_u64(pointer, 0), _u64(pointer, 8)):
            if address:
                self.storage.write(address * BLOCK, page)
        return pointer[:16] + _hash(page).to_bytes(8, "little") + pointer[24:]

    @property
    def system_root(self) -> bytes:
        return bytes(self.superblock[_ROOT : _ROOT + _POINTER_LENGTH])

    def patch_system(self, key: bytes, edit: Edit) -> None:
        self.superblock[_ROOT : _ROOT + _POINTER_LENGTH] = self._patch(self.system_root, key, edit)

    def chain_key(self, volume_id: int) -> bytes:
        volume = dict(self.items(self.system_root))[bytes([_SYSTEM_VOLUME]) + volume_id.to_bytes(8, "big")]
        return bytes([_SYSTEM_CHAIN]) + _u64(volume, _HEAD_CHAIN_AT).to_bytes(8, "big")

    def volume_root(self, volume_id: int) -> bytes:
        chain = dict(self.items(self.system_root))[self.chain_key(volume_id)]
        return chain[_CHAIN_ROOT_AT : _CHAIN_ROOT_AT + _POINTER_LENGTH]

    def patch_volume(self, volume_id: int, key: bytes, edit: Edit) -> None:
        root = self._patch(self.volume_root(volume_id), key, edit)
        self.patch_system(
            self.chain_key(volume_id),
            lambda value: value[:_CHAIN_ROOT_AT] + root + value[_CHAIN_ROOT_AT + _POINTER_LENGTH :],
        )

    # ---- free space

    def bitmap_block(self) -> int:
        """Of the current copy of the first page."""
        start = _u64(self.superblock, _BITMAP)
        return max((start, start + 1), key=lambda block: _u64(self.block(block), 8))

    def patch_bitmap(self, block: int) -> None:
        """Turns the bit of a block over."""
        place = self.bitmap_block()
        page = bytearray(self.block(place))
        digest = _u64(self.superblock, _DIGEST) ^ self._digest(page)
        page[32 + block // 8] ^= 1 << block % 8
        page[16:24] = bytes(8)
        page[16:24] = _hash(page).to_bytes(8, "little")
        self.storage.write(place * BLOCK, page)
        self.superblock[_DIGEST : _DIGEST + 8] = (digest ^ self._digest(page)).to_bytes(8, "little")

    @staticmethod
    def _digest(page: bytes | bytearray) -> int:
        number = int.from_bytes(page[4:8], "little").to_bytes(8, "little")
        return _hash(number + bytes(page[8:24]))


class Items:
    """The live tree of a volume, changed by ordinary transactions."""

    def __init__(self, store: Store, volume_id: int) -> None:
        self.store = store
        self.volume_id = volume_id

    @staticmethod
    def key(inode: int, kind: int, rest: bytes = b"") -> bytes:
        return inode.to_bytes(8, "big") + bytes([kind]) + rest

    def of_kind(self, kind: int) -> list[tuple[bytes, bytes]]:
        return [item for item in self.store.scan(self.volume_id) if len(item[0]) > 8 and item[0][8] == kind]

    def find(self, kind: int, wanted: Callable[[bytes, bytes], bool]) -> tuple[bytes, bytes]:
        return next(item for item in self.of_kind(kind) if wanted(*item))

    def put(self, key: bytes, value: bytes | None) -> None:
        self.store.apply(self.volume_id, [(key, value)], keep_blocks=True)

    def edit(self, key: bytes, at: int, value: int, length: int) -> None:
        old = self.store.get(self.volume_id, key)
        assert old is not None
        self.put(key, old[:at] + value.to_bytes(length, "little") + old[at + length :])

    # ---- what the kinds are about

    def entry(self, *, directory: bool = False, extents: bool = False) -> tuple[bytes, bytes]:
        """The last entry that leads to a file (with extents) or to a directory."""
        wanted = 4 if directory else 8
        with_extents = {key[:8] for key, _ in self.of_kind(_EXTENT)}
        return [
            (key, value)
            for key, value in self.of_kind(_ENTRY)
            if value[8] == wanted and (not extents or value[:8][::-1] in with_extents)
        ][-1]

    def file(self) -> int:
        return int.from_bytes(self.entry(extents=True)[1][:8], "little")

    def directory(self) -> int:
        return int.from_bytes(self.entry(directory=True)[1][:8], "little")

    def extent(self) -> tuple[bytes, bytes]:
        number = self.file()
        return self.find(_EXTENT, lambda key, _value: key[:8] == number.to_bytes(8, "big"))


def _dangling_entry(items: Items) -> None:
    number = items.file()
    prefix = items.key(number, 0)
    for key, _value in items.store.scan(items.volume_id, prefix, items.key(number + 1, 0)):
        items.put(key, None)


def _lost_inode(items: Items) -> None:
    key, value = items.entry(extents=True)
    items.put(key, None)
    items.put(items.key(int.from_bytes(value[:8], "little"), _BACKREF, key[:8] + value[9:]), None)


def _wrong_place(items: Items) -> None:
    key, value = items.entry(extents=True)
    items.put(key, None)
    items.put(key[:9] + (7 << 32).to_bytes(8, "big"), value)


def _lost_directory(items: Items) -> None:
    key, value = items.entry(directory=True)
    items.put(key, None)
    items.put(items.key(int.from_bytes(value[:8], "little"), _BACKREF, key[:8] + value[9:]), None)


def _ring(items: Items) -> None:
    """A directory that is its own parent."""
    number = items.directory()
    items.edit(items.key(number, _INODE), 96, number, 8)
    _lost_directory(items)


def _borrowed(items: Items) -> None:
    """Two files with one block, of which the other says that it is shared."""
    key, value = items.extent()
    other, _value = items.find(_EXTENT, lambda other, _value: other[:8] != key[:8])
    items.put(other[:9] + (2).to_bytes(8, "big"), value[:21] + b"\x01" + value[22:])


ITEM_KINDS: dict[str, Callable[[Items], None]] = {
    "dangling-entry": _dangling_entry,
    "lost-inode": _lost_inode,
    "lost-directory": _lost_directory,
    "directory-ring": _ring,
    "entry-in-wrong-place": _wrong_place,
    "entry-missing": lambda items: items.put(items.entry(extents=True)[0], None),
    "entry-of-wrong-type": lambda items: items.edit(items.entry(extents=True)[0], 8, 4, 1),
    "back-reference-missing": lambda items: items.put(
        items.find(_BACKREF, lambda key, _: key[:8] == items.file().to_bytes(8, "big"))[0], None
    ),
    "back-reference-wrong": lambda items: items.put(
        items.find(_BACKREF, lambda key, _: key[:8] == items.file().to_bytes(8, "big"))[0], bytes(8)
    ),
    "inode-missing": lambda items: items.put(items.key(items.file(), _INODE), None),
    "inode-damaged": lambda items: items.edit(items.key(items.file(), _INODE), 0, 0o153456, 4),
    "link-count": lambda items: items.edit(items.key(items.file(), _INODE), 12, 7, 4),
    "link-count-none": lambda items: items.edit(items.key(items.file(), _INODE), 12, 0, 4),
    "link-count-of-directory": lambda items: items.edit(items.key(1, _INODE), 12, 9, 4),
    "size": lambda items: items.edit(items.key(items.file(), _INODE), 16, 100, 8),
    "size-of-directory": lambda items: items.edit(items.key(1, _INODE), 16, 6400, 8),
    "blocks": lambda items: items.edit(items.key(items.file(), _INODE), 24, 99, 8),
    "uncut-directory": lambda items: items.edit(items.key(1, _INODE), 88, 4096, 4),
    "parent": lambda items: items.edit(items.key(items.directory(), _INODE), 96, items.directory(), 8),
    "inline-bytes-missing": lambda items: items.put(items.of_kind(_INLINE)[0][0], None),
    "xattr-chunk-missing": lambda items: items.put(
        items.find(_XATTR, lambda key, _: key[-1] == 0 and key[9:] != b"user.small\0\0")[0], None
    ),
    "orphan-record-without-inode": lambda items: items.put(items.key(0, _ORPHAN, (1 << 30).to_bytes(8, "big")), b"\1"),
    "orphan-record-of-named-file": lambda items: items.put(
        items.key(0, _ORPHAN, items.file().to_bytes(8, "big")), b"\1"
    ),
    "unknown-item": lambda items: items.put(items.key(items.file(), 6), b"?"),
    "foreign-key": lambda items: items.put(b"\xffshort", b""),
    "volume-record-missing": lambda items: items.put(items.key(0, _INODE), None),
    "root-missing": lambda items: items.put(items.key(1, _INODE), None),
    "block-borrowed-unshared": _borrowed,
}


def _doubled_block(patcher: Patcher, volume_id: int) -> None:
    """The last file's first extent gets the blocks and checksums of the file before it."""
    extents = [item for item in patcher.items(patcher.volume_root(volume_id)) if item[0][8:9] == bytes([_EXTENT])]
    (last, old) = extents[-1]
    value = next(value for key, value in reversed(extents) if key[:8] != last[:8] and len(value) == len(old))
    patcher.patch_volume(volume_id, last, lambda _old: value)


def _dead_bucket(patcher: Patcher, _volume_id: int) -> None:
    """An entry names more blocks than it should."""
    key = next(key for key, _ in patcher.items(patcher.system_root) if key[0] == _SYSTEM_DEAD)
    patcher.patch_system(key, lambda value: (int.from_bytes(value, "little") + 3).to_bytes(4, "little"))


def _leaked_block(patcher: Patcher, _volume_id: int) -> None:
    page = patcher.block(patcher.bitmap_block())
    first = _u64(patcher.superblock, _BITMAP) + 2
    blocks = range(first + 1000, _u64(patcher.superblock, _SIZE_BLOCKS))
    patcher.patch_bitmap(next(block for block in blocks if not page[32 + block // 8] >> block % 8 & 1))


def _used_block_free(patcher: Patcher, volume_id: int) -> None:
    extents = [item for item in patcher.items(patcher.volume_root(volume_id)) if item[0][8:9] == bytes([_EXTENT])]
    patcher.patch_bitmap(_u64(extents[-1][1], 0))


def _damage(patcher: Patcher, block: int) -> None:
    content = bytearray(patcher.block(block))
    content[1234] ^= 0x10
    patcher.storage.write(block * BLOCK, content)


def _stale_superblock(patcher: Patcher, _volume_id: int) -> None:
    """The newest superblock is gone in both places."""
    for block in patcher.slot_blocks():
        _damage(patcher, block)


def _system_root(patcher: Patcher, _volume_id: int) -> None:
    """Both copies of the root of the system tree are gone: only an older superblock leads anywhere."""
    for at in (0, 8):
        _damage(patcher, _u64(patcher.system_root, at))


STORE_KINDS: dict[str, Callable[[Patcher, int], None]] = {
    "doubled-block": _doubled_block,
    "dead-bucket": _dead_bucket,
    "leaked-block": _leaked_block,
    "used-block-marked-free": _used_block_free,
    "bitmap": lambda patcher, _: _damage(patcher, patcher.bitmap_block()),
    "superblock-one-place": lambda patcher, _: _damage(patcher, patcher.slot_blocks()[0]),
    "superblock-stale": _stale_superblock,
    "system-root": _system_root,
    "node-copy": lambda patcher, volume_id: _damage(patcher, _u64(patcher.volume_root(volume_id), 0)),
}
KINDS = sorted([*ITEM_KINDS, *STORE_KINDS])


def break_pool(path: str, kind: str) -> None:
    if kind in ITEM_KINDS:
        with Store(Storage.open_file(path)) as store:
            ITEM_KINDS[kind](Items(store, store.volume_find("main").id))
        return
    storage = Storage.open_file(path, read_only=True)
    with Store(storage, read_only=True) as store:
        volume_id = store.volume_find("main").id
    storage = Storage.open_file(path)
    patcher = Patcher(storage)
    before = bytes(patcher.superblock)
    STORE_KINDS[kind](patcher, volume_id)
    if bytes(patcher.superblock) != before:
        patcher.finish()
    storage.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pool")
    parser.add_argument("kind", choices=KINDS, nargs="?")
    options = parser.parse_args()
    if options.kind is None:
        print("\n".join(KINDS))
        return 0
    break_pool(options.pool, options.kind)
    return 0


if __name__ == "__main__":
    sys.exit(main())
