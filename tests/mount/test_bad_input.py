"""Bad input: each a clear message, a documented exit code, and nothing lost."""

import errno
import os
import pathlib
import struct
import subprocess
from collections.abc import Callable, Iterator

import pytest
import xxhash

from tests.mount.test_posix import fails_with
from tools.scratch import MIB, Mount, Pool, is_mounted, run

# mount(8)'s exit codes.
MOUNT_USAGE, MOUNT_FAILURE = 1, 32
# cowfs.errors.ExitCode.
USAGE, NOT_FOUND, EXISTS, BUSY, NOT_COWFS, PERMISSION, DEAD = 2, 3, 4, 5, 7, 8, 10
# fsck(8)'s exit codes.
FSCK_UNCORRECTED, FSCK_OPERATIONAL, FSCK_USAGE = 4, 8, 16

SUPERBLOCK_BYTES = 4096
SUPERBLOCK_SLOTS = 16
SUPERBLOCK_MAGIC = b"COWFSPL1"


def fails(name: str, *arguments: object, code: int | set[int], says: str) -> None:
    """The command ends with this exit code, one message on standard error that has these words, and no traceback."""
    result = run(name, *arguments, check=False)
    assert result.returncode in (code if isinstance(code, set) else {code}), (result.returncode, result.stderr)
    assert "Traceback" not in result.stderr
    assert any(word in result.stderr.lower() for word in says.split("|")), result.stderr
    assert len(result.stderr.strip().splitlines()) <= 4, "a message, not a log"


@pytest.fixture
def target(new_pool: Callable[..., Pool]) -> Iterator[tuple[pathlib.Path, pathlib.Path]]:
    """Where a pool could be, and an empty directory to mount it on."""
    pool = new_pool()
    pool.is_sound = False
    directory = pool.folder / "directory"
    directory.mkdir()
    yield pool.path, directory
    assert not is_mounted(directory), "a mount that failed leaves nothing mounted"
    assert not pool.daemons(), "a mount that failed leaves no daemon"


# ---- what is no pool ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["nothing", "text", "zeros", "random", "another file system"])
def test_a_file_that_is_no_pool(target: tuple[pathlib.Path, pathlib.Path], content: str) -> None:
    path, directory = target
    match content:
        case "nothing":
            path.write_bytes(b"")
        case "text":
            path.write_text("some notes\n" * 1000)
        case "zeros":
            path.write_bytes(bytes(16 * MIB))
        case "random":
            path.write_bytes(os.urandom(16 * MIB))
        case "another file system":
            with open(path, "wb") as file:
                file.truncate(256 * MIB)
            run("mkfs.btrfs", "--quiet", path)
    before = path.read_bytes() if content != "another file system" else path.read_bytes()[: 2 * MIB]
    fails("mount.cowfs", path, directory, code=MOUNT_FAILURE, says="not a cowfs pool|no cowfs pool|no pool")
    fails("fsck.cowfs", path, code={FSCK_OPERATIONAL, FSCK_UNCORRECTED}, says="not a cowfs pool|no cowfs pool|no pool")
    after = path.read_bytes() if content != "another file system" else path.read_bytes()[: 2 * MIB]
    assert after == before


@pytest.mark.parametrize("left", [4096, 100_000, MIB, 100 * MIB])
def test_a_truncated_pool(new_pool: Callable[..., Pool], left: int) -> None:
    pool = new_pool(size_bytes=256 * MIB).make()
    pool.is_sound = False
    directory = pool.folder / "directory"
    directory.mkdir()
    os.truncate(pool.path, left)
    fails(
        "mount.cowfs",
        pool.path,
        directory,
        code=MOUNT_FAILURE,
        says="truncated|smaller|shorter|bytes long|missing|damaged",
    )
    assert not is_mounted(directory)


