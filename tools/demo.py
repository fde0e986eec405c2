"""The main job on real input: source distributions, a git repository and a database in a pool, over a thousand
snapshots taken meanwhile, damage, rollback, and a check of every byte at the end.

Run by `make demo`. Everything stays in build/: the pool is left there, with the commands to mount it again.
"""

import contextlib
import hashlib
import os
import pathlib
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import FrameType

import cowfs
from tools.scratch import CommandFailed, Pool, is_mounted, run

ROOT = pathlib.Path(__file__).parent.parent
BUILD = ROOT / "build"
DISTRIBUTIONS = ("Django==5.2", "sympy==1.13.3")
POOL_BYTES = 4 << 30
FILES_MIN = 5000
SNAPSHOTS_MIN = 1000
SNAPSHOTS_PER_SECOND_MIN = 200
SECONDS_MAX = 180
SNAPSHOTS_VERIFIED = 8
SNAPSHOTS_PER_DURABLE = 10
ROWS_PER_TRANSACTION = 20
ROWS_MIN = 2000
GIT_ENVIRONMENT = {
    **os.environ,
    **{
        f"GIT_{role}_{what}": value
        for role in ("AUTHOR", "COMMITTER")
        for what, value in (("NAME", "cowfs demonstration"), ("EMAIL", "demonstration@localhost"))
    },
    "GIT_OPTIONAL_LOCKS": "0",  # git status must not rewrite its index, which is compared with what it was
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_SYSTEM": "/dev/null",
    "GIT_CONFIG_COUNT": "2",
    "GIT_CONFIG_KEY_0": "safe.directory",
    "GIT_CONFIG_VALUE_0": "*",
    "GIT_CONFIG_KEY_1": "gc.auto",
    "GIT_CONFIG_VALUE_1": "0",
}


class DemonstrationFailed(Exception):
    """What the demonstration found is not what it must be."""


def expect(condition: bool, otherwise: str) -> None:
    if not condition:
        raise DemonstrationFailed(otherwise)


class Interrupted(BaseException):
    """SIGTERM or SIGINT, as an exception, so that everything is taken down on the way out."""


@dataclass
class Report:
    """Says what happens while it happens, and at the end what happened and how fast."""

    rows: list[tuple[str, str, str]] = field(default_factory=list)
    is_missed: bool = False
    started: float = field(default_factory=time.monotonic)
    is_terminal: bool = field(default_factory=sys.stdout.isatty)

    def progress(self, text: str) -> None:
        """Overwritten by what comes next; only on a terminal."""
        if self.is_terminal:
            print(f"\r\x1b[K[{time.monotonic() - self.started:6.1f} s]   {text}", end="", flush=True)

    def say(self, text: str) -> None:
        clear = "\r\x1b[K" if self.is_terminal else ""
        print(f"{clear}[{time.monotonic() - self.started:6.1f} s] {text}", flush=True)

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator["Step"]:
        self.say(f"{title} …")
        step = Step(self)
        yield step
        elapsed_s = time.monotonic() - step.started
        self.rows.append((title, f"{elapsed_s:.1f} s", step.outcome(elapsed_s)))

    def miss(self, text: str) -> None:
        """A figure that is promised and was not reached: the rest goes on, and the demonstration fails at its end."""
        self.rows.append(("MISSED", "", text))
        self.is_missed = True

    def table(self) -> None:
        if self.is_terminal:
            print("\r\x1b[K", end="")
        widths = [max(len(row[column]) for row in self.rows) for column in range(2)]
        print("\n" + "-" * 100)
        for title, elapsed, outcome in self.rows:
            print(f"{title:<{widths[0]}}  {elapsed:>{widths[1]}}  {outcome}")
        print("-" * 100)


