"""The namespace: create, link, unlink, rename, readdir, and what POSIX and Linux say about their errors."""

import errno
import stat
import threading

import pytest

from btree import Store
from cowfs._native import ROOT_INODE, FileSystem
from tests.unit.filesystem_pool import (
    ATIME,
    BIRTH,
    CTIME,
    GID,
    MODE,
    MTIME,
    NLINK,
    NODE,
    RDEV,
    SIZE,
    UID,
    Pool,
    fails,
    pattern,
)
from tests.unit.filesystem_pool import pool as pool

COLLIDING = (b"5cbfdf1c605a9f", b"85e2fd0ad1a893")
"""Two names whose XXH3-64 with seed 0 agree in their upper 56 bits (found by a cycle search over 2^28 hashes)."""

KINDS = [stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK]


@pytest.mark.parametrize("kind", KINDS)
def test_all_kinds(pool: Pool, kind: int) -> None:
    target = b"over there" if kind == stat.S_IFLNK else None
    attributes = pool.file_system.create(ROOT_INODE, b"x", kind | 0o640, 12, 34, rdev=0x12345678_0001, target=target)
    assert attributes[MODE] == kind | 0o640
    assert (attributes[UID], attributes[GID]) == (12, 34)
    assert attributes[RDEV] == (0x12345678_0001 if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0)
    assert attributes[NLINK] == (2 if kind == stat.S_IFDIR else 1)
    assert attributes[SIZE] == (10 if target else 0)
    assert attributes[ATIME] == attributes[MTIME] == attributes[CTIME] == attributes[BIRTH] > 10**18
    assert pool.file_system.getattr(attributes[NODE]) == attributes
    assert pool.file_system.lookup(ROOT_INODE, b"x") == attributes
    assert pool.file_system.path(attributes[NODE]) == b"/x"
    if target:
        assert pool.file_system.readlink(attributes[NODE]) == target
    else:
        with fails(errno.EINVAL):
            pool.file_system.readlink(attributes[NODE])


def test_names_that_cannot_be(pool: Pool) -> None:
    for name, number in ((b"", errno.ENOENT), (b"x" * 256, errno.ENAMETOOLONG), (b"a/b", errno.EINVAL)):
        with fails(number):
            pool.create(name)
        with fails(number):
            pool.file_system.lookup(ROOT_INODE, name)
    for name in (b".", b".."):
        with fails(errno.EEXIST):
            pool.create(name)
        with fails(errno.EISDIR):
            pool.file_system.unlink(ROOT_INODE, name)
        with fails(errno.EBUSY):
            pool.file_system.rename(ROOT_INODE, name, ROOT_INODE, b"x", 0)
    with fails(errno.EINVAL):
        pool.file_system.rmdir(ROOT_INODE, b".")
    with fails(errno.ENOTEMPTY):
        pool.file_system.rmdir(ROOT_INODE, b"..")


def test_longest_names(pool: Pool) -> None:
    node = pool.create(b"n" * 255)
    pool.file_system.link(node, pool.mkdir(b"d"), b"m" * 255)
    assert pool.names() == [b"d", b"n" * 255]
    pool.file_system.unlink(ROOT_INODE, b"n" * 255)
    assert pool.file_system.path(node) == b"/d/" + b"m" * 255


@pytest.mark.parametrize("length", [1, 800, 801, 4095])
def test_symlink_targets(pool: Pool, length: int) -> None:
    target = pattern(length).replace(b"\x00", b"0")
    node = pool.file_system.create(ROOT_INODE, b"s", stat.S_IFLNK | 0o777, 0, 0, target=target)[NODE]
    assert pool.file_system.readlink(node) == target
    pool.file_system.unlink(ROOT_INODE, b"s")


def test_symlink_targets_that_cannot_be(pool: Pool) -> None:
    for target, number in ((b"", errno.ENOENT), (b"x" * 4096, errno.ENAMETOOLONG), (b"a\0b", errno.EINVAL)):
        with fails(number):
            pool.file_system.create(ROOT_INODE, b"s", stat.S_IFLNK | 0o777, 0, 0, target=target)


