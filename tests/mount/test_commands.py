"""The ways to mount and unmount, the options, volumes, and what a write that waited for the medium is worth."""

import contextlib
import os
import pathlib
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from cowfs.errors import ExitCode
from tools.scratch import COMMANDS, MIB, Mount, Pool, is_mounted, run, run_json, wait_until

MOUNT_FAILURE = 32
NOBODY = 65534


@contextlib.contextmanager
def started(*words: object) -> Iterator[subprocess.Popen[str]]:
    """A command of the project that goes on meanwhile; killed in the end if it still does."""
    process = subprocess.Popen(
        [COMMANDS / str(words[0]), *map(str, words[1:])],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def unmounted(pool: Pool) -> Mount:
    """A place for a mount that the test makes itself; taken down with the pool."""
    directory = pool.folder / "place"
    directory.mkdir()
    mount = Mount(pool, directory)
    pool.mounts.append(mount)
    return mount


def mount_options(directory: pathlib.Path) -> set[str]:
    """What findmnt says, which is what the kernel holds to."""
    return set(run("findmnt", "-n", "-o", "OPTIONS", directory).stdout.strip().split(","))


# ---- mounting and unmounting ----------------------------------------------------------------------------------------


def test_cowfs_mount_returns_when_the_mount_answers(unmounted: Mount) -> None:
    pool, root = unmounted.pool, unmounted.directory
    result = run_json("cowfs", "mount", pool.path, root)
    assert result == {"pool": str(pool.path), "mountpoint": str(root), "volume": "main"}
    assert is_mounted(root)
    (root / "file").write_text("content")
    assert unmounted.daemon_pid() == run_json("cowfs", "status", root)["pid"]
    unmounted.unmount()
    assert not pool.daemons(), "umount returns after the daemon has ended"
    assert run("cowfs", "mount", pool.path, root).stdout == ""
    assert (root / "file").read_text() == "content"


def test_cowfs_mount_in_the_foreground_ends_with_its_mount(unmounted: Mount) -> None:
    pool, root = unmounted.pool, unmounted.directory
    with started("cowfs", "mount", "--foreground", pool.path, root) as process:
        wait_until(lambda: is_mounted(root), "mounted")
        assert process.stdout is not None
        assert process.stdout.readline() == f"mounted {pool.path} at {root}\n"
        assert unmounted.daemon_pid() == process.pid == run_json("cowfs", "status", root)["pid"]
        (root / "file").write_text("content")
        unmounted.unmount()
        assert process.wait(timeout=20) == 0
    assert (pool.mount().directory / "file").read_text() == "content"


def test_the_helper_of_umount(mount: Mount) -> None:
    """umount.fuse.cowfs, as umount(8) calls it."""
    root = mount.directory
    content = os.urandom(5 * MIB)
    with open(root / "file", "wb") as file:
        file.write(content)
        busy = run("umount.fuse.cowfs", root, check=False)
        assert busy.returncode == MOUNT_FAILURE
        assert "in use" in busy.stderr
        assert is_mounted(root)
    said = run("umount.fuse.cowfs", root, "-v", "-t", "fuse.cowfs").stdout
    assert said == f"{root} unmounted\n"
    assert not is_mounted(root)
    assert not mount.pool.daemons()
    assert run("umount.fuse.cowfs", root, check=False).returncode == MOUNT_FAILURE
    assert (mount.pool.mount().directory / "file").read_bytes() == content


def test_lazy_umount_waits_for_who_still_uses_it(mount: Mount) -> None:
    root = mount.directory
    with open(root / "file", "w+b", buffering=0) as file, started("cowfs", "umount", "-l", root) as process:
        wait_until(lambda: not is_mounted(root), "the mount is away from the tree at once")
        assert not (root / "file").exists()
        file.write(b"written after the mount was taken away")
        assert os.pread(file.fileno(), 7, 0) == b"written"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.5)
        assert mount.pool.daemons()
        file.close()
        _, complaint = process.communicate(timeout=20)
        assert (process.returncode, complaint) == (0, "")
    assert not mount.pool.daemons()
    again = mount.pool.mount().directory
    assert (again / "file").read_bytes() == b"written after the mount was taken away"


# ---- options --------------------------------------------------------------------------------------------------------