def test_a_pool_of_a_newer_version(new_pool: Callable[..., Pool]) -> None:
    pool = new_pool(size_bytes=256 * MIB).make()
    pool.is_sound = False
    directory = pool.folder / "directory"
    directory.mkdir()
    changed = 0
    with open(pool.path, "r+b") as file:
        for offset in (0, 256 * MIB - SUPERBLOCK_SLOTS * SUPERBLOCK_BYTES):
            for slot in range(SUPERBLOCK_SLOTS):
                file.seek(offset + slot * SUPERBLOCK_BYTES)
                block = bytearray(file.read(SUPERBLOCK_BYTES))
                if block[:8] != SUPERBLOCK_MAGIC:
                    continue
                block[8:12] = struct.pack("<I", 99)
                block[-8:] = struct.pack("<Q", xxhash.xxh3_64_intdigest(bytes(block[:-8])))
                file.seek(offset + slot * SUPERBLOCK_BYTES)
                file.write(block)
                changed += 1
    assert changed
    fails("mount.cowfs", pool.path, directory, code=MOUNT_FAILURE, says="version")
    fails("fsck.cowfs", pool.path, code={FSCK_OPERATIONAL, FSCK_UNCORRECTED}, says="version")


def test_missing_paths(target: tuple[pathlib.Path, pathlib.Path]) -> None:
    path, directory = target
    fails("mount.cowfs", path, directory, code=MOUNT_FAILURE, says="no such file|does not exist")
    fails("fsck.cowfs", path, code=FSCK_OPERATIONAL, says="no such file|does not exist")
    fails("mkfs.cowfs", path, code=NOT_FOUND, says="--size")
    fails("mount.cowfs", code=MOUNT_USAGE, says="usage")
    fails("mkfs.cowfs", code=USAGE, says="usage")
    fails("fsck.cowfs", code=FSCK_USAGE, says="usage")
    fails("cowfs", "no-such-verb", code=USAGE, says="usage|no-such-verb")


def test_the_mountpoint(pool: Pool, tmp_path: pathlib.Path) -> None:
    fails("mount.cowfs", pool.path, tmp_path / "missing", code=MOUNT_FAILURE, says="no such|does not exist")
    (tmp_path / "file").touch()
    fails("mount.cowfs", pool.path, tmp_path / "file", code=MOUNT_USAGE, says="not a directory")
    fails("mount.cowfs", pool.path, tmp_path, "-o", "nonsense=1", code={MOUNT_USAGE, MOUNT_FAILURE}, says="nonsense")
    fails("mount.cowfs", pool.path, tmp_path, "-o", "volume=absent", code=MOUNT_FAILURE, says="absent")
    assert not pool.daemons()


def test_a_pool_that_is_mounted(mount: Mount, tmp_path: pathlib.Path) -> None:
    (mount.directory / "file").write_text("kept")
    path = mount.pool.path
    fails("mount.cowfs", path, tmp_path, code=MOUNT_FAILURE, says="mounted|in use|busy")
    fails("mount.cowfs", path, mount.directory, code=MOUNT_FAILURE, says="mounted|in use|busy")
    fails("fsck.cowfs", path, code=FSCK_OPERATIONAL, says="mounted|in use|busy")
    fails("mkfs.cowfs", "-f", path, "--size", 512 * MIB, code=BUSY, says="mounted|in use|busy")
    assert (mount.directory / "file").read_text() == "kept"


def test_a_mountpoint_that_is_taken(mount: Mount, new_pool: Callable[..., Pool]) -> None:
    other = new_pool("other").make()
    fails("mount.cowfs", other.path, mount.directory, code=MOUNT_FAILURE, says="mounted|in use|busy|mount point")
    assert is_mounted(mount.directory)


def test_umount_refuses_while_in_use(mount: Mount) -> None:
    with open(mount.directory / "file", "w"):
        result = run("cowfs", "umount", mount.directory, check=False)
        assert result.returncode != 0
        assert "busy" in result.stderr.lower() or "in use" in result.stderr.lower()
        assert is_mounted(mount.directory)
    mount.unmount()
    fails(
        "cowfs",
        "umount",
        mount.directory,
        code={NOT_FOUND, NOT_COWFS, MOUNT_FAILURE, 1},
        says="not mounted|not a cowfs|no cowfs",
    )


# ---- mkfs -----------------------------------------------------------------------------------------------------------


def test_mkfs_refuses_what_holds_something(target: tuple[pathlib.Path, pathlib.Path]) -> None:
    path, _ = target
    path.write_text("precious\n" * 1_000_000)
    before = path.read_bytes()
    fails("mkfs.cowfs", path, code=EXISTS, says="-f")
    assert path.read_bytes() == before
    path.unlink()
    run("mkfs.cowfs", path, "--size", 256 * MIB)
    fails("mkfs.cowfs", path, "--size", 256 * MIB, code=EXISTS, says="-f")
    run("mkfs.cowfs", "-f", "-L", "a label", path, "--size", 128 * MIB)
    run("fsck.cowfs", path)
    fails("mkfs.cowfs", "-f", path, "--size", "nonsense", code=USAGE, says="size|nonsense")
    fails("mkfs.cowfs", "-f", path, "--size", 1000, code=USAGE, says="small|least")
    fails("mkfs.cowfs", "-f", "-L", "l" * 300, path, "--size", 128 * MIB, code=USAGE, says="label")


