"""The `.cowfs` tree, asked as the request handlers ask it, over a real store in memory."""

import errno
import os
import stat
from collections.abc import Iterator

import pytest

from btree import Storage, Store
from cowfs._native import FileSystem
from cowfs.history import (
    AT_NODE,
    FIRST_COOKIE,
    SNAPSHOTS_NODE,
    SOCKET_NODE,
    TOP_NODE,
    VERSIONS_NODE,
    VOLUMES_NODE,
    History,
    is_reserved,
    is_virtual,
)
from cowfs.volumes import MountedPool


@pytest.fixture
def pool() -> Iterator[MountedPool]:
    storage = Storage.open_memory(64 << 20)
    Store.format(storage)
    store = Store(storage)
    volume_id = store.volume_create("main")
    FileSystem.initialize(store, volume_id, uid=1234, gid=5678)
    pool = MountedPool(store, FileSystem(store, volume_id), store.volume_find("main"), pool_path="memory",
                       mountpoint="/nowhere", read_only=False, log_path="nowhere")
    pool.socket_path = "/run/cowfs/socket"
    yield pool
    store.close()


@pytest.fixture
def history(pool: MountedPool) -> History:
    return History(pool)


def names(history: History, node: int, *, limit: int = 32) -> list[bytes]:
    """The whole directory, in batches."""
    found: list[bytes] = []
    cookie = 0
    while entries := history.readdir(node, cookie, limit):
        found += [name for name, _cookie, _attributes in entries]
        cookie = entries[-1][1]
        assert cookie >= FIRST_COOKIE
    return found


def fails(number: int) -> "pytest.RaisesContext[OSError]":  # type: ignore[name-defined]
    return pytest.raises(OSError, check=lambda error: error.errno == number)


def test_the_virtual_directories(history: History) -> None:
    top = [b"snapshot", b"volume", b"at", b"versions", b"socket"]
    assert names(history, TOP_NODE) == names(history, TOP_NODE, limit=1) == top
    for node in (TOP_NODE, SNAPSHOTS_NODE, VOLUMES_NODE, AT_NODE, VERSIONS_NODE):
        attributes = history.getattr(node)
        assert attributes[0] == node and is_virtual(node) and attributes[1] == stat.S_IFDIR | 0o755
        assert attributes[3:5] == (1234, 5678)
    assert history.lookup(TOP_NODE, b"snapshot")[0] == SNAPSHOTS_NODE
    assert history.lookup(SNAPSHOTS_NODE, b"..")[0] == TOP_NODE
    assert history.lookup(TOP_NODE, b"..")[0] == 1
    assert history.lookup(TOP_NODE, b"socket")[0] == SOCKET_NODE
    assert history.readlink(SOCKET_NODE) == b"/run/cowfs/socket"
    assert history.getattr(SOCKET_NODE)[6] == len(b"/run/cowfs/socket")
    with fails(errno.EINVAL):
        history.readlink(TOP_NODE)


def test_snapshots_are_made_listed_looked_at_and_deleted(history: History, pool: MountedPool) -> None:
    filesystem = pool.filesystem
    filesystem.create(1, b"file", stat.S_IFREG | 0o600, 0, 0)
    made = history.mkdir(SNAPSHOTS_NODE, b"first")
    filesystem.unlink(1, b"file")
    assert stat.S_ISDIR(made[1]) and filesystem.is_read_only_node(made[0]) and not is_virtual(made[0])
    assert filesystem.lookup(made[0], b"file")[1] == stat.S_IFREG | 0o600
    with fails(errno.EROFS):
        filesystem.create(made[0], b"more", stat.S_IFREG, 0, 0)
    assert history.lookup(SNAPSHOTS_NODE, b"first")[0] == made[0]
    # mkdir and lookup have counted one lookup each.
    assert filesystem.lookup_count(made[0]) == 2
    with fails(errno.EEXIST):
        history.mkdir(SNAPSHOTS_NODE, b"first")
    history.rmdir(SNAPSHOTS_NODE, b"first")
    assert names(history, SNAPSHOTS_NODE) == [] and filesystem.is_stale(made[0])
    for gone in (lambda: history.lookup(SNAPSHOTS_NODE, b"first"), lambda: history.rmdir(SNAPSHOTS_NODE, b"first")):
        with fails(errno.ENOENT):
            gone()