@dataclass
class Step:
    report: Report
    started: float = field(default_factory=time.monotonic)
    done: int = 0
    text: str = ""
    unit: str = ""

    def count(self, of: int, unit: str) -> None:
        """One more of the things that this step does, for the rate."""
        self.done += 1
        self.unit = unit
        if self.done % 200 == 0:
            self.report.progress(f"{self.done:,} of {of:,} {unit}" if of else f"{self.done:,} {unit}")

    def outcome(self, elapsed_s: float) -> str:
        counted = f"{self.done:,} {self.unit}, {self.done / elapsed_s:,.0f}/s" if self.done else ""
        return "; ".join(part for part in (counted, self.text) if part)


# ---- the input ------------------------------------------------------------------------------------------------------


def download(report: Report) -> list[pathlib.Path]:
    """The source distributions, from the package index that pip is configured for; kept for the next time."""
    folder = BUILD / "downloads"
    folder.mkdir(parents=True, exist_ok=True)
    archives = []
    for requirement in DISTRIBUTIONS:
        name, _, version = requirement.partition("==")
        wanted = f"{name}-{version}.tar.gz".lower()

        def present(wanted: str = wanted) -> list[pathlib.Path]:
            return [path for path in folder.iterdir() if path.name.lower() == wanted]

        if not present():
            report.say(f"downloading {requirement} …")
            words = ("-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", "--dest", folder)
            run(sys.executable, *words, requirement, timeout_s=300)
        expect(bool(present()), f"pip did not leave {wanted} in {folder}")
        archives.append(present()[0])
    return archives


def unpack(archives: list[pathlib.Path], into: pathlib.Path, step: Step) -> None:
    for archive in archives:
        with tarfile.open(archive) as tar:
            # Interpreters before 3.11.4 have no filters; these archives need none.
            tar.extraction_filter = getattr(tarfile, "data_filter", None)
            for member in tar:
                tar.extract(member, into)
                if member.isfile():
                    step.count(0, "files")


Manifest = dict[str, tuple[object, ...]]


