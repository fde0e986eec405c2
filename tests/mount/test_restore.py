"""cowfs restore: files and trees out of snapshots, with everything that belongs to them."""

import json
import os
import pathlib
import random

import pytest

from tests.mount.test_programs import describe, fill
from tools.scratch import MIB, Mount, run, run_json


@pytest.fixture(autouse=True)
def one_transport(transport: str) -> None:
    if transport != "device":
        pytest.skip("restoring is ordinary calls, whose ways have tests of their own")


def failure(*words: object) -> tuple[int, str]:
    result = run("cowfs", "restore", *words, "--json", check=False)
    return result.returncode, json.loads(result.stdout)["code"]


def test_a_lost_file_comes_back(mount: Mount) -> None:
    path = mount.directory / "file"
    path.write_text("content")
    path.chmod(0o640)
    os.setxattr(path, "user.a", b"1")
    os.utime(path, ns=(10**18, 10**18 + 1))
    run("cowfs", "snapshot", mount.directory, "s")
    before = describe(mount.directory)
    path.unlink()
    assert run("cowfs", "restore", path, "--at", "-0s").stdout == f"{path} as in s\n"
    assert describe(mount.directory)["file"] == before["file"]
    assert path.stat().st_mtime_ns == 10**18 + 1 and os.getxattr(path, "user.a") == b"1"


def test_what_is_there_is_not_overwritten(mount: Mount) -> None:
    path = mount.directory / "file"
    path.write_text("old")
    run("cowfs", "snapshot", mount.directory, "s")
    path.write_text("new")
    result = run("cowfs", "restore", path, "--at", "s", check=False)
    assert result.returncode == 4 and "--in-place" in result.stderr and "--to" in result.stderr
    assert path.read_text() == "new"
    run("cowfs", "restore", path, "--at", "s", "--to", mount.directory / "beside")
    assert (mount.directory / "beside").read_text() == "old" and path.read_text() == "new"
    assert failure(path, "--at", "s", "--to", mount.directory / "beside") == (4, "exists")
    (mount.directory / "folder").mkdir()
    run("cowfs", "restore", path, "--at", "s", "--to", mount.directory / "folder")
    assert (mount.directory / "folder" / "file").read_text() == "old"
    assert failure(path, "--at", "-1w") == (3, "not_found")
    assert failure(mount.directory / "other", "--at", "s") == (3, "not_found")
    assert failure(path, "--at", "s", "--delete")[0] == 2
    assert sorted(os.listdir(mount.directory)) == ["beside", "file", "folder"]


def test_in_place_keeps_the_file_and_can_be_undone(mount: Mount) -> None:
    path = mount.directory / "file"
    content = random.Random(3).randbytes(8 * MIB)
    path.write_bytes(content)
    run("cowfs", "snapshot", mount.directory, "s")
    with path.open("r+b") as file:
        file.seek(5 * MIB)
        file.write(b"damage")
        file.truncate(7 * MIB)
    os.setxattr(path, "user.new", b"1")
    damaged, inode = path.read_bytes(), path.stat().st_ino
    result = run_json("cowfs", "restore", path, "--at", "s", "--in-place")
    assert path.read_bytes() == content and path.stat().st_ino == inode and os.listxattr(path) == []
    assert result["written_bytes"] == MIB + 4096  # what differed
    run("cowfs", "restore", path, "--at", result["guard"], "--in-place")
    assert path.read_bytes() == damaged and os.listxattr(path) == ["user.new"]


def test_a_restored_file_shares_what_it_can(mount: Mount) -> None:
    path = mount.directory / "file"
    content = random.Random(4).randbytes(32 * MIB)
    path.write_bytes(content)
    run("cowfs", "snapshot", mount.directory, "s")
    with path.open("r+b") as file:
        file.write(b"changed")
    client = mount.client()
    client.sync()
    used = client.df()["used_bytes"]
    result = run_json("cowfs", "restore", path, "--at", "s", "--to", mount.directory / "copy")
    client.sync()
    assert (mount.directory / "copy").read_bytes() == content and result["written_bytes"] == 4096
    assert client.df()["used_bytes"] - used < 2 * MIB


def test_trees_come_back_whole(mount: Mount, tmp_path: pathlib.Path) -> None:
    root = mount.directory
    fill(root / "tree", special=os.geteuid() == 0)
    os.link(root / "tree" / "large", root / "tree" / "folder 1" / "linked")
    run("cowfs", "snapshot", root, "s")
    before = describe(root / "tree")
    run("rm", "-r", root / "tree")
    run("cowfs", "restore", root / "tree", "--at", "s")
    assert describe(root / "tree") == before
    assert (root / "tree" / "large").stat().st_ino == (root / "tree" / "folder 1" / "linked").stat().st_ino
    run("rm", "-r", root / "tree" / "folder 1")
    (root / "tree" / "new").write_text("new")
    (root / "tree" / "large").write_bytes(b"damaged")
    run("cowfs", "restore", root / "tree", "--at", "s", "--in-place")
    assert (root / "tree" / "new").read_text() == "new"
    run("cowfs", "restore", root / "tree", "--at", "s", "--in-place", "--delete")
    assert describe(root / "tree") == before
    run("cowfs", "restore", root / "tree" / "large", "--at", "s", "--to", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == (root / "tree" / "large").read_bytes()


def test_other_types_are_not_replaced_silently(mount: Mount) -> None:
    path = mount.directory / "name"
    path.write_text("file")
    run("cowfs", "snapshot", mount.directory, "s")
    path.unlink()
    path.mkdir()
    (path / "inside").touch()
    assert failure(path, "--at", "s", "--in-place") == (4, "exists")
    assert (path / "inside").exists()
    run("cowfs", "restore", path, "--at", "s", "--in-place", "--delete")
    assert path.read_text() == "file"


def test_files_of_clones(mount: Mount) -> None:
    root = mount.directory
    (root / "file").write_text("one")
    client = mount.client()
    client.snapshot("s")
    client.clone("s", "copy")
    clone = root / ".cowfs" / "volume" / "copy"
    (clone / "file").write_text("two")
    run("cowfs", "snapshot", clone, "t")
    (clone / "file").unlink()
    run("cowfs", "restore", clone / "file", "--at", "t")
    assert (clone / "file").read_text() == "two" and (root / "file").read_text() == "one"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give files to another user")
def test_owners_come_back(mount: Mount) -> None:
    path = mount.directory / "file"
    path.write_text("x")
    os.chown(path, 1234, 5678)
    path.chmod(0o4755)
    run("cowfs", "snapshot", mount.directory, "s")
    path.unlink()
    run("cowfs", "restore", path, "--at", "s")
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 5678)
