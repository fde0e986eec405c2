"""Views: snapshots, other volumes, rollback, and the node ids that stop meaning anything."""

import errno
import random
import stat

from cowfs._native import ROOT_INODE, VIEW_SHIFT, FileSystem
from tests.unit.filesystem_pool import NODE, Pool, fails, held_nodes
from tests.unit.filesystem_pool import pool as pool


def test_snapshot_views(pool: Pool) -> None:
    node = pool.create(b"f", b"old")
    snapshot = pool.store.snapshot(pool.volume_id, "s", sync=False)
    pool.file_system.write(node, 0, b"new")
    root = pool.file_system.view_of_snapshot(snapshot.id)
    assert root >> VIEW_SHIFT != 0
    assert pool.file_system.view_of_snapshot(snapshot.id) == root
    old = pool.file_system.lookup(root, b"f")[NODE]
    assert old & ((1 << VIEW_SHIFT) - 1) == node
    assert (pool.content(old), pool.content(node)) == (b"old", b"new")
    assert pool.file_system.is_read_only_node(old)
    assert not pool.file_system.is_read_only_node(node)
    assert pool.file_system.lookup(root, b"..")[NODE] == root
    assert pool.file_system.path(old) == b"/f"
    pool.file_system.fsync(old)


def test_snapshots_refuse_changes(pool: Pool) -> None:
    pool.create(b"f", b"old")
    pool.mkdir(b"d")
    snapshot = pool.store.snapshot(pool.volume_id, "s", sync=False)
    file_system = pool.file_system
    root = file_system.view_of_snapshot(snapshot.id)
    node = file_system.lookup(root, b"f")[NODE]
    for call in (
        lambda: pool.create(b"g", parent=root),
        lambda: file_system.link(node, root, b"g"),
        lambda: file_system.unlink(root, b"f"),
        lambda: file_system.rmdir(root, b"d"),
        lambda: file_system.rename(root, b"f", root, b"g", 0),
        lambda: file_system.setattr(node, mode=0),
        lambda: file_system.setattr(node, size=0),
        lambda: file_system.write(node, 0, b"x"),
        lambda: file_system.setxattr(node, b"user.x", b""),
        lambda: file_system.removexattr(node, b"user.x"),
    ):
        with fails(errno.EROFS):
            call()


def test_links_and_renames_between_views(pool: Pool) -> None:
    node = pool.create(b"f", b"old")
    snapshot = pool.store.snapshot(pool.volume_id, "s", sync=False)
    root = pool.file_system.view_of_snapshot(snapshot.id)
    with fails(errno.EXDEV):
        pool.file_system.link(node, root, b"g")
    with fails(errno.EXDEV):
        pool.file_system.rename(root, b"f", ROOT_INODE, b"g", 0)


def test_deleted_snapshots_are_stale(pool: Pool) -> None:
    pool.create(b"f", b"old")
    snapshot = pool.store.snapshot(pool.volume_id, "s", sync=False)
    root = pool.file_system.view_of_snapshot(snapshot.id)
    node = pool.file_system.lookup(root, b"f")[NODE]
    pool.store.snapshot_delete(snapshot.id)
    # Before and after the file system is told.
    with fails(errno.ESTALE):
        pool.file_system.read(node, 0, 10)
    pool.file_system.forget_snapshot(snapshot.id)
    assert pool.file_system.is_stale(node)
    assert pool.file_system.is_read_only_node(node)
    with fails(errno.ESTALE):
        pool.file_system.read(node, 0, 10)
    with fails(errno.ESTALE):
        pool.file_system.fsync(node)
    with fails(errno.ENOENT):
        pool.file_system.view_of_snapshot(snapshot.id)
    assert pool.file_system.lookup_count(node) == 1
    pool.file_system.forget(node, 1)
    assert pool.file_system.is_stale(node)


