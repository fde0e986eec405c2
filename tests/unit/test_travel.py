"""Times, versions and differences, over a real store in memory."""

import random
import time
from collections.abc import Iterator
from typing import Any

import pytest

from btree import Storage, Store
from cowfs._native import ROOT_INODE, FileSystem
from cowfs.commands.diff import changed_bytes, split_range
from cowfs.differences import differences
from cowfs.errors import CowfsError
from cowfs.travel import find_reference, format_time_ns, parse_time, snapshot_at
from cowfs.versions import Version, versions
from cowfs.volumes import MountedPool
from tests.unit.filesystem_pool import NODE, SIZE

SECOND_NS = 1_000_000_000
NOW_NS = 1_795_348_805 * SECOND_NS  # 2026-11-22T12:00:05Z


class Fixture:
    """A pool with one volume, files by path, and snapshots by name."""

    def __init__(self) -> None:
        storage = Storage.open_memory(64 << 20)
        Store.format(storage)
        self.store = Store(storage, background=False)
        self.volume_id = self.store.volume_create("main")
        FileSystem.initialize(self.store, self.volume_id, uid=0, gid=0)
        self.filesystem = FileSystem(self.store, self.volume_id)
        self.pool = MountedPool(self.store, self.filesystem, self.store.volume_find("main"), pool_path="memory",
                                mountpoint="/nowhere", read_only=False, log_path="nowhere")

    def node(self, path: str) -> int:
        node = ROOT_INODE
        for name in path.encode().split(b"/"):
            node = self.filesystem.lookup(node, name)[NODE]
        return node

    def parent(self, path: str) -> tuple[int, bytes]:
        above, _slash, name = path.rpartition("/")
        return self.node(above) if above else ROOT_INODE, name.encode()

    def write(self, path: str, content: bytes, offset: int = 0) -> None:
        parent, name = self.parent(path)
        try:
            node = self.node(path)
        except FileNotFoundError:
            node = self.filesystem.create(parent, name, 0o100644, 0, 0)[NODE]
        self.filesystem.write(node, offset, content)

    def mkdir(self, path: str) -> None:
        parent, name = self.parent(path)
        self.filesystem.create(parent, name, 0o040755, 0, 0)

    def unlink(self, path: str) -> None:
        node = self.node(path)
        self.filesystem.unlink(*self.parent(path))
        self.filesystem.forget(node, self.filesystem.lookup_count(node))

    def rename(self, old: str, new: str) -> None:
        self.filesystem.rename(*self.parent(old), *self.parent(new), 0)

    def snapshot(self, name: str) -> int:
        return self.store.snapshot(self.volume_id, name, sync=False).id

    def changes(self, old: str, new: str = "", directory: bytes = b"/", limit: int = 1000) -> list[dict[str, Any]]:
        ids = [self.store.snapshot_find(self.volume_id, name).id if name else self.volume_id for name in (old, new)]
        found: list[dict[str, Any]] = []
        first: int | None = 0
        while first is not None:
            page, first = differences(self.filesystem, ids[0], ids[1], directory=directory, first_inode=first,
                                      limit=limit)
            found += page
        return found

    def versions(self, path: str) -> list[Version]:
        return versions(self.pool, self.volume_id, path.encode())[0]

    def story(self, path: str) -> list[tuple[str | None, str]]:
        return [(version.snapshot.name if version.snapshot else None, version.change["kind"])
                for version in self.versions(path)]


@pytest.fixture
def fixture() -> Iterator[Fixture]:
    fixture = Fixture()
    try:
        yield fixture
        assert fixture.filesystem.check(fixture.volume_id) == []
    finally:
        fixture.store.close()


# ---- times ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2026-11-22T12:00:05Z", 0),
        ("2026-11-22T12:00:05.5Z", 0.5),
        ("2026-11-22T120005.250000Z", 0.25),
        ("2026-11-22 12:00Z", -5),
        ("2026-11-22T13:00:05+01:00", 0),
        ("2026-11-22T13:30:05+0130", 0),
        ("2026-11-22T11:00:05-01", 0),
        ("-5s", -5),
        ("-1h30m", -5400),
        ("-1.5s", -1.5),
        ("-250ms", -0.25),
        ("-2d", -172_800),
        ("-1w", -604_800),
    ],
)
def test_times(text: str, seconds: float) -> None:
    assert parse_time(text, NOW_NS) == NOW_NS + int(seconds * SECOND_NS)


