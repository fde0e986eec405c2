"""fsck.cowfs on broken pools: it finds what is wrong, repairs it, finds nothing the second time, and takes nothing away
that could be read."""

import json
import pathlib
import shutil
import stat

import pytest

from btree import Storage, Store
from cowfs._native import ROOT_INODE, FileSystem
from cowfs.commands import fsck
from tests.unit.filesystem_pool import BLOCK, MODE, NODE, pattern
from tools.break_pool import KINDS, break_pool

POOL_SIZE_BYTES = 16 << 20
# A file that had extents behind its end becomes longer: nothing tells how long it was.
GROWS = {"size", "block-borrowed-unshared"}
# The damage itself takes content away.
LOSES = {"dangling-entry", "inline-bytes-missing", "size", "doubled-block", "block-borrowed-unshared"}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("pools") / "sound"
    with open(path, "wb") as file:
        file.truncate(POOL_SIZE_BYTES)
    storage = Storage.open_file(path)
    Store.format(storage)
    with Store(storage, background=False) as store:
        volume_id = store.volume_create("main")
        FileSystem.initialize(store, volume_id, uid=0, gid=0)
        files = FileSystem(store, volume_id)
        populate(files)
        for number in range(3):
            store.snapshot(volume_id, f"s{number}", sync=False)
            node = files.lookup(ROOT_INODE, b"f1")[NODE]
            files.write(node, 0, pattern(3 * BLOCK, number))
            # Of one extent a snapshot then has a part alone, and shares the others with what is newer.
            node = files.lookup(ROOT_INODE, b"long")[NODE]
            files.write(node, (3 + 5 * number) * BLOCK, pattern(2 * BLOCK, 30 + number))
            store.checkpoint()
        # Trees of which no node is shared with a snapshot: whatever is patched there concerns the volume alone.
        folder = files.lookup(ROOT_INODE, b"folder")[NODE]
        for name in (b"late", b"later"):
            node = files.create(folder, name, stat.S_IFREG | 0o644, 0, 0)[NODE]
            files.write(node, 0, pattern(4 * BLOCK, len(name)))
        files.release_all()
        for _ in range(2):
            store.checkpoint()
    return path


def populate(files: FileSystem) -> None:
    folder = files.create(ROOT_INODE, b"folder", stat.S_IFDIR | 0o755, 0, 0)[NODE]
    for number in range(5):
        for parent in (ROOT_INODE, folder):
            node = files.create(parent, b"f%d" % number, stat.S_IFREG | 0o644, 0, 0)[NODE]
            files.write(node, 0, pattern(number * 5000 + 10, number))
            files.setxattr(node, b"user.long", pattern(1500, number))
            files.setxattr(node, b"user.small", b"value")
    files.link(node, ROOT_INODE, b"second name")
    files.create(ROOT_INODE, b"symlink", stat.S_IFLNK | 0o777, 0, 0, 0, b"folder/f1")
    shared = files.create(ROOT_INODE, b"shared", stat.S_IFREG | 0o644, 0, 0)[NODE]
    files.copy_range(node, 0, shared, 0, 4 * BLOCK)
    files.write(files.create(ROOT_INODE, b"long", stat.S_IFREG | 0o644, 0, 0)[NODE], 0, pattern(20 * BLOCK, 29))


def readable(path: pathlib.Path) -> dict[str, bytes]:
    """Every file that can be read, by tree and path."""
    found: dict[str, bytes] = {}
    try:
        store = Store(Storage.open_file(path, read_only=True), read_only=True)
    except OSError:
        return found
    with store:
        for volume in store.volumes():
            try:
                files = FileSystem(store, volume.id, read_only=True)
                roots = {volume.name: ROOT_INODE} | {
                    snapshot.name: files.view_of_snapshot(snapshot.id) for snapshot in store.snapshots(volume.id)}
            except OSError:
                continue
            for name, root in roots.items():
                read_tree(files, root, name, found, 0)
    return found


def read_tree(files: FileSystem, node: int, path: str, found: dict[str, bytes], depth: int) -> None:
    try:
        entries = files.readdir(node, 0, 1000, False)
    except OSError:
        return
    for name, _cookie, attributes in entries:
        where = f"{path}/{name.decode()}"
        try:
            child = files.lookup(node, name)[NODE]
            if stat.S_ISDIR(attributes[MODE]) and depth < 9:
                read_tree(files, child, where, found, depth + 1)
            elif stat.S_ISLNK(attributes[MODE]):
                found[where] = files.readlink(child)
            elif stat.S_ISREG(attributes[MODE]):
                found[where] = files.read(child, 0, 1 << 20)
        except OSError:
            continue


def check(path: pathlib.Path, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, dict[str, list[str]]]:
    status = fsck.main([str(path), "--json", "--data", *options])
    return status, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("kind", KINDS)
def test_repair(sound: pathlib.Path, tmp_path: pathlib.Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "pool"
    shutil.copy(sound, path)
    assert check(path, capsys)[0] == 0
    whole = readable(path)
    break_pool(str(path), kind)
    before = readable(path)
    image = path.read_bytes()
    status, found = check(path, capsys, "-n")
    assert path.read_bytes() == image
    if kind != "superblock-stale":  # the one before it tells the same, but for the newest checkpoint
        assert status == 4, found
    status, repaired = check(path, capsys, "-y")
    assert status == (0 if kind == "superblock-stale" and not repaired["found"] else 1), repaired
    status, again = check(path, capsys, "--all")
    assert status == 0 and not again["problems"], again
    after = readable(path)
    for where, content in before.items():
        assert after[where].startswith(content) if kind in GROWS else after[where] == content, where
    if kind not in LOSES:
        assert set(whole.values()) - set(after.values()) == set(), "some content is gone"
    run_on(path)
    assert check(path, capsys, "--all")[0] == 0


def run_on(path: pathlib.Path) -> None:
    """The pool works: files come and go, and space adds up."""
    with Store(Storage.open_file(path), background=False) as store:
        files = FileSystem(store, store.volume_find("main").id)
        for number in range(20):
            node = files.create(ROOT_INODE, b"new%d" % number, stat.S_IFREG | 0o644, 0, 0)[NODE]
            files.write(node, 0, pattern(number * 1000, number))
        for number in range(0, 20, 2):
            files.unlink(ROOT_INODE, b"new%d" % number)
        files.release_all()
        for snapshot in store.snapshots(store.volume_find("main").id)[::2]:
            store.snapshot_delete(snapshot.id)
        store.checkpoint()
