"""Power failures while files are written: changes in place in the write buffer, split and replaced extents, truncation.

The other crash tests go through the store's own calls; this one through the file system's, with a plain model of a few
files. A failing run prints its seed; COWFS_SEED=<seed> goes through that one again.
"""

import os
import random
import stat
import time

from btree import Storage, Store
from cowfs._native import ROOT_INODE, FileSystem
from tests.crash.medium import Medium

POOL_SIZE_BYTES = 16 << 20
SECONDS = 5.0
STEPS = 80
FILE_SIZE_MAX_BYTES = 60_000
BLOCKS = 7
"""Place in an Attributes tuple."""

Files = dict[bytes, bytes]


def files_of(file_system: FileSystem) -> Files:
    found = {}
    for name, _, _ in file_system.readdir(ROOT_INODE, 0, 1000, False):
        if name not in (b".", b".."):
            node = file_system.lookup(ROOT_INODE, name)[0]
            found[name] = file_system.read(node, 0, FILE_SIZE_MAX_BYTES + 1)
            file_system.forget(node, 1)
    return found


class FileHistory:
    """A recorded run of file operations, and the content of all files after each."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.recorder = Storage.open_recorder(Storage.open_memory(POOL_SIZE_BYTES))
        Store.format(self.recorder, metadata_copies=1, uuid=self.random.randbytes(16))
        self.store = Store(self.recorder, background=False)
        volume_id = self.store.volume_create("main")
        FileSystem.initialize(self.store, volume_id, uid=0, gid=0)
        self.file_system = FileSystem(self.store, volume_id)
        self.volume_id = volume_id
        self.compressed = seed % 2 == 0
        if self.compressed:
            self.file_system.set_compression(volume_id, *self.random.choice([(1, 0), (2, 3)]))
        self.files: Files = {}
        self.store.checkpoint()
        self.states: list[Files] = [{}]
        self.steps: list[tuple[int, int, int]] = []
        """Events before, events after, the newest durable state after."""
        self.start = self.event_count()
        durable = 0
        for index in range(1, STEPS + 1):
            before = self.event_count()
            durable = index if self.step() else durable
            self.states.append(dict(self.files))
            self.steps.append((before, self.event_count(), durable))
        self.file_system.release_all()
        self.store.abandon()
        self.events = self.recorder.events()
        self.recorder.close()

    def event_count(self) -> int:
        _, writes, flushes = self.recorder.counts()
        return writes + flushes

    def step(self) -> bool:
        """One operation; True when everything is durable after it."""
        kind = self.random.choices(
            ["write", "truncate", "create", "unlink", "rename", "snapshot", "fsync", "checkpoint", "copy", "punch"],
            [40, 6, 5, 2, 2, 3, 10, 3, 8, 4],
        )[0]
        if kind == "checkpoint":
            self.store.checkpoint()
            return True
        if kind == "snapshot":
            self.store.snapshot(self.volume_id, f"s{self.event_count()}-{self.random.random()}", sync=False)
            return False
        if kind == "create" or not self.files:
            name = b"file%d" % self.random.randrange(6)
            if name not in self.files:
                node = self.file_system.create(ROOT_INODE, name, stat.S_IFREG | 0o600, 0, 0)[0]
                self.file_system.forget(node, 1)
                self.files[name] = b""
            return False
        name = self.random.choice(sorted(self.files))
        if kind == "unlink":
            self.file_system.unlink(ROOT_INODE, name)
            del self.files[name]
            return False
        if kind == "rename":
            new_name = b"file%d" % self.random.randrange(6)
            self.file_system.rename(ROOT_INODE, name, ROOT_INODE, new_name, 0)
            self.files[new_name] = self.files.pop(name)
            return False
        node = self.file_system.lookup(ROOT_INODE, name)[0]
        if kind == "write":
            self.write(node, name)
        elif kind == "copy":
            self.copy(node, name)
        elif kind == "punch":
            first, last = sorted(self.random.randrange(len(self.files[name]) // 4096 + 1) for _ in range(2))
            if first < last:
                self.file_system.allocate(node, 3, first * 4096, (last - first) * 4096)
                zeros = bytes((last - first) * 4096)
                self.files[name] = self.files[name][: first * 4096] + zeros + self.files[name][last * 4096 :]
        elif kind == "truncate":
            size = min(self.random.randrange(len(self.files[name]) + 5000), FILE_SIZE_MAX_BYTES)
            self.file_system.setattr(node, size=size)
            self.files[name] = self.files[name][:size].ljust(size, b"\0")
        else:
            self.file_system.fsync(node)
        self.file_system.forget(node, 1)
        return kind == "fsync"

    def write(self, node: int, name: bytes) -> None:
        old = self.files[name]
        offset = self.random.choice([0, len(old), self.random.randrange(len(old) + 6000)])
        length = self.random.choice([1, 100, 4096, self.random.randrange(1, 9000)])
        if self.compressed and self.random.random() < 0.5:
            length = self.random.choice([16384, 20000, 40960, 50000])
        offset = min(offset, FILE_SIZE_MAX_BYTES - length)
        data = self.random.randbytes(length)
        if self.compressed and self.random.random() < 0.8:
            data = (data[:100] * length)[:length]
        assert self.file_system.write(node, offset, data) == length
        self.files[name] = old[:offset].ljust(offset, b"\0") + data + old[offset + length :]

    def copy(self, node: int, name: bytes) -> None:
        """The whole of a file over a shorter one: where there are extents, all of it is shared in one transaction."""
        target_name = self.random.choice(sorted(self.files))
        longer = len(self.files[name]) >= len(self.files[target_name])
        if target_name == name or not longer or self.file_system.getattr(node)[BLOCKS] < 8:
            return
        target = self.file_system.lookup(ROOT_INODE, target_name)[0]
        assert self.file_system.copy_range(node, 0, target, 0, 1 << 30) == len(self.files[name])
        self.file_system.forget(target, 1)
        self.files[target_name] = self.files[name]

    def possible(self, cut: int) -> list[Files]:
        durable = max((durable for _, after, durable in self.steps if after <= cut), default=0)
        begun = sum(before <= cut for before, _, _ in self.steps)
        return self.states[durable : begun + 1]


def visit(history: FileHistory, medium: Medium, cut: int, chance: random.Random) -> None:
    medium.advance(cut)
    storage = medium.image(chance)
    with Store(storage, background=False) as store:
        volume_id = store.volume_find("main").id
        file_system = FileSystem(store, volume_id)
        found = files_of(file_system)
        possible = history.possible(cut)
        assert found in possible, [
            {name: (len(found.get(name, b"")), len(state.get(name, b""))) for name in found.keys() | state.keys()}
            for state in possible
        ]
        assert store.check(read_data=True) == []
        assert file_system.check(volume_id) == []
        file_system.release_all()
    storage.close()


def test_files_after_power_failure() -> None:
    deadline = time.monotonic() + SECONDS
    given = os.environ.get("COWFS_SEED")
    visited = 0
    for seed in [int(given)] if given else range(1, 1000):
        history = FileHistory(seed)
        medium = Medium(bytes(POOL_SIZE_BYTES), history.events)
        chance = random.Random(seed)
        for cut in range(history.start, len(history.events) + 1):
            try:
                visit(history, medium, cut, chance)
            except Exception as error:
                error.add_note(f"COWFS_SEED={seed}, after event {cut} of {len(history.events)}")
                raise
            visited += 1
            if time.monotonic() > deadline:
                break
        if time.monotonic() > deadline:
            break
    print(f"{visited} states")
    assert visited > 0
