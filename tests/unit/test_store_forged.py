"""Pools whose checksums are right and whose content is not: nothing of it is used unchecked (invariant I8)."""

import dataclasses
import errno
import struct

import pytest
import xxhash

from btree import Storage, Store, StoreError

BLOCK_SIZE_BYTES = 4096
POOL_SIZE_BYTES = 16 << 20
RING_SLOTS = 16
# Offsets of btree/native/format.h.
SUPERBLOCK_SEQUENCE, SUPERBLOCK_ROOT, SUPERBLOCK_CHECKSUM = 96, 192, 4088
POINTER_CHECKSUM = 16
ROOT_LEVEL = 32
NODE_COUNT, NODE_PREFIX_OFFSET, NODE_PREFIX_LENGTH, NODE_SLOTS, SLOT_LENGTH = 6, 8, 10, 24, 6
CHAIN_VOLUME, CHAIN_ROOT = 0, 24
SYSTEM_CHAIN = 2
EXTENT_ADDRESS = 0
VALUE = b"\xff" * 32
"""Taken for a pointer to a node it would be one to an address in memory."""


@dataclasses.dataclass
class Item:
    key: bytes
    value_at: int
    """Offset in the page."""
    value_length: int


class Forger:
    """Changes nodes of a pool with one copy of each, and makes all checksums above them right again. The trees must be
    small: the system tree of one node, the volumes' of one or two levels."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        blocks = [storage.read(slot * BLOCK_SIZE_BYTES, BLOCK_SIZE_BYTES) for slot in range(RING_SLOTS)]
        newest = max(range(RING_SLOTS), key=lambda slot: self.u64(blocks[slot], SUPERBLOCK_SEQUENCE))
        self.slot = newest
        self.superblock = bytearray(blocks[newest])
        assert self.superblock[SUPERBLOCK_ROOT + ROOT_LEVEL] == 0
        self.system = bytearray(self.read_node(self.u64(self.superblock, SUPERBLOCK_ROOT)))

    @staticmethod
    def u64(page: bytes | bytearray, at: int) -> int:
        return int(struct.unpack_from("<Q", page, at)[0])

    @staticmethod
    def set_u64(page: bytearray, at: int, value: int) -> None:
        struct.pack_into("<Q", page, at, value)

    def read_node(self, address: int) -> bytes:
        return self.storage.read(address * BLOCK_SIZE_BYTES, BLOCK_SIZE_BYTES)

    def items(self, page: bytes | bytearray) -> list[Item]:
        (count,) = struct.unpack_from("<H", page, NODE_COUNT)
        prefix_at, prefix_length = struct.unpack_from("<HH", page, NODE_PREFIX_OFFSET)
        prefix = bytes(page[prefix_at : prefix_at + prefix_length])
        found = []
        for slot in range(count):
            at, key_length, value_length = struct.unpack_from("<HHH", page, NODE_SLOTS + slot * SLOT_LENGTH)
            found.append(Item(prefix + bytes(page[at : at + key_length]), at + key_length, value_length & 0x7FFF))
        return found

    def root_at(self, volume_id: int) -> int:
        """Offset of a volume's root in the page of the system tree."""
        for item in self.items(self.system):
            if item.key[0] == SYSTEM_CHAIN and self.u64(self.system, item.value_at + CHAIN_VOLUME) == volume_id:
                return item.value_at + CHAIN_ROOT
        raise KeyError(volume_id)

    def root(self, volume_id: int) -> bytearray:
        return bytearray(self.read_node(self.u64(self.system, self.root_at(volume_id))))

    def write_root(self, volume_id: int, page: bytearray) -> None:
        at = self.root_at(volume_id)
        self.storage.write(self.u64(self.system, at) * BLOCK_SIZE_BYTES, page)
        self.set_u64(self.system, at + POINTER_CHECKSUM, xxhash.xxh3_64_intdigest(bytes(page)))

    def finish(self) -> None:
        self.storage.write(self.u64(self.superblock, SUPERBLOCK_ROOT) * BLOCK_SIZE_BYTES, self.system)
        digest = xxhash.xxh3_64_intdigest(bytes(self.system))
        self.set_u64(self.superblock, SUPERBLOCK_ROOT + POINTER_CHECKSUM, digest)
        digest = xxhash.xxh3_64_intdigest(bytes(self.superblock[:SUPERBLOCK_CHECKSUM]))
        self.set_u64(self.superblock, SUPERBLOCK_CHECKSUM, digest)
        for ring in (0, POOL_SIZE_BYTES - RING_SLOTS * BLOCK_SIZE_BYTES):
            self.storage.write(ring + self.slot * BLOCK_SIZE_BYTES, self.superblock)