def test_lookup_of_dots(pool: Pool) -> None:
    directory = pool.mkdir(b"d")
    inner = pool.mkdir(b"e", directory)
    assert pool.file_system.lookup(inner, b".")[NODE] == inner
    assert pool.file_system.lookup(inner, b"..")[NODE] == directory
    assert pool.file_system.lookup(directory, b"..")[NODE] == ROOT_INODE
    assert pool.file_system.lookup(ROOT_INODE, b"..")[NODE] == ROOT_INODE
    assert pool.file_system.parent(inner) == directory
    assert pool.file_system.parent(ROOT_INODE) == ROOT_INODE
    assert pool.file_system.path(ROOT_INODE) == b"/"
    node = pool.create(b"f")
    assert pool.file_system.lookup(node, b".")[NODE] == node
    for call in (lambda: pool.file_system.lookup(node, b".."), lambda: pool.file_system.lookup(node, b"x")):
        with fails(errno.ENOTDIR):
            call()


def test_setgid_directories_hand_on_their_group(pool: Pool) -> None:
    directory = pool.file_system.create(ROOT_INODE, b"d", stat.S_IFDIR | 0o2755, 0, 77)[NODE]
    attributes = pool.file_system.create(directory, b"f", stat.S_IFREG | 0o644, 5, 5)
    assert (attributes[GID], attributes[MODE]) == (77, stat.S_IFREG | 0o644)
    attributes = pool.file_system.create(directory, b"e", stat.S_IFDIR | 0o755, 5, 5)
    assert (attributes[GID], attributes[MODE]) == (77, stat.S_IFDIR | 0o2755)


def test_links(pool: Pool) -> None:
    node, directory = pool.create(b"f", b"content"), pool.mkdir(b"d")
    assert pool.file_system.link(node, directory, b"g")[NLINK] == 2
    with fails(errno.EEXIST):
        pool.file_system.link(node, directory, b"g")
    with fails(errno.EPERM):
        pool.file_system.link(directory, ROOT_INODE, b"h")
    with fails(errno.ENOTDIR):
        pool.file_system.link(node, node, b"h")
    pool.file_system.unlink(ROOT_INODE, b"f")
    assert pool.file_system.getattr(node)[NLINK] == 1
    assert pool.file_system.path(node) == b"/d/g"
    assert pool.content(node) == b"content"


def test_removal_errors(pool: Pool) -> None:
    directory = pool.mkdir(b"d")
    pool.create(b"f", parent=directory)
    pool.create(b"g")
    with fails(errno.EISDIR):
        pool.file_system.unlink(ROOT_INODE, b"d")
    with fails(errno.ENOTEMPTY):
        pool.file_system.rmdir(ROOT_INODE, b"d")
    with fails(errno.ENOTDIR):
        pool.file_system.rmdir(ROOT_INODE, b"g")
    with fails(errno.ENOENT):
        pool.file_system.unlink(ROOT_INODE, b"missing")


def test_unlinked_but_open(pool: Pool) -> None:
    before = pool.used_blocks()
    node = pool.create(b"f", pattern(50_000))
    pool.file_system.unlink(ROOT_INODE, b"f")
    assert pool.file_system.getattr(node)[NLINK] == 0
    assert pool.content(node) == pattern(50_000)
    pool.file_system.write(node, 100_000, b"still here")
    assert pool.orphans() == [(node, 1)]
    with fails(errno.ENOENT):
        pool.file_system.path(node)
    with fails(errno.ENOENT):
        pool.file_system.link(node, ROOT_INODE, b"back")
    assert pool.file_system.check(pool.volume_id) == []
    pool.file_system.forget(node, 1)
    with fails(errno.ESTALE):
        pool.file_system.getattr(node)
    assert pool.orphans() == []
    assert pool.used_blocks() <= before + 4


def test_removed_directory_takes_no_new_names(pool: Pool) -> None:
    directory = pool.mkdir(b"d")
    node = pool.create(b"f")
    pool.file_system.rmdir(ROOT_INODE, b"d")
    for call in (
        lambda: pool.create(b"x", parent=directory),
        lambda: pool.file_system.link(node, directory, b"x"),
        lambda: pool.file_system.rename(ROOT_INODE, b"f", directory, b"x", 0),
    ):
        with fails(errno.ENOENT):
            call()
    pool.file_system.forget(directory, 1)