def test_rollback(pool: Pool) -> None:
    node, other = pool.create(b"f", b"old"), pool.create(b"later gone")
    snapshot = pool.store.snapshot(pool.volume_id, "s", sync=False)
    newer = pool.create(b"g", b"newer")
    pool.file_system.write(node, 0, b"new")
    pool.file_system.forget(other, 1)
    pool.store.rollback(pool.volume_id, snapshot.id, "guard")
    # The moment before the file system is told: nothing meant for the old tree reaches the new one.
    for call in (
        lambda: pool.file_system.write(node, 0, b"lost"),
        lambda: pool.file_system.read(node, 0, 10),
        lambda: pool.create(b"h"),
    ):
        with fails(errno.ESTALE):
            call()
    opened, view = pool.file_system.rolled_back(pool.volume_id)
    assert opened == [] and sorted(held_nodes(pool.file_system, view)) == sorted([node, newer])
    for stale in (node, newer, other):
        assert pool.file_system.is_stale(stale)
        with fails(errno.ESTALE):
            pool.file_system.getattr(stale)
    assert not pool.file_system.is_stale(ROOT_INODE)
    assert pool.names() == [b"f", b"later gone"]
    again = pool.file_system.lookup(ROOT_INODE, b"f")[NODE]
    assert again not in (node, ROOT_INODE)
    assert pool.content(again) == b"old"
    assert pool.file_system.lookup(again, b".")[NODE] == again
    # A directory of the new view is below node 1 too.
    directory = pool.mkdir(b"d")
    assert pool.file_system.parent(directory) == ROOT_INODE
    assert pool.file_system.lookup(directory, b"..")[NODE] == ROOT_INODE
    pool.file_system.forget(node, 1)
    pool.file_system.forget(newer, 1)
    guard = pool.store.snapshot_find(pool.volume_id, "guard")
    root = pool.file_system.view_of_snapshot(guard.id)
    assert pool.content(pool.file_system.lookup(root, b"g")[NODE]) == b"newer"


def test_what_is_found_in_steps_is_complete_whatever_is_forgotten_meanwhile(pool: Pool) -> None:
    """No step looks at more than its part, and what is held all the time is found while the table shrinks and grows."""
    directory = pool.mkdir(b"d")
    nodes = [pool.create(f"f{number}".encode(), b"", directory) for number in range(20_000)]
    snapshot = pool.store.snapshot(pool.volume_id, "s", sync=False)
    pool.store.rollback(pool.volume_id, snapshot.id, "guard")
    opened, view = pool.file_system.rolled_back(pool.volume_id)
    assert opened == []
    chance = random.Random(5)
    leaving = chance.sample(nodes, 19_000)
    staying = {directory, *nodes}.difference(leaving)
    found: set[int] = set()
    cursor = steps = 0
    root = pool.file_system.lookup(ROOT_INODE, b"d")[NODE]
    while True:
        some, cursor = pool.file_system.held_nodes(view, cursor)
        assert len(some) <= 1500
        found.update(some)
        steps += 1
        for node in leaving[-900:]:
            pool.file_system.forget(node, 1)
        del leaving[-900:]
        if steps == 15:
            for number in range(20_000):
                pool.file_system.lookup(root, f"f{number}".encode())
        if cursor == 0:
            break
    assert staying <= found <= {directory, *nodes}
    assert steps > 15


def test_what_is_open_is_known_at_once_after_a_rollback(pool: Pool) -> None:
    nodes = [pool.create(f"f{number}".encode(), b"x") for number in range(100)]
    snapshot = pool.store.snapshot(pool.volume_id, "s", sync=False)
    opened = [nodes[index] for index in (70, 30, 70, 99, 5)]
    handles = [pool.file_system.opened(node) for node in opened]
    assert len(set(handles)) == 5
    for index in (0, 3):
        pool.file_system.closed(opened[index], handles[index])
    assert pool.file_system.open_nodes() == 3
    pool.store.rollback(pool.volume_id, snapshot.id, "guard")
    held, view = pool.file_system.rolled_back(pool.volume_id)
    assert sorted(held) == sorted([nodes[70], nodes[30], nodes[5]])
    assert sorted(held_nodes(pool.file_system, view)) == sorted(nodes)
    for index in (1, 2, 4):
        pool.file_system.closed(opened[index], handles[index])
    pool.file_system.closed(nodes[0], handles[0])  # more than was opened: nothing happens
    assert pool.file_system.open_nodes() == 0