def test_many_snapshots_are_listed_in_batches(history: History, pool: MountedPool) -> None:
    wanted = [pool.take_snapshot(None, None, sync=False)["name"].encode() for _ in range(100)]
    for limit in (1, 7, 100, 1000):
        assert names(history, SNAPSHOTS_NODE, limit=limit) == wanted
    entries = history.readdir(SNAPSHOTS_NODE, 0, 50)
    pool.delete_snapshot(None, wanted[50].decode())
    pool.delete_snapshot(None, wanted[49].decode())
    following = history.readdir(SNAPSHOTS_NODE, entries[-1][1], 1000)
    assert [name for name, _cookie, _attributes in following] == wanted[51:]


def test_volumes(history: History, pool: MountedPool) -> None:
    link = history.lookup(VOLUMES_NODE, b"main")
    assert stat.S_ISLNK(link[1]) and history.readlink(link[0]) == b"../.." and link[6] == 5
    pool.take_snapshot(None, "base", sync=False)
    pool.clone(None, "base", "work")
    assert names(history, VOLUMES_NODE) == names(history, VOLUMES_NODE, limit=1) == [b"main", b"work"]
    root = history.lookup(VOLUMES_NODE, b"work")
    assert stat.S_ISDIR(root[1]) and not pool.filesystem.is_read_only_node(root[0])
    pool.filesystem.create(root[0], b"file", stat.S_IFREG | 0o600, 0, 0)
    assert pool.filesystem.readdir(1, 0, 10, False) == []
    for change in (lambda: history.mkdir(VOLUMES_NODE, b"x"), lambda: history.rmdir(VOLUMES_NODE, b"work"),
                   lambda: history.mkdir(TOP_NODE, b"x"), lambda: history.rmdir(TOP_NODE, b"volume")):
        with fails(errno.EPERM):
            change()


@pytest.mark.parametrize("name", [b"never", b"\xff", b"x" * 256, b"a\nb"])
def test_names_that_are_not_there(history: History, name: bytes) -> None:
    for parent in (SNAPSHOTS_NODE, VOLUMES_NODE):
        with pytest.raises(OSError) as raised:
            history.lookup(parent, name)
        assert raised.value.errno == (errno.ENAMETOOLONG if len(name) > 255 else errno.ENOENT)


def test_names_that_cannot_be_made(history: History) -> None:
    for name, number in ((b"x" * 256, errno.ENAMETOOLONG), (b"\xff", errno.EINVAL), (b"a\nb", errno.EINVAL)):
        with fails(number):
            history.mkdir(SNAPSHOTS_NODE, name)


def test_held_and_read_only(history: History, pool: MountedPool) -> None:
    history.mkdir(SNAPSHOTS_NODE, b"kept")
    pool.change_hold(None, "kept", "tag", add=True)
    with fails(errno.EBUSY):
        history.rmdir(SNAPSHOTS_NODE, b"kept")
    pool.read_only = True
    for change in (lambda: history.mkdir(SNAPSHOTS_NODE, b"x"), lambda: history.rmdir(SNAPSHOTS_NODE, b"kept")):
        with fails(errno.EROFS):
            change()


def test_the_name_is_reserved_in_every_root() -> None:
    assert is_reserved(1, b".cowfs") and is_reserved(5 << 40 | 1, b".cowfs")
    assert not is_reserved(2, b".cowfs") and not is_reserved(1, b"cowfs")
    assert os.fsencode(".cowfs") == b".cowfs"