class Pool:
    """Two volumes of a few items and one, `large`, with a root above its leaves."""

    def __init__(self) -> None:
        self.storage = Storage.open_memory(POOL_SIZE_BYTES)
        Store.format(self.storage, metadata_copies=1)
        with Store(self.storage, background=False) as store:
            self.small, self.other, self.large = (store.volume_create(name) for name in ("small", "other", "large"))
            for volume_id in (self.small, self.other):
                store.write_extent(volume_id, b"extent", b"data")
                store.put(volume_id, b"plain", VALUE)
            store.bulk_load(self.large, [(b"k%03d" % number, b"v" * 500) for number in range(40)])
        self.forger = Forger(self.storage)

    def open(self) -> Store:
        self.forger.finish()
        return Store(self.storage, background=False)


@pytest.fixture
def pool() -> Pool:
    return Pool()


def refuse_volume(store: Store, volume_id: int) -> None:
    """A damaged tree is reported by whatever meets it; the other volumes go on until space would have to be freed."""
    for call in (
        lambda: store.scan(volume_id),
        lambda: store.put(volume_id, b"k001", b"new"),
        lambda: store.delete(volume_id, b"k001"),
    ):
        with pytest.raises(OSError) as caught:
            call()
        assert caught.value.errno in (errno.EIO, errno.EUCLEAN)
    assert store.check() != []


@pytest.mark.parametrize("address", [1 << 63, (1 << 63) | 0x7F0000001000, 1 << 40, 0])
@pytest.mark.parametrize("copy", [0, 1])
def test_pointer_that_leads_nowhere(pool: Pool, address: int, copy: int) -> None:
    if copy == 1 and address == 0:
        return  # stored once, as it is
    page = pool.forger.root(pool.large)
    first = pool.forger.items(page)[0]
    pool.forger.set_u64(page, first.value_at + 8 * copy, address)
    pool.forger.write_root(pool.large, page)
    store = pool.open()
    refuse_volume(store, pool.large)
    store.abandon()


@pytest.mark.parametrize("address", [1 << 51, POOL_SIZE_BYTES // BLOCK_SIZE_BYTES, 20])
def test_extent_outside_the_data_zone(pool: Pool, address: int) -> None:
    page = pool.forger.root(pool.small)
    extent = next(item for item in pool.forger.items(page) if item.key == b"extent")
    pool.forger.set_u64(page, extent.value_at + EXTENT_ADDRESS, address)
    pool.forger.write_root(pool.small, page)
    store = pool.open()
    refuse_volume(store, pool.small)
    store.volume_destroy(pool.small)
    with pytest.raises(OSError):
        store.checkpoint()
    assert store.get(pool.other, b"plain") == VALUE
    store.abandon()


def test_leaf_named_as_an_inner_node(pool: Pool) -> None:
    """Its first reader finds it in memory, as the leaf that it is."""
    forger = pool.forger
    root = forger.system[forger.root_at(pool.small) :][:ROOT_LEVEL]
    at = forger.root_at(pool.other)
    forger.system[at : at + ROOT_LEVEL] = root
    forger.system[at + ROOT_LEVEL] = 1
    store = pool.open()
    assert len(store.scan(pool.small)) == 2
    with pytest.raises(OSError):
        store.get(pool.other, b"plain")
    with pytest.raises(OSError):
        store.put(pool.other, b"key", b"value")
    store.abandon()


def test_tree_too_high_to_grow(pool: Pool) -> None:
    pool.forger.system[pool.forger.root_at(pool.small) + ROOT_LEVEL] = 15
    store = pool.open()
    refuse_volume(store, pool.small)
    store.abandon()


def test_items_that_overlap(pool: Pool) -> None:
    """Each lies within its page, but together they are more than a page: they could not be split."""
    page = pool.forger.root(pool.small)
    for slot in range(2):
        at, key_length, value_length = struct.unpack_from("<HHH", page, NODE_SLOTS + slot * SLOT_LENGTH)
        longest = min(BLOCK_SIZE_BYTES - at - key_length, 900)
        struct.pack_into("<H", page, NODE_SLOTS + slot * SLOT_LENGTH + 4, longest)
        assert longest != value_length
    pool.forger.write_root(pool.small, page)
    store = pool.open()
    refuse_volume(store, pool.small)
    store.abandon()


def test_catalog_root_with_a_wrong_copy(pool: Pool) -> None:
    pool.forger.set_u64(pool.forger.system, pool.forger.root_at(pool.small) + 8, 1 << 40)
    with pytest.raises(StoreError) as caught:
        pool.open()
    assert caught.value.errno == errno.EUCLEAN


def test_system_root_with_a_wrong_copy(pool: Pool) -> None:
    pool.forger.set_u64(pool.forger.superblock, SUPERBLOCK_ROOT + 8, (1 << 63) | 4096)
    with pytest.raises(StoreError) as caught:
        pool.open()
    assert caught.value.errno == errno.EUCLEAN