def test_lookup_counts(pool: Pool) -> None:
    node = pool.create(b"f")
    assert pool.file_system.lookup_count(node) == 1
    pool.file_system.lookup(ROOT_INODE, b"f")
    pool.file_system.link(node, ROOT_INODE, b"g")
    assert pool.file_system.lookup_count(node) == 3
    entries = pool.file_system.readdir(ROOT_INODE, 0, 10, True)
    assert len(entries) == 2
    assert pool.file_system.lookup_count(node) == 5
    pool.file_system.readdir(ROOT_INODE, 0, 10, False)
    with fails(errno.EEXIST):
        pool.create(b"f")
    assert pool.file_system.lookup_count(node) == 5
    pool.file_system.forget(node, 4)
    assert pool.file_system.lookup_count(node) == 1
    pool.file_system.forget(node, 100)
    assert pool.file_system.lookup_count(node) == 0
    pool.file_system.forget(node, 1)


def test_lookup_counts_of_many_nodes(pool: Pool) -> None:
    nodes = [pool.create(b"f%d" % index) for index in range(3000)]
    for node in nodes[::2]:
        pool.file_system.forget(node, 1)
    assert [pool.file_system.lookup_count(node) for node in nodes] == [0, 1] * 1500
    for index in range(0, 3000, 5):
        pool.file_system.unlink(ROOT_INODE, b"f%d" % index)
    assert len(pool.orphans()) == 300
    pool.file_system.release_all()
    assert pool.orphans() == []
    assert {pool.file_system.lookup_count(node) for node in nodes} == {0}
    assert len(pool.names()) == 2400


def test_orphans_are_removed_after_a_crash(pool: Pool) -> None:
    node = pool.create(b"f", pattern(500_000))
    kept = pool.create(b"g", pattern(9000))
    pool.file_system.setxattr(node, b"user.x", b"v" * 5000)
    directory = pool.mkdir(b"d")
    pool.file_system.unlink(ROOT_INODE, b"f")
    pool.file_system.rmdir(ROOT_INODE, b"d")
    assert pool.orphans() == [(node, 1), (directory, 1)]
    pool.crash()
    read_only = FileSystem(pool.store, pool.volume_id, read_only=True)
    assert pool.orphans() == [(node, 1), (directory, 1)]
    with fails(errno.EROFS):
        read_only.unlink(ROOT_INODE, b"g")
    pool.mount()
    assert pool.orphans() == []
    with fails(errno.ESTALE):
        pool.file_system.getattr(node)
    assert pool.content(kept) == pattern(9000)


# ---- rename


def tree(pool: Pool) -> dict[str, int]:
    """a/b/c directories, a/f and g files."""
    nodes = {"a": pool.mkdir(b"a")}
    nodes["b"] = pool.mkdir(b"b", nodes["a"])
    nodes["c"] = pool.mkdir(b"c", nodes["b"])
    nodes["f"] = pool.create(b"f", b"f", nodes["a"])
    nodes["g"] = pool.create(b"g", b"g")
    return nodes


def test_rename_moves_directories(pool: Pool) -> None:
    nodes = tree(pool)
    pool.file_system.rename(nodes["a"], b"b", ROOT_INODE, b"moved", 0)
    assert pool.file_system.parent(nodes["b"]) == ROOT_INODE
    assert pool.file_system.path(nodes["c"]) == b"/moved/c"
    assert pool.file_system.getattr(ROOT_INODE)[NLINK] == 4
    assert pool.file_system.getattr(nodes["a"])[NLINK] == 2


def test_rename_into_itself(pool: Pool) -> None:
    nodes = tree(pool)
    for parent in ("a", "b", "c"):
        with fails(errno.EINVAL):
            pool.file_system.rename(ROOT_INODE, b"a", nodes[parent], b"x", 0)
    with fails(errno.EINVAL):
        pool.file_system.rename(ROOT_INODE, b"a", nodes["b"], b"c", 2)
    with fails(errno.EINVAL):
        pool.file_system.rename(nodes["b"], b"c", ROOT_INODE, b"a", 2)
    with fails(errno.ENOTEMPTY):
        pool.file_system.rename(nodes["b"], b"c", ROOT_INODE, b"a", 0)