def test_noexec_refuses_programs(pool: Pool) -> None:
    for options, can_run in (("commit=5,cache_mib=16,noexec", False), ("exec", True)):
        mount = pool.mount("-o", options)
        program = mount.directory / "program"
        if not program.exists():
            shutil.copy("/bin/true", program)
        program.chmod(0o755)
        assert ("noexec" in mount_options(mount.directory)) == (not can_run)
        if can_run:
            assert subprocess.run([program], check=False, timeout=20).returncode == 0
        else:
            with pytest.raises(PermissionError):
                subprocess.run([program], check=False, timeout=20)
        mount.unmount()


def test_commit_says_how_long_a_write_may_wait(pool: Pool) -> None:
    """With commit=1, and with a time within which nothing else writes either."""

    def commits_after_a_write(options: str) -> int:
        mount = pool.mount("-o", options)
        client = mount.client()
        client.sync()
        before = int(client.status()["statistics"]["commits"])
        (mount.directory / "file").write_text(options)
        time.sleep(2)
        commits = int(client.status()["statistics"]["commits"]) - before
        mount.unmount()
        return commits

    assert commits_after_a_write("commit=1") > 0
    assert commits_after_a_write("commit=300") == 0
    for refused in ("commit=0", "commit=301", "cache_mib=7", "cache_mib=x"):
        assert run("mount.cowfs", pool.path, pool.folder, "-o", refused, check=False).returncode == 1


def test_status_shows_what_may_stop_requests(mount: Mount) -> None:
    root = mount.directory
    for number in range(100):
        (root / f"file-{number}").write_text("content")
    run("cowfs", "snapshot", root, "s")
    (root / "file-0").write_text("other")
    run("cowfs", "destroy", f"{root}@s")
    run("cowfs", "snapshot", root, "t")
    run("cowfs", "destroy", "-n", f"{root}@t")  # says how much space would come free, after a checkpoint
    stalls = run_json("cowfs", "status", root)["stalls"]
    for name in ("freeze", "finish", "delete", "sum"):
        hold = stalls["holds"][name]
        assert hold["count"] > 0 and hold["steps_max"] > 0, name
        assert hold["cpu_max_ns"] > 0, name
    assert set(stalls["waits"]) == {"lock", "unwritten", "journal", "space", "buffers"}
    assert "held by freeze" in run("cowfs", "status", root).stdout


# ---- volumes --------------------------------------------------------------------------------------------------------


def test_another_volume_is_writable_in_the_tree(mount: Mount) -> None:
    root = mount.directory
    (root / "file").write_text("original")
    run("cowfs", "snapshot", root, "s")
    inside = pathlib.Path(run("cowfs", "clone", f"{root}@s", "copy").stdout.strip())
    assert inside == root / ".cowfs" / "volume" / "copy"
    assert sorted(os.listdir(root / ".cowfs" / "volume")) == ["copy", "main"]
    assert (inside / "file").read_text() == "original"
    (inside / "file").write_text("changed in the copy")
    (inside / "directory").mkdir()
    (inside / "directory" / "large").write_bytes(bytes(range(256)) * 4096)
    run("cowfs", "snapshot", inside, "of the copy")
    assert [entry["name"] for entry in run_json("cowfs", "list", inside)] == ["of the copy"]
    assert (root / "file").read_text() == "original"
    mount.unmount()
    copy = mount.pool.mount("-o", "volume=copy")
    assert (copy.directory / "file").read_text() == "changed in the copy"
    assert (copy.directory / "directory" / "large").read_bytes() == bytes(range(256)) * 4096
    assert os.listdir(copy.directory / ".cowfs" / "snapshot") == ["of the copy"]
    assert (copy.directory / ".cowfs" / "volume" / "main" / "file").read_text() == "original"


def test_a_volume_can_be_destroyed(mount: Mount) -> None:
    root = mount.directory
    (root / "file").write_text("original")
    run("cowfs", "snapshot", root, "s")
    inside = pathlib.Path(run("cowfs", "clone", f"{root}@s", "copy").stdout.strip())
    (inside / "large").write_bytes(os.urandom(5 * MIB))
    run("cowfs", "snapshot", inside, "of the copy")
    assert run("cowfs", "destroy", root, "--volume", "main", check=False).returncode == ExitCode.BUSY
    assert run("cowfs", "destroy", root, "--volume", "other", check=False).returncode == ExitCode.NOT_FOUND
    run("cowfs", "destroy", root, "--volume", "copy")
    assert not inside.exists()
    assert os.listdir(root / ".cowfs" / "volume") == ["main"]
    assert [volume["name"] for volume in run_json("cowfs", "status", root)["volumes"]] == ["main"]
    assert (root / "file").read_text() == "original"
    assert run("cowfs", "destroy", root, "--volume", "copy", check=False).returncode == ExitCode.NOT_FOUND
    mount.unmount()
    refused = run("mount.cowfs", mount.pool.path, root, "-o", "volume=copy", check=False)
    assert refused.returncode == MOUNT_FAILURE
    assert "main" in refused.stderr, "it says which volumes there are"


