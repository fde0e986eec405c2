"""Undo and redo of rollbacks, and the log, under a live mount."""

import os

from tools.scratch import Mount, Pool, run, run_json


def content(mount: Mount) -> str:
    return (mount.directory / "file").read_text()


def test_undo_and_redo(mount: Mount) -> None:
    """As in an editor: back and forth, through several, and what was written in between is in a guard."""
    root = mount.directory
    for number in range(3):
        (root / "file").write_text(f"s{number}")
        run("cowfs", "snapshot", root, f"s{number}")
    (root / "file").write_text("live")
    for verb in ("undo", "redo"):
        refused = run("cowfs", verb, root, check=False)
        assert refused.returncode == 3 and f"nothing to {verb}" in refused.stderr
    run("cowfs", "rollback", f"{root}@s2")
    run("cowfs", "rollback", f"{root}@s0")
    assert content(mount) == "s0"
    run("cowfs", "undo", root)
    assert content(mount) == "s2"
    run("cowfs", "undo", root)
    assert content(mount) == "live"
    assert run("cowfs", "undo", root, check=False).returncode == 3
    run("cowfs", "redo", root)
    assert content(mount) == "s2"
    (root / "file").write_text("between")
    run("cowfs", "redo", root)
    assert content(mount) == "s0"
    assert run("cowfs", "redo", root, check=False).returncode == 3
    run("cowfs", "undo", root)
    assert content(mount) == "between"
    run("cowfs", "rollback", f"{root}@s1")
    assert content(mount) == "s1"
    assert run("cowfs", "redo", root, check=False).returncode == 3, "a new rollback ends what can be redone"
    run("cowfs", "undo", root)
    assert content(mount) == "between"


def test_the_log(pool: Pool) -> None:
    """Survives a remount and a kill; says what undo and redo lead to."""
    mount = pool.mount()
    root = mount.directory
    (root / "file").write_text("one")
    run("cowfs", "snapshot", root, "s")
    (root / "file").write_text("two")
    run("cowfs", "rollback", f"{root}@s")
    run("cowfs", "clone", f"{root}@s", "copy")
    run("cowfs", "undo", root)
    log = run_json("cowfs", "log", root)
    assert [event["event"] for event in log["events"]] == ["created", "rollback", "clone", "undo"]
    assert log["events"][1]["snapshot"] == "s" and log["undo"] is None and log["redo"].startswith("before-undo@")
    assert [event["time_ns"] for event in log["events"]] == sorted(event["time_ns"] for event in log["events"])
    of_clone = run_json("cowfs", "log", root / ".cowfs" / "volume" / "copy")
    assert [(event["event"], event["snapshot"]) for event in of_clone["events"]] == [("cloned", "s")]
    assert of_clone["events"][0]["volume"] == "main"
    mount.kill_daemon()
    mount = pool.mount()
    assert run_json("cowfs", "log", mount.directory) == log
    lines = [line.split("\t") for line in run("cowfs", "log", "-H", mount.directory).stdout.splitlines()]
    assert [line[1] for line in lines] == ["created", "rollback", "clone", "undo"] and lines[3][4] == "redo"
    guard = log["events"][1]["guard"]
    assert (mount.snapshot_directory(guard) / "file").read_text() == "two" == content(mount)
    run("cowfs", "redo", mount.directory)
    assert content(mount) == "one"


def test_a_destroyed_guard_is_not_stepped_over(mount: Mount) -> None:
    root = mount.directory
    client = mount.client()
    for name in ("a", "b"):
        (root / "file").write_text(name)
        client.snapshot(name)
    client.rollback("a")
    second = client.rollback("b")["guard"]["name"]
    client.destroy(second)
    refused = run("cowfs", "undo", root, check=False)
    assert refused.returncode == 3 and "destroyed" in refused.stderr
    assert content(mount) == "b"


def test_undo_in_a_clone(mount: Mount) -> None:
    root = mount.directory
    client = mount.client()
    (root / "file").write_text("one")
    client.snapshot("s")
    client.clone("s", "copy")
    clone = root / ".cowfs" / "volume" / "copy"
    run("cowfs", "snapshot", clone, "t")
    (clone / "file").write_text("two")
    run("cowfs", "rollback", f"{clone}@t")
    assert (clone / "file").read_text() == "one"
    run("cowfs", "undo", clone)
    assert (clone / "file").read_text() == "two" and content(mount) == "one"
    assert os.listdir(root / ".cowfs" / "snapshot") == ["s"]
