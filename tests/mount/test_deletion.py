"""Destroying many snapshots through the commands, what they free, and lists of many."""

import os
import pathlib
import time

import pytest

import cowfs
from cowfs.errors import ExitCode
from tools.scratch import MIB, CommandFailed, Mount, run, run_json, wait_until


def names(root: pathlib.Path) -> list[str]:
    return [each["name"] for each in run_json("cowfs", "list", "--no-sizes", root)]


def test_ranges_patterns_ages_and_rules(mount: Mount) -> None:
    root, client = mount.directory, mount.client()
    for number in range(10):
        (root / "file").write_text(str(number))
        client.snapshot(f"s{number}")
    client.snapshot("a..b")
    client.hold("s4", "test")
    assert "would destroy 3" in run("cowfs", "destroy", "-n", f"{root}@s1..s3").stdout
    assert len(names(root)) == 11
    result = run("cowfs", "destroy", f"{root}@s1..s5")
    assert "destroyed 4" in result.stdout and "held: s4" in result.stdout
    run("cowfs", "destroy", f"{root}@a..b")
    assert names(root) == ["s0", "s4", "s6", "s7", "s8", "s9"]
    run("cowfs", "destroy", f"{root}@..s6")
    assert run_json("cowfs", "destroy", f"{root}@s[79]")["names"] == ["s7", "s9"]
    assert names(root) == ["s4", "s8"]
    assert run_json("cowfs", "destroy", "--older-than", "1h", root)["count"] == 0
    client.release("s4", "test")
    time.sleep(0.01)
    assert run_json("cowfs", "destroy", "--older-than", "10ms", f"{root}@s8")["names"] == ["s8"]
    assert run_json("cowfs", "destroy", "--keep", "1ms(all)", root)["names"] == ["s4"]
    assert sorted(os.listdir(root / ".cowfs" / "snapshot")) == []
    for words in ([f"{root}@missing"], [f"{root}@missing..other"], [f"{root}@nothing*", "--volume", "v"], [root],
                  ["--older-than", "soon", root]):  # fmt: skip
        with pytest.raises(CommandFailed, match=f"exited [{int(ExitCode.USAGE)}{int(ExitCode.NOT_FOUND)}]"):
            run("cowfs", "destroy", *words)


def test_a_dry_run_tells_what_comes_free(mount: Mount) -> None:
    root, client = mount.directory, mount.client()
    for number in range(8):
        for part in range(3):
            (root / f"file-{part}").write_bytes(os.urandom(MIB))
        client.snapshot(f"s{number}")
    for part in range(3):
        (root / f"file-{part}").unlink()
    shown = run_json("cowfs", "list", root)
    assert all(3 * MIB <= each["written_bytes"] < 4 * MIB for each in shown)
    run("cowfs", "sync", root)
    told = run_json("cowfs", "destroy", "-n", f"{root}@s2..s5")["freed_bytes"]
    assert 12 * MIB <= told < 13 * MIB
    before = client.df()["dead_bytes"]
    run("cowfs", "destroy", f"{root}@s2..s5")
    wait_until(lambda: client.status()["statistics"]["deletion_queue_length"] == 0, "the space is back", timeout_s=10)
    wait_until(lambda: before - client.df()["dead_bytes"] == told, "what came free is what was told", timeout_s=10)
    unique = {each["name"]: each["unique_bytes"] for each in run_json("cowfs", "list", root)}
    assert run_json("cowfs", "destroy", "-n", f"{root}@s1")["freed_bytes"] == unique["s1"] >= 3 * MIB


def test_a_list_in_pages(mount: Mount) -> None:
    root, client = mount.directory, mount.client()
    for number in range(2500):
        client.snapshot(f"s{number}", sync=False)
    everything = [f"s{number}" for number in range(2500)]
    assert names(root) == everything
    shown = [each["name"] for each in run_json("cowfs", "list", "--limit", "3", "--after", "s1", root)]
    assert shown == ["s2", "s3", "s4"]
    assert run("cowfs", "list", "-H", "--newest", "--limit", "1", root).stdout.startswith("s2499\t")
    newest = [each["name"] for each in run_json("cowfs", "list", "--newest", "--no-sizes", root)]
    assert newest == everything[::-1]
    shown = [each["name"] for each in run_json("cowfs", "list", "--newest", "--limit", "2", "--after", "s5", root)]
    assert shown == ["s4", "s3"]
    assert run_json("cowfs", "destroy", f"{root}@s*")["count"] == 2500
    with pytest.raises(CommandFailed, match=f"exited {int(ExitCode.NOT_FOUND)}"):
        run("cowfs", "list", "--after", "missing", root)


def test_the_quick_way_does_what_the_socket_does(mount: Mount) -> None:
    """By ioctl with the pump, by the socket without it or where only that can tell what is wrong."""
    root, client = mount.directory, mount.client()
    (root / "file").write_text("1")
    taken = [client.snapshot("one"), client.snapshot("two", sync=False), client.snapshot()]
    listed = client.list()
    assert taken == listed
    assert len(taken[2]["name"]) > 10
    for name, code in (("one", "exists"), ("x" * 300, "name"), ("a/b", "name"), ("", "name"), ("\udcff", "name")):
        with pytest.raises(cowfs.CowfsError) as refused:
            client.snapshot(name)
        assert refused.value.code == code
    client.hold("one", "test")
    for name, code in (("one", "held"), ("missing", "not_found"), ("one" + "x" * 300, "not_found")):
        with pytest.raises(cowfs.CowfsError) as refused:
            client.destroy(name)
        assert refused.value.code == code
    # One that the kernel knows by name is forgotten there too.
    assert (mount.snapshot_directory("two") / "file").read_text() == "1"
    client.destroy("two")
    assert not mount.snapshot_directory("two").exists()
    client.destroy(taken[2]["name"])
    assert [each["name"] for each in client.list()] == ["one"]
    run("cowfs", "clone", f"{root}@one", "copy")
    with cowfs.connect(str(root / ".cowfs" / "volume" / "copy")) as other:
        other.snapshot("of the copy")
        assert [each["name"] for each in other.list()] == ["of the copy"]
        other.destroy("of the copy")
        assert other.list() == []
    mount.kill_daemon()
    mount = mount.pool.mount()
    assert [each["name"] for each in mount.client().list()] == ["one"]


def test_a_client_does_not_keep_the_mount(mount: Mount) -> None:
    client = mount.client()
    client.snapshot("one")
    mount.unmount()
    with pytest.raises(cowfs.CowfsError):
        client.snapshot("two")
