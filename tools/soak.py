"""Everything at once, for as long as asked: fio, git, SQLite, files that come and go, block sharing, snapshots, clones
and deletions on one mount; between rounds a rollback, a remount, and every other time a kill instead of an unmount.

Run by `make soak` (an hour, or SOAK_SECONDS). Fails when data differs, fsck.cowfs finds anything, the daemon takes more
memory than its caches may, or space is still in use when everything has been deleted.
"""

import argparse
import hashlib
import os
import pathlib
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable

import cowfs
from tools.sanitized import ROOT, SanitizedMount, build
from tools.scratch import MIB, CommandFailed, Mount, Pool, is_mounted, run, run_json, wait_until

POOL_BYTES = 3 << 30
ROUND_SECONDS = 120
ROUND_SECONDS_MIN = 5
MEMORY_MAX_BYTES = 512 * MIB
"""96 MiB of nodes, twice 48 MiB of changed ones, 32 MiB of data, and what Python and the pump need."""
LEFT_MAX_BYTES = 8 * MIB
"""Beyond what the empty pool had in use: the journal's and the trees' own, not anybody's data."""
GIT_ENVIRONMENT = {
    **os.environ,
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_SYSTEM": os.devnull,
    "GIT_AUTHOR_NAME": "soak",
    "GIT_AUTHOR_EMAIL": "soak@example.org",
    "GIT_COMMITTER_NAME": "soak",
    "GIT_COMMITTER_EMAIL": "soak@example.org",
}

Step = Callable[[pathlib.Path, random.Random], None]


def resident_bytes(pid: int) -> int:
    return int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# ---- what works at the same time: one step of each, in a directory of its own


def step_fio(place: pathlib.Path, draw: random.Random) -> None:
    kind = draw.choice(("randwrite", "write"))
    run("fio", "--name=soak", f"--directory={place}", f"--rw={kind}", "--size=24m", "--bs=4k-64k", "--ioengine=psync",
        "--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--verify_state_save=0",
        f"--randseed={draw.randrange(1 << 30)}", f"--fsync={draw.choice((0, 16))}", "--output-format=terse",
        timeout_s=300)  # fmt: skip


def git(place: pathlib.Path, *words: str) -> None:
    run("git", "-C", place, "-c", "gc.auto=20", "-c", "gc.autoDetach=false", *words, env=GIT_ENVIRONMENT, timeout_s=300)


def step_git(place: pathlib.Path, draw: random.Random) -> None:
    for lock in place.rglob("*.lock"):  # of a git that was killed with the mount
        lock.unlink()
    if not (place / ".git" / "HEAD").exists():
        git(place, "init", "-q")
    for _ in range(8):
        (place / f"file{draw.randrange(40)}").write_bytes(draw.randbytes(draw.randrange(1, 9000)))
    git(place, "add", "-A")
    git(place, "commit", "-q", "--allow-empty", "-m", str(time.time_ns()))
    if draw.randrange(6) == 0:
        git(place, "gc", "-q")
    git(place, "fsck", "--full", "--no-progress")


def step_sqlite(place: pathlib.Path, draw: random.Random) -> None:
    connection = sqlite3.connect(place / "database", timeout=30)
    try:
        connection.execute("CREATE TABLE IF NOT EXISTS rows (number INTEGER PRIMARY KEY, content BLOB)")
        for _ in range(10):
            with connection:
                for _ in range(20):
                    row = (draw.randrange(5000), draw.randbytes(draw.randrange(400)))
                    connection.execute("INSERT OR REPLACE INTO rows VALUES (?, ?)", row)
        (verdict,) = connection.execute("PRAGMA integrity_check").fetchone()
        if verdict != "ok":
            raise AssertionError(f"SQLite: {verdict}")
    finally:
        connection.close()


def step_files(place: pathlib.Path, draw: random.Random) -> None:
    for _ in range(60):
        path = place / f"d{draw.randrange(5)}" / f"f{draw.randrange(80)}"
        path.parent.mkdir(exist_ok=True)
        match draw.randrange(6):
            case 0:
                path.unlink(missing_ok=True)
            case 1 if path.exists():
                os.rename(path, place / f"d{draw.randrange(5)}x")
            case 2 if path.exists():
                os.truncate(path, draw.randrange(200_000))
            case 3 if path.exists():
                os.setxattr(path, "user.soak", draw.randbytes(draw.randrange(1, 3000)))
            case _:
                path.write_bytes(draw.randbytes(draw.randrange(40_000)))
    if draw.randrange(8) == 0:
        shutil.rmtree(place / f"d{draw.randrange(5)}", ignore_errors=True)


