"""Every read, write and flush of the storage made to fail, once alone and once for ever after, at the first, the
second, the third … until the workload completes: who must hear of it hears, and nothing that was durable is lost."""

import errno
import random
import stat
from collections.abc import Callable

import pytest

from btree import Storage, Store
from cowfs._native import ROOT_INODE, FileSystem
from tests.unit.filesystem_pool import BLOCK, NODE

POOL_SIZE_BYTES = 16 << 20
KINDS = ("read", "write", "flush")
INDEX_MAX = 2000
"""Far more operations than the workload has."""


class Run:
    """One life of a pool under a workload; what was acknowledged, and what of it as durable."""

    def __init__(self) -> None:
        self.recorder = Storage.open_recorder(Storage.open_memory(POOL_SIZE_BYTES), record=False)
        Store.format(self.recorder, journal_size_bytes=1 << 20)
        with Store(self.recorder, background=False) as store:
            self.volume_id = store.volume_create("main")
            FileSystem.initialize(store, self.volume_id, uid=0, gid=0)
            file_system = FileSystem(store, self.volume_id)
            self.acknowledged = {b"old %d" % number: bytes([number]) * (number * 100) for number in range(100)}
            for name, content in self.acknowledged.items():
                node = file_system.create(ROOT_INODE, name, stat.S_IFREG | 0o644, 0, 0)[NODE]
                file_system.write(node, 0, content)
                file_system.forget(node, 1)
        self.store = Store(self.recorder, background=False)
        self.file_system = FileSystem(self.store, self.volume_id)
        self.in_doubt: set[bytes] = set()
        """Names whose last change failed."""
        self.durable = dict(self.acknowledged)
        self.changed: dict[bytes, set[bytes | None]] = {}
        """What each name has led to since the last commit; None: nothing."""
        self.snapshots: dict[str, dict[bytes, bytes]] = {}
        self.errors: list[int] = []
        self.chance = random.Random(7)

    def attempt(self, name: bytes, content: bytes | None, call: Callable[[], object]) -> bool:
        """One change, after which the name leads to the content. Whether it was acknowledged."""
        self.changed.setdefault(name, {self.durable.get(name)}).add(content)
        try:
            call()
        except OSError as error:
            self.errors.append(error.errno or 0)
            self.in_doubt.add(name)
            return False
        self.in_doubt.discard(name)
        if content is None:
            self.acknowledged.pop(name, None)
        else:
            self.acknowledged[name] = content
        return True

    def write(self, name: bytes, length: int) -> None:
        content = self.chance.randbytes(length)

        def call() -> None:
            node = self.file_system.create(ROOT_INODE, name, stat.S_IFREG | 0o644, 0, 0)[NODE]
            self.changed[name].add(b"")
            try:
                self.file_system.write(node, 0, content)
            finally:
                self.file_system.forget(node, 1)

        self.attempt(name, content, call)

    def unlink(self, name: bytes) -> None:
        if name in self.acknowledged and name not in self.in_doubt:
            self.attempt(name, None, lambda: self.file_system.unlink(ROOT_INODE, name))

    def read(self, name: bytes) -> None:
        """A failed read is an error of that call, never wrong bytes."""
        if name not in self.acknowledged or name in self.in_doubt:
            return
        try:
            node = self.file_system.lookup(ROOT_INODE, name)[NODE]
            try:
                content = self.file_system.read(node, 0, 8 << 20)
            finally:
                self.file_system.forget(node, 1)
        except OSError as error:
            self.errors.append(error.errno or 0)
            return
        assert content == self.acknowledged[name]

    def commit(self, function: Callable[[], object]) -> bool:
        """fsync, a checkpoint: what was acknowledged before is durable when it returns."""
        failed_before = self.store.statistics()["failed_errno"]
        try:
            function()
        except OSError as error:
            self.errors.append(error.errno or 0)
            return False
        assert not failed_before, "it says that what was lost is safe"
        self.durable = dict(self.acknowledged)
        self.changed = {name: {self.durable.get(name), *self.changed[name]} for name in self.in_doubt}
        return True

    def fsync(self) -> bool:
        return self.commit(lambda: self.file_system.fsync(ROOT_INODE))

    def snapshot(self, name: str) -> None:
        before = dict(self.acknowledged)
        taken = False

        def take() -> None:
            nonlocal taken
            self.store.snapshot(self.volume_id, name)
            taken = True

        if self.commit(take) and taken and not self.in_doubt:
            self.snapshots[name] = before

    def work(self) -> None:
        for number in range(12):
            self.write(b"inline %d" % number, 50)
            self.write(b"blocks %d" % number, BLOCK * (1 + number % 3))
            if number % 3 == 0:
                self.fsync()
            if number % 4 == 3:
                self.snapshot(f"s{number}")
            if number % 6 == 5:
                self.commit(self.store.checkpoint)
            self.unlink(b"blocks %d" % (number - 2))
            self.read(b"blocks %d" % (number - 1))
            self.read(b"inline %d" % number)
            self.read(b"old %d" % (number * 7))
            self.unlink(b"old %d" % (number * 7 + 3))
        self.write(b"large", 3 << 20)
        self.read(b"large")
        self.fsync()

    def verify(self) -> None:
        """After the failed life, on a storage that works again."""
        with Store(self.recorder, background=False) as store:
            file_system = FileSystem(store, self.volume_id)
            assert file_system.check(self.volume_id) == []
            found = contents(file_system, ROOT_INODE)
            for name, content in self.durable.items():
                allowed = self.changed.get(name, {content})
                assert found.get(name) in allowed, f"{name!r} is lost"
            for name, content in found.items():
                assert name in self.durable or content in self.changed.get(name, ()), f"{name!r} was never so"
            for snapshot, expected in self.snapshots.items():
                view = file_system.view_of_snapshot(store.snapshot_find(self.volume_id, snapshot).id)
                assert contents(file_system, view) == expected
            store.checkpoint()
            assert store.check(read_data=True) == []


