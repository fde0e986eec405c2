"""Full pools, mounted: filled in every way and emptied again while snapshots hold everything; what statfs promises; how
long recovery takes at most. A full host file system is in test_bad_input.py."""

import errno
import os
import pathlib
import time
from collections.abc import Callable

import pytest

from tests.mount.test_posix import fails_with
from tools.scratch import MIB, Pool, run, run_json

POOL_BYTES = 96 * MIB


def fill_with_data(root: pathlib.Path) -> None:
    with open(root / "data", "wb", buffering=0) as file:
        while True:
            file.write(os.urandom(MIB))


def fill_with_small_files(root: pathlib.Path) -> None:
    content = os.urandom(5000)
    for number in range(1_000_000):
        if number % 1000 == 0:
            directory = root / f"directory {number}"
            directory.mkdir()
        (directory / f"file {number}").write_bytes(content)
        if number % 2000 == 1999:
            snapshot(root, f"while filling {number}")


def fill_with_attributes(root: pathlib.Path) -> None:
    for number in range(1_000_000):
        path = root / f"file {number}"
        path.touch()
        for each in range(4):
            os.setxattr(path, f"user.{each}", os.urandom(16_000))


def fill_with_snapshots(root: pathlib.Path) -> None:
    content = bytearray(os.urandom(2 * MIB))
    for number in range(1_000_000):
        content[:8] = number.to_bytes(8, "little")
        (root / "changing").write_bytes(content)
        snapshot(root, f"one of many {number}")


def fill_with_copies(root: pathlib.Path) -> None:
    """That share blocks at first, and are then changed."""
    (root / "source").write_bytes(os.urandom(4 * MIB))
    for number in range(1_000_000):
        with open(root / "source", "rb") as source, open(root / f"copy {number}", "wb") as copy:
            assert os.copy_file_range(source.fileno(), copy.fileno(), 4 * MIB) > 0
        with open(root / f"copy {number}", "r+b") as copy:
            copy.write(os.urandom(MIB))


def snapshot(root: pathlib.Path, name: str) -> None:
    (root / ".cowfs" / "snapshot" / name).mkdir()


FILLS = {
    "small files": fill_with_small_files,
    "snapshots": fill_with_snapshots,
    "data": fill_with_data,
    "attributes": fill_with_attributes,
    "copies": fill_with_copies,
}
LONG = [pytest.param(name, marks=pytest.mark.long) for name in ("data", "attributes", "copies")]


@pytest.fixture
def one_transport(transport: str) -> None:
    if transport != "io_uring":
        pytest.skip("the store is the same behind each transport: one of them has this")


@pytest.mark.parametrize("fill", ["small files", "snapshots", *LONG])
@pytest.mark.usefixtures("one_transport")
def test_a_full_pool_is_emptied_while_snapshots_hold_it(new_pool: Callable[..., Pool], fill: str) -> None:
    mount = new_pool(size_bytes=POOL_BYTES).make().mount()
    root = mount.directory
    run("cowfs", "sync", root)
    free_before = os.statvfs(root).f_bfree
    (root / "early").write_bytes(os.urandom(MIB))
    snapshot(root, "early")
    with fails_with(errno.ENOSPC):
        FILLS[fill](root)
    try:
        snapshot(root, "full")
    except OSError as error:
        assert error.errno == errno.ENOSPC
    for path in sorted(path for path in root.rglob("*") if path.is_file())[::7]:
        os.truncate(path, 0)
    run("rm", "-r", *root.iterdir())
    assert os.listdir(root) == []
    run("cowfs", "sync", root)
    assert run_json("cowfs", "status", root)["failure"] is None
    for name in os.listdir(root / ".cowfs" / "snapshot"):
        (root / ".cowfs" / "snapshot" / name).rmdir()
    mount.unmount()  # which waits for what deletion left to do no longer than for a checkpoint
    mount = mount.pool.mount(directory=root)
    deadline = time.monotonic() + 20
    while free_before - os.statvfs(root).f_bfree > 100:
        assert time.monotonic() < deadline, "the space comes back"
        run("cowfs", "sync", root)
        time.sleep(0.2)
    mount.unmount()


