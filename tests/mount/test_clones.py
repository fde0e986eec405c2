"""Clones as instant environments: a thousand of one volume through one daemon, of clones, deleted in any order."""

import os
import pathlib
import random
import statistics
import time

import pytest

from tools.scratch import MIB, Mount, Pool, run, run_json


@pytest.fixture(autouse=True)
def one_transport(transport: str) -> None:
    if transport != "device":
        pytest.skip("what is served does not depend on how requests come")


def volume(mount: Mount, name: str) -> pathlib.Path:
    return mount.directory / ".cowfs" / "volume" / name


def test_a_thousand_clones(pool: Pool) -> None:
    """Each is there at once, writable, and its own; also after a remount, and through their listing."""
    mount = pool.mount()
    (mount.directory / "project").mkdir()
    for number in range(50):
        (mount.directory / "project" / f"file-{number}").write_text(f"original {number}")
    client = mount.client()
    client.snapshot("base")
    count = 1000
    latencies_s = []
    for number in range(count):
        started_s = time.perf_counter()
        client.clone("base", f"env-{number:04}")
        with (volume(mount, f"env-{number:04}") / "project" / "file-7").open("r+") as file:
            file.write(f"changed{number:05}")
        latencies_s.append(time.perf_counter() - started_s)
    assert statistics.median(latencies_s) < 0.02, "ready to use, on a machine that does other things too"
    # The last are made as fast as the first.
    assert statistics.median(latencies_s[-200:]) < 3 * statistics.median(latencies_s[:200]) + 0.002
    assert sorted(os.listdir(mount.directory / ".cowfs" / "volume")) == [*(f"env-{n:04}" for n in range(count)), "main"]
    chooser = random.Random(1)
    for number in chooser.sample(range(count), 50):
        client_of_one = volume(mount, f"env-{number:04}") / "project"
        assert (client_of_one / "file-7").read_text() == f"changed{number:05}"[:12] + "original 7"[12:]
        assert (client_of_one / "file-8").read_text() == "original 8"
    assert (mount.directory / "project" / "file-7").read_text() == "original 7"
    mount.unmount()
    mount = pool.mount()
    assert (volume(mount, "env-0999") / "project" / "file-7").read_text() == "changed00999"
    client = mount.client()
    assert len(client.volumes()) == count + 1
    for number in chooser.sample(range(count), 300):
        client.destroy_volume(f"env-{number:04}")
    assert len(client.volumes()) == count + 1 - 300


def test_clones_of_clones_go_in_any_order(pool: Pool) -> None:
    """A tree of clones and their snapshots, taken down at random: what is left keeps its content, and in the end the
    pool is as empty as before. fsck.cowfs runs behind each test."""
    mount = pool.mount()
    client = mount.client()
    chooser = random.Random(9)
    content: dict[str, bytes] = {"main": b""}
    snapshots: list[tuple[str, str, bytes]] = []

    def write(name: str) -> None:
        root = mount.directory if name == "main" else volume(mount, name)
        content[name] = chooser.randbytes(chooser.choice([10, 5000, MIB]))
        (root / "file").write_bytes(content[name])

    def check() -> None:
        for name, expected in content.items():
            root = mount.directory if name == "main" else volume(mount, name)
            assert (root / "file").read_bytes() == expected

    write("main")
    for step in range(120):
        name = chooser.choice(sorted(content))
        client.volume = None if name == "main" else name
        action = chooser.randrange(6)
        if action < 2:
            write(name)
        elif action == 2:
            client.snapshot(f"s{step}")
            snapshots.append((name, f"s{step}", content[name]))
        elif action == 3 and snapshots:
            owner, snapshot, expected = chooser.choice(snapshots)
            client.volume = None if owner == "main" else owner
            client.clone(snapshot, f"c{step}")
            content[f"c{step}"] = expected
        elif action == 4 and snapshots:
            owner, snapshot, _expected = snapshots.pop(chooser.randrange(len(snapshots)))
            client.volume = None if owner == "main" else owner
            client.destroy(snapshot)
        elif action == 5 and name != "main":
            client.destroy_volume(name)
            del content[name]
            snapshots = [entry for entry in snapshots if entry[0] != name]
        if step % 30 == 29:
            check()
    check()
    mount.unmount()
    pool.check()


def test_rollback_and_clone_do_not_follow_size(pool: Pool) -> None:
    """The same work whether there are one file or thousands, of a sparse terabyte: no tree is walked."""
    mount = pool.mount()
    client = mount.client()
    root = mount.directory
    with (root / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    client.snapshot("small")

    def nodes_touched() -> int:
        return int(run_json("cowfs", "status", root)["statistics"]["nodes_touched"])

    def cost(name: str, clone: str) -> int:
        before = nodes_touched()
        client.clone(name, clone)
        (volume(mount, clone) / "sparse").stat()
        client.rollback(name)
        return nodes_touched() - before

    small = cost("small", "one")
    folder = root / "many"
    folder.mkdir()
    for number in range(3000):
        os.close(os.open(folder / f"file-{number}", os.O_CREAT | os.O_WRONLY, 0o644))
    client.snapshot("large")
    assert cost("large", "two") <= small + 200
    assert run("cowfs", "undo", root).returncode == 0


def test_promote(pool: Pool) -> None:
    """A clone gets the history that it descends from; it lasts through a kill, and either volume may go afterwards."""
    mount = pool.mount()
    root = mount.directory
    client = mount.client()
    for name in ("a", "b", "c"):
        (root / "file").write_text(name)
        client.snapshot(name)
    client.clone("b", "copy")
    clone = volume(mount, "copy")
    run("cowfs", "snapshot", clone, "of the clone")
    assert run("cowfs", "promote", root, check=False).returncode == 2
    run("cowfs", "snapshot", clone, "a")
    assert run("cowfs", "promote", clone, check=False).returncode == 4
    run("cowfs", "destroy", f"{clone}@a")
    assert sorted(run_json("cowfs", "promote", clone)["snapshots"]) == ["a", "b"]
    for _ in range(2):
        names = {path: [snapshot["name"] for snapshot in run_json("cowfs", "list", path)] for path in (root, clone)}
        assert names == {root: ["c"], clone: ["a", "b", "of the clone"]}
        assert os.listdir(root / ".cowfs" / "snapshot") == ["c"]
        mount.kill_daemon()
        mount = pool.mount()
        root, clone = mount.directory, volume(mount, "copy")
    run("cowfs", "rollback", f"{clone}@a")
    assert (clone / "file").read_text() == "a" and (root / "file").read_text() == "c"
    assert run("cowfs", "promote", clone, check=False).returncode == 2
    run("cowfs", "undo", clone)
    run("cowfs", "destroy", root, "--volume", "copy")
    assert (root / "file").read_text() == "c"
    assert mount.snapshot_directory("c").is_dir()