def test_rename_replaces(pool: Pool) -> None:
    nodes = tree(pool)
    pool.file_system.rename(nodes["a"], b"f", ROOT_INODE, b"g", 0)
    assert pool.content(nodes["f"]) == b"f"
    assert pool.names() == [b"a", b"g"]
    assert pool.file_system.getattr(nodes["g"])[NLINK] == 0
    assert pool.content(nodes["g"]) == b"g"
    pool.file_system.forget(nodes["g"], 1)
    with fails(errno.ESTALE):
        pool.file_system.getattr(nodes["g"])
    empty = pool.mkdir(b"empty")
    pool.file_system.rename(nodes["a"], b"b", ROOT_INODE, b"empty", 0)
    assert pool.file_system.path(nodes["c"]) == b"/empty/c"
    assert pool.file_system.getattr(empty)[NLINK] == 0
    assert pool.file_system.getattr(ROOT_INODE)[NLINK] == 4


def test_rename_removes_what_it_replaces_at_once_when_nobody_holds_it(pool: Pool) -> None:
    nodes = tree(pool)
    pool.file_system.forget(nodes["g"], 1)
    pool.file_system.rename(nodes["a"], b"f", ROOT_INODE, b"g", 0)
    assert pool.orphans() == []


def test_rename_errors(pool: Pool) -> None:
    nodes = tree(pool)
    for old, new, flags, number in (
        (b"a", b"g", 0, errno.ENOTDIR),
        (b"g", b"a", 0, errno.EISDIR),
        (b"g", b"a", 1, errno.EEXIST),
        (b"g", b"missing", 2, errno.ENOENT),
        (b"missing", b"g", 0, errno.ENOENT),
        (b"a", b"b", 3, errno.EINVAL),
        (b"a", b"b", 4, errno.EINVAL),
        (b"a", b"x" * 256, 0, errno.ENAMETOOLONG),
    ):
        with fails(number):
            pool.file_system.rename(ROOT_INODE, old, ROOT_INODE, new, flags)
    with fails(errno.ENOTDIR):
        pool.file_system.rename(ROOT_INODE, b"a", nodes["g"], b"x", 0)
    other = pool.mkdir(b"other")
    with fails(errno.ENOTEMPTY):
        pool.file_system.rename(ROOT_INODE, b"other", ROOT_INODE, b"a", 0)
    assert pool.file_system.getattr(other)[NLINK] == 2


def test_rename_exchange(pool: Pool) -> None:
    nodes = tree(pool)
    pool.file_system.rename(nodes["a"], b"b", ROOT_INODE, b"g", 2)
    assert pool.file_system.path(nodes["b"]) == b"/g"
    assert pool.file_system.path(nodes["g"]) == b"/a/b"
    assert pool.file_system.parent(nodes["b"]) == ROOT_INODE
    assert pool.file_system.getattr(ROOT_INODE)[NLINK] == 4
    assert pool.file_system.getattr(nodes["a"])[NLINK] == 2
    pool.file_system.rename(ROOT_INODE, b"g", ROOT_INODE, b"a", 2)
    assert pool.file_system.path(nodes["b"]) == b"/a"


def test_rename_of_hard_links_to_one_inode_does_nothing(pool: Pool) -> None:
    node = pool.create(b"f")
    pool.file_system.link(node, ROOT_INODE, b"g")
    for flags in (0, 2):
        pool.file_system.rename(ROOT_INODE, b"f", ROOT_INODE, b"g", flags)
        pool.file_system.rename(ROOT_INODE, b"f", ROOT_INODE, b"f", flags)
    assert pool.names() == [b"f", b"g"]
    assert pool.file_system.getattr(node)[NLINK] == 2


# ---- directories