TRUNCATED_COUNT = 1500
"""Of one block each: more than what is set aside for such blocks in a pool of this size."""


@pytest.mark.usefixtures("one_transport")
def test_every_file_of_a_full_pool_can_be_made_shorter(new_pool: Callable[..., Pool]) -> None:
    """To a size within a block, while a snapshot holds all blocks there were; nothing of what was cut shows later."""
    mount = new_pool(size_bytes=POOL_BYTES).make().mount()
    root = mount.directory
    content = os.urandom(10_000)
    paths = [root / f"file {number}" for number in range(TRUNCATED_COUNT)]
    for path in paths:
        path.write_bytes(content)
    snapshot(root, "all")
    with fails_with(errno.ENOSPC):
        fill_with_data(root)
    for path in paths:
        os.truncate(path, 5000)
    assert run_json("cowfs", "df", root)["available_bytes"] == 0
    (root / "data").unlink()
    mount.unmount()
    mount = mount.pool.mount(directory=root)
    for number, path in enumerate(paths):
        if number % 2 == 0:
            os.truncate(path, 9000)
        else:
            with path.open("ab") as file:
                file.write(b"more")
        assert path.read_bytes() == content[:5000] + (bytes(4000) if number % 2 == 0 else b"more")
        assert (root / ".cowfs" / "snapshot" / "all" / path.name).read_bytes() == content
    mount.unmount()
    mount.pool.check()


@pytest.mark.usefixtures("one_transport")
def test_statfs_promises_what_dd_can_write(new_pool: Callable[..., Pool]) -> None:
    mount = new_pool(size_bytes=512 * MIB).make().mount()
    root = mount.directory
    figures = os.statvfs(root)
    promised_mib = figures.f_bavail * figures.f_frsize // MIB
    assert figures.f_bavail >= figures.f_blocks * 95 // 100
    count = promised_mib * 99 // 100  # the rest is for what says where the data is
    run("dd", "if=/dev/urandom", f"of={root / 'file'}", "bs=1M", f"count={count}", "conv=fsync")
    with fails_with(errno.ENOSPC), open(root / "more", "wb", buffering=0) as file:
        for _ in range(promised_mib // 50):
            file.write(os.urandom(MIB))
    assert os.statvfs(root).f_bavail * figures.f_frsize <= 2 * MIB


RECOVERY_S_MAX = 30
"""Ten times what it takes; for a journal that is full, see docs/RELIABILITY.md."""


@pytest.mark.usefixtures("one_transport")
def test_recovery_is_bounded_by_the_journal(new_pool: Callable[..., Pool]) -> None:
    """Killed with much in the journal: small changes, of which the most fit. At half of it a checkpoint begins."""
    pool = new_pool(size_bytes=1024 * MIB).make()
    mount = pool.mount()
    least_s = time.monotonic() + 5
    number = used_bytes = 0
    while used_bytes <= MIB or time.monotonic() < least_s:
        for _ in range(500):
            number += 1
            (mount.directory / f"file {number}").write_bytes(b"%d" % number * 40)
        run("cowfs", "sync", mount.directory)
        statistics = run_json("cowfs", "status", mount.directory)["statistics"]
        used_bytes = statistics["journal_used_bytes"]
    mount.kill_daemon()
    began = time.monotonic()
    again = pool.mount(directory=mount.directory)
    took_s = time.monotonic() - began
    print(
        f"{number} files, journal {statistics['journal_used_bytes'] / MIB:.1f} of "
        f"{statistics['journal_size_bytes'] / MIB:.0f} MiB, mounted in {took_s:.2f} s"
    )
    assert statistics["journal_used_bytes"] > MIB
    assert took_s < RECOVERY_S_MAX
    assert len(os.listdir(again.directory)) == number
    assert (again.directory / f"file {number}").read_bytes() == b"%d" % number * 40
