"""History through the mount: exact snapshots, browsing them, rollback under a live mount, clones."""

import concurrent.futures
import errno
import os
import pathlib
import random
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from tests.mount.test_posix import fails_with, opened, rename_with_flags
from tests.mount.test_programs import describe, fill
from tools.scratch import MIB, Mount, Pool, run, run_json, wait_until, working_directory


def without_history(root: pathlib.Path) -> dict[str, tuple[object, ...]]:
    """The content of a volume as cp and friends see it."""
    return {name: rest for name, rest in describe(root).items() if name != "."}


def snapshot_names(mount: Mount) -> list[str]:
    return sorted(os.listdir(mount.directory / ".cowfs" / "snapshot"))


# ---- taking ---------------------------------------------------------------------------------------------------------


def test_snapshot_holds_everything_and_stays(mount: Mount) -> None:
    root = mount.directory
    fill(root / "tree", special=False)
    before = without_history(root)
    run("cowfs", "snapshot", root, "first")
    view = mount.snapshot_directory("first")
    assert without_history(view) == before
    run("rm", "-r", root / "tree" / "folder 1", root / "tree" / "large")
    (root / "tree" / "new").write_text("after the snapshot")
    with opened(root / "tree" / "hole", os.O_RDWR) as descriptor:
        os.pwrite(descriptor, b"changed" * 1000, 4096)
    for path in (root / "tree" / "folder 2").rglob("file-*"):
        path.chmod(0o600)
        path.write_bytes(b"overwritten")
        os.setxattr(path, "user.new", b"1")
    assert without_history(view) == before
    assert os.listxattr(next((view / "tree" / "folder 2").rglob("file-*"))) == []
    assert os.getxattr(view / "tree" / "large", "user.origin") == b"made for a test"


def test_each_snapshot_is_exact(mount: Mount) -> None:
    """Every operation that returned before is in it, and none that began after."""
    root = mount.directory
    client = mount.client()
    with opened(root / "counter", os.O_CREAT | os.O_RDWR) as descriptor:
        for number in range(200):
            os.pwrite(descriptor, f"{number:08}".encode() * 512, 0)
            (root / f"file-{number}").touch()
            client.snapshot(f"s{number}", sync=False)
    for number in range(200):
        view = mount.snapshot_directory(f"s{number}")
        assert (view / "counter").read_bytes() == f"{number:08}".encode() * 512
        assert len(os.listdir(view)) == number + 2


def test_exactness_between_threads(mount: Mount) -> None:
    """What one thread was told is done is in the snapshot that another takes afterwards, in order of the writes."""
    root = mount.directory
    client = mount.client()
    done = [0, 0]
    stop = threading.Event()

    def write(writer: int) -> None:
        with opened(root / f"log-{writer}", os.O_CREAT | os.O_WRONLY | os.O_APPEND) as descriptor:
            while not stop.is_set():
                os.write(descriptor, f"{done[writer]:07}\n".encode())
                done[writer] += 1

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        writers = [pool.submit(write, number) for number in range(2)]
        expected = []
        try:
            for number in range(60):
                least = list(done)
                client.snapshot(f"t{number}", sync=number % 10 == 0)
                expected.append((least, [count + 1 for count in done]))
        finally:
            stop.set()
        for writer in writers:
            writer.result(timeout=20)
    for number, (least, most) in enumerate(expected):
        for writer in range(2):
            path = mount.snapshot_directory(f"t{number}") / f"log-{writer}"
            lines = path.read_text().splitlines() if path.exists() else []
            assert least[writer] <= len(lines) <= most[writer]
            assert lines == [f"{line:07}" for line in range(len(lines))]


