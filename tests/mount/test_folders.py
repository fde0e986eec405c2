"""A run of tests that is killed leaves its mounts; the next one takes them down and touches nobody else's."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys

import pytest

from tests.mount.folders import clear_abandoned_folders
from tools import scratch
from tools.scratch import Mount, is_mounted, processes_of, run

RUN = """
import sys, time
from tests.mount.folders import temporary_folder
from tools import scratch
scratch.mount_options[:] = sys.argv[1:]
pool = scratch.Pool(temporary_folder(), size_bytes=64 << 20).make()
print(pool.mount().directory, flush=True)
time.sleep(60)
"""


def start_run() -> tuple["subprocess.Popen[str]", pathlib.Path]:
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, *scratch.mount_options],
        cwd=pathlib.Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, pathlib.Path(process.stdout.readline().rstrip("\n"))


def kill(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


@pytest.mark.parametrize("daemon", ["alive", "busy", "dead"])
def test_what_a_killed_run_left(daemon: str, mount: Mount) -> None:
    process, directory = start_run()
    folder = directory.parent
    try:
        assert is_mounted(directory)
        assert folder not in clear_abandoned_folders()
        assert is_mounted(directory)
    finally:
        kill(process)
        user = os.open(directory, os.O_RDONLY) if daemon == "busy" else None
        if daemon == "dead":
            for pid in processes_of(folder / "pool"):
                os.kill(pid, signal.SIGKILL)
        try:
            cleared = clear_abandoned_folders()
        finally:
            if user is not None:
                os.close(user)
    assert folder in cleared
    assert not is_mounted(directory)
    assert not folder.exists()
    assert not processes_of(folder / "pool")
    (mount.directory / "still").write_text("here")


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("losetup") is None, reason="loop devices need root and losetup")
def test_a_loop_device_that_a_killed_run_left() -> None:
    process, directory = start_run()
    backing = directory.parent / "backing"
    try:
        backing.touch()
        os.truncate(backing, 1 << 20)
        device = run("losetup", "--find", "--show", backing).stdout.strip()
    finally:
        kill(process)
        clear_abandoned_folders()
    assert device not in run("losetup", "--noheadings", "--output", "NAME").stdout.split()
