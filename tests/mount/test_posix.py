"""POSIX and Linux semantics through the kernel: what every program may rely on."""

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import pathlib
import random
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tools.scratch import working_directory

BLOCK = 4096
RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4
NAME_LONGEST = 255


@contextlib.contextmanager
def fails_with(*codes: int) -> Iterator[None]:
    with pytest.raises(OSError) as caught:
        yield
    assert caught.value.errno in codes, caught.value


@contextlib.contextmanager
def opened(path: pathlib.Path, flags: int, mode: int = 0o644) -> Iterator[int]:
    descriptor = os.open(path, flags, mode)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def rename_with_flags(old: pathlib.Path, new: pathlib.Path, flags: int) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    at_working_directory = -100
    if library.renameat2(at_working_directory, os.fsencode(old), at_working_directory, os.fsencode(new), flags) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(old))


# ---- creating and removing ------------------------------------------------------------------------------------------


def test_create_is_exclusive(place: pathlib.Path) -> None:
    path = place / "file"
    with opened(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o640):
        pass
    with fails_with(errno.EEXIST):
        os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    status = path.stat()
    assert stat.S_ISREG(status.st_mode)
    assert status.st_size == 0
    assert status.st_nlink == 1
    assert (status.st_uid, status.st_gid) == (os.geteuid(), os.getegid())


def test_creation_mode_honours_umask(place: pathlib.Path) -> None:
    before = os.umask(0o027)
    try:
        with opened(place / "file", os.O_CREAT | os.O_WRONLY, 0o666):
            pass
        (place / "directory").mkdir(mode=0o777)
    finally:
        os.umask(before)
    assert stat.S_IMODE((place / "file").stat().st_mode) == 0o640
    assert stat.S_IMODE((place / "directory").stat().st_mode) == 0o750


def test_directory_link_counts(place: pathlib.Path) -> None:
    assert place.stat().st_nlink == 2
    for number in range(3):
        (place / f"child-{number}").mkdir()
    (place / "file").touch()
    assert place.stat().st_nlink == 5
    (place / "child-0").rmdir()
    assert place.stat().st_nlink == 4
    (place / "child-1").rename(place / "child-2" / "moved")
    assert place.stat().st_nlink == 3
    assert (place / "child-2").stat().st_nlink == 3


def test_removal_errors(place: pathlib.Path) -> None:
    (place / "directory").mkdir()
    (place / "directory" / "file").write_text("x")
    with fails_with(errno.ENOTEMPTY):
        (place / "directory").rmdir()
    with fails_with(errno.EISDIR):
        (place / "directory").unlink()
    with fails_with(errno.ENOTDIR):
        (place / "directory" / "file").rmdir()
    with fails_with(errno.ENOENT):
        (place / "absent").unlink()
    with fails_with(errno.ENOTDIR):
        (place / "directory" / "file" / "below").open()


def test_dot_and_dot_dot(place: pathlib.Path) -> None:
    below = place / "a" / "b"
    below.mkdir(parents=True)
    assert os.stat(below / ".." / "..").st_ino == place.stat().st_ino
    assert os.stat(below / ".").st_ino == below.stat().st_ino
    with working_directory(below):
        assert os.getcwd() == str(below)
        below.rename(place / "moved")
        assert os.getcwd() == str(place / "moved")
        assert os.stat("..").st_ino == place.stat().st_ino