def test_readdir_cookies_stay_valid(pool: Pool) -> None:
    for index in range(500):
        pool.create(b"f%03d" % index)
    entries = pool.file_system.readdir(ROOT_INODE, 0, 10_000, False)
    assert len(entries) == 500
    cookies = [cookie for _, cookie, _ in entries]
    assert cookies == sorted(cookies)
    assert cookies[0] > 2
    assert cookies[-1] < 1 << 63
    # Half of the rest goes, others come: what stays is listed once, from the same cookie on.
    stays = [entry for index, entry in enumerate(entries) if index <= 250 or index % 2]
    for index, (name, _, _) in enumerate(entries):
        if index > 250 and index % 2 == 0:
            pool.file_system.unlink(ROOT_INODE, name)
    for index in range(100):
        pool.create(b"new%d" % index)
    rest = pool.file_system.readdir(ROOT_INODE, cookies[250], 10_000, False)
    assert [entry[:2] for entry in rest if not entry[0].startswith(b"new")] == [entry[:2] for entry in stays[251:]]
    paged, cookie = [], 0
    while page := pool.file_system.readdir(ROOT_INODE, cookie, 7, False):
        assert len(page) <= 7
        paged += page
        cookie = page[-1][1]
    assert sorted(name for name, _, _ in paged) == pool.names()


def test_readdir_errors(pool: Pool) -> None:
    node = pool.create(b"f")
    with fails(errno.ENOTDIR):
        pool.file_system.readdir(node, 0, 10, False)
    assert pool.file_system.readdir(ROOT_INODE, (1 << 63) - 2, 10, False) == []
    with fails(errno.EINVAL):
        pool.file_system.readdir(ROOT_INODE, (1 << 64) - 1, 10, False)
    assert pool.file_system.readdir(ROOT_INODE, 0, 0, True) == []


def test_names_with_the_same_hash(pool: Pool) -> None:
    record = pool.store.get(pool.volume_id, bytes(8) + b"\x01")
    assert record is not None
    pool.store.put(pool.volume_id, bytes(8) + b"\x01", record[:8] + bytes(8))
    pool.mount()
    first, second = (pool.create(name, name) for name in COLLIDING)
    cookies = {name: cookie for name, cookie, _ in pool.file_system.readdir(ROOT_INODE, 0, 10, False)}
    assert cookies[COLLIDING[1]] == cookies[COLLIDING[0]] + 1
    assert pool.file_system.lookup(ROOT_INODE, COLLIDING[1])[NODE] == second
    assert pool.file_system.check(pool.volume_id) == []
    pool.file_system.unlink(ROOT_INODE, COLLIDING[0])
    assert pool.file_system.lookup(ROOT_INODE, COLLIDING[1])[NODE] == second
    with fails(errno.ENOENT):
        pool.file_system.lookup(ROOT_INODE, COLLIDING[0])
    # One takes the other's name while both hashes are the same.
    pool.file_system.rename(ROOT_INODE, COLLIDING[1], ROOT_INODE, COLLIDING[0], 0)
    assert pool.names() == [COLLIDING[0]]
    pool.create(COLLIDING[1])
    pool.file_system.rename(ROOT_INODE, COLLIDING[1], ROOT_INODE, COLLIDING[0], 0)
    assert pool.names() == [COLLIDING[0]]
    pool.create(COLLIDING[1])
    pool.file_system.rename(ROOT_INODE, COLLIDING[1], ROOT_INODE, COLLIDING[0], 2)
    assert pool.content(first) == COLLIDING[0]


# ---- attributes


@pytest.mark.parametrize("time_ns", [0, -1, -(10**18) - 1, 10**18 + 999_999_999, -(1 << 63), (1 << 63) - 1])
def test_times(pool: Pool, time_ns: int) -> None:
    node = pool.create(b"f")
    attributes = pool.file_system.setattr(node, atime_ns=time_ns, mtime_ns=time_ns, ctime_ns=time_ns)
    assert attributes[ATIME : CTIME + 1] == (time_ns,) * 3
    assert pool.file_system.getattr(node) == attributes


def test_setattr_leaves_alone_what_is_not_given(pool: Pool) -> None:
    node = pool.create(b"f", b"x")
    before = pool.file_system.getattr(node)
    assert pool.file_system.setattr(node) == before
    after = pool.file_system.setattr(node, mode=0o100600)
    assert after[MODE] == stat.S_IFREG | 0o600
    assert after[CTIME] >= before[CTIME]
    assert after[UID:CTIME] == before[UID:CTIME]
    with pytest.raises(OverflowError):
        pool.file_system.setattr(node, uid=1 << 32)
    with pytest.raises(OverflowError):
        pool.file_system.setattr(node, size=-2)


