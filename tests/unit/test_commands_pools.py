"""mkfs.cowfs, fsck.cowfs and opening pools: what is refused, what is said, and which exit code follows."""

import contextlib
import json
import os
import pathlib
import threading
import time
from collections.abc import Sequence

import pytest

from btree import Storage
from cowfs import pools
from cowfs._native import FileSystem
from cowfs.commands import fsck, mkfs
from cowfs.errors import CowfsError, ExitCode
from cowfs.mounting import FILE_SYSTEM_TYPE, MountEntry
from cowfs.pools import describe_content, lock_holder, open_store


def make(path: pathlib.Path, *options: str) -> int:
    return mkfs.main([str(path), *options])


@pytest.fixture
def pool(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> pathlib.Path:
    path = tmp_path / "pool"
    assert make(path, "--size", "64M", "-L", "tests", "-q") == 0
    assert capsys.readouterr() == ("", "")
    return path


def test_a_new_pool_is_sparse_private_and_has_its_volume(pool: pathlib.Path) -> None:
    found = os.stat(pool)
    assert found.st_size == 64 << 20 and found.st_blocks * 512 < 16 << 20 and found.st_mode & 0o777 == 0o600
    with open_store(str(pool), read_only=True) as store:
        assert [volume.name for volume in store.volumes()] == ["main"]
        assert store.statistics()["label"] == "tests"
        root = FileSystem(store, store.volume_find("main").id, read_only=True).getattr(1)
        assert root[3:5] == (os.getuid(), os.getgid())


@pytest.mark.parametrize("options", [
    ["--node-size", "16K"], ["--metadata", "single"], ["--node-size", "8192", "--metadata", "dup"]])
def test_parameters(tmp_path: pathlib.Path, options: Sequence[str]) -> None:
    path = tmp_path / "pool"
    assert make(path, "--size", "64M", *options) == 0
    with open_store(str(path), read_only=True) as store:
        statistics = store.statistics()
    assert statistics["metadata_copies"] == (1 if "single" in options else 2)
    assert fsck.main([str(path)]) == 0


def test_what_holds_something_is_refused_without_force(tmp_path: pathlib.Path, pool: pathlib.Path,
                                                       capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text"
    text.write_bytes(b"\0" * 5000 + b"precious" + b"\0" * (32 << 20))
    late = tmp_path / "late"
    with open(late, "wb") as file:
        file.seek(40 << 20)
        file.write(b"x")
    for path, content in ((pool, "a cowfs pool"), (text, "data"), (late, "data")):
        before = path.read_bytes()
        assert make(path) == ExitCode.EXISTS
        assert make(path, "--size", "64M") == ExitCode.EXISTS
        shown = capsys.readouterr().err
        assert f"holds {content}" in shown and "-f" in shown
        assert path.read_bytes() == before
        assert make(path, "-f") == 0
        assert fsck.main([str(path)]) == 0


def test_file_systems_of_others_are_recognized(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "ext2"
    path.write_bytes(b"\0" * (32 << 20))
    with open(path, "r+b") as file:
        file.seek(1024 + 56)
        file.write(b"\x53\xef")
    assert describe_content(str(path)) is not None
    assert make(path) == ExitCode.EXISTS


def test_empty_targets_are_taken(tmp_path: pathlib.Path) -> None:
    sparse, zeros = tmp_path / "sparse", tmp_path / "zeros"
    with open(sparse, "wb") as file:
        file.truncate(64 << 20)
    zeros.write_bytes(b"\0" * (17 << 20))
    empty = tmp_path / "empty"
    empty.touch()
    assert make(sparse) == make(zeros) == make(empty, "--size", "32M") == 0
    assert empty.stat().st_size == 32 << 20


@pytest.mark.parametrize(("options", "status"), [
    ([], ExitCode.NOT_FOUND), (["--size", "1M"], ExitCode.USAGE), (["--size", "huge"], ExitCode.USAGE),
    (["--size", "64M", "--node-size", "5K"], ExitCode.USAGE), (["--size", "64M", "-L", "x" * 64], ExitCode.USAGE),
    (["--size", "64M", "-L", "a\nb"], ExitCode.USAGE)])
def test_usage_errors_leave_nothing_behind(tmp_path: pathlib.Path, options: Sequence[str], status: int) -> None:
    assert make(tmp_path / "pool", *options) == status
    assert list(tmp_path.iterdir()) == []


def test_targets_that_cannot_be_pools(tmp_path: pathlib.Path) -> None:
    (tmp_path / "small").touch()
    assert make(tmp_path / "small") == ExitCode.USAGE
    assert make(tmp_path, "-f") == ExitCode.USAGE
    assert make(pathlib.Path("/dev/null"), "-f") == ExitCode.USAGE
    assert make(tmp_path / "missing" / "pool", "--size", "64M") == ExitCode.NOT_FOUND


def test_a_pool_in_use_is_refused_even_with_force(pool: pathlib.Path, capsys: pytest.CaptureFixture[str],
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "BUSY_WAIT_MAX_S", 0.0)
    with contextlib.closing(Storage.open_file(str(pool))):
        assert lock_holder(str(pool)) == os.getpid()
        assert make(pool, "-f") == ExitCode.BUSY
        assert fsck.main([str(pool)]) == 8
        shown = capsys.readouterr().err.splitlines()
    assert len(shown) == 2 and all(f"in use by process {os.getpid()}" in line for line in shown)
    assert all("may still be writing after an unmount" in line for line in shown)
    assert lock_holder(str(pool)) is None
    assert fsck.main([str(pool)]) == 0


def test_opening_waits_for_a_daemon_that_is_about_to_end(pool: pathlib.Path) -> None:
    storage = Storage.open_file(str(pool))
    started = time.monotonic()
    closing = threading.Timer(0.3, storage.close)
    closing.start()
    try:
        open_store(str(pool), read_only=True).close()
    finally:
        closing.join()
    assert 0.2 < time.monotonic() - started < pools.BUSY_WAIT_MAX_S


@pytest.mark.parametrize(("kind", "advice"), [
    (FILE_SYSTEM_TYPE, "'cowfs umount /mnt/place'"), ("ext4", "it holds a ext4 file system: unmount that first")])
def test_what_is_mounted_is_not_waited_for(pool: pathlib.Path, monkeypatch: pytest.MonkeyPatch, kind: str,
                                           advice: str) -> None:
    entry = MountEntry("/mnt/place", "0:99", kind, os.path.realpath(pool))
    monkeypatch.setattr(pools, "mount_entries", lambda: [entry])
    monkeypatch.setattr(time, "sleep", lambda _seconds: pytest.fail("it waits"))
    with contextlib.closing(Storage.open_file(str(pool))), pytest.raises(CowfsError) as raised:
        open_store(str(pool), read_only=False)
    assert raised.value.code == "busy" and "mounted at /mnt/place" in raised.value.message
    assert advice in raised.value.hint


@pytest.mark.parametrize("content", [b"", b"short", b"no pool " * (1 << 20), b"\0" * (20 << 20)])
def test_files_that_are_no_pools(tmp_path: pathlib.Path, content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(CowfsError) as raised:
        open_store(str(path), read_only=False)
    assert raised.value.exit_code == ExitCode.NOT_COWFS and raised.value.hint
    assert fsck.main([str(path)]) == 8
    shown = capsys.readouterr().err
    assert shown.startswith(f"fsck.cowfs: cannot open the pool {path}: ") and "; " in shown
    assert path.read_bytes() == content


def test_a_truncated_pool_is_refused_unharmed(pool: pathlib.Path) -> None:
    os.truncate(pool, 20 << 20)
    before = pool.read_bytes()
    with pytest.raises(CowfsError) as raised:
        open_store(str(pool), read_only=False)
    assert raised.value.exit_code in (ExitCode.DAMAGED, ExitCode.NOT_COWFS) and raised.value.hint
    assert pool.read_bytes() == before
    assert fsck.main([str(pool)]) in (4, 8)


def test_fsck_usage(pool: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options in ([], ["-p"], ["-a", "-f"], ["-n"], ["-y", "--all", "--data"], ["-C0"]):
        assert fsck.main([str(pool), *options]) == 0
    shown = capsys.readouterr()
    assert "clean" in shown.out and "checking the volume main" in shown.err
    read_end, write_end = os.pipe()
    assert fsck.main([str(pool), "-C", str(write_end)]) == 0
    os.close(write_end)
    with os.fdopen(read_end) as pipe:
        assert pipe.readlines()[-1].split() == ["3", "0", "1000", str(pool)]
    capsys.readouterr()
    assert fsck.main([str(pool), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["problems"] == []
    assert fsck.main([str(tmp_path / "missing"), "--json"]) == 8
    shown = capsys.readouterr()
    assert json.loads(shown.out) | {"message": "", "hint": ""} == {
        "code": "not_found", "message": "", "hint": "", "exit_code": 8}
    assert json.loads(shown.out)["message"] in shown.err
    for words in ([], [str(pool), "-Z"]):
        with pytest.raises(SystemExit) as ended:
            fsck.main(words)
        assert ended.value.code == 16


def test_fsck_finds_damage(pool: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_store(str(pool), read_only=False) as store:
        volume_id = store.volume_find("main").id
        filesystem = FileSystem(store, volume_id)
        node = filesystem.create(1, b"file", 0o100644, 0, 0)[0]
        marker = os.urandom(4096)
        filesystem.write(node, 0, marker * 16)
    content = bytearray(pool.read_bytes())
    position = content.find(marker)
    assert position >= 0
    content[position + 100] ^= 1
    pool.write_bytes(content)
    assert fsck.main([str(pool)]) == 0
    assert fsck.main([str(pool), "--data"]) == 4
    shown = capsys.readouterr().out
    assert "problem" in shown and "nothing was changed; 'fsck.cowfs -y' repairs" in shown