def step_sharing(place: pathlib.Path, draw: random.Random) -> None:
    """Copies that share blocks, and their sources changed: the copies stay what they were."""
    source, target = place / "source", place / f"copy{draw.randrange(10)}"
    content = draw.randbytes(draw.randrange(1, 600_000))
    source.write_bytes(content)
    with source.open("rb") as from_file, target.open("wb") as to_file:
        copied = 0
        while copied < len(content):
            copied += os.copy_file_range(from_file.fileno(), to_file.fileno(), len(content) - copied)
    with source.open("r+b") as file:
        file.write(b"changed")
    if target.read_bytes() != content:
        raise AssertionError(f"{target} changed with its source")


def step_snapshots(place: pathlib.Path, draw: random.Random) -> None:
    """Snapshots hold what was written before them; about as many go as come."""
    root = place.parent
    with cowfs.connect(str(root)) as client:
        content = draw.randbytes(50)
        (place / "witness").write_bytes(content)
        name = client.snapshot(sync=False)["name"]
        (place / "witness").write_bytes(b"")
        if (root / ".cowfs" / "snapshot" / name / place.name / "witness").read_bytes() != content:
            raise AssertionError(f"snapshot {name} is not what was written before it")
        for _ in range(20):
            client.snapshot(sync=False)
        names = [snapshot["name"] for snapshot in client.list()]
        for old in draw.sample(names, max(0, len(names) - 60)):
            client.destroy(old)
        if draw.randrange(4) == 0 and names:
            source = client.list()[-1]["name"]
            clone = f"clone{time.time_ns()}"
            client.clone(source, clone)
            (root / ".cowfs" / "volume" / clone / place.name / "witness").write_bytes(b"of the clone")
            client.request("destroy_volume", volume=clone)


STEPS: dict[str, Step] = {
    "fio": step_fio,
    "git": step_git,
    "sqlite": step_sqlite,
    "files": step_files,
    "sharing": step_sharing,
    "snapshots": step_snapshots,
}


class Round:
    """All steps at the same time on one mount, until told to stop or killed."""

    def __init__(self, mount: Mount, seed: int, counts: Counter[str]) -> None:
        self.mount = mount
        self.counts = counts
        self.ending = threading.Event()
        self.killed = threading.Event()
        self.failures: list[BaseException] = []
        self.threads = [
            threading.Thread(target=self._work, args=(name, random.Random(f"{seed} {name}"))) for name in STEPS
        ]

    def _work(self, name: str, draw: random.Random) -> None:
        place = self.mount.directory / name
        try:
            place.mkdir(exist_ok=True)
            while not self.ending.is_set():
                STEPS[name](place, draw)
                self.counts[name] += 1
        except BaseException as failure:
            if not self.killed.is_set():
                self.failures.append(failure)
                self.ending.set()

    def run(self, seconds: float, kill: bool) -> int:
        """Largest resident size of the daemon."""
        pid = self.mount.daemon_pid()
        largest = 0
        for thread in self.threads:
            thread.start()
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not self.ending.is_set():
            largest = max(largest, resident_bytes(pid))
            self.ending.wait(0.5)
        if kill and not self.failures:
            self.killed.set()
            self.ending.set()
            self.mount.kill_daemon()
        self._end()
        return largest

    def run_until(self, enough: Callable[[], bool], timeout_s: float) -> None:
        """Until it has done enough. TimeoutError when it never does."""
        for thread in self.threads:
            thread.start()
        try:
            wait_until(lambda: enough() or self.ending.is_set(), "enough work is done", timeout_s)
        finally:
            self._end()

    def _end(self) -> None:
        self.ending.set()
        for thread in self.threads:
            thread.join(600)
        if self.failures:
            raise self.failures[0]


# ---- between rounds


