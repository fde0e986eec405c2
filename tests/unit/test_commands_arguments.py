"""What the commands understand before they reach a daemon: verbs, targets, sizes, options, exit codes."""

import importlib
import importlib.metadata
import json
import os
import pathlib
import subprocess
import sys
import time

import pytest

from cowfs.commands import fsck, mkfs, umount_helper
from cowfs.commands import main as cowfs_command
from cowfs.commands import mount as mount_command
from cowfs.commands.output import format_size, format_time, print_table
from cowfs.commands.snapshot import directory_and_name
from cowfs.errors import EXIT_CODE_HELP, EXIT_CODE_OF, CowfsError, ExitCode
from cowfs.mount_options import MS_NODEV, MS_NOSUID, MS_RDONLY, parse_options
from cowfs.mounting import fusermount_options, mount_above, mount_at, mount_entries
from cowfs.pools import parse_size
from cowfs.snapshots import (
    GUARD_PREFIX,
    NameSource,
    Target,
    check_name,
    format_time_us,
    hold_tags,
    split_target,
    with_hold_tags,
)

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize("verb", sorted(cowfs_command.VERBS))
def test_each_verb_has_a_module_with_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert importlib.import_module(f"cowfs.commands.{verb}").__doc__
    with pytest.raises(SystemExit) as ended:
        cowfs_command.main([verb, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert f"cowfs {verb}" in shown and "exit codes" in shown and "--json" in shown


def test_help_names_every_verb_and_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cowfs_command.main(["--help"])
    shown = capsys.readouterr().out
    for verb, summary in cowfs_command.VERBS.items():
        assert verb in shown and summary in shown
    for code in ExitCode:
        assert f" {int(code)}  " in EXIT_CODE_HELP
    assert set(EXIT_CODE_OF.values()) == set(ExitCode) - {ExitCode.OK}


def test_help_imports_nothing_heavy_and_is_quick() -> None:
    program = ("import sys; sys.argv = ['cowfs', '--help']\n"
               "from cowfs.commands.main import main\n"
               "try: main()\n"
               "except SystemExit: pass\n"
               "heavy = {'trio', 'pyfuse3', 'btree', 'ctypes', 'socket', 'json', 'subprocess'} & set(sys.modules)\n"
               "assert not heavy, heavy")
    durations = []
    for _ in range(3):
        started = time.monotonic()
        finished = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, check=False)
        durations.append(time.monotonic() - started)
        assert finished.returncode == 0, finished.stderr
    # The promise is well under 0.1 s; three times that is left for a busy machine.
    assert min(durations) < 0.3


def test_usage_errors_exit_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert cowfs_command.main([]) == ExitCode.USAGE
    assert cowfs_command.main(["rollback", "/tmp"]) == ExitCode.USAGE
    assert "DIR@SNAPSHOT" in capsys.readouterr().err
    for words in (["unknown"], ["snapshot"], ["list", "/", "--nonsense"]):
        with pytest.raises(SystemExit) as ended:
            cowfs_command.main(words)
        assert ended.value.code == ExitCode.USAGE


def test_a_path_that_is_not_on_cowfs(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cowfs_command.main(["snapshot", str(tmp_path)]) == ExitCode.NOT_COWFS
    assert cowfs_command.main(["list", str(tmp_path / "missing")]) == ExitCode.NOT_FOUND
    assert cowfs_command.main(["umount", str(tmp_path)]) == ExitCode.NOT_COWFS
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith("cowfs: ") and "; " in line for line in lines) and len(lines) == 3


def test_errors_as_json(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cowfs_command.main(["list", "--json", str(tmp_path)]) == ExitCode.NOT_COWFS
    shown = capsys.readouterr()
    error = json.loads(shown.out)
    assert (error["code"], error["exit_code"]) == ("not_cowfs", 7)
    assert shown.err == f"cowfs: {error['message']}; {error['hint']}\n"
    assert cowfs_command.main(["list", str(tmp_path)]) == ExitCode.NOT_COWFS
    assert capsys.readouterr().out == ""


def test_a_directory_that_only_looks_like_a_mount(tmp_path: pathlib.Path) -> None:
    (tmp_path / ".cowfs").mkdir()
    (tmp_path / ".cowfs" / "socket").symlink_to("/dev/null")
    assert cowfs_command.main(["status", str(tmp_path)]) == ExitCode.NOT_COWFS


@pytest.mark.parametrize(("text", "target"), [
    ("/mnt/data@one", Target("/mnt/data", "one")),
    ("/mnt/a@b/data@one", Target("/mnt/a@b/data", "one")),
    ("/mnt/a@b/@one", Target("/mnt/a@b/", "one")),
    (".@2026-11-22T114510.123456Z", Target(".", "2026-11-22T114510.123456Z")),
])
def test_targets(text: str, target: Target) -> None:
    assert split_target(text) == target


@pytest.mark.parametrize("text", ["/mnt/data", "/mnt/a@b/data", "@one", "/mnt/data@", ""])
def test_what_is_no_target(text: str) -> None:
    with pytest.raises(CowfsError) as raised:
        split_target(text)
    assert raised.value.exit_code == ExitCode.USAGE


def test_target_whose_snapshot_has_an_at_sign(tmp_path: pathlib.Path) -> None:
    (tmp_path / "x@y").mkdir()
    assert split_target(f"{tmp_path}@a@b") == Target(str(tmp_path), "a@b")
    assert split_target(f"{tmp_path}/x@y@z") == Target(f"{tmp_path}/x@y", "z")
    assert split_target(f"{tmp_path}/x@y@a@b") == Target(f"{tmp_path}/x@y", "a@b")


def test_snapshot_takes_either_form(tmp_path: pathlib.Path) -> None:
    (tmp_path / "x@y").mkdir()
    place = str(tmp_path)
    assert directory_and_name(place, None) == (place, None)
    assert directory_and_name(f"{place}@one", None) == (place, "one")
    assert directory_and_name(f"{place}/x@y", None) == (f"{place}/x@y", None)
    assert directory_and_name(f"{place}/x@y@one", None) == (f"{place}/x@y", "one")
    for directory, name in ((f"{place}@one", "two"), (f"{place}/missing", None), (f"{place}/missing@one", None)):
        assert directory_and_name(directory, name) == (directory, name)
    with pytest.raises(CowfsError):
        directory_and_name(f"{place}@", None)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\nb", "a\0b", "x" * 256, "ä" * 128, "\udcff", "\x1b[31m"])
def test_names_that_are_refused(name: str) -> None:
    with pytest.raises(CowfsError) as raised:
        check_name(name, "snapshot")
    assert raised.value.code == "name"


def test_names_that_are_fine() -> None:
    for name in ("a", "x" * 255, "ä" * 127, "a@b", "with space", "...", "-f"):
        assert check_name(name, "snapshot") == name


def test_default_names_sort_by_time_and_differ() -> None:
    source = NameSource()
    names = [source.next_name() for _ in range(1000)]
    assert names == sorted(set(names)) and not any(":" in name for name in names)
    assert format_time_us(1795347910_123456) == "2026-11-22T114510.123456Z"


def test_guard_names_fit_and_do_not_grow() -> None:
    source = NameSource()
    guard = source.next_guard_name("nightly")
    assert guard.startswith(GUARD_PREFIX + "nightly@")
    assert len(source.next_guard_name(guard)) == len(guard)
    for name in ("x" * 255, "ä" * 127):
        check_name(source.next_guard_name(name), "snapshot")


def test_holds_in_annotations() -> None:
    annotation = with_hold_tags(b'{"message":"kept"}', ["a", "b"])
    assert hold_tags(annotation) == ["a", "b"]
    assert with_hold_tags(annotation, []) == b'{"message":"kept"}'
    assert hold_tags(b"") == [] and with_hold_tags(b"", []) == b""
    with pytest.raises(CowfsError):
        with_hold_tags(b"", ["x" * 600])
    for broken in (b"{", b"[]", b"\xff"):
        with pytest.raises(CowfsError) as raised:
            hold_tags(broken)
        assert raised.value.exit_code == ExitCode.DAMAGED


@pytest.mark.parametrize(("text", "size_bytes"), [
    ("1", 1), ("4K", 4096), ("16m", 16 << 20), ("20G", 20 << 30), ("1T", 1 << 40), ("2GiB", 2 << 30), ("2GB", 2 << 30)])
def test_sizes(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "G", "-1G", "1.5G", "10X", "0", "1 G", "١"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(CowfsError) as raised:
        parse_size(text)
    assert raised.value.exit_code == ExitCode.USAGE


def test_mount_options() -> None:
    assert parse_options([]).flags == MS_NOSUID | MS_NODEV
    options = parse_options(["rw,noatime,x-systemd.automount,nofail", "ro,volume=work,suid,commit=5,cache_mib=256"])
    assert options.read_only and options.volume == "work" and options.honours_setuid
    assert options.flags & (MS_RDONLY | MS_NODEV | MS_NOSUID) == MS_RDONLY | MS_NODEV
    assert (options.commit_interval_ms, options.cache_bytes_max) == (5000, 256 << 20)
    assert not parse_options(["ro,rw"]).read_only
    assert parse_options(["user,exec"]).flags & 8 == 0 and parse_options(["exec,user"]).flags & 8
    assert parse_options(["nonsense"], sloppy=True) == parse_options([])


def test_mount_options_of_the_way_to_the_kernel() -> None:
    default = parse_options([])
    assert (default.pump, default.uring, default.cache_back) == (True, "auto", False)
    assert default.awake == "auto" and parse_options(["awake=on,awake=off"]).awake == "off"
    with pytest.raises(CowfsError, match="awake=on"):
        parse_options(["awake"])
    options = parse_options(["nopump,uring=off", "cache=through"])
    assert (options.pump, options.uring, options.cache_back) == (False, "off", False)
    assert parse_options(["cache=back"]).cache_back
    assert parse_options(["nopump,pump,uring=off,uring=on,uring=auto,cache=back,cache=through"]) == default
    for words in (["nopump,cache=back"], ["cache=back", "nopump"]):
        with pytest.raises(CowfsError, match="needs the pump") as raised:
            parse_options(words)
        assert raised.value.exit_code == ExitCode.USAGE
    assert parse_options(["uring=on"]).uring == "on"


@pytest.mark.parametrize(("text", "choice"), [
    ("uring", "uring=auto, uring=on, uring=off"), ("uring=yes", "uring=auto"), ("uring=", "uring=auto"),
    ("cache=none", "cache=through, cache=back"), ("cache", "cache=through")])
def test_mount_options_with_few_values_name_them(text: str, choice: str) -> None:
    for sloppy in (False, True):
        with pytest.raises(CowfsError) as raised:
            parse_options([text], sloppy=sloppy)
        assert raised.value.exit_code == ExitCode.USAGE
        assert f"'{text.rstrip('=')}'" in raised.value.message and choice in raised.value.hint


@pytest.mark.parametrize("text", ["nonsense", "commit=0", "commit=x", "cache_mib=", "volume=", "remount,ro", "uid=5",
                                  "pump=1", "nouring"])
def test_mount_options_that_are_refused(text: str) -> None:
    with pytest.raises(CowfsError) as raised:
        parse_options([text])
    assert raised.value.exit_code == ExitCode.USAGE


def test_what_fusermount_can_do_and_what_not() -> None:
    always = {"subtype=cowfs", "default_permissions", "nosuid", "nodev", "fsname=/a\\,b"}
    assert fusermount_options("/a,b", parse_options(["relatime"])) == always
    asked = "ro,noexec,sync,dirsync,noatime"
    assert fusermount_options("/a,b", parse_options([asked])) == always | set(asked.split(","))
    assert fusermount_options("/a,b", parse_options([asked + ",rw,exec,async,atime,allow_other"])) == always | {
        "allow_other", "dirsync"}


@pytest.mark.parametrize("text", ["suid", "dev", "nosymfollow", "nodiratime", "strictatime", "lazytime"])
def test_what_fusermount_cannot_do_is_refused(text: str) -> None:
    with pytest.raises(CowfsError) as raised:
        fusermount_options("/pool", parse_options([text]))
    assert raised.value.code == "usage" and f"'{text}'" in raised.value.message


def test_mount_helper_exit_codes(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    pool = tmp_path / "file"
    pool.write_bytes(b"no pool at all")
    for words, status in (
        ([], 1),
        ([str(pool)], 1),
        (["-x", str(pool), str(tmp_path)], 1),
        ([str(pool), str(tmp_path), "-o", "nonsense"], 1),
        ([str(tmp_path / "missing"), str(tmp_path)], 32),
        ([str(tmp_path), str(tmp_path)], 32),
        ([str(pool), str(tmp_path / "missing")], 32),
        ([str(pool), "/proc"], 32),
        (["-h"], 0),
        ([str(pool), str(tmp_path), "-n", "-f", "-o", "rw,defaults"], 0),
        ([str(pool), str(tmp_path), "-sfv", "-o", "nonsense"], 0),
    ):
        assert mount_command.main(words) == status, words
    assert "mount.cowfs: " in capsys.readouterr().err


def test_versions(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: {"cowfs-fs": "1.2.3"}[name])
    for main in (cowfs_command.main, mkfs.main, fsck.main):
        with pytest.raises(SystemExit) as ended:
            main(["--version"])
        assert ended.value.code == 0
    assert mount_command.main(["-V"]) == umount_helper.main(["-V"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{name} 1.2.3" for name in ("cowfs", "mkfs.cowfs", "fsck.cowfs", "mount.cowfs", "umount.fuse.cowfs")]


def test_version_of_what_is_not_installed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert mount_command.main(["-V"]) == 0
    assert capsys.readouterr().out == "mount.cowfs (not installed)\n"


def test_umount_helper_exit_codes(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert umount_helper.main([]) == 1
    assert umount_helper.main(["-x", "/"]) == 1
    assert umount_helper.main([str(tmp_path), "-f", "-l"]) == 32
    assert umount_helper.main(["--help"]) == 0
    assert "no cowfs is mounted" in capsys.readouterr().err


def test_mountinfo() -> None:
    entries = mount_entries()
    assert any(entry.mountpoint == "/proc" and entry.kind == "proc" for entry in entries)
    found = mount_at("/proc/")
    assert found is not None and found.kind == "proc"
    above = mount_above("/proc/self/status")
    assert above is not None and above.mountpoint == "/proc"
    assert mount_at("/proc/sys/kernel") is None


def test_output_formats(capsys: pytest.CaptureFixture[str]) -> None:
    assert [format_size(size) for size in (0, 1023, 1024, 1536, 200 << 20, 5 << 40)] == [
        "0B", "1023B", "1.0K", "1.5K", "200M", "5.0T"]
    assert format_size(1536, exact=True) == "1536"
    assert format_time(12345, exact=True) == "12345"
    print_table(("A", "LONG"), [("wide cell", "x")], bare=False)
    print_table(("A", "LONG"), [("wide cell", "x")], bare=True)
    assert capsys.readouterr().out == "A          LONG\nwide cell  x\nwide cell\tx\n"


def test_every_error_has_a_next_step() -> None:
    hints = {code: CowfsError(code, "cause").hint for code in EXIT_CODE_OF}
    assert all(hints.values()) and len(set(hints.values())) == len(hints)
    assert CowfsError("busy", "cause", "wait").hint == "wait"


def test_errors_keep_cause_and_next_step() -> None:
    error = CowfsError.from_os_error(OSError(22, "this is no pool; make one with mkfs.cowfs"), "open x")
    assert str(error) == "cannot open x: this is no pool; make one with mkfs.cowfs"
    assert CowfsError.from_os_error(OSError(28, "No space left on device"), "write").exit_code == ExitCode.NO_SPACE
    assert CowfsError.from_os_error(OSError(5, os.strerror(5)), "read").exit_code == ExitCode.DAMAGED
    assert str(CowfsError.from_json(error.to_json())) == str(error)
    assert CowfsError.from_json({"code": "from the future"}).exit_code == ExitCode.ERROR
    assert CowfsError.from_json(None).exit_code == ExitCode.ERROR
