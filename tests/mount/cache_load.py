"""One of the processes that write without ever syncing. Run as a program: LOAD ROOT WRITER SEED. For each line on its
standard input, a number, it does as many operations on its files in ROOT, and when all have returned it prints what
they hold, by its own books: name to [offset, length, CRC-32], with an offset for its part of the file that all share.
tests/mount/test_cache_back.py holds snapshots against that."""

import json
import mmap
import os
import pathlib
import random
import sys
import zlib

SHARED = "shared"
REGION_BYTES = 40_000
MAPPED_BYTES = 50_000
SIZE_MAX_BYTES = 100_000


class Writer:
    """Descriptors stay open, and so does the mapping: closing them would flush the files."""

    def __init__(self, root: pathlib.Path, number: int, seed: int) -> None:
        self._root = root
        self._randomness = random.Random(seed * 1000 + number)
        self._number = number
        self._names = {kind: f"{kind}-{number}" for kind in ("anywhere", "log", "mapped")}
        flags = os.O_RDWR | os.O_CREAT
        self._anywhere = os.open(root / self._names["anywhere"], flags)
        # Write-only: the kernel reads what surrounds a write through the same handle.
        self._log = os.open(root / self._names["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._shared = os.open(root / SHARED, flags)
        mapped = os.open(root / self._names["mapped"], flags)
        os.ftruncate(mapped, MAPPED_BYTES)
        self._mapping = mmap.mmap(mapped, MAPPED_BYTES)
        os.close(mapped)
        self._held = {kind: bytearray() for kind in self._names}
        self._held["mapped"] = bytearray(MAPPED_BYTES)
        self._region = bytearray(REGION_BYTES)
        self._put_region(0, bytes(REGION_BYTES))

    def _put_region(self, at: int, data: bytes) -> None:
        os.pwrite(self._shared, data, self._number * REGION_BYTES + at)
        self._region[at : at + len(data)] = data

    def _bytes(self) -> bytes:
        return self._randomness.randbytes(self._randomness.choice([1, 10, 300, 4096, 9000]))

    def _write_anywhere(self) -> None:
        held, data = self._held["anywhere"], self._bytes()
        at = self._randomness.randrange(SIZE_MAX_BYTES)
        if self._randomness.random() < 0.5:
            at = at // 4096 * 4096
        held.extend(bytes(max(0, at - len(held))))
        held[at : at + len(data)] = data
        os.pwrite(self._anywhere, data, at)

    def _truncate(self) -> None:
        held, size = self._held["anywhere"], self._randomness.randrange(SIZE_MAX_BYTES)
        del held[size:]
        held.extend(bytes(size - len(held)))
        os.ftruncate(self._anywhere, size)

    def _append(self) -> None:
        held, data = self._held["log"], self._bytes()
        if len(held) > SIZE_MAX_BYTES:
            os.truncate(self._root / self._names["log"], 0)
            held.clear()
        held.extend(data)
        os.write(self._log, data)

    def _map(self) -> None:
        data = self._bytes()
        at = self._randomness.randrange(MAPPED_BYTES - len(data))
        self._mapping[at : at + len(data)] = data
        self._held["mapped"][at : at + len(data)] = data

    def _share(self) -> None:
        data = self._bytes()
        self._put_region(self._randomness.randrange(REGION_BYTES - len(data)), data)

    def _replace(self) -> None:
        """What editors do, but for the fsync: a new file takes the name, and is still open."""
        path, data = self._root / self._names["anywhere"], self._bytes()
        descriptor = os.open(f"{path}.new", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        os.write(descriptor, data)
        os.rename(f"{path}.new", path)
        os.close(self._anywhere)
        self._anywhere = descriptor
        self._held["anywhere"] = bytearray(data)

    def work(self, count: int) -> dict[str, list[int]]:
        operations = (self._write_anywhere, self._append, self._map, self._share, self._truncate, self._replace)
        for operation in self._randomness.choices(operations, (6, 6, 6, 6, 2, 1), k=count):
            operation()
        found = {self._names[kind]: [0, len(held), zlib.crc32(held)] for kind, held in self._held.items()}
        found[SHARED] = [self._number * REGION_BYTES, REGION_BYTES, zlib.crc32(self._region)]
        return found


def main() -> None:
    root, number, seed = sys.argv[1:]
    writer = Writer(pathlib.Path(root), int(number), int(seed))
    for line in sys.stdin:
        print(json.dumps(writer.work(int(line))), flush=True)


if __name__ == "__main__":
    main()