@pytest.mark.skipif(os.geteuid() != 0, reason="device nodes need root")
def test_mknod_makes_every_type(place: pathlib.Path) -> None:
    os.mknod(place / "fifo", stat.S_IFIFO | 0o600)
    os.mknod(place / "socket", stat.S_IFSOCK | 0o600)
    os.mknod(place / "character", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.mknod(place / "block", stat.S_IFBLK | 0o600, os.makedev(7, 250))
    os.mknod(place / "regular", stat.S_IFREG | 0o600)
    modes = {path.name: stat.S_IFMT(path.lstat().st_mode) for path in place.iterdir()}
    assert modes == {
        "fifo": stat.S_IFIFO,
        "socket": stat.S_IFSOCK,
        "character": stat.S_IFCHR,
        "block": stat.S_IFBLK,
        "regular": stat.S_IFREG,
    }
    assert (place / "character").stat().st_rdev == os.makedev(1, 3)
    assert (place / "block").stat().st_rdev == os.makedev(7, 250)


def test_fifo_and_socket_work(place: pathlib.Path) -> None:
    os.mkfifo(place / "fifo")
    with subprocess.Popen(["sh", "-c", f"echo through > '{place / 'fifo'}'"]) as writer:
        assert (place / "fifo").read_text() == "through\n"
        assert writer.wait(timeout=10) == 0
    with working_directory(place), socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind("s")
        server.listen()
        client.connect("s")
    assert stat.S_ISSOCK((place / "s").stat().st_mode)


def test_symbolic_links(place: pathlib.Path) -> None:
    (place / "target").write_text("content")
    (place / "link").symlink_to("target")
    assert (place / "link").read_text() == "content"
    assert os.readlink(place / "link") == "target"
    assert (place / "link").lstat().st_size == len("target")
    long_target = "/".join(["x" * 200] * 20)[:4095]
    os.symlink(long_target, place / "long")
    assert os.readlink(place / "long") == long_target
    (place / "dangling").symlink_to("nowhere")
    with fails_with(errno.ENOENT):
        (place / "dangling").open()
    (place / "loop").symlink_to("loop")
    with fails_with(errno.ELOOP):
        (place / "loop").open()


def test_hard_links(place: pathlib.Path) -> None:
    first = place / "first"
    first.write_text("shared")
    (place / "directory").mkdir()
    second = place / "directory" / "second"
    os.link(first, second)
    assert first.stat().st_ino == second.stat().st_ino
    assert first.stat().st_nlink == 2
    second.write_text("changed through the second name")
    assert first.read_text() == "changed through the second name"
    first.unlink()
    assert second.stat().st_nlink == 1
    assert second.read_text() == "changed through the second name"
    with fails_with(errno.EPERM):
        os.link(place / "directory", place / "directory link")
    with fails_with(errno.EEXIST):
        os.link(second, second)


def test_many_hard_links(place: pathlib.Path) -> None:
    (place / "0").write_text("x")
    for number in range(1, 500):
        os.link(place / "0", place / str(number))
    assert (place / "0").stat().st_nlink == 500
    for number in range(499):
        (place / str(number)).unlink()
    assert (place / "499").stat().st_nlink == 1


def test_unlinked_but_open(place: pathlib.Path) -> None:
    path = place / "file"
    with opened(path, os.O_CREAT | os.O_RDWR) as descriptor:
        os.write(descriptor, b"before")
        path.unlink()
        assert not path.exists()
        assert os.fstat(descriptor).st_nlink == 0
        os.pwrite(descriptor, b"x" * 100_000, 6)
        assert os.pread(descriptor, 10, 0) == b"beforexxxx"
        assert os.fstat(descriptor).st_size == 100_006
        os.ftruncate(descriptor, 3)
        assert os.pread(descriptor, 10, 0) == b"bef"
        path.write_text("another file of the same name")
        assert os.pread(descriptor, 10, 0) == b"bef"
    assert path.read_text() == "another file of the same name"


def test_removed_directory_as_working_directory(place: pathlib.Path) -> None:
    gone = place / "gone"
    gone.mkdir()
    with working_directory(gone):
        gone.rmdir()
        with fails_with(errno.ENOENT):
            os.open("file", os.O_CREAT | os.O_WRONLY)
        assert os.listdir(".") == []


# ---- names ----------------------------------------------------------------------------------------------------------


def test_name_lengths(place: pathlib.Path) -> None:
    longest = "n" * NAME_LONGEST
    (place / longest).write_text("x")
    assert [path.name for path in place.iterdir()] == [longest]
    (place / longest).rename(place / ("m" * NAME_LONGEST))
    too_long = place / ("n" * (NAME_LONGEST + 1))
    for attempt in (
        lambda: too_long.write_text("x"),
        too_long.mkdir,
        too_long.stat,
        lambda: too_long.symlink_to("x"),
        lambda: os.link(place / ("m" * NAME_LONGEST), too_long),
        lambda: (place / ("m" * NAME_LONGEST)).rename(too_long),
        lambda: os.mkfifo(too_long),
        too_long.unlink,
        too_long.rmdir,
    ):
        with fails_with(errno.ENAMETOOLONG):
            attempt()


def test_names_are_bytes(place: pathlib.Path) -> None:
    names = [b"\xff\xfe", b"a\nb", b" ", b"caf\xc3\xa9", b"cafe\xcc\x81", b"-", b"...", b"\x01\x02", b"A", b"a"]
    for name in names:
        with opened(os.fsencode(place) + b"/" + name, os.O_CREAT | os.O_WRONLY):  # type: ignore[arg-type]
            pass
    assert sorted(os.listdir(os.fsencode(place))) == sorted(names)


def test_deep_paths(place: pathlib.Path) -> None:
    path = place
    for _ in range(100):
        path = path / "deeper"
        path.mkdir()
    (path / "file").write_text("at the bottom")
    assert (path / "file").read_text() == "at the bottom"


# ---- rename ---------------------------------------------------------------------------------------------------------


def test_rename_replaces(place: pathlib.Path) -> None:
    (place / "old").write_text("new content")
    (place / "new").write_text("to be replaced")
    with opened(place / "new", os.O_RDONLY) as descriptor:
        (place / "old").rename(place / "new")
        assert os.read(descriptor, 100) == b"to be replaced"
        assert os.fstat(descriptor).st_nlink == 0
    assert (place / "new").read_text() == "new content"
    assert not (place / "old").exists()


def test_rename_of_directories(place: pathlib.Path) -> None:
    (place / "full" / "inner").mkdir(parents=True)
    (place / "empty").mkdir()
    (place / "source").mkdir()
    (place / "file").touch()
    (place / "source").rename(place / "empty")
    with fails_with(errno.ENOTEMPTY, errno.EEXIST):
        (place / "empty").rename(place / "full")
    with fails_with(errno.EINVAL):
        (place / "full").rename(place / "full" / "inner" / "itself")
    with fails_with(errno.ENOTDIR):
        (place / "empty").rename(place / "file")
    with fails_with(errno.EISDIR):
        (place / "file").rename(place / "empty")
    (place / "full").rename(place / "renamed")
    assert (place / "renamed" / "inner").is_dir()


def test_rename_onto_another_name_of_the_same_file(place: pathlib.Path) -> None:
    (place / "one").write_text("x")
    os.link(place / "one", place / "two")
    (place / "one").rename(place / "two")
    assert sorted(os.listdir(place)) == ["one", "two"]
    assert (place / "one").stat().st_nlink == 2


def test_rename_noreplace(place: pathlib.Path) -> None:
    (place / "old").write_text("old")
    (place / "new").write_text("new")
    with fails_with(errno.EEXIST):
        rename_with_flags(place / "old", place / "new", RENAME_NOREPLACE)
    assert (place / "new").read_text() == "new"
    rename_with_flags(place / "old", place / "third", RENAME_NOREPLACE)
    assert (place / "third").read_text() == "old"


def test_rename_exchange(place: pathlib.Path) -> None:
    (place / "file").write_text("file")
    (place / "there").mkdir()
    (place / "there" / "directory").mkdir()
    (place / "there" / "directory" / "inner").write_text("inner")
    rename_with_flags(place / "file", place / "there" / "directory", RENAME_EXCHANGE)
    assert (place / "there" / "directory").read_text() == "file"
    assert (place / "file" / "inner").read_text() == "inner"
    assert os.stat(place / "file" / "..").st_ino == place.stat().st_ino
    assert place.stat().st_nlink == 4
    assert (place / "there").stat().st_nlink == 2
    with fails_with(errno.ENOENT):
        rename_with_flags(place / "file", place / "absent", RENAME_EXCHANGE)


def test_rename_flags_that_are_not_offered(place: pathlib.Path) -> None:
    (place / "file").write_text("x")
    with fails_with(errno.EINVAL):
        rename_with_flags(place / "file", place / "other", RENAME_NOREPLACE | RENAME_EXCHANGE)
    assert (place / "file").read_text() == "x"


# ---- attributes -----------------------------------------------------------------------------------------------------


def test_times_keep_nanoseconds(place: pathlib.Path) -> None:
    path = place / "file"
    path.touch()
    for accessed_ns, modified_ns in (
        (1_234_567_890_123_456_789, 1_000_000_000_000_000_001),
        (0, 1),
        (-1_500_000_001, -999_999_999),
        (4_102_444_800_999_999_999, 9_000_000_000_000_000_007),
    ):
        os.utime(path, ns=(accessed_ns, modified_ns))
        status = path.stat()
        assert (status.st_atime_ns, status.st_mtime_ns) == (accessed_ns, modified_ns)
    path.chmod(0o600)
    assert path.stat().st_mtime_ns == 9_000_000_000_000_000_007
    (place / "link").symlink_to("file")
    os.utime(place / "link", ns=(5, 6), follow_symlinks=False)
    assert (place / "link").lstat().st_mtime_ns == 6
    assert path.stat().st_mtime_ns == 9_000_000_000_000_000_007


def test_times_change_when_they_should(place: pathlib.Path) -> None:
    path = place / "file"

    def moved(action: object, *, modified: bool, changed: bool, of: pathlib.Path) -> None:
        os.utime(of, ns=(1, 1))
        before = of.stat()
        time.sleep(0.01)
        action()  # type: ignore[operator]
        after = of.stat()
        assert (after.st_mtime_ns != before.st_mtime_ns) == modified
        assert (after.st_ctime_ns != before.st_ctime_ns) == changed

    path.write_text("x")
    moved(lambda: path.write_text("longer"), modified=True, changed=True, of=path)
    moved(lambda: os.truncate(path, 2), modified=True, changed=True, of=path)
    moved(lambda: path.chmod(0o600), modified=False, changed=True, of=path)
    moved(lambda: os.link(path, place / "second"), modified=False, changed=True, of=path)
    moved(lambda: (place / "second").unlink(), modified=False, changed=True, of=path)
    moved(lambda: path.read_text(), modified=False, changed=False, of=path)
    moved(lambda: (place / "new").touch(), modified=True, changed=True, of=place)
    moved(lambda: (place / "new").rename(place / "other"), modified=True, changed=True, of=place)
    moved(lambda: (place / "other").unlink(), modified=True, changed=True, of=place)


def test_change_of_mode_and_owner(place: pathlib.Path) -> None:
    path = place / "file"
    path.write_text("x")
    for mode in (0o0, 0o7777, 0o1644, 0o600):
        path.chmod(mode)
        assert stat.S_IMODE(path.stat().st_mode) == mode
    if os.geteuid() == 0:
        path.chmod(0o6755)
        os.chown(path, 1234, 4321)
        status = path.stat()
        assert (status.st_uid, status.st_gid) == (1234, 4321)
        assert stat.S_IMODE(status.st_mode) == 0o755, "chown takes setuid and setgid away"
        os.chown(path, -1, 99)
        assert (path.stat().st_uid, path.stat().st_gid) == (1234, 99)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
def test_writing_takes_setuid_away(place: pathlib.Path) -> None:
    path = place / "file"
    path.write_bytes(b"x")
    path.chmod(0o6777)
    place.chmod(0o777)
    script = f"import os; os.setgid(1234); os.setuid(1234); open({str(path)!r}, 'r+b').write(b'y')"
    writer = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=20)
    assert writer.returncode == 0, writer.stderr
    assert stat.S_IMODE(path.stat().st_mode) == 0o777