# ---- snapshots and names --------------------------------------------------------------------------------------------


def test_names_that_are_unknown_or_not_allowed(mount: Mount) -> None:
    root = mount.directory
    run("cowfs", "snapshot", root, "known")
    for words in (["rollback"], ["destroy"], ["hold", "tag"], ["release", "tag"]):
        fails("cowfs", *words, f"{root}@unknown", code=NOT_FOUND, says="unknown")
    fails("cowfs", "clone", f"{root}@unknown", "copy", code=NOT_FOUND, says="unknown")
    fails("cowfs", "snapshot", root, "known", code=EXISTS, says="already")
    for name in ("a/b", "n" * 256, ".", "..", ""):
        fails("cowfs", "snapshot", root, name, code=USAGE, says="name|longer|bytes")
    with fails_with(errno.ENAMETOOLONG):
        mount.snapshot_directory("n" * 256).mkdir()
    run("cowfs", "snapshot", root, "n" * 255)
    run("cowfs", "clone", f"{root}@known", "copy")
    fails("cowfs", "clone", f"{root}@known", "copy", code=EXISTS, says="already")
    fails("cowfs", "rollback", root, code=USAGE, says="@|snapshot")
    run("cowfs", "destroy", f"{root}@{'n' * 255}")


def test_directories_that_are_no_mount(tmp_path: pathlib.Path) -> None:
    for verb in ("snapshot", "list", "df", "status", "sync"):
        fails("cowfs", verb, tmp_path, code=NOT_COWFS, says="not a cowfs|no cowfs|not in a cowfs|not on a cowfs")
        fails(
            "cowfs",
            verb,
            tmp_path / "missing",
            code={NOT_FOUND, NOT_COWFS},
            says="no such|does not exist|no cowfs|not a cowfs",
        )


def test_a_daemon_that_is_gone(mount: Mount) -> None:
    """Commands say so, at once, and the pool mounts again."""
    (mount.directory / "file").write_text("synced")
    run("cowfs", "sync", mount.directory)
    mount.pool.is_sound = True
    for pid in mount.pool.daemons():
        os.kill(pid, 9)
    # ECANCELED: what was in a ring when its owner died
    with fails_with(errno.ENOTCONN, errno.ECONNABORTED, errno.ECANCELED):
        (mount.directory / "file").read_text()
    fails("cowfs", "status", mount.directory, code=DEAD, says="daemon|gone|not answer")
    run("cowfs", "umount", mount.directory, check=False)
    if is_mounted(mount.directory):
        pytest.fail("cowfs umount takes down a mount whose daemon is gone")
    again = mount.pool.mount()
    assert (again.directory / "file").read_text() == "synced"


# ---- the medium -----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="root is needed to make a small file system to put the pool on")
def test_a_full_backing_file_system(new_pool: Callable[..., Pool]) -> None:
    """The pool is sparse and its file system fills up: programs get an error, and what was synced stays."""
    pool = new_pool(size_bytes=512 * MIB)
    small = pool.folder / "small"
    small.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=128m", "tmpfs", small)
    try:
        pool.path = small / "pool"
        pool.make()
        mount = pool.mount()
        (mount.directory / "kept").write_bytes(b"kept" * 100_000)
        run("cowfs", "sync", mount.directory)
        with (
            fails_with(errno.EIO, errno.ENOSPC, errno.EROFS),
            open(mount.directory / "filler", "wb", buffering=0) as file,
        ):
            for _ in range(400):
                file.write(os.urandom(MIB))
                os.fsync(file.fileno())
        assert (mount.directory / "kept").read_bytes() == b"kept" * 100_000
        assert pool.daemons(), "the mount lives on"
        run("cowfs", "umount", mount.directory, check=False)
        assert not is_mounted(mount.directory)
        run("mount", "-o", "remount,size=700m", small)
        again = pool.mount()
        assert (again.directory / "kept").read_bytes() == b"kept" * 100_000
        (again.directory / "more").write_bytes(b"works again")
        again.unmount()
        pool.check()
    finally:
        pool.close()
        run("umount", small)