def contents(file_system: FileSystem, root: int) -> dict[bytes, bytes]:
    found = {}
    for name, _, _ in file_system.readdir(root, 0, 10_000, False):
        node = file_system.lookup(root, name)[NODE]
        found[name] = file_system.read(node, 0, 8 << 20)
        file_system.forget(node, 1)
    return found


def operations(kinds: str) -> int:
    run = Run()
    before = run.recorder.counts()
    run.work()
    after = run.recorder.counts()
    run.store.close()
    assert run.errors == []
    return sum(after[index] - before[index] for index, kind in enumerate(KINDS) if kind in kinds)


@pytest.mark.parametrize(
    ("kinds", "error", "forever"),
    [
        ("write", errno.EIO, False),
        ("write", errno.EIO, True),
        ("write", errno.ENOSPC, False),
        ("flush", errno.EIO, False),
        ("flush", errno.EIO, True),
    ],
)
def test_a_failed_write_is_told_and_loses_nothing_durable(kinds: str, error: int, forever: bool) -> None:
    count = operations(kinds)
    assert count > 20 if "write" in kinds else count > 10
    for index in range(count):
        run = Run()
        run.recorder.fail(kinds, index, error, forever=forever)
        run.work()
        assert run.errors, f"nobody heard of the failure of operation {index}"
        assert set(run.errors) <= {errno.EIO, errno.EROFS, errno.ENOSPC}
        assert run.store.statistics()["failed_errno"] == error
        assert not run.fsync()
        assert not run.commit(run.store.checkpoint)
        with pytest.raises(OSError) as caught:
            run.file_system.create(ROOT_INODE, b"after", stat.S_IFREG | 0o644, 0, 0)
        assert caught.value.errno == errno.EROFS
        for name in run.acknowledged:
            if name != b"large":  # of it the store may have had no room to keep
                run.read(name)
        run.store.abandon()
        run.recorder.fail(kinds, -1, 0)
        run.verify()


@pytest.mark.parametrize("forever", [False, True], ids=["once", "for ever"])
def test_a_failed_read_is_an_error_and_loses_nothing_durable(forever: bool) -> None:
    count = operations("read")
    assert count > 20
    for index in range(count):
        run = Run()
        run.recorder.fail("read", index, errno.EIO, forever=forever)
        run.work()
        assert set(run.errors) <= {errno.EIO, errno.EROFS}
        failed = run.store.statistics()["failed_errno"]
        assert failed in (0, errno.EIO)  # a checkpoint that cannot read what it must change stops the store
        run.recorder.fail("read", -1, 0)
        if not failed:
            for name in run.acknowledged:
                run.read(name)
            assert run.fsync()
        run.store.abandon()
        run.verify()


@pytest.mark.parametrize("kinds", KINDS)
def test_opening_fails_cleanly_at_every_operation(kinds: str) -> None:
    """Recovery included: another try finds what the first would have."""
    run = Run()
    run.work()
    run.store.abandon()
    failures = 0
    for index in range(INDEX_MAX):
        before = run.recorder.counts()
        run.recorder.fail(kinds, index, errno.EIO)
        try:
            Store(run.recorder, background=False).abandon()
        except OSError:
            failures += 1
        run.recorder.fail(kinds, -1, 0)
        if run.recorder.counts()[KINDS.index(kinds)] - before[KINDS.index(kinds)] <= index:
            break
    else:
        pytest.fail("opening never came to its end")
    assert failures
    run.verify()