def describe(path: str) -> tuple[object, ...]:
    """Type and mode, owner, size, time and SHA-256 or target."""
    status = os.lstat(path)
    content = ""
    if stat.S_ISREG(status.st_mode):
        with open(path, "rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
    elif stat.S_ISLNK(status.st_mode):
        content = os.readlink(path)
    size = 0 if stat.S_ISDIR(status.st_mode) else status.st_size
    return status.st_mode, status.st_uid, status.st_gid, size, status.st_mtime_ns, content


def manifest(root: pathlib.Path, step: Step) -> Manifest:
    """Describes everything below."""
    found: Manifest = {}
    for folder, directories, files in os.walk(root):
        for name in directories + files:
            path = os.path.join(folder, name)
            found[os.path.relpath(path, root)] = describe(path)
            step.count(0, "files")
    return found


def compare(expected: Manifest, found: Manifest, what: str) -> None:
    different = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    expect(not different, f"{what}: {len(different)} entries differ, the first is {different[:1]}")


def git(directory: pathlib.Path, *words: str) -> str:
    return run("git", "-C", directory, *words, env=GIT_ENVIRONMENT, timeout_s=120).stdout


def commit_all(directory: pathlib.Path, message: str) -> str:
    """Commits what is there, and returns the commit's id."""
    git(directory, "add", "--all")
    git(directory, "commit", "--quiet", "--message", message)
    return git(directory, "rev-parse", "HEAD").strip()


# ---- the database and the snapshots of it ---------------------------------------------------------------------------


@dataclass
class Taken:
    """A snapshot, with what is known of the moment when it was taken."""

    name: str
    number: int
    rows_before: int
    rows_after: int
    is_durable: bool


class DatabaseFiller:
    """Inserts numbered rows, some per transaction, until told to stop."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self.committed = 0
        self.stop = threading.Event()
        self.error: BaseException | None = None
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
            database.execute("pragma journal_mode=delete")
            database.execute("create table entry (number integer primary key, content blob)")
        self.thread = threading.Thread(target=self.fill, name="database")

    def fill(self) -> None:
        try:
            with contextlib.closing(sqlite3.connect(self.path, isolation_level=None)) as database:
                database.execute("pragma synchronous=normal")
                while not self.stop.is_set():
                    numbers = range(self.committed, self.committed + ROWS_PER_TRANSACTION)
                    database.execute("begin")
                    database.executemany("insert into entry values (?, randomblob(1000))", ((n,) for n in numbers))
                    database.execute("commit")
                    self.committed += ROWS_PER_TRANSACTION
        except BaseException as error:
            self.error = error
            self.stop.set()
            raise

    def __enter__(self) -> "DatabaseFiller":
        self.thread.start()
        return self

    def __exit__(self, *details: object) -> None:
        self.stop.set()
        self.thread.join()


def counter_content(number: int) -> bytes:
    """What is written before each snapshot: 4 KiB that say which comes."""
    return f"{number:08}".encode() * 512


def fill_and_snapshot(
    client: cowfs.Client, root: pathlib.Path, prefix: str, goes_on: Callable[[int], bool], took: Callable[[Taken], None]
) -> int:
    """Snapshots one after the other, each after a write of 4 KiB, while a thread fills a database, as long as
    `goes_on` says of the committed rows. Each is told to `took`. Every tenth is waited for until it is durable, and
    those before it are so too then. Returns how many rows there are."""
    number = 0
    counter = os.open(root / "counter", os.O_CREAT | os.O_RDWR)
    try:
        with DatabaseFiller(root / "data.db") as filler:
            while goes_on(filler.committed) and filler.error is None:
                os.pwrite(counter, counter_content(number), 0)
                rows_before = filler.committed
                name = f"{prefix}-{number:05}"
                is_durable = number % SNAPSHOTS_PER_DURABLE == 0
                client.snapshot(name, sync=is_durable)
                # One more transaction may be committed than the other thread has had time to count.
                took(Taken(name, number, rows_before, filler.committed + ROWS_PER_TRANSACTION, is_durable))
                number += 1
    finally:
        os.close(counter)
    expect(filler.error is None, f"filling the database: {filler.error}")
    return filler.committed


def verify_database(files: pathlib.Path, scratch: pathlib.Path, rows_min: int, rows_max: int, what: str) -> int:
    """On a copy, so that a transaction that the snapshot caught half-way can be rolled back."""
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    for path in files.glob("data.db*"):
        shutil.copyfile(path, scratch / path.name)
    with contextlib.closing(sqlite3.connect(scratch / "data.db")) as database:
        answer = database.execute("pragma integrity_check").fetchone()[0]
        expect(answer == "ok", f"{what}: integrity_check says {answer}")
        rows, highest = database.execute("select count(*), coalesce(max(number), -1) from entry").fetchone()
    shutil.rmtree(scratch)
    expect(rows == highest + 1, f"{what}: there are gaps between the rows")
    expect(rows_min <= rows <= rows_max, f"{what}: {rows} rows, between {rows_min} and {rows_max} were committed")
    return int(rows)


def damage(root: pathlib.Path) -> int:
    """What accidents do: files gone, overwritten, cut short, renamed, a repository and a database in ruins."""
    victims = [path for path in sorted(root.rglob("*.py")) if path.is_file()]
    damaged = 0
    for number, path in enumerate(victims):
        match number % 5:
            case 0:
                path.write_bytes(b"ruined" * 1000)
            case 1:
                path.unlink()
            case 2:
                os.truncate(path, 1)
            case 3:
                path.rename(path.with_suffix(".lost"))
            case _:
                continue
        damaged += 1
    for path in sorted((root / ".git" / "objects").glob("a*/*")):
        path.chmod(0o600)
        path.write_bytes(b"not an object")
        damaged += 1
    with open(root / "data.db", "r+b") as file:
        file.write(b"no database " * 1000)
    first = next(path for path in sorted(root.iterdir()) if path.is_dir() and path.name != ".git")
    damaged += 1 + sum(1 for path in first.rglob("*") if path.is_file())
    shutil.rmtree(first)
    return damaged


# ---- the whole ------------------------------------------------------------------------------------------------------


def demonstrate(report: Report, pool: Pool, mountpoint: pathlib.Path, scratch: pathlib.Path) -> None:
    archives = download(report)
    with report.step("make and mount a pool") as step:
        pool.make("-f", "-L", "demonstration")
        mount = pool.mount(directory=mountpoint)
        step.text = f"{POOL_BYTES >> 30} GiB, sparse"
    root = mount.directory

    with report.step("unpack source distributions") as step:
        unpack(archives, root, step)
        step.text = ", ".join(archive.name.removesuffix(".tar.gz") for archive in archives)
        expect(step.done >= FILES_MIN, f"only {step.done} files")
    run("cowfs", "snapshot", root, "unpacked")

    with report.step("make a git repository of them") as step:
        git(root, "init", "--quiet", "--initial-branch=main")
        commit_all(root, "as unpacked")
        step.text = f"{len(git(root, 'ls-files').splitlines()):,} files committed"
    with report.step("SHA-256 of everything") as step:
        state = manifest(root, step)
    run("cowfs", "snapshot", root, "committed")

    with report.step("fill a database, taking snapshots") as step:
        taken: list[Taken] = []

        def took(one: Taken) -> None:
            taken.append(one)
            step.count(SNAPSHOTS_MIN, "snapshots")

        def goes_on(rows: int) -> bool:
            return len(taken) < SNAPSHOTS_MIN or rows < ROWS_MIN

        rows = fill_and_snapshot(mount.client(), root, "during", goes_on, took)
        rate = len(taken) / (time.monotonic() - step.started)
        step.text = f"each after a write of 4 KiB; {rows:,} rows meanwhile"
    state |= {name: describe(str(root / name)) for name in ("counter", "data.db")}
    run("cowfs", "snapshot", root, "good")

    with report.step("verify snapshots") as step:
        chosen = [taken[number * (len(taken) - 1) // (SNAPSHOTS_VERIFIED - 1)] for number in range(SNAPSHOTS_VERIFIED)]
        for one in chosen:
            report.progress(one.name)
            view = mount.snapshot_directory(one.name)
            verify_database(view, scratch, one.rows_before, one.rows_after, one.name)
            counter = (view / "counter").read_bytes()
            expect(counter == counter_content(one.number), f"{one.name}: the last write before it is missing")
        git(mount.snapshot_directory(chosen[3].name), "fsck", "--full")
        before = {name: entry for name, entry in state.items() if name not in ("counter", "data.db")}
        compare(before, manifest(mount.snapshot_directory("committed"), step), "snapshot 'committed'")
        step.text = f"{len(chosen)} times integrity_check and last write, git fsck, SHA-256 of all files"

    with report.step("delete and damage files") as step:
        step.text = f"{damage(root):,} files, the repository, the database"
    with report.step("roll back, while mounted") as step:
        run("cowfs", "rollback", f"{root}@good")

    def verify_all(step: Step) -> None:
        compare(state, manifest(root, step), "after rollback")
        verify_database(root, scratch, rows, rows, "after rollback")
        git(root, "fsck", "--full")
        expect(git(root, "status", "--porcelain", "--untracked-files=no") == "", "git status finds changes")
        step.text = "all equal; integrity_check and git fsck sound"

    with report.step("verify everything") as step:
        verify_all(step)
    with report.step("unmount and mount again") as step:
        mount.unmount()
        mount = pool.mount(directory=mountpoint)
    with report.step("verify everything again") as step:
        verify_all(step)
        names = set(os.listdir(root / ".cowfs" / "snapshot"))
        missing = [one.name for one in taken if one.name not in names]
        expect(not missing, f"snapshots are missing: {missing[:3]}")
        step.text += f"; {len(names):,} snapshots"
    mount.unmount()
    with report.step("fsck.cowfs") as step:
        pool.check()
        step.text = f"clean; the pool takes {pool.path.stat().st_blocks * 512 >> 20} MiB on disk"
    if len(taken) < SNAPSHOTS_MIN:
        report.miss(f"{len(taken):,} snapshots instead of {SNAPSHOTS_MIN:,}")
    if rate < SNAPSHOTS_PER_SECOND_MIN:
        report.miss(f"{rate:.0f} snapshots/s instead of {SNAPSHOTS_PER_SECOND_MIN}/s")


def commands_to_go_on(pool: pathlib.Path, mountpoint: pathlib.Path) -> str:
    def shown(path: pathlib.Path) -> str:
        is_near = pathlib.Path.cwd() == ROOT and path.is_relative_to(ROOT)
        return str(path.relative_to(ROOT)) if is_near else str(path)

    programs = pathlib.Path(sys.executable).parent
    return f"""The pool is still there. To look around in it:
    {shown(programs / "mount.cowfs")} {shown(pool)} {shown(mountpoint)}
    ls {shown(mountpoint)} {shown(mountpoint)}/.cowfs/snapshot/unpacked
    {shown(programs / "cowfs")} list {shown(mountpoint)} | tail
    {shown(programs / "cowfs")} rollback {shown(mountpoint)}@unpacked
    {shown(programs / "cowfs")} umount {shown(mountpoint)}"""


def take_down(pool: Pool, mountpoint: pathlib.Path) -> None:
    """After an interruption or a failure: no mount, no daemon, no half-made pool."""
    if is_mounted(mountpoint):
        with contextlib.suppress(CommandFailed, subprocess.TimeoutExpired):
            run("cowfs", "umount", mountpoint)
        if is_mounted(mountpoint):
            run("umount", "-l", mountpoint, check=False)
    for pid in pool.daemons():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)


def interrupt(number: int, frame: FrameType | None) -> None:
    raise Interrupted(signal.Signals(number).name)


def main() -> int:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    folder = BUILD / "demo"
    mountpoint, scratch = folder / "mount", folder / "scratch"
    folder.mkdir(parents=True, exist_ok=True)
    if is_mounted(mountpoint):
        print(f"demo: {mountpoint} is mounted; unmount it first: cowfs umount {mountpoint}", file=sys.stderr)
        return 1
    mountpoint.mkdir(exist_ok=True)
    pool = Pool(folder, "pool", POOL_BYTES)
    report = Report()
    failures: tuple[type[BaseException], ...] = (
        DemonstrationFailed,
        CommandFailed,
        OSError,
        sqlite3.Error,
        subprocess.TimeoutExpired,
    )
    try:
        demonstrate(report, pool, mountpoint, scratch)
    except Interrupted as interruption:
        take_down(pool, mountpoint)
        pool.path.unlink(missing_ok=True)
        print(f"\ndemo: ended by {interruption}; unmounted, the pool is removed", file=sys.stderr)
        return 130
    except failures as error:
        take_down(pool, mountpoint)
        report.rows.append(("FAILED", "", str(error).splitlines()[0]))
        report.table()
        print(f"demo: failed: {error}\ndemo: unmounted; the pool stays for inspection: {pool.path}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    elapsed_s = time.monotonic() - report.started
    report.rows.append(("altogether", f"{elapsed_s:.1f} s", "everything verified"))
    if elapsed_s > SECONDS_MAX:
        # Said, but no failure: most of it is the machine's and the network's time.
        report.rows.append(("MISSED", "", f"{elapsed_s:.0f} s instead of {SECONDS_MAX} s at most"))
    report.table()
    print(commands_to_go_on(pool.path, mountpoint))
    return 1 if report.is_missed else 0


if __name__ == "__main__":
    sys.exit(main())
