"""What a medium may hold after a power failure: everything flushed, and of the writes since then any subset, in any
order, some of them torn at 512-byte boundaries. (The assumptions that btree/native/storage.h states.)"""

import random
from collections.abc import Sequence

from btree import Storage
from btree.records import StorageEvent

SECTOR_SIZE_BYTES = 512
CHUNK_SIZE_BYTES = 32 << 10


class Medium:
    """Events are gone through once, in ascending order of cuts, so that an image costs what it differs by."""

    def __init__(self, before: bytes | bytearray, events: Sequence[StorageEvent]) -> None:
        self._flushed = bytearray(before)
        self._events = events
        self._next = 0
        self._unflushed: list[StorageEvent] = []
        zeros = bytes(CHUNK_SIZE_BYTES)
        self._chunks = {
            start // CHUNK_SIZE_BYTES
            for start in range(0, len(before), CHUNK_SIZE_BYTES)
            if before[start : start + CHUNK_SIZE_BYTES] != zeros
        }
        """What is not all zeros. An image is made by copying only that."""

    def _touch(self, offset_bytes: int, length_bytes: int) -> None:
        last = (offset_bytes + length_bytes - 1) // CHUNK_SIZE_BYTES
        self._chunks.update(range(offset_bytes // CHUNK_SIZE_BYTES, last + 1))

    def advance(self, cut: int) -> None:
        """To the moment after the first `cut` events."""
        assert cut >= self._next
        for event in self._events[self._next : cut]:
            if event.kind == "write":
                self._unflushed.append(event)
                continue
            for write in self._unflushed:
                self._flushed[write.offset_bytes : write.offset_bytes + len(write.bytes)] = write.bytes
                self._touch(write.offset_bytes, len(write.bytes))
            self._unflushed.clear()
        self._next = cut

    def image(self, chance: random.Random) -> Storage:
        """Memory with what one failure left."""
        storage = Storage.open_memory(len(self._flushed))
        with memoryview(self._flushed) as flushed:
            for chunk in sorted(self._chunks):
                start = chunk * CHUNK_SIZE_BYTES
                storage.write(start, flushed[start : start + CHUNK_SIZE_BYTES])
        survived_share, torn_share = chance.choice([0, 0.2, 0.5, 0.8, 0.95, 1]), chance.choice([0, 0.1, 0.5])
        survivors = [event for event in self._unflushed if chance.random() < survived_share]
        if self._unflushed and chance.random() < 0.2:
            survivors = [event for event in self._unflushed if event is not chance.choice(self._unflushed)]
        chance.shuffle(survivors)
        for event in survivors:
            for start, end in self._parts(event, chance, torn_share):
                storage.write(event.offset_bytes + start, event.bytes[start:end])
        return storage

    @staticmethod
    def _parts(event: StorageEvent, chance: random.Random, torn_share: float) -> list[tuple[int, int]]:
        """The parts of a write that reached the medium."""
        length = len(event.bytes)
        if chance.random() >= torn_share:
            return [(0, length)]
        if chance.random() < 0.5:
            return [(0, chance.randrange(length // SECTOR_SIZE_BYTES + 1) * SECTOR_SIZE_BYTES)]
        starts = range(0, length, SECTOR_SIZE_BYTES)
        kept_share = chance.random()
        return [(start, start + SECTOR_SIZE_BYTES) for start in starts if chance.random() < kept_share]
