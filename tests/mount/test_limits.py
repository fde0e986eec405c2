"""Bounds: memory, work per snapshot, and handlers that meet what they did not expect."""

import errno
import itertools
import os
import pathlib
import subprocess
import sys

import pytest

from tests.mount.test_posix import fails_with
from tools.scratch import MIB, Mount, Pool, is_mounted, memory_peak_bytes, run, wait_until

MEMORY_BYTES_MAX = 512 * MIB


def arenas_of(pid: int) -> int:
    """Of glibc's malloc, but for the main one: each is a part in use at a multiple of 64 MiB, and a reserved one up to
    the next. Other memory may begin there too, one in 32 of the mappings that the kernel aligns for huge pages."""
    lines = [line.split() for line in pathlib.Path(f"/proc/{pid}/maps").read_text().splitlines()]
    mappings = [(*(int(bound, 16) for bound in words[0].split("-")), words[1], words[4]) for words in lines]
    return sum(
        start % (64 * MIB) == 0 and inode == "0" and mode.startswith("rw")
        and next_mode.startswith("---") and next_start == end and next_end >= start + 64 * MIB
        for (start, end, mode, inode), (next_start, next_end, next_mode, _) in itertools.pairwise(mappings)
    )  # fmt: skip


def write_much(root: pathlib.Path, written_bytes: int, file_bytes: int) -> None:
    """Sequential writes that never repeat a block, in files of the size given."""
    piece = bytearray(os.urandom(MIB))
    for number in range(written_bytes // file_bytes):
        with open(root / f"large-{number}", "wb", buffering=0) as file:
            for offset in range(0, file_bytes, MIB):
                piece[:8] = (number << 40 | offset).to_bytes(8, "little")
                file.write(piece)


def make_many(root: pathlib.Path, count: int) -> None:
    for number in range(count):
        if number % 1000 == 0:
            directory = root / f"directory-{number // 1000}"
            directory.mkdir()
        (directory / f"file-{number}").write_bytes(b"content of a small file")


def load_and_measure(mount: Mount, written_bytes: int, file_bytes: int, file_count: int) -> int:
    write_much(mount.directory, written_bytes, file_bytes)
    make_many(mount.directory, file_count)
    run("find", mount.directory, "-type", "f", "-size", "0", timeout_s=600)
    peak = memory_peak_bytes(mount.daemon_pid())
    mount.unmount()
    return peak


def test_threads_share_the_places_that_memory_comes_from(mount: Mount) -> None:
    """Or each keeps what others have freed in its own: twice the memory after a minute of snapshots and deletions."""
    with mount.client() as client:
        for number in range(200):
            (mount.directory / f"f{number % 7}").write_bytes(os.urandom(9000))
            client.snapshot(f"s{number}")
            if number >= 20:
                client.destroy(f"s{number - 20}")
    assert arenas_of(mount.daemon_pid()) <= 1


def test_memory_stays_bounded(pool: Pool) -> None:
    pool.path.unlink()
    pool.size_bytes = 3 << 30
    mount = pool.make().mount()
    assert load_and_measure(mount, 1 << 30, 256 * MIB, 10_000) < MEMORY_BYTES_MAX


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_memory_stays_bounded_for_20_gib_and_100_000_files(pool: Pool, tmp_path: pathlib.Path) -> None:
    pool.path.unlink()
    pool.path = tmp_path / "pool"  # on a disk: memory may not have room for it
    pool.size_bytes = 12 << 30
    mount = pool.make().mount()
    for number in range(4):  # 20 GiB in all, without needing a disk that holds them at once
        write_much(mount.directory, 5 << 30, 5 << 30)
        if number < 3:
            (mount.directory / "large-0").unlink()
    assert load_and_measure(mount, 0, MIB, 100_000) < MEMORY_BYTES_MAX


def test_a_handler_that_fails_gives_eio_and_the_mount_lives_on(pool: Pool) -> None:
    directory = pool.folder / "directory"
    directory.mkdir()
    log = pool.folder / "log"
    with open(log, "wb") as output:
        daemon = subprocess.Popen(
            [sys.executable, "-m", "tests.mount.failing_daemon", pool.path, directory],
            cwd=pathlib.Path(__file__).parents[2],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        wait_until(lambda: is_mounted(directory), "mounted")
        (directory / "link").symlink_to("target")
        for _ in range(3):
            with fails_with(errno.EIO):
                os.stat(directory / ".cowfs" / "failing")
        (directory / "file").write_text("the mount lives on")
        assert (directory / "file").read_text() == "the mount lives on"
        run("cowfs", "umount", directory)
        assert daemon.wait(timeout=20) == 0
    finally:
        daemon.kill()
        daemon.wait()
        if is_mounted(directory):
            run("umount", "-l", directory)
    assert "ZeroDivisionError" in log.read_text(), "what happened is in the log"


def test_many_open_files(mount: Mount) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = min(hard, 3000) - 200
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 3000), hard))
    descriptors = []
    try:
        for number in range(count):
            descriptors.append(os.open(mount.directory / str(number), os.O_CREAT | os.O_RDWR))
        for number, descriptor in enumerate(descriptors):
            os.write(descriptor, str(number).encode())
        for number, descriptor in enumerate(descriptors):
            assert os.pread(descriptor, 10, 0) == str(number).encode()
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_large_directory(mount: Mount) -> None:
    directory = mount.directory / "large"
    directory.mkdir()
    for number in range(20_000):
        os.close(os.open(directory / f"a name of usual length, number {number:06}", os.O_CREAT | os.O_WRONLY))
    names = os.listdir(directory)
    assert len(names) == len(set(names)) == 20_000
    assert run("find", directory, "-name", "*019999").stdout.count("\n") == 1
    run("rm", "-r", directory)
    assert os.listdir(mount.directory) == []