def digest(folder: pathlib.Path) -> str:
    """Of names, sizes and content of the live tree."""
    total = hashlib.sha256()
    for directory, folders, files in os.walk(folder):
        if ".cowfs" in folders:
            folders.remove(".cowfs")
        folders.sort()
        for name in sorted(files):
            path = pathlib.Path(directory, name)
            total.update(f"{path.relative_to(folder)}\0{path.stat().st_size}\0".encode())
            total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def roll_back(mount: Mount) -> None:
    """Of a clone, which goes afterwards: a volume keeps what it was rolled back to for as long as it lives, also when
    that snapshot has been destroyed, and then there would be no saying what space ought to come back."""
    before = digest(mount.directory)
    with cowfs.connect(str(mount.directory)) as client:
        client.snapshot("kept")
        client.clone("kept", "rolled")
        client.request("snapshot", volume="rolled", name="before")
        rolled = mount.directory / ".cowfs" / "volume" / "rolled"
        shutil.rmtree(rolled / "files", ignore_errors=True)
        (rolled / "junk").write_bytes(b"junk" * 100_000)
        client.request("rollback", volume="rolled", name="before")
        if digest(rolled) != before:
            raise AssertionError("a rollback did not bring back what was there")
        client.request("destroy_volume", volume="rolled")
        client.destroy("kept")


def used_bytes(mount: Mount) -> int:
    run("cowfs", "sync", mount.directory)
    usage = run_json("cowfs", "df", mount.directory)
    return int(usage["used_bytes"]) - int(usage["pending_bytes"])


def delete_everything(mount: Mount) -> None:
    with cowfs.connect(str(mount.directory)) as client:
        for volume in client.request("volumes"):
            if volume["name"] != "main":
                client.request("destroy_volume", volume=volume["name"])
        for snapshot in client.list():
            client.destroy(snapshot["name"])
    for entry in mount.directory.iterdir():
        if entry.name != ".cowfs":
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def soak(
    seconds: float, round_seconds: float, seed: int, folder: pathlib.Path, extensions: pathlib.Path | None = None
) -> str:
    """With extensions: of sanitized daemons (tools/sanitized.py), whose memory is not held to the limit."""
    pool = Pool(folder, size_bytes=POOL_BYTES).make()

    def mount_pool() -> Mount:
        if extensions is None:
            return pool.mount()
        directory = folder / f"mount-{len(pool.mounts)}"
        directory.mkdir()
        return SanitizedMount(pool, directory, extensions)

    counts: Counter[str] = Counter()
    started = time.monotonic()
    largest = rounds = kills = 0
    try:
        mount = mount_pool()
        empty = used_bytes(mount)
        while time.monotonic() - started < seconds or rounds < 2:
            kill = rounds % 2 == 1
            left = max(ROUND_SECONDS_MIN, seconds - (time.monotonic() - started))
            largest = max(largest, Round(mount, seed + rounds, counts).run(min(round_seconds, left), kill))
            if largest > MEMORY_MAX_BYTES and extensions is None:
                raise AssertionError(f"the daemon took {largest // MIB} MiB")
            if kill:
                kills += 1
            else:
                roll_back(mount)
                mount.unmount()
            wait_until(lambda: not pool.daemons(), "the daemon ends")
            pool.check()
            mount = mount_pool()
            rounds += 1
        delete_everything(mount)
        wait_until(lambda: used_bytes(mount) - empty <= LEFT_MAX_BYTES, "space comes back", timeout_s=120)
        left_bytes = used_bytes(mount) - empty
        mount.unmount()
    finally:
        pool.close()
    work = ", ".join(f"{counts[name]} {name}" for name in STEPS)
    return (f"{time.monotonic() - started:.0f} s, {rounds} rounds with {kills} kills, steps: {work}; "
            f"daemon at most {largest // MIB} MiB, {left_bytes // 1024} KiB more in use than when empty")  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--round-seconds", type=float, default=ROUND_SECONDS)
    parser.add_argument("--seed", type=int, default=time.time_ns() % (1 << 32))
    parser.add_argument("--sanitized", action="store_true",
                        help="the daemons run under the address, undefined-behaviour and leak sanitizers")  # fmt: skip
    options = parser.parse_args()
    extensions = ROOT / "build" / "sanitized" if options.sanitized else None
    if extensions is not None:
        build(extensions)
    print(f"seed {options.seed}", flush=True)
    folder = pathlib.Path(tempfile.mkdtemp(prefix="cowfs-soak-"))
    try:
        print(soak(options.seconds, options.round_seconds, options.seed, folder, extensions))
    except (AssertionError, CommandFailed, OSError, sqlite3.Error, subprocess.SubprocessError) as failure:
        print(f"soak: seed {options.seed}: {failure!r}; see {folder}", file=sys.stderr)
        return 1
    assert not any(is_mounted(directory) for directory in folder.iterdir())
    shutil.rmtree(folder)  # what was made under a mountpoint while its mount was taken away, too
    return 0


if __name__ == "__main__":
    sys.exit(main())
