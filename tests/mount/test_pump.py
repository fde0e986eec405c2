"""What the pump does for those whom it forwards to, and what becomes of a mount whose pump fails."""

import pathlib
import subprocess
import sys
import time

import pytest

from tools.scratch import Pool, is_mounted, run


def test_stat_in_the_virtual_tree(root: pathlib.Path) -> None:
    """stat(1) asks for the time of birth, which makes another request of it than ls(1) does."""
    for _ in range(2):
        for name in (".cowfs", ".cowfs/snapshot", ".cowfs/volume"):
            assert run("stat", "--format=%F %a", root / name).stdout.startswith("directory")
        assert "symbolic link" in run("stat", "--format=%F", root / ".cowfs/socket").stdout
        time.sleep(1.2)  # the kernel asks again


def test_mount_whose_pump_fails(pool: Pool, transport: str) -> None:
    if transport != "io_uring":
        pytest.skip("this fails the threads of the rings")
    directory = pool.folder / "failing"
    directory.mkdir()
    daemon = subprocess.run(
        [sys.executable, "-m", "tests.mount.failing_pump", pool.path, directory],
        cwd=pathlib.Path(__file__).parents[2],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert daemon.returncode != 0
    assert "could not be served: Too many open files" in daemon.stderr
    assert not is_mounted(directory)
