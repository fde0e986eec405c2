"""Continuous mode on a mount: snapshots that the daemon takes and thins, snapshots for a time, the command bracket."""

import pathlib
import time

import pytest

from cowfs.errors import ExitCode
from cowfs.retention import is_automatic
from tools.scratch import CommandFailed, Mount, run, run_json, wait_until


def automatic(mount: Mount) -> list[str]:
    return [each["name"] for each in mount.client().list() if is_automatic(each["name"])]


def test_the_daemon_takes_and_thins(mount: Mount) -> None:
    root = mount.directory
    (root / "file").write_text("0")
    run("cowfs", "snapshot", "--every", "10ms", "--keep", "500ms(all) | 1500ms(100ms)", root)
    run("cowfs", "snapshot", root, "mine")
    held = ""
    for number in range(60):
        (root / "file").write_text(str(number))
        time.sleep(0.02)
        if number == 5:
            held = automatic(mount)[0]
            run("cowfs", "hold", "test", f"{root}@{held}")
    names = automatic(mount)
    assert len(names) > 20 and names == sorted(names)
    # Nothing changes any more: nothing more is taken, and what there is goes when its time is over.
    wait_until(lambda: automatic(mount) == [held], "the rule has thinned all but what is held", timeout_s=20)
    assert {each["name"] for each in mount.client().list()} == {held, "mine"}
    assert not mount.snapshot_directory(names[-1]).exists()


def test_each_shows_one_moment(mount: Mount) -> None:
    root = mount.directory
    run("cowfs", "snapshot", "--every", "1ms", root)
    for number in range(100):
        (root / "a").write_text(str(number))
        (root / "b").write_text(str(number))
    run("cowfs", "snapshot", "--every", "off", root)
    seen = []
    for name in automatic(mount):
        view = mount.snapshot_directory(name)
        if (view / "b").exists() and (view / "a").read_text() and (view / "b").read_text():
            seen.append((int((view / "a").read_text()), int((view / "b").read_text())))
    assert seen and all(a in (b, b + 1) for a, b in seen)
    assert seen == sorted(seen)
    count = len(automatic(mount))
    (root / "a").write_text("off")
    time.sleep(0.1)
    assert len(automatic(mount)) == count


def test_it_goes_on_after_a_crash_and_for_other_volumes(mount: Mount) -> None:
    root = mount.directory
    run("cowfs", "snapshot", root, "s")
    run("cowfs", "clone", f"{root}@s", "copy")
    run("cowfs", "snapshot", "--every", "20ms", root / ".cowfs" / "volume" / "copy")
    mount.kill_daemon()
    mount = mount.pool.mount()
    copy = mount.directory / ".cowfs" / "volume" / "copy"
    (copy / "new").write_text("1")
    (mount.directory / "new").write_text("1")
    wait_until(lambda: run_json("cowfs", "list", copy), "a snapshot of the other volume")
    assert [each["name"] for each in mount.client().list()] == ["s"]
    assert "20ms" in run("cowfs", "get", "snapshot-every", copy).stdout
    mount.unmount()


def test_snapshots_for_a_time(mount: Mount) -> None:
    root = mount.directory
    run("cowfs", "snapshot", "--for", "1h", root, "long")
    run("cowfs", "snapshot", "--for", "1s", root, "held")
    run("cowfs", "hold", "test", f"{root}@held")
    run("cowfs", "snapshot", "--for", "1500ms", "--message", "before the change", "--tag", "kind=test", root, "short")
    short = run_json("cowfs", "list", root)[-1]
    assert (short["message"], short["tags"]) == ("before the change", {"kind": "test"})
    assert 0 < short["expires_ns"] - short["created_ns"] <= 1_600_000_000
    mount.kill_daemon()
    mount = mount.pool.mount()
    wait_until(lambda: [each["name"] for each in mount.client().list()] == ["long", "held"], "the time of one is over")


def test_command_bracket(root: pathlib.Path) -> None:
    (root / "file").write_text("old")
    result = run(
        "cowfs", "snapshot", root, "edit", "--", "sh", "-c", f"echo new >{root}/file; echo out; exit 7", check=False
    )
    assert result.returncode == 7
    assert result.stdout == "out\n"
    assert "before: edit-before" in result.stderr and "after: edit-after" in result.stderr
    history = root / ".cowfs" / "snapshot"
    assert (history / "edit-before" / "file").read_text() == "old"
    assert (history / "edit-after" / "file").read_text() == "new\n"
    result = run("cowfs", "snapshot", "--json", root, "--", "sh", "-c", "kill -9 $$", check=False)
    assert result.returncode == 128 + 9 and '"status": -9' in result.stdout
    assert len(run_json("cowfs", "list", root)) == 4


def test_what_is_refused(root: pathlib.Path) -> None:
    for words in (["--every", "1us"], ["--keep", "1m"], ["--for", "soon"], ["--tag", "x"], ["--"],
                  ["--every", "1s", "--message", "m"], ["--message", "m" * 600]):  # fmt: skip
        with pytest.raises(CommandFailed, match=f"exited {int(ExitCode.USAGE)}"):
            run("cowfs", "snapshot", root, *words)
    assert run_json("cowfs", "list", root) == []
