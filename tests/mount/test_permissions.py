"""Who may do what on a mount: privileges that go with a write, mounts without setuid and devices, and snapshots, which
keep the permissions that they were taken with."""

import os
import pathlib
import shutil
import stat
import struct
import sys
from collections.abc import Callable

import pytest

from tools.scratch import Mount, Pool, run, run_json

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")

NOBODY = 65534
CAPABILITY = struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0)
"""cap_net_bind_service, effective and permitted, as setcap(8) writes it."""
AS_NOBODY = f"import os, socket, sys; os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})\n"


def as_nobody(script: str, *arguments: object) -> tuple[int, str]:
    """Exit status and the last line that a Python script printed, or the name of the error that it ended in."""
    # What it opens is opened after the change of user: the interpreter itself may lie where only root gets to.
    result = run(sys.executable, "-c", AS_NOBODY + script, *arguments, check=False)
    lines = (result.stdout if result.returncode == 0 else result.stderr).strip().splitlines()
    return result.returncode, lines[-1] if lines else ""


@pytest.fixture
def shared(pool: Pool) -> Mount:
    mount = pool.mount("-o", "allow_other")
    mount.directory.chmod(0o777)
    return mount


def bits(path: pathlib.Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


CHANGES = {
    "write": "with open(sys.argv[1], 'r+b') as file: file.write(b'y')",
    "truncate": "os.truncate(sys.argv[1], 1)",
    "open to truncate": "os.close(os.open(sys.argv[1], os.O_WRONLY | os.O_TRUNC))",
}


@pytest.mark.parametrize("change", list(CHANGES))
def test_privileges_go_with_a_write(shared: Mount, transport: str, change: str) -> None:
    """As on other Linux file systems: of those who lack CAP_FSETID a write takes setuid and setgid away, and of
    everybody file capabilities. Without the pump nobody says who writes, and root's writes take both away, too."""
    path = shared.directory / "program"
    path.write_bytes(b"x" * 5000)
    path.chmod(0o6777)
    os.setxattr(path, "security.capability", CAPABILITY)
    run(sys.executable, "-c", f"import os, sys\n{CHANGES[change]}", path)
    assert bits(path) == (0o777 if transport == "nopump" else 0o6777)
    assert "security.capability" not in os.listxattr(path)

    path.chmod(0o6777)
    os.setxattr(path, "security.capability", CAPABILITY)
    assert as_nobody(CHANGES[change], path) == (0, "")
    assert bits(path) == 0o777
    assert "security.capability" not in os.listxattr(path)


def test_setgid_without_group_execution_stays(shared: Mount) -> None:
    path = shared.directory / "locked"
    path.write_bytes(b"x")
    path.chmod(0o2666)
    assert as_nobody(CHANGES["write"], path)[0] == 0
    assert bits(path) == 0o2666


def effective_user(path: pathlib.Path) -> int:
    """Of a program run by nobody."""
    status, line = as_nobody("os.execv(sys.argv[1], [sys.argv[1], '-u'])", path)
    assert status == 0, line
    return int(line)


def add_program_and_device(directory: pathlib.Path) -> None:
    shutil.copy(shutil.which("id") or "/usr/bin/id", directory / "id")
    (directory / "id").chmod(0o4755)
    os.mknod(directory / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    (directory / "zero").chmod(0o666)


def test_setuid_and_devices_mean_nothing_by_default(shared: Mount) -> None:
    add_program_and_device(shared.directory)
    assert effective_user(shared.directory / "id") == NOBODY
    with pytest.raises(PermissionError):
        (shared.directory / "zero").open("rb")
    flags = run("findmnt", "-no", "OPTIONS", shared.directory).stdout.strip().split(",")
    assert {"nosuid", "nodev"} <= set(flags)


def test_root_may_mount_with_setuid_and_devices(pool: Pool) -> None:
    mount = pool.mount("-o", "allow_other,suid,dev")
    mount.directory.chmod(0o755)
    add_program_and_device(mount.directory)
    assert effective_user(mount.directory / "id") == 0
    with (mount.directory / "zero").open("rb") as file:
        assert file.read(3) == b"\0" * 3
    # What was setuid when a snapshot was taken may have had its hole closed since.
    run("cowfs", "snapshot", mount.directory, "old")
    assert effective_user(mount.snapshot_directory("old") / "id") == NOBODY


def test_snapshots_keep_permissions(shared: Mount) -> None:
    """A snapshot shows to each user what the tree showed to them when it was taken: neither more, nor less. What was
    made private later is still to be read in it by those who could read it then."""
    root = shared.directory
    (root / "private").mkdir()
    (root / "private" / "inner").write_text("secret")
    (root / "private").chmod(0o700)
    for name, mode in (("closed", 0o600), ("later", 0o644)):
        (root / name).write_text(name)
        (root / name).chmod(mode)
    run("cowfs", "snapshot", root, "first")
    (root / "later").chmod(0o600)
    (root / "private").chmod(0o755)
    (root / "closed").chmod(0o644)
    before = shared.snapshot_directory("first")
    read = "print(open(sys.argv[1]).read())"
    refused = "PermissionError: [Errno 13] Permission denied: "
    for path in (before / "closed", before / "private" / "inner", root / "later"):
        assert as_nobody(read, path) == (1, f"{refused}'{path}'")
    for path, content in (
        (before / "later", "later"),
        (root / "closed", "closed"),
        (root / "private" / "inner", "secret"),
    ):
        assert as_nobody(read, path) == (0, content)
    assert as_nobody("print(os.listdir(sys.argv[1]))", before / "private")[0] == 1


def test_a_closed_root_closes_the_snapshots(shared: Mount) -> None:
    """`.cowfs` lies below the root of the live tree, and a snapshot's own root has the mode that it had."""
    root = shared.directory
    (root / "file").write_text("content")
    (root / "file").chmod(0o644)
    root.chmod(0o700)
    run("cowfs", "snapshot", root, "closed")
    root.chmod(0o755)
    run("cowfs", "snapshot", root, "open")
    read = "print(open(sys.argv[1]).read())"
    assert as_nobody(read, shared.snapshot_directory("closed") / "file")[0] == 1
    assert as_nobody(read, shared.snapshot_directory("open") / "file") == (0, "content")
    root.chmod(0o700)
    assert as_nobody(read, shared.snapshot_directory("open") / "file")[0] == 1


def test_only_root_and_the_owner_command(shared: Mount) -> None:
    """The control socket, and the snapshots' directory, which takes mkdir and rmdir for the same."""
    run("cowfs", "snapshot", shared.directory, "kept")
    socket_path = os.readlink(shared.directory / ".cowfs" / "socket")
    assert bits(pathlib.Path(socket_path)) == 0o600
    connect = "socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
    assert as_nobody(connect, socket_path)[1].startswith("PermissionError")
    for script in (
        "os.mkdir(sys.argv[1] + '/mine')",
        "os.rmdir(sys.argv[1] + '/kept')",
        "os.rename(sys.argv[1] + '/kept', sys.argv[1] + '/taken')",
    ):
        status, line = as_nobody(script, shared.directory / ".cowfs" / "snapshot")
        assert status == 1
        assert line.startswith(("PermissionError", "OSError"))
    names = [snapshot["name"] for snapshot in run_json("cowfs", "list", shared.directory)]
    assert names == ["kept"]


def test_a_socket_that_others_reach_still_asks_who_they_are(shared: Mount) -> None:
    socket_path = pathlib.Path(os.readlink(shared.directory / ".cowfs" / "socket"))
    socket_path.chmod(0o666)
    script = "peer = socket.socket(socket.AF_UNIX); peer.connect(sys.argv[1])\nprint(peer.recv(4096).decode())\n"
    status, line = as_nobody(script, socket_path)
    assert status == 0, line
    assert '"code":"permission"' in line
    assert run_json("cowfs", "list", shared.directory) == []


def test_a_second_mounter_is_told_who_holds_the_pool(new_pool: Callable[..., Pool], tmp_path: pathlib.Path) -> None:
    pool = new_pool().make()
    mount = pool.mount()
    (tmp_path / "second").mkdir()
    result = run("mount.cowfs", pool.path, tmp_path / "second", check=False)
    assert result.returncode != 0
    assert str(mount.daemon_pid()) in result.stderr
    assert os.listdir(tmp_path / "second") == []