# ---- promises -------------------------------------------------------------------------------------------------------


def test_a_write_with_o_sync_survives_a_killed_daemon(pool: Pool) -> None:
    mount = pool.mount("-o", "commit=300")  # so that nothing but the write itself makes it durable
    content = os.urandom(100_000)
    descriptor = os.open(mount.directory / "file", os.O_CREAT | os.O_WRONLY | os.O_SYNC)
    try:
        for start in range(0, len(content), 10_000):
            assert os.write(descriptor, content[start : start + 10_000]) == 10_000
        mount.kill_daemon()
    finally:
        with contextlib.suppress(OSError):  # nobody answers any more
            os.close(descriptor)
    assert (pool.mount().directory / "file").read_bytes() == content


# ---- as an ordinary user --------------------------------------------------------------------------------------------

# The namespace has a /dev/fuse that is open to everybody, as udev makes it, whatever the machine's own is like.
IN_A_NAMESPACE = """
set -eu
mount -t tmpfs -o mode=755 none "$1"
mknod -m 666 "$1/fuse" c "$2" "$3"
mount --bind "$1/fuse" /dev/fuse
shift 3
exec "$@"
"""
# By module and not by command: how those are installed is up to the umask of who did it.
AS_A_USER = """
set -eu
verb() { "$python" -m "cowfs.commands.$@"; }
python=$1
pool=$2/pool
root=$2/mount
mkdir "$root"
verb mkfs --quiet --size 64M "$pool"
verb mount "$pool" "$root"
echo content >"$root/file"
verb main snapshot "$root" before >/dev/null
rm "$root/file"
cat "$root/.cowfs/snapshot/before/file"
verb main rollback "$root@before" >/dev/null
stat -c %u "$root/file"
verb umount_helper "$root"
verb main mount "$pool" "$root"
cat "$root/file"
verb main umount "$root"
verb fsck --data "$pool"
"""


def test_an_ordinary_user_mounts_through_fusermount3(new_pool: Callable[..., Pool]) -> None:
    if os.geteuid() != 0:
        pytest.skip("every mounted test does this when it is not run by root")
    helper = shutil.which("fusermount3")
    if helper is None or not os.stat(helper).st_mode & stat.S_ISUID:
        pytest.skip("fusermount3 is missing or not setuid: only root can mount")
    if not os.path.exists("/etc/mtab"):
        pytest.skip("fusermount3 can unmount nothing where /etc/mtab is missing")
    # May read everything: the interpreter and the checkout may lie where only root gets to.
    reads = ("--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search")
    user = ("setpriv", "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", *reads)
    tried = run(*user, "sh", "-c", '"$0" -c "import btree, pyfuse3"', sys.executable, check=False)
    if tried.returncode != 0:
        pytest.skip(f"another user cannot run this interpreter: {tried.stderr.strip()[-200:]}")
    pool = new_pool("home/pool", size_bytes=64 * MIB)
    home, devices = pool.path.parent, pool.folder / "devices"
    devices.mkdir()
    home.mkdir(mode=0o700)
    os.chown(home, NOBODY, NOBODY)
    number = os.stat("/dev/fuse").st_rdev
    enter = ("unshare", "--mount", "sh", "-c", IN_A_NAMESPACE, "sh", devices, os.major(number), os.minor(number))
    if (refused := run(*enter, "true", check=False)).returncode != 0:
        pytest.skip(f"no namespace with a device of its own: {refused.stderr.strip()}")
    environment = {
        **os.environ,
        "HOME": str(home),
        "XDG_STATE_HOME": str(home),
        "XDG_RUNTIME_DIR": str(home),
    }
    result = run(*enter, *user, "sh", "-c", AS_A_USER, "sh", sys.executable, home, env=environment)
    lines = result.stdout.splitlines()
    assert lines[:3] == ["content", str(NOBODY), "content"]
    assert "clean" in lines[3]
    assert (home / "cowfs").is_dir(), "its log and its socket are the user's own"
