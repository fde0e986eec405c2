"""Flushing shared mappings: what is found under /proc, and what happens where a file cannot be opened or flushed. The
folder that stands for /proc is made here: what the real one shows depends on who asks and on the file system."""

import errno
import importlib
import os
import pathlib
from types import TracebackType

import pytest

from cowfs import mappings
from cowfs.commands import main as cowfs_command
from cowfs.commands.flush import flush_mappings
from cowfs.errors import CowfsError, ExitCode
from cowfs.mappings import flush_shared_mappings, shared_writable_mappings

PLACE = "7f0000000000-7f0000001000"


class Processes:
    """A folder like /proc, and which files were flushed by way of it."""

    def __init__(self, folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.may_use_links = True
        self.fsync_errno = 0
        self.flushed: list[str] = []
        self._open = os.open
        folder.mkdir()
        (folder / "version").touch()
        monkeypatch.setattr(mappings, "PROC", str(folder))
        monkeypatch.setattr(os, "open", self._open_file)
        monkeypatch.setattr(os, "fsync", self._flush)

    def _open_file(self, path: str, flags: int, mode: int = 0o777) -> int:
        if "/map_files/" in str(path) and not self.may_use_links:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), path)
        return self._open(path, flags, mode)

    def _flush(self, descriptor: int) -> None:
        if self.fsync_errno:
            raise OSError(self.fsync_errno, os.strerror(self.fsync_errno))
        self.flushed.append(os.readlink(f"/proc/self/fd/{descriptor}"))

    def add(self, pid: int, file: pathlib.Path, *, shown: str = "", permissions: str = "rw-s") -> None:
        """A process that has mapped the file, whose name in /proc/PID/maps is `shown`."""
        found = file.stat()
        device = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}"
        links = self.folder / str(pid) / "map_files"
        links.mkdir(parents=True)
        (links / PLACE).symlink_to(file)
        (links.parent / "maps").write_text(
            "7ffd00000000-7ffd00001000 rw-p 00000000 00:00 0                          [stack]\n"
            "7f1000000000-7f1000001000 rw-s 00000000 00:01 99 /dev/zero (deleted)\n"
            f"{PLACE} {permissions} 00000000 {device} {found.st_ino}                 {shown or file}\n")


@pytest.fixture
def processes(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Processes:
    return Processes(tmp_path / "proc", monkeypatch)


@pytest.fixture
def file(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "a file"
    path.write_bytes(b"content")
    return path


def test_each_file_is_flushed_once(processes: Processes, file: pathlib.Path) -> None:
    private = file.with_name("private")
    private.touch()
    processes.add(1, file)
    processes.add(2, file)
    processes.add(3, private, permissions="rw-p")
    processes.add(4, private, permissions="r--s")
    found = shared_writable_mappings(file.stat().st_dev)
    assert {inode: [mapping.path for mapping in several] for inode, several in found.items()} == {
        file.stat().st_ino: [str(file)] * 2}
    assert flush_shared_mappings(str(file.parent)) == []
    assert processes.flushed == [str(file)]


def test_a_process_that_ended_meanwhile_does_not_hide_another(processes: Processes, file: pathlib.Path) -> None:
    for pid in (1, 2):
        processes.add(pid, file)
    (processes.folder / "1" / "map_files" / PLACE).unlink()
    assert flush_shared_mappings(str(file.parent)) == [] and processes.flushed == [str(file)]
    (processes.folder / "2" / "map_files" / PLACE).unlink()
    assert flush_shared_mappings(str(file.parent)) == [] and processes.flushed == [str(file)]


def test_without_the_capability_the_name_is_used(processes: Processes, file: pathlib.Path) -> None:
    processes.may_use_links = False
    odd = file.with_name("odd\nname")
    odd.touch()
    processes.add(1, file)
    processes.add(2, odd, shown=str(odd).replace("\n", "\\012"))
    assert flush_shared_mappings(str(file.parent)) == []
    assert sorted(processes.flushed) == [str(file), str(odd)]


def test_what_is_out_of_reach_is_named(processes: Processes, file: pathlib.Path,
                                       capsys: pytest.CaptureFixture[str]) -> None:
    processes.may_use_links = False
    processes.add(1, file, shown=f"{file} (deleted)")
    other = file.with_name("other")
    other.write_bytes(b"what took the name of another")
    gone = file.with_name("gone")
    gone.touch()
    processes.add(2, gone, shown=str(other))
    assert sorted(flush_shared_mappings(str(file.parent))) == [f"{file} (deleted)", str(other)]
    assert processes.flushed == []
    flush_mappings(str(file.parent))
    notes = capsys.readouterr().err.splitlines()
    assert len(notes) == 2 and all(note.startswith("cowfs: note: ") for note in notes)
    assert any(f"{file} (deleted)" in note for note in notes)


def test_files_of_a_tree_that_was_rolled_back_are_skipped(processes: Processes, file: pathlib.Path) -> None:
    processes.add(1, file)
    processes.fsync_errno = errno.ESTALE
    assert flush_shared_mappings(str(file.parent)) == []


def test_what_cannot_be_written_is_an_error(processes: Processes, file: pathlib.Path) -> None:
    processes.add(1, file)
    processes.fsync_errno = errno.EIO
    with pytest.raises(CowfsError) as raised:
        flush_mappings(str(file.parent))
    assert raised.value.exit_code == ExitCode.DAMAGED and raised.value.hint


class Daemon:
    """Stands for a client, and for what it says to its daemon."""

    def __init__(self, place: str) -> None:
        self.mountpoint = self.directory = place
        self.asked: list[str] = []

    def __enter__(self) -> "Daemon":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.asked.append("end")

    def snapshot(self, name: str, sync: bool, **details: object) -> dict[str, object]:
        assert not any(details.values())
        self.asked.append(f"snapshot {name}")
        return {"name": name}

    def rollback(self, name: str) -> dict[str, object]:
        self.asked.append(f"rollback {name}")
        return {"guard": {"name": "guard"}}

    def sync(self) -> None:
        self.asked.append("sync")


@pytest.mark.parametrize(("verb", "suffix", "asked"), [
    ("snapshot", "@one", "snapshot one"), ("rollback", "@one", "rollback one"), ("sync", "", "sync")])
def test_who_flushes_first(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, verb: str, suffix: str,
                           asked: str) -> None:
    daemon = Daemon(str(tmp_path))
    module = importlib.import_module(f"cowfs.commands.{verb}")
    monkeypatch.setattr(module, "connect", lambda _path: daemon)
    monkeypatch.setattr(module, "flush_mappings", lambda place: daemon.asked.append(f"flush {place}"))
    assert cowfs_command.main([verb, f"{tmp_path}{suffix}"]) == ExitCode.OK
    assert daemon.asked == [f"flush {tmp_path}", asked, "end"]