# In a process of its own: a child that inherits the descriptor would write the pages back by closing it.
WRITE_THROUGH_MAPPINGS = """
import mmap, sys
synced, paths = sys.argv[1] == "True", sys.argv[2:]
files = [open(path, "r+b") for path in paths]
mappings = [mmap.mmap(file.fileno(), 0) for file in files]
__import__("os").unlink(paths[-1])
for mapping in mappings:
    mapping[500_000:500_007] = b"written"
    if synced:
        mapping.flush()
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("synced", [True, False], ids=["after msync", "by the command"])
def test_snapshot_sees_written_mappings(mount: Mount, synced: bool) -> None:
    """What was written through a shared mapping is in the next snapshot after msync, and in any that the command
    takes; of a file that lost the name it was opened by, too."""
    paths = [mount.directory / name for name in ("file", "gone")]
    for path in paths:
        path.write_bytes(bytes(MIB))
    os.link(paths[1], mount.directory / "other")
    with subprocess.Popen(
        [sys.executable, "-c", WRITE_THROUGH_MAPPINGS, str(synced), *paths],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as writer:
        assert writer.stdout is not None and writer.stdin is not None
        assert writer.stdout.readline() == "ready\n"
        mount.client().snapshot("client")
        run("cowfs", "snapshot", mount.directory, "command")
        writer.stdin.close()
        assert writer.wait(timeout=20) == 0
    for name in ("file", "other"):
        assert (mount.snapshot_directory("command") / name).read_bytes()[500_000:500_007] == b"written"
        if synced:
            assert (mount.snapshot_directory("client") / name).read_bytes()[500_000:500_007] == b"written"


def test_snapshot_of_a_database_in_use(mount: Mount) -> None:
    root = mount.directory
    client = mount.client()
    for mode in ("wal", "delete"):
        database = sqlite3.connect(root / f"{mode}.db", isolation_level=None)
        database.execute(f"pragma journal_mode={mode}")
        database.execute("create table t (number integer, content blob)")
        for number in range(60):
            database.execute("begin")
            database.executemany("insert into t values (?, randomblob(300))", [(number,)] * 5)
            if number % 6 == 3:
                client.snapshot(f"{mode}-{number}", sync=False)  # in the middle of a transaction
            database.execute("commit")
        database.close()
    for mode in ("wal", "delete"):
        for number in range(3, 60, 6):
            view = mount.snapshot_directory(f"{mode}-{number}")
            copy = root / "copy"
            copy.mkdir()
            for path in view.glob(f"{mode}.db*"):
                (copy / path.name).write_bytes(path.read_bytes())
            answer = run("sqlite3", copy / f"{mode}.db", "pragma integrity_check; select count(*) from t;").stdout
            assert answer == f"ok\n{number * 5}\n"
            run("rm", "-r", copy)


def test_directories_make_and_remove_snapshots(mount: Mount) -> None:
    root = mount.directory
    (root / "file").write_text("content")
    mount.snapshot_directory("made").mkdir()
    assert snapshot_names(mount) == ["made"]
    (root / "file").write_text("changed")
    assert (mount.snapshot_directory("made") / "file").read_text() == "content"
    with fails_with(errno.EEXIST):
        mount.snapshot_directory("made").mkdir()
    run("cowfs", "snapshot", root, "by command")
    assert snapshot_names(mount) == ["by command", "made"]
    mount.snapshot_directory("made").rmdir()
    assert snapshot_names(mount) == ["by command"]
    with fails_with(errno.ENOENT):
        mount.snapshot_directory("made").stat()
    with fails_with(errno.ENOENT):
        mount.snapshot_directory("made").rmdir()
    mount.snapshot_directory("made").mkdir()
    assert (mount.snapshot_directory("made") / "file").read_text() == "changed"


def test_history_is_hidden_but_there(mount: Mount) -> None:
    root = mount.directory
    (root / "file").touch()
    mount.snapshot_directory("s").mkdir()
    assert os.listdir(root) == ["file"]
    assert run("find", root, "-mindepth", "1").stdout.split() == [str(root / "file")]
    assert stat.S_ISDIR((root / ".cowfs").stat().st_mode)
    assert "snapshot" in os.listdir(root / ".cowfs")
    assert ".cowfs" not in os.listdir(mount.snapshot_directory("s"))
    for attempt in (
        (root / ".cowfs").rmdir,
        lambda: (root / ".cowfs").rename(root / "moved"),
        lambda: (root / ".cowfs" / "file").touch(),
        lambda: (root / ".cowfs" / "snapshot").rmdir(),
        lambda: (root / ".cowfs" / "snapshot" / "file").touch(),
    ):
        with pytest.raises(OSError):
            attempt()
    assert snapshot_names(mount) == ["s"]


def test_snapshots_are_read_only(mount: Mount) -> None:
    root = mount.directory
    (root / "directory").mkdir()
    (root / "file").write_text("content")
    (root / "link").symlink_to("file")
    os.setxattr(root / "file", "user.a", b"1")
    run("cowfs", "snapshot", root, "s")
    view = mount.snapshot_directory("s")
    for attempt in (
        lambda: (view / "new").touch(),
        lambda: (view / "new").mkdir(),
        lambda: (view / "new").symlink_to("x"),
        lambda: os.mkfifo(view / "new"),
        lambda: os.link(view / "file", view / "new"),
        lambda: (view / "file").open("r+"),
        lambda: (view / "file").unlink(),
        lambda: (view / "directory").rmdir(),
        lambda: (view / "file").rename(view / "new"),
        lambda: rename_with_flags(view / "file", view / "directory", 2),
        lambda: (view / "file").chmod(0o600),
        lambda: os.chown(view / "file", 1, 1),
        lambda: os.truncate(view / "file", 0),
        lambda: os.utime(view / "file", ns=(1, 1)),
        lambda: os.setxattr(view / "file", "user.a", b"2"),
        lambda: os.removexattr(view / "file", "user.a"),
    ):
        with fails_with(errno.EROFS):
            attempt()
    with fails_with(errno.EXDEV, errno.EROFS):
        (root / "file").rename(view / "new")
    with fails_with(errno.EXDEV, errno.EROFS):
        os.link(view / "file", root / "linked out of the past")
    assert (view / "file").read_text() == "content"
    assert (view / "link").read_text() == "content"
    assert os.getxattr(view / "file", "user.a") == b"1"


def test_snapshots_are_told_apart(mount: Mount) -> None:
    """Inode and device numbers differ, so that tools which key on them do not take old and new for one file."""
    root = mount.directory
    (root / "file").write_text("old")
    run("cowfs", "snapshot", root, "one")
    (root / "file").write_text("newer")
    run("cowfs", "snapshot", root, "two")
    places = [root, mount.snapshot_directory("one"), mount.snapshot_directory("two")]
    numbers = {((path / "file").stat().st_dev, (path / "file").stat().st_ino) for path in places}
    assert len(numbers) == 3
    assert run("diff", places[0] / "file", places[1] / "file", check=False).returncode == 1
    assert (places[1] / ".." / "two" / "file").read_text() == "newer"
    with working_directory(places[1]):
        assert os.getcwd() == str(places[1])


def test_deleting_some_keeps_the_others(mount: Mount) -> None:
    root = mount.directory
    client = mount.client()
    content = {}
    for number in range(40):
        content[number] = os.urandom(200_000)
        (root / "file").write_bytes(content[number])
        (root / f"small-{number % 5}").write_bytes(content[number][:1000])
        client.snapshot(f"s{number:02}", sync=False)
    for number in range(40):
        if number % 4:
            client.destroy(f"s{number:02}")
    assert snapshot_names(mount) == [f"s{number:02}" for number in range(0, 40, 4)]
    for number in range(0, 40, 4):
        view = mount.snapshot_directory(f"s{number:02}")
        assert (view / "file").read_bytes() == content[number]
        assert (view / f"small-{number % 5}").read_bytes() == content[number][:1000]


def test_space_comes_back(mount: Mount) -> None:
    root = mount.directory
    (root / "file").write_bytes(os.urandom(100 * MIB))
    run("cowfs", "snapshot", root, "s")
    (root / "file").unlink()
    run("cowfs", "sync", root)
    held = os.statvfs(root)
    run("cowfs", "destroy", f"{root}@s")

    def is_back() -> bool:
        now = os.statvfs(root)
        return (now.f_bfree - held.f_bfree) * now.f_frsize > 95 * MIB

    # In the background: within two checkpoints, which come every 15 s when nothing else asks for them.
    wait_until(is_back, "the space is free", timeout_s=40)


def test_a_full_pool_can_be_emptied(new_pool: Callable[..., Pool]) -> None:
    mount = new_pool(size_bytes=256 * MIB).make().mount()
    root = mount.directory
    (root / "kept").write_bytes(os.urandom(MIB))
    run("cowfs", "snapshot", root, "s")
    with fails_with(errno.ENOSPC), open(root / "filler", "wb", buffering=0) as file:
        for _ in range(1000):
            file.write(os.urandom(MIB))
    assert (root / "kept").stat().st_size == MIB
    run("cowfs", "snapshot", root, "full", check=False)
    (root / "filler").unlink()
    run("cowfs", "destroy", f"{root}@full", check=False)
    for _ in range(20):
        run("cowfs", "sync", root)
    (root / "again").write_bytes(os.urandom(50 * MIB))
    assert (root / "again").stat().st_size == 50 * MIB


def test_snapshots_survive_a_remount(mount: Mount) -> None:
    root = mount.directory
    fill(root / "tree", special=False)
    before = without_history(root)
    run("cowfs", "snapshot", root, "one")
    run("cowfs", "snapshot", root, "two", "--no-sync")
    run("rm", "-r", root / "tree")
    mount.unmount()
    again = mount.pool.mount()
    assert snapshot_names(again) == ["one", "two"]
    assert os.listdir(again.directory) == []
    assert without_history(again.snapshot_directory("one")) == before
    assert without_history(again.snapshot_directory("two")) == before


# ---- rollback -------------------------------------------------------------------------------------------------------


def test_rollback_shows_at_once(mount: Mount) -> None:
    """Names, attributes and pages that the kernel keeps are the rolled-back ones from the moment it returns."""
    root = mount.directory
    fill(root / "tree", special=False)
    (root / "changed").write_text("as it was")
    (root / "same size").write_text("0123456789")
    before = without_history(root)
    run("cowfs", "snapshot", root, "good")
    (root / "changed").write_text("damaged and longer")
    (root / "same size").write_text("9876543210")
    (root / "new").write_text("made later")
    (root / "new directory" / "below").mkdir(parents=True)
    run("rm", "-r", root / "tree" / "folder 4")
    (root / "tree" / "large").rename(root / "tree" / "renamed")
    after = without_history(root)  # reads everything, so that the kernel keeps all of it
    with pytest.raises(FileNotFoundError):
        (root / "tree" / "large").stat()  # which the kernel keeps too: there is no such name
    result = run("cowfs", "rollback", f"{root}@good")
    assert without_history(root) == before
    assert after != before
    assert "rollback" in result.stdout + result.stderr, "it says how to undo"


def test_rollback_makes_old_handles_stale(mount: Mount) -> None:
    root = mount.directory
    (root / "file").write_text("first")
    (root / "directory").mkdir()
    run("cowfs", "snapshot", root, "s")
    (root / "file").write_text("second")
    (root / "directory" / "inner").touch()
    with (
        opened(root / "file", os.O_RDWR) as descriptor,
        opened(root / "directory", os.O_RDONLY | os.O_DIRECTORY) as directory,
    ):
        assert os.pread(descriptor, 100, 0) == b"second"
        run("cowfs", "rollback", f"{root}@s")
        with fails_with(errno.ESTALE):
            os.pread(descriptor, 100, 0)
        with fails_with(errno.ESTALE):
            os.pwrite(descriptor, b"late", 0)
        with fails_with(errno.ESTALE):
            os.fsync(descriptor)
        with fails_with(errno.ESTALE):
            os.fstat(descriptor)
        with fails_with(errno.ESTALE, errno.ENOENT):
            os.open("inner", os.O_RDONLY, dir_fd=directory)
        with fails_with(errno.ESTALE, errno.ENOENT):
            os.open("created", os.O_CREAT | os.O_WRONLY, dir_fd=directory)
        assert (root / "file").read_text() == "first"
    assert os.listdir(root / "directory") == []


def test_rollback_waits_for_all_that_is_open(mount: Mount) -> None:
    """Of many files that the kernel knows it forgets most after the rollback has returned, but none that is open."""
    paths = [mount.directory / f"f{number}" for number in range(3000)]
    for path in paths:
        path.write_bytes(b"old")
    run("cowfs", "snapshot", mount.directory, "s")
    chosen = random.Random(7).sample(paths, 40)
    descriptors = [os.open(path, os.O_RDWR) for path in chosen]
    try:
        for descriptor in descriptors:
            os.pwrite(descriptor, b"new", 0)
            assert os.pread(descriptor, 3, 0) == b"new"  # from the kernel's cache the next time
        with mount.client() as client:
            client.rollback("s")
        for descriptor in descriptors:
            with pytest.raises(OSError) as caught:
                os.pread(descriptor, 3, 0)
            assert caught.value.errno == errno.ESTALE
        assert {path.read_bytes() for path in paths} == {b"old"}
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def test_rollback_can_be_undone_and_keeps_newer_snapshots(mount: Mount) -> None:
    root = mount.directory
    states = {}
    for number in range(3):
        (root / "file").write_text(f"state {number}")
        (root / f"only in {number}").touch()
        run("cowfs", "snapshot", root, f"s{number}")
        states[number] = without_history(root)
    (root / "file").write_text("latest")
    latest = without_history(root)
    known = set(snapshot_names(mount))
    run("cowfs", "rollback", f"{root}@s0")
    assert without_history(root) == states[0]
    (guard,) = set(snapshot_names(mount)) - known
    assert without_history(mount.snapshot_directory(guard)) == latest
    for number in range(3):
        assert without_history(mount.snapshot_directory(f"s{number}")) == states[number]
    run("cowfs", "rollback", f"{root}@{guard}")
    assert without_history(root) == latest
    run("cowfs", "rollback", f"{root}@s2")
    assert without_history(root) == states[2]
    mount.unmount()
    again = mount.pool.mount()
    assert without_history(again.directory) == states[2]
    assert known <= set(snapshot_names(again))


def test_rollback_under_load(mount: Mount) -> None:
    """Writers meet ESTALE or their new files are gone; the mount goes on, and what is there afterwards is sound."""
    root = mount.directory
    client = mount.client()
    (root / "base").write_text("base")
    client.snapshot("base")
    stop = threading.Event()
    unexpected: list[BaseException] = []

    def write(writer: int) -> None:
        number = 0
        while not stop.is_set():
            try:
                with open(root / f"file-{writer}-{number % 50}", "wb") as file:
                    file.write(os.urandom(10_000))
                    file.flush()
                    if number % 20 == 0:
                        os.fsync(file.fileno())
                os.rename(root / f"file-{writer}-{number % 50}", root / f"renamed-{writer}")
            except OSError as error:
                if error.errno not in (errno.ESTALE, errno.ENOENT):
                    unexpected.append(error)
                    return
            number += 1

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        writers = [pool.submit(write, number) for number in range(2)]
        try:
            for _ in range(10):
                client.rollback("base")
                assert (root / "base").read_text() == "base"
        finally:
            stop.set()
        for writer in writers:
            writer.result(timeout=20)
    assert not unexpected
    client.rollback("base")
    assert os.listdir(root) == ["base"]


def test_rollback_keeps_the_root_usable_as_working_directory(mount: Mount) -> None:
    root = mount.directory
    (root / "a").touch()
    run("cowfs", "snapshot", root, "s")
    (root / "b").touch()
    with working_directory(root):
        assert sorted(os.listdir(".")) == ["a", "b"]
        run("cowfs", "rollback", f"{root}@s")
        assert os.listdir(".") == ["a"]
        pathlib.Path("c").write_text("new")
    assert (root / "c").read_text() == "new"


# ---- clones ---------------------------------------------------------------------------------------------------------


def test_clone_is_writable_and_apart(mount: Mount) -> None:
    root = mount.directory
    fill(root / "tree", special=False)
    before = without_history(root)
    run("cowfs", "snapshot", root, "s")
    run("rm", "-r", root / "tree")
    run("cowfs", "clone", f"{root}@s", "copy")
    mount.unmount()
    copy = mount.pool.mount("-o", "volume=copy")
    assert without_history(copy.directory) == before
    (copy.directory / "tree" / "large").write_text("changed in the copy")
    (copy.directory / "own").touch()
    copy.unmount()
    origin = mount.pool.mount()
    assert os.listdir(origin.directory) == []
    assert without_history(origin.snapshot_directory("s")) == before
    run("cowfs", "destroy", f"{origin.directory}@s")
    origin.unmount()
    copy = mount.pool.mount("-o", "volume=copy")
    assert (copy.directory / "tree" / "large").read_text() == "changed in the copy"
    changed = without_history(copy.directory)
    assert {name for name in before if before[name] == changed.get(name)} >= {
        name for name in before if "file-" in name
    }


# ---- the commands' output -------------------------------------------------------------------------------------------


def test_listing(mount: Mount) -> None:
    root = mount.directory
    assert run("cowfs", "list", "-H", root).stdout == ""
    for name in ("a", "b", "c"):
        run("cowfs", "snapshot", root, name)
    rows = [line.split("\t") for line in run("cowfs", "list", "-H", "-p", root).stdout.splitlines()]
    assert [row[0].rsplit("@")[-1] for row in rows] == ["a", "b", "c"]
    assert [entry["name"] for entry in run_json("cowfs", "list", root)] == ["a", "b", "c"]
    assert [entry["name"] for entry in mount.client().list()] == ["a", "b", "c"]


def test_a_snapshot_gets_a_name_by_itself(mount: Mount) -> None:
    run("cowfs", "snapshot", mount.directory)
    first = mount.client().snapshot()
    assert len(snapshot_names(mount)) == 2
    assert first["name"] in snapshot_names(mount)


def test_held_snapshots_stay(mount: Mount) -> None:
    root = mount.directory
    run("cowfs", "snapshot", root, "s")
    run("cowfs", "hold", "keep", f"{root}@s")
    refused = run("cowfs", "destroy", f"{root}@s", check=False)
    assert refused.returncode != 0
    assert "hold" in refused.stderr or "held" in refused.stderr
    with fails_with(errno.EBUSY):
        mount.snapshot_directory("s").rmdir()
    assert snapshot_names(mount) == ["s"]
    run("cowfs", "release", "keep", f"{root}@s")
    run("cowfs", "destroy", f"{root}@s")
    assert snapshot_names(mount) == []


def test_df_and_status(mount: Mount) -> None:
    root = mount.directory
    client = mount.client()
    (root / "file").write_bytes(os.urandom(20 * MIB))
    run("cowfs", "sync", root)
    seen: list[tuple[dict[str, Any], os.statvfs_result]] = []

    def is_quiet() -> bool:
        """Figures of one moment: no checkpoint came between the two ways of asking."""
        before, space, after = client.df(), os.statvfs(root), client.df()
        seen.append((before, space))
        return before == after

    wait_until(is_quiet, "df stays the same")
    figures, space = seen[-1]
    assert figures["size_bytes"] == mount.pool.size_bytes
    assert space.f_blocks * space.f_frsize == figures["size_bytes"] - figures["reserved_bytes"]
    assert space.f_bfree * space.f_frsize == figures["free_bytes"] + figures["pending_bytes"]
    assert space.f_bavail * space.f_frsize == figures["available_bytes"]
    assert 20 * MIB < figures["used_bytes"] < 40 * MIB
    printed = run_json("cowfs", "df", root)
    assert (printed["pool"], printed["mountpoint"]) == (str(mount.pool.path), str(root))
    row = run("cowfs", "df", "-H", "-p", root).stdout.rstrip("\n").split("\t")
    assert row[0] == str(mount.pool.size_bytes)
    assert row[5:] == [str(figures["reserved_bytes"]), str(mount.pool.path), str(root)]

    with opened(root / "file", os.O_RDONLY):
        # The kernel tells the daemon of a file that is closed a little later.
        wait_until(lambda: client.status()["open_files"] == 1, "one file is open")
        state = run_json("cowfs", "status", root)
    assert (state["pool"], state["mountpoint"]) == (str(mount.pool.path), str(root))
    assert (state["volume"], [volume["name"] for volume in state["volumes"]]) == ("main", ["main"])
    assert state["pid"] == mount.daemon_pid()
    assert (state["read_only"], state["failure"]) == (False, None)
    fields = dict(line.split("\t") for line in run("cowfs", "status", "-H", root).stdout.splitlines())
    assert fields["pool"] == str(mount.pool.path)
    assert (fields["volume"], fields["state"]) == ("main", "writable")
    assert fields["daemon"] == str(mount.daemon_pid())


def test_help_is_quick_and_complete() -> None:
    text = run("cowfs", "--help").stdout
    for verb in (
        "snapshot",
        "list",
        "rollback",
        "clone",
        "destroy",
        "hold",
        "release",
        "df",
        "status",
        "sync",
        "mount",
        "umount",
    ):
        assert verb in text
        assert run("cowfs", verb, "--help").stdout
    for name in ("mkfs.cowfs", "mount.cowfs", "fsck.cowfs"):
        assert run(name, "--help").stdout
