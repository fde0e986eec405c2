"""`cowfs uring` on folders that stand for the machine's; the machine's own setting is only read."""

import errno
import json
import os
import pathlib

import pytest

from cowfs.commands import main as cowfs_command
from cowfs.commands import uring
from cowfs.errors import ExitCode


class Machine:
    """A root directory with what the command looks at."""

    def __init__(self, root: pathlib.Path) -> None:
        self.root = root
        self.write("proc/cmdline", "root=/dev/sda1 quiet\n")
        self.write("proc/sys/kernel/io_uring_disabled", "0\n")
        self.write(uring.PARAMETER, "N\n")
        self.write(f"{uring.MODULE}/initstate", "live\n")
        (root / "run/systemd/system").mkdir(parents=True)

    def write(self, name: str, text: str) -> None:
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        (self.root / name).write_text(text)

    def remove(self, name: str) -> None:
        (self.root / name).unlink()

    def files(self) -> set[str]:
        return {name for name in uring.PERMANENT if (self.root / name).exists()}


@pytest.fixture
def machine(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setattr(uring, "ROOT", str(tmp_path))
    return Machine(tmp_path)


def state(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, object]:
    assert cowfs_command.main(["uring", *words, "--json"]) == ExitCode.OK
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def test_on_and_off_with_a_module(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    off = {"supported": True, "enabled": False, "permanent": False, "built_in": False, "notes": []}
    assert state(capsys) == off
    for _ in range(2):
        assert state(capsys, "enable") == {**off, "enabled": True, "permanent": True}
    assert (machine.root / uring.PARAMETER).read_text().strip() == "Y"
    assert (machine.root / uring.MODPROBE).read_text().splitlines()[-1] == "options fuse enable_uring=Y"
    assert (machine.root / uring.TMPFILES).read_text().splitlines()[-1] == f"w /{uring.PARAMETER} - - - - Y"
    machine.write(uring.PARAMETER, "N\n")
    assert state(capsys) == {**off, "permanent": True}
    for _ in range(2):
        assert state(capsys, "disable") == off
    assert machine.files() == set()
    assert (machine.root / "etc/modprobe.d").is_dir()


def test_what_people_see(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    assert cowfs_command.main(["uring", "enable"]) == ExitCode.OK
    assert capsys.readouterr() == ("", "")
    assert cowfs_command.main(["uring"]) == ExitCode.OK
    shown = capsys.readouterr()
    assert [line.rsplit(maxsplit=1)[1] for line in shown.out.splitlines()] == ["yes", "yes", "yes"]
    assert shown.err == ""


def test_a_driver_inside_the_kernel(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.remove(f"{uring.MODULE}/initstate")
    machine.write(uring.MODPROBE, uring.PERMANENT[uring.MODPROBE])
    assert state(capsys)["permanent"] is False, "nobody reads modprobe.d for it"
    found = state(capsys, "enable")
    assert (found["enabled"], found["permanent"], found["built_in"]) == (True, True, True)
    assert "/etc/fstab" in str(found["notes"]) and uring.BOOT_WORD in str(found["notes"])
    assert cowfs_command.main(["uring"]) == ExitCode.OK
    assert capsys.readouterr().err.startswith("cowfs: note: the fuse driver is built into this kernel")

    (machine.root / "run/systemd/system").rmdir()
    found = state(capsys)
    assert found["permanent"] is False and "without systemd" in str(found["notes"])
    machine.write("proc/cmdline", f"quiet {uring.BOOT_WORD}\n")
    assert state(capsys) == {"supported": True, "enabled": True, "permanent": True, "built_in": True, "notes": []}
    found = state(capsys, "disable")
    assert (found["enabled"], found["permanent"]) == (False, True)
    assert "command line switches it on again" in str(found["notes"])


@pytest.mark.parametrize(("word", "is_on"), [
    ("fuse.enable_uring=1", True), ("fuse.enable-uring=Y", True), ("fuse.enable_uring", True),
    ("fuse.enable_uring=on", True), ("fuse.enable_uring=0", False), ("fuse.enable_uring=off", False),
    ("fuse.enable_uring=1 fuse.enable_uring=n", False), ("fuse.other=1", None)])
def test_the_kernels_command_line_counts(
    machine: Machine, capsys: pytest.CaptureFixture[str], word: str, is_on: bool | None
) -> None:
    machine.write("proc/cmdline", f"quiet {word}\n")
    assert state(capsys)["permanent"] is bool(is_on)
    machine.write(uring.MODPROBE, uring.PERMANENT[uring.MODPROBE])
    assert state(capsys)["permanent"] is (is_on is not False), "for a module it comes after modprobe.d"


def test_a_kernel_without_it(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.remove(uring.PARAMETER)
    machine.write(uring.MODPROBE, uring.PERMANENT[uring.MODPROBE])
    found = state(capsys)
    assert (found["supported"], found["enabled"], found["permanent"]) == (False, False, False)
    for action in ("enable", "disable"):
        assert cowfs_command.main(["uring", action]) == ExitCode.ERROR
        assert "6.14" in capsys.readouterr().err
    assert machine.files() == {uring.MODPROBE}


def test_a_driver_that_is_not_loaded(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(uring, "ROOT", str(tmp_path))
    found = state(capsys)
    assert found["supported"] is False and "modprobe fuse" in str(found["notes"])
    assert cowfs_command.main(["uring", "enable"]) == ExitCode.ERROR
    assert "modprobe fuse" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("number", "hint"), [
    (errno.EACCES, "run it as root: sudo cowfs uring"), (errno.EROFS, "/sys must be writable")])
def test_without_the_right(machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
                           number: int, hint: str) -> None:
    def refuse(path: str, flags: int) -> int:
        raise OSError(number, os.strerror(number), path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        for action in ("enable", "disable"):
            assert cowfs_command.main(["uring", action]) == ExitCode.PERMISSION
            assert hint in capsys.readouterr().err
    assert machine.files() == set() and (machine.root / uring.PARAMETER).read_text() == "N\n"


def test_files_that_cannot_be_written_or_removed(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.write("etc/modprobe.d", "a file where a directory belongs")
    assert cowfs_command.main(["uring", "enable"]) != ExitCode.OK
    assert "on until the next boot" in capsys.readouterr().err
    assert state_of(machine) == "Y"
    machine.remove("etc/modprobe.d")
    (machine.root / uring.MODPROBE).mkdir(parents=True)
    assert cowfs_command.main(["uring", "disable"]) != ExitCode.OK
    assert "remove it yourself" in capsys.readouterr().err
    assert state_of(machine) == "N"


def state_of(machine: Machine) -> str:
    return (machine.root / uring.PARAMETER).read_text().strip()


def test_io_uring_switched_off_altogether(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.write(uring.IO_URING_DISABLED, "2\n")
    assert state(capsys)["notes"] == []
    assert "io_uring_disabled" in str(state(capsys, "enable")["notes"])


def test_this_machines_setting_can_be_read(capsys: pytest.CaptureFixture[str]) -> None:
    parameter = pathlib.Path("/") / uring.PARAMETER
    found = state(capsys)
    assert found["supported"] is parameter.exists()
    if parameter.exists():
        assert found["enabled"] is (parameter.read_text().strip() == "Y")