def test_directory_times_and_sizes(pool: Pool) -> None:
    directory = pool.mkdir(b"d")
    for change in (
        lambda: pool.create(b"x", parent=directory),
        lambda: pool.file_system.rename(directory, b"x", directory, b"y", 0),
        lambda: pool.file_system.unlink(directory, b"y"),
    ):
        pool.file_system.setattr(directory, mtime_ns=1, ctime_ns=1)
        change()
        attributes = pool.file_system.getattr(directory)
        assert attributes[MTIME] == attributes[CTIME] > 1
    assert pool.file_system.getattr(directory)[SIZE] == 0


def test_nodes_that_never_were(pool: Pool) -> None:
    for node in (0, 2, 1 << 39, 5 << 40 | 1, (1 << 64) - 1):
        with fails(errno.ESTALE):
            pool.file_system.getattr(node)
        with fails(errno.ESTALE):
            pool.file_system.create(node, b"x", stat.S_IFREG | 0o644, 0, 0)
    with pytest.raises(OverflowError):
        pool.file_system.getattr(-1)


# ---- life


def test_initialize_twice(pool: Pool) -> None:
    with fails(errno.EEXIST):
        FileSystem.initialize(pool.store, pool.volume_id, uid=0, gid=0)


def test_an_empty_volume_gets_a_root(pool: Pool) -> None:
    volume_id = pool.store.volume_create("other")
    with fails(errno.ENOENT):
        FileSystem(pool.store, volume_id, read_only=True)
    assert FileSystem(pool.store, volume_id).getattr(ROOT_INODE)[MODE] == stat.S_IFDIR | 0o755
    with fails(errno.ENOENT):
        FileSystem(pool.store, 12345)


def test_items_of_a_newer_version_are_refused(pool: Pool) -> None:
    volume_id = pool.store.volume_create("newer")
    FileSystem.initialize(pool.store, volume_id, uid=0, gid=0)
    record = pool.store.get(volume_id, bytes(8) + b"\x01")
    assert record is not None
    pool.store.put(volume_id, bytes(8) + b"\x01", (3).to_bytes(4, "little") + record[4:])
    with fails(errno.EPROTONOSUPPORT):
        FileSystem(pool.store, volume_id)


def test_a_closed_store(pool: Pool) -> None:
    pool.store.close()
    with pytest.raises(ValueError, match="closed"):
        pool.file_system.getattr(ROOT_INODE)
    with pytest.raises(ValueError, match="closed"):
        pool.file_system.write(ROOT_INODE, 0, b"x")
    pool.store = Store(pool.storage, background=False)
    pool.mount()


def test_two_mounts_of_one_volume_take_different_inode_numbers(pool: Pool) -> None:
    other = FileSystem(pool.store, pool.volume_id)
    nodes = set()
    for index in range(20):
        nodes.add(pool.create(b"a%d" % index))
        nodes.add(other.create(ROOT_INODE, b"b%d" % index, stat.S_IFREG, 0, 0)[NODE])
    assert len(nodes) == 40


def test_many_threads(pool: Pool) -> None:
    """The same few names from several threads: whatever happens, links and counts stay right."""
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for index in range(300):
                name = b"f%d" % ((seed + index * 7) % 5)
                action = (seed + index) % 4
                try:
                    if action == 0:
                        node = pool.create(name, b"content" * (index % 300))
                        pool.file_system.forget(node, 1)
                    elif action == 1:
                        pool.file_system.unlink(ROOT_INODE, name)
                    elif action == 2:
                        pool.file_system.rename(ROOT_INODE, name, ROOT_INODE, b"f%d" % (index % 5), 0)
                    else:
                        node = pool.file_system.lookup(ROOT_INODE, name)[NODE]
                        pool.file_system.write(node, index * 10, b"y" * 2000)
                        pool.file_system.forget(node, 1)
                except OSError as error:
                    # A file that one thread makes and another removes before the first writes to it stays held.
                    if error.errno not in (errno.ENOENT, errno.EEXIST):
                        raise
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    pool.file_system.release_all()
    assert pool.orphans() == []
