"""Travel through the mount: times, versions, differences."""

import errno
import json
import os
import stat
import time

import pytest

from tests.mount.test_posix import fails_with
from tools.scratch import Mount, Pool, run, run_json


def test_times_lead_to_snapshots(mount: Mount) -> None:
    root = mount.directory
    at = root / ".cowfs" / "at"
    with fails_with(errno.ENOENT):
        (at / "-1ms").stat()
    taken = []
    for number in range(5):
        (root / "file").write_text(str(number))
        taken.append(mount.client().snapshot(f"s{number}"))
    for number, snapshot in enumerate(taken):
        moment_ns = snapshot["created_ns"]
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(moment_ns // 10**9))
        exact = f"{seconds}.{moment_ns % 10**9:09}Z"
        assert (at / exact / "file").read_text() == str(number)
        assert (at / f"@{snapshot['id']}" / "file").read_text() == str(number)
        view = mount.snapshot_directory(f"s{number}")
        assert (at / exact / "file").stat().st_ino == (view / "file").stat().st_ino
        assert os.path.realpath(at / exact) == str(view)
    for nothing in ("2001-01-01", "-9000w", "@99999", "nonsense", "s1"):
        with fails_with(errno.ENOENT):
            (at / nothing).stat()
    with fails_with(errno.EROFS):
        (at / "2100-01-01" / "file").write_text("x")
    with fails_with(errno.EPERM):
        (at / "new").mkdir()
    assert os.listdir(at) == []


def test_relative_times_are_never_remembered(mount: Mount) -> None:
    """The same name leads to another snapshot as soon as there is one."""
    client = mount.client()
    now = mount.directory / ".cowfs" / "at" / "-0s" / "file"
    for number in range(20):
        (mount.directory / "file").write_text(str(number))
        client.snapshot(sync=False)
        assert now.read_text() == str(number)
    client.destroy(client.list()[-1]["name"])
    assert now.read_text() == "18"


def test_snapshots_of_other_volumes_by_id(mount: Mount) -> None:
    root = mount.directory
    (root / "file").write_text("one")
    client = mount.client()
    client.snapshot("s")
    client.clone("s", "copy")
    (root / ".cowfs" / "volume" / "copy" / "file").write_text("of the clone")
    snapshot = run_json("cowfs", "snapshot", root / ".cowfs" / "volume" / "copy", "taken")
    (root / ".cowfs" / "volume" / "copy" / "file").write_text("later")
    assert (root / ".cowfs" / "at" / f"@{snapshot['id']}" / "file").read_text() == "of the clone"


def test_versions(mount: Mount) -> None:
    root = mount.directory
    (root / "folder").mkdir()
    path = root / "folder" / "file"
    for number in range(4):
        path.write_text(f"version {number}")
        for _ in range(5):
            mount.client().snapshot()
    path.unlink()
    listed = run_json("cowfs", "versions", path)
    assert [version["kind"] for version in listed] == ["added", "modified", "modified", "modified", "removed"]
    links = root / ".cowfs" / "versions" / "folder" / "file"
    names = os.listdir(links)
    assert [(links / name).read_text() for name in sorted(names)] == [f"version {number}" for number in range(4)]
    for name in names:
        assert stat.S_ISLNK((links / name).lstat().st_mode)
        assert (root / ".cowfs" / "at" / name / "folder" / "file").read_text() == (links / name).read_text()
    lines = run("cowfs", "versions", "-H", path).stdout.splitlines()
    assert len(lines) == 5 and lines[-1].split("\t")[1:3] == ["-", "removed"]
    with fails_with(errno.ENOENT):
        (root / ".cowfs" / "versions" / "folder" / "other").stat()
    with fails_with(errno.ENOENT):
        (links / "other").stat()
    assert run("cowfs", "versions", root / "folder" / "other", check=False).returncode == 3
    path.write_text("back")
    assert os.listdir(links.parent) == ["file"]
    assert run_json("cowfs", "versions", path)[-1]["snapshot"] is None


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to act as another user")
def test_versions_keep_permissions(pool: Pool) -> None:
    """A directory that is closed is closed here, too, and the files below it are reached through it alone."""
    root = pool.mount("-o", "allow_other").directory
    (root / "private").mkdir(mode=0o700)
    (root / "private" / "secret").write_text("secret")
    (root / "private" / "secret").chmod(0o644)
    run("cowfs", "snapshot", root, "s")
    name = os.listdir(root / ".cowfs" / "versions" / "private" / "secret")[0]
    paths = ["versions/private", f"versions/private/secret/{name}", "at/-0s/private/secret"]
    (root / "private").chmod(0o755)  # what was closed then stays closed
    for path in paths[1:]:
        refused = run("setpriv", "--reuid=65534", "--clear-groups", "cat", root / ".cowfs" / path, check=False)
        assert refused.returncode != 0 and "Permission denied" in refused.stderr
    (root / "private").chmod(0o700)
    refused = run("setpriv", "--reuid=65534", "--clear-groups", "ls", root / ".cowfs" / paths[0], check=False)
    assert refused.returncode != 0 and "Permission denied" in refused.stderr


def test_diff(mount: Mount) -> None:
    root = mount.directory
    (root / "folder").mkdir()
    (root / "folder" / "old").write_text("moved")
    (root / "file").write_bytes(bytes(100_000))
    (root / "gone").touch()
    run("cowfs", "snapshot", root, "a")
    (root / "folder" / "old").rename(root / "folder" / "new")
    with (root / "file").open("r+b") as file:
        file.seek(50_000)
        file.write(b"x")
    (root / "gone").unlink()
    (root / "made").touch()
    run("cowfs", "snapshot", root, "b..c")
    expected = {("R", "/folder/old -> /folder/new"), ("M", "/file"), ("-", "/gone"), ("+", "/made")}
    for words in (("a..b..c", root), ("a..", root), ("a", root), ("a..-0s", root), ("a..", root / "file" / "..")):
        lines = run("cowfs", "diff", *words).stdout.splitlines()
        assert {tuple(line.split("\t")) for line in lines} == expected
    assert run("cowfs", "diff", "a..b..c", root / "folder").stdout == "R\t/folder/old -> /folder/new\n"
    assert run("cowfs", "diff", "b..c..", root).stdout == ""
    assert "4.0K\t49152+4096" in run("cowfs", "diff", "--stat", "a..", root).stdout
    (change,) = run_json("cowfs", "diff", "a..", root / "file")
    assert change["kind"] == "modified" and change["ranges"] == [[49152, 4096]]
    assert run("cowfs", "diff", "-1h..", root, check=False).returncode == 3
    assert run("cowfs", "diff", "-1ms..", root).stdout == ""
    assert run("cowfs", "diff", "a..nothing", root, check=False).returncode == 3
    assert json.loads(run("cowfs", "diff", "--json", "x..", root, check=False).stdout)["code"] == "not_found"


def test_diff_sees_what_the_kernel_still_keeps(pool: Pool, transport: str) -> None:
    if transport == "nopump":
        pytest.skip("cache=back needs the pump")
    if os.geteuid() != 0:
        pytest.skip("cache=back is for root")
    root = pool.mount("-o", "cache=back").directory
    (root / "file").write_text("one")
    run("cowfs", "snapshot", root, "a")
    (root / "file").write_text("two")
    assert run("cowfs", "diff", "a..", root).stdout == "M\t/file\n"
    assert [version["kind"] for version in run_json("cowfs", "versions", root / "file")] == ["added", "modified"]