@pytest.mark.skipif(os.geteuid() != 0, reason="root is needed to make a file system read-only")
def test_a_read_only_backing_file_system(new_pool: Callable[..., Pool]) -> None:
    pool = new_pool(size_bytes=128 * MIB)
    inner = pool.folder / "inner"
    inner.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", inner)
    try:
        pool.path = inner / "pool"
        mount = pool.make().mount()
        (mount.directory / "file").write_text("content")
        run("cowfs", "snapshot", mount.directory, "s")
        mount.unmount()
        run("mount", "-o", "remount,ro", inner)
        fails("mount.cowfs", pool.path, mount.directory, code=MOUNT_FAILURE, says="read-only")
        again = pool.mount("-o", "ro", directory=mount.directory)
        assert (again.directory / "file").read_text() == "content"
        assert (again.snapshot_directory("s") / "file").read_text() == "content"
        with fails_with(errno.EROFS):
            (again.directory / "file").write_text("changed")
        with fails_with(errno.EROFS):
            again.snapshot_directory("t").mkdir()
        again.unmount()
    finally:
        run("mount", "-o", "remount,rw", inner)
        pool.close()
        run("umount", inner)


def test_read_only_mount(pool: Pool) -> None:
    mount = pool.mount()
    (mount.directory / "file").write_text("content")
    mount.unmount()
    before = pool.path.read_bytes()[: 64 * MIB]
    again = pool.mount("-o", "ro")
    assert (again.directory / "file").read_text() == "content"
    with fails_with(errno.EROFS):
        (again.directory / "new").touch()
    fails("cowfs", "snapshot", again.directory, "s", code=PERMISSION, says="read-only")
    again.unmount()
    assert pool.path.read_bytes()[: 64 * MIB] == before, "a read-only mount writes nothing"


def test_damaged_data_is_an_error_and_never_wrong(new_pool: Callable[..., Pool]) -> None:
    pool = new_pool(size_bytes=256 * MIB).make()
    pool.is_sound = False
    mount = pool.mount()
    marker = b"a block that will be damaged ".ljust(4096, b".")
    (mount.directory / "damaged").write_bytes(marker * 4)
    (mount.directory / "sound").write_bytes(b"sound" * 10_000)
    mount.unmount()
    image = pool.path.read_bytes()
    position = image.find(marker)
    assert position >= 0
    with open(pool.path, "r+b") as file:
        file.seek(position + 100)
        file.write(b"X")
    again = pool.mount()
    with fails_with(errno.EIO):
        (again.directory / "damaged").read_bytes()
    assert (again.directory / "sound").read_bytes() == b"sound" * 10_000
    again.unmount()
    result = run("fsck.cowfs", "--data", pool.path, check=False)
    assert result.returncode == FSCK_UNCORRECTED


def test_options_that_mount_passes(pool: Pool) -> None:
    """The contract of mount(8) with its helpers: -s, -n, -v, options for mount itself, and -f, which mounts nothing."""
    directory = pool.folder / "directory"
    directory.mkdir()
    run("mount.cowfs", pool.path, directory, "-f")
    assert not is_mounted(directory)
    mount = pool.mount(
        "-s",
        "-n",
        "-v",
        "-o",
        "rw,noatime,nofail,_netdev,x-systemd.automount,defaults,user,comment=x",
        directory=directory,
    )
    (mount.directory / "file").touch()
    mount.unmount()


def test_foreground(pool: Pool) -> None:
    """cowfs mount --foreground stays until it is told to end, and then unmounts."""
    directory = pool.folder / "directory"
    directory.mkdir()
    program = pathlib.Path(run("sh", "-c", "command -v env").stdout.strip())
    from tools.scratch import COMMANDS, wait_until

    process = subprocess.Popen(
        [program, COMMANDS / "cowfs", "mount", "--foreground", pool.path, directory], stdin=subprocess.DEVNULL
    )
    try:
        wait_until(lambda: is_mounted(directory), "mounted")
        (directory / "file").write_text("content")
        process.terminate()
        assert process.wait(timeout=20) == 0
        assert not is_mounted(directory)
    finally:
        process.kill()
        process.wait()
        if is_mounted(directory):
            run("umount", "-l", directory)
    mount = pool.mount()
    assert (mount.directory / "file").read_text() == "content"