def test_setgid_directories_hand_on_their_group(place: pathlib.Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to give a directory another group")
    directory = place / "directory"
    directory.mkdir()
    os.chown(directory, -1, 4321)
    directory.chmod(0o2775)
    (directory / "file").touch()
    (directory / "below").mkdir()
    assert (directory / "file").stat().st_gid == 4321
    assert (directory / "below").stat().st_gid == 4321
    assert (directory / "below").stat().st_mode & stat.S_ISGID


def test_extended_attributes(place: pathlib.Path) -> None:
    path = place / "file"
    path.touch()
    values = {
        "user.small": b"x",
        "user.empty": b"",
        "user.binary": bytes(range(256)),
        "user." + "n" * 250: b"long name",
    }
    for name, value in values.items():
        os.setxattr(path, name, value)
    assert sorted(os.listxattr(path)) == sorted(values)
    assert {name: os.getxattr(path, name) for name in values} == values
    with fails_with(errno.EEXIST):
        os.setxattr(path, "user.small", b"y", os.XATTR_CREATE)
    with fails_with(errno.ENODATA):
        os.setxattr(path, "user.absent", b"y", os.XATTR_REPLACE)
    os.setxattr(path, "user.small", b"replaced", os.XATTR_REPLACE)
    assert os.getxattr(path, "user.small") == b"replaced"
    os.removexattr(path, "user.small")
    with fails_with(errno.ENODATA):
        os.getxattr(path, "user.small")
    with fails_with(errno.ENODATA):
        os.removexattr(path, "user.small")
    os.setxattr(place, "user.of.directory", b"d")
    assert os.getxattr(place, "user.of.directory") == b"d"


def test_large_extended_attributes(place: pathlib.Path) -> None:
    if "COWFS_TEST_DIRECTORY" in os.environ:
        pytest.skip("other file systems have smaller limits")
    path = place / "file"
    path.touch()
    largest = random.Random(1).randbytes(65536)
    os.setxattr(path, "user.largest", largest)
    assert os.getxattr(path, "user.largest") == largest
    with fails_with(errno.E2BIG):
        os.setxattr(path, "user.larger", b"x" * 65537)
    os.removexattr(path, "user.largest")
    assert os.listxattr(path) == []


def test_statfs(place: pathlib.Path) -> None:
    status = os.statvfs(place)
    assert status.f_namemax == NAME_LONGEST
    assert status.f_frsize > 0
    assert 0 < status.f_bavail <= status.f_bfree <= status.f_blocks
    with opened(place / "large", os.O_CREAT | os.O_WRONLY) as descriptor:
        for _ in range(32):
            os.write(descriptor, random.randbytes(1 << 20))
        os.fsync(descriptor)
    after = os.statvfs(place)
    assert (status.f_bfree - after.f_bfree) * status.f_frsize > 30 << 20


# ---- contents -------------------------------------------------------------------------------------------------------


def test_sparse_files(place: pathlib.Path) -> None:
    path = place / "sparse"
    size_bytes = 1 << 40
    with opened(path, os.O_CREAT | os.O_RDWR) as descriptor:
        os.pwrite(descriptor, b"end", size_bytes)
        os.pwrite(descriptor, b"middle", 1 << 30)
        assert os.fstat(descriptor).st_size == size_bytes + 3
        assert os.pread(descriptor, 8, (1 << 30) - 1) == b"\0middle\0"
        assert os.pread(descriptor, 100, size_bytes - 5) == b"\0\0\0\0\0end"
        assert os.pread(descriptor, 100, size_bytes + 3) == b""
        assert os.pread(descriptor, 1 << 20, 5 << 30) == bytes(1 << 20)
        assert os.fstat(descriptor).st_blocks * 512 <= 1 << 20


def test_truncation(place: pathlib.Path) -> None:
    path = place / "file"
    content = random.Random(2).randbytes(3 * BLOCK + 100)
    path.write_bytes(content)
    os.truncate(path, BLOCK + 10)
    assert path.read_bytes() == content[: BLOCK + 10]
    os.truncate(path, 4 * BLOCK)
    assert path.read_bytes() == content[: BLOCK + 10] + bytes(3 * BLOCK - 10), "what was cut off must not come back"
    os.truncate(path, 0)
    assert path.stat().st_size == 0
    assert path.stat().st_blocks == 0
    os.truncate(path, 10)
    assert path.read_bytes() == bytes(10)


def test_largest_sizes(place: pathlib.Path) -> None:
    if "COWFS_TEST_DIRECTORY" in os.environ:
        pytest.skip("other file systems have other limits")
    path = place / "file"
    path.touch()
    with fails_with(errno.EFBIG, errno.EINVAL):
        os.truncate(path, (1 << 63) - 1)
    with fails_with(errno.EFBIG):
        os.truncate(path, 1 << 62)
    with opened(path, os.O_RDWR) as descriptor:
        with fails_with(errno.EFBIG, errno.EINVAL):
            os.pwrite(descriptor, b"x", (1 << 63) - 2)
        assert os.pread(descriptor, 10, 1 << 62) == b""
    assert path.stat().st_size == 0


def test_append(place: pathlib.Path) -> None:
    path = place / "log"
    with (
        opened(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND) as first,
        opened(path, os.O_WRONLY | os.O_APPEND) as second,
    ):
        for number in range(100):
            os.write(first, f"{number} first\n".encode())
            os.write(second, f"{number} second\n".encode())
    expected = "".join(f"{number} first\n{number} second\n" for number in range(100))
    assert path.read_text() == expected


@pytest.mark.parametrize("seed", range(4))
def test_random_reads_and_writes(place: pathlib.Path, seed: int) -> None:
    """Against a bytearray: offsets and lengths around block, extent and request sizes."""
    randomness = random.Random(seed)
    model = bytearray()
    sizes = [1, 100, BLOCK - 1, BLOCK, BLOCK + 1, 8 * BLOCK, 32 * BLOCK, 32 * BLOCK + 7, 300_000]
    with opened(place / "file", os.O_CREAT | os.O_RDWR) as descriptor:
        for _ in range(300):
            offset = randomness.choice([0, BLOCK, 131072, randomness.randrange(2_000_000)]) + randomness.choice(
                [0, 0, 1, -1]
            )
            offset = max(offset, 0)
            length = randomness.choice(sizes)
            action = randomness.random()
            if action < 0.5:
                content = randomness.randbytes(length)
                assert os.pwrite(descriptor, content, offset) == length
                if len(model) < offset:
                    model.extend(bytes(offset - len(model)))
                model[offset : offset + length] = content
            elif action < 0.9:
                assert os.pread(descriptor, length, offset) == bytes(model[offset : offset + length])
            elif action < 0.95:
                size = randomness.randrange(2_500_000)
                os.ftruncate(descriptor, size)
                del model[size:]
                model.extend(bytes(size - len(model)))
            else:
                os.fsync(descriptor)
            assert os.fstat(descriptor).st_size == len(model)
    # Through the daemon, not through pages that the kernel still has.
    with opened(place / "file", os.O_RDONLY) as descriptor:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        assert os.pread(descriptor, len(model) + 1, 0) == bytes(model)


def test_private_and_shared_mappings(place: pathlib.Path) -> None:
    path = place / "file"
    path.write_bytes(bytes(10 * BLOCK))
    with opened(path, os.O_RDWR) as descriptor:
        with mmap.mmap(descriptor, 10 * BLOCK) as mapping:
            mapping[5 * BLOCK : 5 * BLOCK + 7] = b"through"
            mapping.flush()
            assert os.pread(descriptor, 7, 5 * BLOCK) == b"through"
        with mmap.mmap(descriptor, 10 * BLOCK, access=mmap.ACCESS_COPY) as mapping:
            mapping[0:3] = b"own"
        assert os.pread(descriptor, 3, 0) == bytes(3)


def test_programs_run_from_here(place: pathlib.Path) -> None:
    program = place / "program"
    program.write_bytes(pathlib.Path("/bin/echo").read_bytes())
    program.chmod(0o755)
    assert subprocess.run([program, "hello"], check=True, capture_output=True, timeout=20).stdout == b"hello\n"
    with opened(program, os.O_WRONLY), fails_with(errno.ETXTBSY):
        subprocess.run([program, "x"], check=True, timeout=20)


def test_locks(place: pathlib.Path) -> None:
    path = place / "file"
    path.touch()
    with opened(path, os.O_RDWR) as first, opened(path, os.O_RDWR) as second:
        fcntl.flock(first, fcntl.LOCK_EX)
        with fails_with(errno.EWOULDBLOCK):
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(first, fcntl.LOCK_UN)
        fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_fsync_of_files_and_directories(place: pathlib.Path) -> None:
    with opened(place / "file", os.O_CREAT | os.O_WRONLY) as descriptor:
        os.write(descriptor, b"x" * 10000)
        os.fsync(descriptor)
        os.fdatasync(descriptor)
    with opened(place, os.O_RDONLY | os.O_DIRECTORY) as descriptor:
        os.fsync(descriptor)
    with opened(place / "synchronous", os.O_CREAT | os.O_WRONLY | os.O_SYNC) as descriptor:
        assert os.write(descriptor, b"y" * 5000) == 5000


def test_direct_reads_and_writes(place: pathlib.Path) -> None:
    with (
        opened(place / "file", os.O_CREAT | os.O_RDWR | os.O_DIRECT) as descriptor,
        mmap.mmap(-1, 2 * BLOCK) as aligned,
    ):
        aligned[:] = b"d" * (2 * BLOCK)
        assert os.pwritev(descriptor, [aligned], BLOCK) == 2 * BLOCK
        with mmap.mmap(-1, 3 * BLOCK) as received:
            assert os.preadv(descriptor, [received], 0) == 3 * BLOCK
            assert received[:] == bytes(BLOCK) + b"d" * (2 * BLOCK)


# ---- directories ----------------------------------------------------------------------------------------------------


def test_listing_while_entries_go(place: pathlib.Path) -> None:
    """Each of 10,000 entries is seen once, though every one seen is removed at once."""
    names = {f"entry-{number:05}" for number in range(10_000)}
    for name in names:
        os.close(os.open(place / name, os.O_CREAT | os.O_WRONLY))
    seen = []
    with os.scandir(place) as entries:
        for entry in entries:
            seen.append(entry.name)
            os.unlink(entry.path)
    assert len(seen) == len(names)
    assert set(seen) == names
    assert os.listdir(place) == []
    place.rmdir()


def test_listing_while_entries_come(place: pathlib.Path) -> None:
    """Entries that were there before and stay are seen exactly once, whatever is made meanwhile."""
    before = {f"before-{number:04}" for number in range(2000)}
    for name in before:
        (place / name).touch()
    seen = []
    with os.scandir(place) as entries:
        for number, entry in enumerate(entries):
            if entry.name.startswith("before"):
                seen.append(entry.name)
                (place / f"after-{number}").touch()
            if number > 20_000:
                pytest.fail("the listing does not end")
    assert len(seen) == len(before)
    assert set(seen) == before


def test_seeking_in_a_directory(place: pathlib.Path) -> None:
    """telldir and seekdir: positions stay valid while the directory changes."""
    for number in range(1000):
        (place / f"entry-{number:04}").touch()
    library = ctypes.CDLL(None, use_errno=True)
    library.opendir.restype = library.readdir.restype = ctypes.c_void_p
    library.telldir.restype = ctypes.c_long
    library.opendir.argtypes = [ctypes.c_char_p]
    library.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]
    for function in (library.readdir, library.telldir, library.closedir):
        function.argtypes = [ctypes.c_void_p]
    name_offset = 19  # of d_name in struct dirent64

    stream = library.opendir(os.fsencode(place))
    assert stream
    try:
        positions: list[tuple[int, bytes]] = []
        while True:
            position = library.telldir(stream)
            entry = library.readdir(stream)
            if not entry:
                break
            positions.append((position, ctypes.string_at(entry + name_offset)))
        assert len(positions) == 1002
        for number in range(0, 1000, 2):
            (place / f"entry-{number:04}").unlink()
        left = {name for _, name in positions} - {f"entry-{number:04}".encode() for number in range(0, 1000, 2)}
        for index in (0, 3, 500, 501, 1000):
            library.seekdir(stream, positions[index][0])
            rest = []
            while entry := library.readdir(stream):
                rest.append(ctypes.string_at(entry + name_offset))
            expected = [name for _, name in positions[index:] if name in left]
            assert rest == expected
    finally:
        library.closedir(stream)


def test_listing_tells_types_and_numbers(place: pathlib.Path) -> None:
    (place / "file").touch()
    (place / "directory").mkdir()
    (place / "link").symlink_to("file")
    with os.scandir(place) as entries:
        for entry in entries:
            assert entry.inode() == (place / entry.name).lstat().st_ino
            assert entry.is_symlink() == (entry.name == "link")
            assert entry.is_dir(follow_symlinks=False) == (entry.name == "directory")