def test_rollback_finishes_the_orphans_of_the_snapshot(pool: Pool) -> None:
    node = pool.create(b"f", b"x" * 100_000)
    pool.file_system.unlink(ROOT_INODE, b"f")
    snapshot = pool.store.snapshot(pool.volume_id, "s", sync=False)
    pool.file_system.forget(node, 1)
    assert pool.orphans() == []
    pool.store.rollback(pool.volume_id, snapshot.id, "guard")
    opened, view = pool.file_system.rolled_back(pool.volume_id)
    assert opened == [] and held_nodes(pool.file_system, view) == []
    assert pool.orphans() == []
    root = pool.file_system.view_of_snapshot(snapshot.id)
    assert pool.names(root) == []


def test_an_unlinked_file_of_the_old_view_leaves_the_new_one_alone(pool: Pool) -> None:
    node = pool.create(b"f", b"x" * 100_000)
    snapshot = pool.store.snapshot(pool.volume_id, "s", sync=False)
    pool.file_system.unlink(ROOT_INODE, b"f")
    pool.store.rollback(pool.volume_id, snapshot.id, "guard")
    pool.file_system.rolled_back(pool.volume_id)
    pool.file_system.forget(node, 1)
    assert pool.content(pool.file_system.lookup(ROOT_INODE, b"f")[NODE]) == b"x" * 100_000


def test_other_volumes(pool: Pool) -> None:
    pool.create(b"f", b"old")
    snapshot = pool.store.snapshot(pool.volume_id, "s", sync=False)
    clone = pool.store.clone(snapshot.id, "clone")
    root = pool.file_system.view_of_volume(clone)
    assert pool.file_system.view_of_volume(clone) == root
    assert pool.file_system.view_of_volume(pool.volume_id) == ROOT_INODE
    node = pool.file_system.lookup(root, b"f")[NODE]
    pool.file_system.write(node, 0, b"clone")
    made = pool.create(b"g", b"in the clone", root)
    assert pool.names() == [b"f"]
    assert pool.names(root) == [b"f", b"g"]
    assert pool.file_system.check(clone) == []
    guard = pool.store.snapshot(clone, "t", sync=False)
    pool.store.rollback(clone, guard.id, "guard")
    opened, view = pool.file_system.rolled_back(clone)
    assert opened == [] and sorted(held_nodes(pool.file_system, view)) == sorted([node, made])
    assert pool.file_system.view_of_volume(clone) != root
    assert pool.file_system.is_stale(root)
    unseen = pool.store.clone(snapshot.id, "unseen")
    opened, view = pool.file_system.rolled_back(unseen)
    assert opened == [] and held_nodes(pool.file_system, view) == []


def test_read_only_mounts(pool: Pool) -> None:
    node = pool.create(b"f", b"old")
    file_system = FileSystem(pool.store, pool.volume_id, read_only=True)
    assert file_system.read(node, 0, 10) == b"old"
    assert file_system.is_read_only_node(node)
    with fails(errno.EROFS):
        file_system.create(ROOT_INODE, b"g", stat.S_IFREG, 0, 0)
    with fails(errno.EROFS):
        file_system.write(node, 0, b"x")
    file_system.fsync(node)


def test_memory_follows_what_is_held(pool: Pool) -> None:
    """Views of snapshots that come and go: numbers are not used again, and stale ones leave nothing behind."""
    pool.create(b"f")
    seen = set()
    for index in range(200):
        snapshot = pool.store.snapshot(pool.volume_id, f"s{index}", sync=False)
        root = pool.file_system.view_of_snapshot(snapshot.id)
        assert root not in seen
        seen.add(root)
        node = pool.file_system.lookup(root, b"f")[NODE]
        pool.store.snapshot_delete(snapshot.id)
        pool.file_system.forget_snapshot(snapshot.id)
        pool.file_system.forget(node, 1)
    assert all(pool.file_system.is_stale(root) for root in seen)
