"""Properties of volumes on a mount: what they outlive, and what the commands show."""

import pathlib

from cowfs.errors import ExitCode
from tools.scratch import Mount, run, run_json


def refused(code: ExitCode, *words: object) -> str:
    result = run(*map(str, words), check=False)
    assert result.returncode == code, result
    return result.stderr


def test_properties_outlive_remounts_rollbacks_and_crashes(mount: Mount) -> None:
    root = mount.directory
    run("cowfs", "snapshot", root, "before")
    run("cowfs", "set", "user:owner=me", "user:note=two words", root)
    assert run("cowfs", "get", "user:note", root).stdout == "two words\n"
    run("cowfs", "rollback", f"{root}@before")
    run("cowfs", "clone", f"{root}@before", "copy")
    mount.kill_daemon()
    mount = mount.pool.mount()
    root = mount.directory
    shown = {each["name"]: each for each in run_json("cowfs", "get", "--json", root)}
    assert shown["user:owner"]["value"] == "me" and shown["user:owner"]["set"]
    copy = root / ".cowfs" / "volume" / "copy"
    run("cowfs", "unset", "user:owner", copy)
    run("cowfs", "set", "user:note=", root)
    assert run("cowfs", "get", "user:owner", root).stdout == "me\n"
    assert run("cowfs", "get", "-H", copy).stdout.splitlines().count("user:note\ttwo words\tset") == 1
    mount.unmount()
    root = mount.pool.mount().directory
    assert "user:note" not in run("cowfs", "get", root).stdout


def test_what_is_refused(root: pathlib.Path) -> None:
    assert "known:" in refused(ExitCode.USAGE, "cowfs", "set", "unknown=1", root)
    refused(ExitCode.USAGE, "cowfs", "set", "user:x", root)
    refused(ExitCode.NOT_FOUND, "cowfs", "get", "user:x", root)
    run("cowfs", "unset", "user:x", root)