class Descriptions:
    """A pool with the files `kept` and `changed`, and open file descriptions (handles) by which to fsync them."""

    def __init__(self) -> None:
        self.recorder = Storage.open_recorder(Storage.open_memory(POOL_SIZE_BYTES), record=False)
        Store.format(self.recorder, journal_size_bytes=1 << 20)
        self.store = Store(self.recorder, background=False)
        self.volume_id = self.store.volume_create("main")
        FileSystem.initialize(self.store, self.volume_id, uid=0, gid=0)
        self.file_system = FileSystem(self.store, self.volume_id)
        self.kept, self.changed = (self.make(name) for name in (b"kept", b"changed"))
        self.file_system.fsync(ROOT_INODE)

    def make(self, name: bytes) -> int:
        node = self.file_system.create(ROOT_INODE, name, stat.S_IFREG | 0o644, 0, 0)[NODE]
        self.file_system.write(node, 0, b"x" * 3 * BLOCK)
        return node

    def change(self) -> None:
        self.file_system.write(self.changed, BLOCK, b"y" * BLOCK)

    def hears(self, node: int, handle: int) -> bool:
        try:
            self.file_system.fsync(node, handle)
        except OSError as error:
            assert error.errno == errno.EIO
            return True
        return False

    def hears_once(self, node: int, handle: int) -> bool:
        heard = self.hears(node, handle)
        assert not self.hears(node, handle), "it was told before"
        return heard

    def opened(self, node: int) -> tuple[int, int]:
        return node, self.file_system.opened(node)


@pytest.mark.parametrize("kind", ["write", "flush"])
def test_a_loss_is_told_once_to_each_open_file(kind: str) -> None:
    pool = Descriptions()
    before = [pool.opened(node) for node in (pool.changed, pool.changed, pool.kept, ROOT_INODE)]
    silent = pool.opened(pool.changed)
    pool.change()
    pool.recorder.fail(kind, 0, errno.EIO)
    for node, handle in before:
        assert pool.hears_once(node, handle)
    for node in (pool.kept, pool.changed):
        with pytest.raises(OSError) as caught:
            pool.file_system.write(node, 0, b"z")
        assert caught.value.errno == errno.EROFS
    # Whoever opens a file now hears only of what that file has lost; whoever closes one takes nothing from others.
    later = [pool.opened(node) for node in (pool.changed, pool.kept, ROOT_INODE)]
    assert [pool.hears_once(node, handle) for node, handle in later] == [True, False, False]
    for node, handle in later + before:
        pool.file_system.closed(node, handle)
    assert pool.hears_once(*silent)
    assert pool.hears(pool.kept, 0) and pool.hears(pool.kept, 0), "who is nobody is told each time"
    assert pool.hears(pool.changed, 12345678), "a handle that was never given is not remembered"
    pool.store.abandon()


def test_what_is_in_doubt_is_told_wherever_it_is() -> None:
    """Gathered, cut off, written but not flushed: a checkpoint that fails at each of its operations."""
    outcomes = set()
    for kind in ("write", "flush"):
        for index in range(INDEX_MAX):
            pool = Descriptions()
            pool.change()
            created = pool.make(b"created")
            pool.recorder.fail(kind, index, errno.EIO)
            try:
                pool.store.checkpoint()
            except OSError:
                outcomes.add((kind, "failed"))
                assert pool.hears_once(*pool.opened(pool.changed))
                assert pool.hears_once(*pool.opened(created))
                assert pool.hears_once(*pool.opened(ROOT_INODE)), "it has lost an entry"
                assert not pool.hears(*pool.opened(pool.kept))
                pool.store.abandon()
                continue
            outcomes.add((kind, "whole"))
            pool.recorder.fail(kind, -1, 0)
            pool.store.close()
            break
    assert outcomes == {(kind, outcome) for kind in ("write", "flush") for outcome in ("failed", "whole")}


def test_a_lost_rollback_concerns_every_file() -> None:
    pool = Descriptions()
    snapshot = pool.store.snapshot(pool.volume_id, "s")
    pool.store.rollback(pool.volume_id, snapshot.id, "guard")
    pool.file_system.rolled_back(pool.volume_id)
    pool.recorder.fail("write", 0, errno.EIO)
    assert not pool.store.statistics()["failed_errno"]
    with pytest.raises(OSError):
        pool.store.commit()
    node = pool.file_system.lookup(ROOT_INODE, b"kept")[NODE]
    assert pool.hears_once(*pool.opened(node))
    pool.store.abandon()


def test_nothing_lost_nothing_told_to_who_comes_later() -> None:
    """A checkpoint fails after everything was committed: that alone was worth telling."""
    pool = Descriptions()
    pool.change()
    before = pool.opened(pool.changed)
    pool.file_system.fsync(ROOT_INODE)
    pool.recorder.fail("write", 0, errno.EIO)
    with pytest.raises(OSError):
        pool.store.checkpoint()
    assert pool.hears_once(*before)
    assert not pool.hears(*pool.opened(pool.changed))
    pool.store.abandon()
