"""A pool on a block device: a loop device over a sparse file."""

import os
import pathlib
import shutil
from collections.abc import Callable, Iterator

import pytest

from cowfs.daemon import log_path_of
from cowfs.errors import ExitCode
from cowfs.mounting import cowfs_mounts
from tools.scratch import MIB, Pool, is_mounted, processes_of, run, run_json, wait_until

DEVICE_BYTES = 256 * MIB
FSCK_OPERATIONAL = 8


@pytest.fixture
def device(new_pool: Callable[..., Pool]) -> Iterator[pathlib.Path]:
    """Detached at the end whatever happened."""
    if os.geteuid() != 0 or shutil.which("losetup") is None:
        pytest.skip("loop devices need root and losetup")
    backing = new_pool("backing", size_bytes=DEVICE_BYTES)
    backing.is_sound = False  # not always a pool; the test asks fsck.cowfs about the device
    backing.path.touch()
    os.truncate(backing.path, DEVICE_BYTES)
    attached = run("losetup", "--find", "--show", backing.path, check=False)
    if attached.returncode != 0:
        pytest.skip(f"no loop device is to be had: {attached.stderr.strip()}")
    path = pathlib.Path(attached.stdout.strip())
    try:
        yield path
    finally:
        left = [entry.mountpoint for entry in cowfs_mounts() if entry.source == str(path)]
        for mountpoint in left:
            run("umount", "-l", mountpoint, check=False)
        try:
            wait_until(lambda: not processes_of(path), "the daemon has let go of the device")
        finally:
            run("losetup", "--detach", path)
        assert not left, "unmounted by the test"
        assert str(backing.path) not in run("losetup", "--all").stdout


def test_a_pool_on_a_block_device(device: pathlib.Path, tmp_path: pathlib.Path) -> None:
    run("mkfs.btrfs", "--quiet", device)
    refused = run("mkfs.cowfs", device, check=False)
    assert refused.returncode == ExitCode.EXISTS
    assert "btrfs" in refused.stderr
    assert run("blkid", "-p", "-o", "value", "-s", "TYPE", device).stdout.strip() == "btrfs", "it is still there"
    run("mkfs.cowfs", "-f", device)
    assert run("mkfs.cowfs", device, check=False).returncode == ExitCode.EXISTS, "a pool is not overwritten either"

    directory = tmp_path / "mount"
    directory.mkdir()
    content = os.urandom(20 * MIB)
    for repetition in range(2):
        run("mount.cowfs", device, directory)
        assert is_mounted(directory)
        if repetition == 0:
            (directory / "file").write_bytes(content)
            run("cowfs", "snapshot", directory, "s")
        for command, code in (("mkfs.cowfs -f", ExitCode.BUSY), ("fsck.cowfs", FSCK_OPERATIONAL)):
            refused = run(*command.split(), device, check=False)
            assert refused.returncode == code, refused.stderr
            assert str(directory) in refused.stderr
        assert run_json("cowfs", "df", directory)["size_bytes"] == DEVICE_BYTES
        assert (directory / "file").read_bytes() == content
        assert (directory / ".cowfs" / "snapshot" / "s" / "file").read_bytes() == content
        run("cowfs", "umount", directory)
        assert "clean" in run("fsck.cowfs", "--data", device).stdout
    pathlib.Path(log_path_of(str(directory))).unlink()