@pytest.mark.parametrize("text", ["", "-", "-5", "5s", "--5s", "-5x", "2026-13-01", "2026-11-22T25:00", "x2026-11-22",
                                  "2026-11-22T12:00:05.Z", "2026-11-22T12:00+99:00", "-5s ", "۲026-11-22", "-٣s"])
def test_no_times(text: str) -> None:
    assert parse_time(text, NOW_NS) is None


def test_times_without_a_zone_are_local(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        assert parse_time("2026-11-22T13:00:05", NOW_NS) == NOW_NS
        assert parse_time("2026-11-22", NOW_NS) == NOW_NS - (13 * 3600 + 5) * SECOND_NS
    finally:
        monkeypatch.undo()
        time.tzset()


def test_extreme_times() -> None:
    assert parse_time("1960-01-01T00:00Z", NOW_NS) == 0
    assert parse_time("-9999999w", NOW_NS) == 0
    assert parse_time("9999-12-31T23:59:59Z", NOW_NS) == (1 << 63) - 1
    assert parse_time(format_time_ns(NOW_NS + 123), 0) == NOW_NS + 123


def test_snapshots_by_time(fixture: Fixture) -> None:
    """Each finds itself, and the one before it a nanosecond earlier; also when others are deleted."""
    store, volume_id = fixture.store, fixture.volume_id
    assert store.snapshot_at(volume_id, (1 << 63) - 1) is None
    ids = [fixture.snapshot(f"s{number}") for number in range(300)]
    left = list(ids)
    chooser = random.Random(7)
    for deleted in (0, 100, 120):
        for one in chooser.sample(left, deleted):
            left.remove(one)
            store.snapshot_delete(one)
        for at, one in enumerate(left):
            created_ns = store.snapshot_get(one).created_ns
            assert store.snapshot_at(volume_id, created_ns) == one
            assert store.snapshot_at(volume_id, created_ns - 1) == (left[at - 1] if at else None)
            assert store.snapshot_before(volume_id, one) == (left[at - 1] if at else None)
        assert store.snapshot_at(volume_id, (1 << 63) - 1) == left[-1]
        assert store.snapshot_at(volume_id, 0) is None


def test_references(fixture: Fixture) -> None:
    one, two = fixture.snapshot("one"), fixture.snapshot("-5s")
    store, volume_id = fixture.store, fixture.volume_id
    assert find_reference(store, volume_id, "one").id == one
    assert find_reference(store, volume_id, "-5s").id == two  # names go before times
    assert find_reference(store, volume_id, f"@{one}").id == one
    assert find_reference(store, volume_id, format_time_ns(store.snapshot_get(one).created_ns)).id == one
    clone_id = store.clone(one, "clone")
    other = store.snapshot(clone_id, "other").id
    assert snapshot_at(store, volume_id, f"@{other}") is not None
    for text in (f"@{other}", "@999999", "2001-01-01", "nothing", "a\0b", "\udc80"):
        with pytest.raises(CowfsError) as caught:
            find_reference(store, volume_id, text)
        assert caught.value.code == "not_found"


# ---- differences ----------------------------------------------------------------------------------------------------


def test_differences(fixture: Fixture) -> None:
    fixture.mkdir("d")
    fixture.mkdir("gone")
    for name in ("same", "small", "d/moved", "gone/inside", "mode", "grown", "shrunk", "rewritten"):
        fixture.write(name, name.encode() * 3000 if name != "small" else b"0123456789")
    fixture.snapshot("a")
    fixture.write("small", b"xx", 4)
    fixture.rename("d/moved", "d/there")
    fixture.unlink("gone/inside")
    fixture.filesystem.rmdir(ROOT_INODE, b"gone")
    fixture.filesystem.setattr(fixture.node("mode"), mode=0o600)
    fixture.write("grown", b"!" * 10, 100_000)
    fixture.filesystem.setattr(fixture.node("shrunk"), size=9000)
    fixture.write("rewritten", b"rewritten" * 3000)
    fixture.write("new", b"new")
    fixture.snapshot("b")
    found = {change["path"]: change for change in fixture.changes("a", "b")}
    kinds = {path: change["kind"] for path, change in found.items()}
    assert kinds.pop("/rewritten") == "metadata"  # the same bytes: its time alone
    assert kinds == {"/small": "modified", "/d/there": "renamed", "/gone/inside": "removed", "/gone": "removed",
                     "/mode": "metadata", "/grown": "modified", "/shrunk": "modified", "/new": "added"}
    assert found["/small"]["ranges"] == [[4, 2]]
    assert found["/d/there"]["old_path"] == "/d/moved" and not found["/d/there"]["content"]
    assert found["/grown"]["ranges"] == [[15_000, 100_010 - 15_000]]
    assert found["/shrunk"]["ranges"] == [[8192, 18_000 - 8192]]  # the last block that is left was cut
    assert found["/gone"]["type"] == "directory" and found["/mode"]["metadata"]
    assert changed_bytes(found["/new"]) == 3
    assert fixture.changes("b") == []
    assert fixture.changes("a", "b", limit=1) == fixture.changes("a", "b")
    assert [change["path"] for change in fixture.changes("a", "b", directory=b"/d")] == ["/d/there"]
    assert [change["path"] for change in fixture.changes("a", "b", directory=b"/small")] == ["/small"]
    back = {change["path"]: change["kind"] for change in fixture.changes("b", "a")}
    assert back["/new"] == "removed" and back["/gone/inside"] == "added" and back["/d/moved"] == "renamed"


def test_hard_links_and_attributes_differ(fixture: Fixture) -> None:
    fixture.write("file", b"content")
    fixture.snapshot("a")
    fixture.filesystem.link(fixture.node("file"), ROOT_INODE, b"second")
    assert [(change["kind"], change["path"]) for change in fixture.changes("a")] == [("added", "/second")]
    fixture.filesystem.setxattr(fixture.node("file"), b"user.a", b"1")
    found = [change for change in fixture.changes("a") if "xattrs" in change]
    assert [(change["kind"], change["path"], change["xattrs"]) for change in found] == [("metadata", "/file", True)]
    fixture.snapshot("b")
    fixture.unlink("file")
    assert [(change["kind"], change["path"]) for change in fixture.changes("b")] == [("removed", "/file")]


def test_ranges_are_those_written(fixture: Fixture) -> None:
    """Random writes to a large file: the ranges are the blocks that a comparison of the bytes finds."""
    chooser = random.Random(11)
    block = 4096
    length = 300 * block
    fixture.write("file", chooser.randbytes(length))
    node = fixture.node("file")
    for round_number in range(8):
        before = fixture.filesystem.read(node, 0, length)
        fixture.snapshot(f"s{round_number}")
        for _ in range(chooser.randrange(1, 30)):
            offset = chooser.randrange(length)
            size = min(chooser.choice([1, 100, 5000, 70_000]), length - offset)
            fixture.write("file", chooser.randbytes(size), offset)
        after = fixture.filesystem.read(node, 0, length)
        expected = {at for at in range(0, length, block) if before[at:at + block] != after[at:at + block]}
        (change,) = fixture.changes(f"s{round_number}")
        got = {at for offset, size in change["ranges"] for at in range(offset, offset + size, block)}
        assert got == expected


def test_a_diff_of_little_reads_little(fixture: Fixture) -> None:
    for number in range(3000):
        fixture.write(f"file-{number}", b"x")
    fixture.snapshot("a")
    fixture.write("file-1500", b"y")
    fixture.snapshot("b")
    fixture.store.checkpoint()
    before = fixture.store.statistics()["nodes_read"]
    assert [change["path"] for change in fixture.changes("a", "b")] == ["/file-1500"]
    assert fixture.store.statistics()["nodes_read"] - before < 50


def test_splitting_ranges() -> None:
    known = {"a", "b", "a..b", "c."}
    assert split_range("a..b", known.__contains__) == ("a", "b")
    assert split_range("a", known.__contains__) == ("a", "")
    assert split_range("a..", known.__contains__) == ("a", "")
    assert split_range("..b", known.__contains__) == ("", "b")
    assert split_range("a..b..b", known.__contains__) == ("a..b", "b")
    assert split_range("c...a", known.__contains__) == ("c.", "a")
    assert split_range("x..y", known.__contains__) == ("x", "y")


# ---- versions -------------------------------------------------------------------------------------------------------


def test_versions_of_a_file(fixture: Fixture) -> None:
    fixture.snapshot("empty")
    fixture.write("f", b"one")
    fixture.snapshot("a")
    fixture.snapshot("a2")
    fixture.write("other", b"x")
    fixture.snapshot("a3")
    fixture.write("f", b"two")
    fixture.snapshot("b")
    fixture.filesystem.setattr(fixture.node("f"), mode=0o600)
    fixture.snapshot("c")
    fixture.unlink("f")
    fixture.snapshot("d")
    fixture.write("g", b"other inode")
    fixture.rename("g", "f")
    fixture.snapshot("e")
    fixture.write("f", b"live")
    assert fixture.story("f") == [("a", "added"), ("b", "modified"), ("c", "metadata"), ("d", "removed"),
                                  ("e", "added"), (None, "modified")]
    assert fixture.story("g") == []
    assert fixture.story("other") == [("a3", "added")]
    fixture.store.snapshot_delete(fixture.store.snapshot_find(fixture.volume_id, "a").id)
    assert fixture.story("f")[0] == ("a2", "added")


def test_versions_of_what_is_replaced_and_moved_above(fixture: Fixture) -> None:
    fixture.mkdir("d")
    fixture.write("d/f", b"1")
    fixture.snapshot("a")
    fixture.write("d/temporary", b"2")
    fixture.rename("d/temporary", "d/f")
    fixture.snapshot("b")
    fixture.rename("d", "moved")
    fixture.snapshot("c")
    assert fixture.story("d/f") == [("a", "added"), ("b", "replaced"), ("c", "removed")]
    assert fixture.story("moved/f") == [("c", "added")]
    assert fixture.story("moved/f/below") == [] == fixture.story("nowhere/at/all")


def test_versions_across_rollbacks(fixture: Fixture) -> None:
    fixture.write("f", b"one")
    first = fixture.snapshot("a")
    fixture.write("f", b"two")
    fixture.snapshot("b")
    fixture.write("f", b"three")
    fixture.store.rollback(fixture.volume_id, first, "guard")
    fixture.filesystem.rolled_back(fixture.volume_id)
    assert fixture.story("f") == [("a", "added"), ("b", "modified"), ("guard", "modified")]
    fixture.snapshot("back")
    fixture.write("f", b"four")
    fixture.snapshot("c")
    assert [name for name, _kind in fixture.story("f")] == ["a", "b", "guard", "c"]


def test_versions_look_only_where_something_changed(fixture: Fixture) -> None:
    """The cost follows the changes near the file: 2,000 snapshots, in each of which other files change."""
    fixture.write("f", b"v0" * 10_000)
    for number in range(400):
        fixture.write(f"filler-{number:04}", b"x" * 300)  # so that the others' items lie in other leaves
    fixture.mkdir("busy")
    changes = 0
    for number in range(2000):
        fixture.write(f"busy/file-{number % 10}", str(number).encode())
        if number % 400 == 200:
            fixture.write("f", f"v{number}".encode(), 8192)
            changes += 1
        fixture.snapshot(f"s{number}")
    found, looks = versions(fixture.pool, fixture.volume_id, b"f")
    assert len(found) == 1 + changes
    assert looks <= 3 * len(found) + 3, f"{looks} looks for {len(found)} versions"


def test_versions_agree_with_looking_everywhere(fixture: Fixture) -> None:
    """Random operations on a few paths, with rollbacks: the same contents as in all snapshots."""
    chooser = random.Random(5)
    paths = ["a", "b", "d/a", "d/b"]
    fixture.mkdir("d")
    ids: list[int] = []
    for number in range(400):
        path = chooser.choice(paths)
        action = chooser.randrange(8)
        try:
            if action < 4:
                fixture.write(path, chooser.randbytes(chooser.choice([3, 700, 9000])), chooser.choice([0, 5000]))
            elif action == 4:
                fixture.unlink(path)
            elif action == 5:
                fixture.rename(path, chooser.choice(paths))
            elif action == 6 and ids and number % 5 == 0:
                fixture.store.rollback(fixture.volume_id, chooser.choice(ids), f"guard-{number}")
                fixture.filesystem.rolled_back(fixture.volume_id)
        except FileNotFoundError:
            continue
        if chooser.random() < 0.7:
            ids.append(fixture.snapshot(f"s{number}"))
        if ids and chooser.random() < 0.1:
            fixture.store.snapshot_delete(ids.pop(chooser.randrange(len(ids))))

    def content(object_id: int, path: str) -> object:
        attributes, _birth = fixture.filesystem.trace(object_id, path.encode())
        if attributes is None:
            return None
        root = fixture.filesystem.view_of_snapshot(object_id)
        node = (root & ~((1 << 40) - 1)) | attributes[NODE]
        return attributes[NODE], fixture.filesystem.read(node, 0, attributes[SIZE])

    snapshots = fixture.store.snapshots(fixture.volume_id)
    for path in paths:
        everywhere = []
        for snapshot in snapshots:
            found = content(snapshot.id, path)
            if found is not None and found not in everywhere:
                everywhere.append(found)
        listed = []
        for version in fixture.versions(path):
            if version.snapshot is not None and version.state.attributes is not None:
                found = content(version.snapshot.id, path)
                if found not in listed:
                    listed.append(found)
        assert listed == everywhere
