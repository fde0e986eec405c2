"""What people do with a file system: git, pip, SQLite, rsync, tar, cp, find, du, fio, each held against the same on the
host's file system or against the program's own check."""

import hashlib
import os
import pathlib
import random
import sqlite3
import stat
import subprocess
import sys
import threading

import pytest

from tools.scratch import MIB, run

FILE_COUNT = 400


def fill(root: pathlib.Path, *, special: bool = True) -> None:
    """A tree with what trees have: sizes from nothing to a mebibyte, odd names, links of both kinds, modes, old times,
    attributes, a hole."""
    randomness = random.Random(7)
    root.mkdir(exist_ok=True)
    for number in range(FILE_COUNT):
        folder = root / f"folder {number % 7}" / f"{number % 11}"
        folder.mkdir(parents=True, exist_ok=True)
        size = randomness.choice([0, 1, 100, 2000, 4096, 5000, 20_000, 140_000])
        (folder / f"file-{number}").write_bytes(randomness.randbytes(size))
    (root / "large").write_bytes(randomness.randbytes(MIB))
    (root / "naïve \n name").write_text("odd name")
    (root / "link").symlink_to("large")
    (root / "dangling").symlink_to("nowhere/at all")
    os.link(root / "large", root / "folder 1" / "second name of large")
    (root / "empty").mkdir()
    with open(root / "hole", "wb") as file:
        file.seek(10 * MIB)
        file.write(b"end")
    for number, path in enumerate(sorted(root.rglob("file-*"))):
        path.chmod([0o644, 0o600, 0o755, 0o400][number % 4])
    if special:
        os.mkfifo(root / "fifo", 0o600)
    os.setxattr(root / "large", "user.origin", b"made for a test")
    # The root last: rsync takes directory times of the same second for equal, so they must be old.
    for number, path in enumerate([*sorted(root.rglob("*"), reverse=True), root]):
        os.utime(path, ns=(10**18 + number, 15 * 10**17 + number * 1001), follow_symlinks=False)


def describe(root: pathlib.Path) -> dict[str, tuple[object, ...]]:
    """Everything about a tree that copying must keep."""
    found: dict[str, tuple[object, ...]] = {}
    for path in [root, *sorted(root.rglob("*"))]:
        status = path.lstat()
        content: object = None
        if stat.S_ISREG(status.st_mode):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        elif stat.S_ISLNK(status.st_mode):
            content = os.readlink(path)
        links = 0 if stat.S_ISDIR(status.st_mode) else status.st_nlink
        size = 0 if stat.S_ISDIR(status.st_mode) else status.st_size
        found[str(path.relative_to(root))] = (
            stat.filemode(status.st_mode),
            status.st_uid,
            status.st_gid,
            status.st_mtime_ns,
            size,
            links,
            content,
        )
    return found


@pytest.fixture(scope="module")
def host_tree(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    root = tmp_path_factory.mktemp("host") / "tree"
    fill(root)
    return root


# ---- copying --------------------------------------------------------------------------------------------------------


def test_cp_there_and_back(place: pathlib.Path, host_tree: pathlib.Path, tmp_path: pathlib.Path) -> None:
    run("cp", "-a", host_tree, place / "copy")
    assert describe(place / "copy") == describe(host_tree)
    assert os.getxattr(place / "copy" / "large", "user.origin") == b"made for a test"
    run("cp", "-a", place / "copy", place / "second")
    assert describe(place / "second") == describe(host_tree)
    run("cp", "-a", place / "second", tmp_path / "back")
    assert describe(tmp_path / "back") == describe(host_tree)


def test_rsync_there_and_back(place: pathlib.Path, host_tree: pathlib.Path, tmp_path: pathlib.Path) -> None:
    run("rsync", "-aHAX", "--numeric-ids", f"{host_tree}/", place / "copy")
    assert describe(place / "copy") == describe(host_tree)
    assert os.getxattr(place / "copy" / "large", "user.origin") == b"made for a test"
    again = run("rsync", "-aHAX", "--numeric-ids", "--itemize-changes", f"{host_tree}/", place / "copy")
    assert again.stdout == "", "the second run must find nothing to do"
    by_content = run("rsync", "-aHAXnci", "--numeric-ids", f"{host_tree}/", place / "copy")
    assert by_content.stdout == ""
    run("rsync", "-aHAX", "--numeric-ids", f"{place}/copy/", tmp_path / "back")
    assert describe(tmp_path / "back") == describe(host_tree)
    (place / "copy" / "large").write_bytes(b"damaged")
    run("rsync", "-aHAX", "--inplace", "--delete", f"{host_tree}/", place / "copy")
    assert describe(place / "copy") == describe(host_tree)


def test_tar_round_trip(place: pathlib.Path, host_tree: pathlib.Path, tmp_path: pathlib.Path) -> None:
    tar = ("tar", "--xattrs", "--sparse", "--format=posix", "--numeric-owner")
    run(*tar, "-C", host_tree, "-cf", place / "there.tar", ".")
    (place / "unpacked").mkdir()
    run(*tar, "-C", place / "unpacked", "-xpf", place / "there.tar")
    assert describe(place / "unpacked") == describe(host_tree)
    run(*tar, "-C", place / "unpacked", "-cf", tmp_path / "back.tar", ".")
    run(*tar, "-C", place / "unpacked", "--compare", "-f", tmp_path / "back.tar")
    (tmp_path / "back").mkdir()
    run(*tar, "-C", tmp_path / "back", "-xpf", tmp_path / "back.tar")
    assert describe(tmp_path / "back") == describe(host_tree)


def test_find_and_du_agree_with_the_host(place: pathlib.Path, host_tree: pathlib.Path) -> None:
    run("cp", "-a", host_tree, place / "copy")
    for conditions in (
        ["-printf", "%P %y %m %n %T@ %l\\n", "-not", "-type", "d"],
        ["-type", "d", "-empty", "-printf", "%P\\n"],
        ["-size", "+100k", "-printf", "%P %s\\n"],
        ["-newermt", "2017-07-14 02:40:00", "-printf", "%P\\n"],
        ["-samefile", "large", "-printf", "%P\\n"],
        ["-perm", "400", "-printf", "%P\\n"],
    ):
        there = run("find", ".", *conditions, cwd=place / "copy").stdout.splitlines()
        here = run("find", ".", *conditions, cwd=host_tree).stdout.splitlines()
        assert sorted(there) == sorted(here), conditions
    apparent = [
        run("du", "-s", "--apparent-size", "--block-size=1", "--exclude=.cowfs", "-l", path).stdout.split()[0]
        for path in (place / "copy" / "folder 3", host_tree / "folder 3")
    ]
    files_here = sum(path.stat().st_size for path in (host_tree / "folder 3").rglob("file-*"))
    assert int(apparent[0]) >= files_here
    assert abs(int(apparent[0]) - int(apparent[1])) <= 20 * 4096, "they differ by what directories are said to hold"
    on_disk = int(run("du", "-s", "--block-size=1", place / "copy").stdout.split()[0])
    content = sum(path.stat().st_size for path in host_tree.rglob("file-*")) + MIB
    assert content * 0.9 <= on_disk <= content * 1.1 + 3 * MIB, "holes take no space, and hard links count once"


# ---- git and pip ----------------------------------------------------------------------------------------------------

GIT_ENVIRONMENT = {
    **os.environ,
    "GIT_AUTHOR_NAME": "cowfs",
    "GIT_AUTHOR_EMAIL": "cowfs@localhost",
    "GIT_COMMITTER_NAME": "cowfs",
    "GIT_COMMITTER_EMAIL": "cowfs@localhost",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_SYSTEM": "/dev/null",
    "GIT_CONFIG_COUNT": "1",
    "GIT_CONFIG_KEY_0": "safe.directory",
    "GIT_CONFIG_VALUE_0": "*",
}


def git(directory: pathlib.Path, *words: object) -> str:
    return run("git", *words, cwd=directory, env=GIT_ENVIRONMENT).stdout


def test_git(place: pathlib.Path, tmp_path: pathlib.Path) -> None:
    origin = tmp_path / "origin"
    fill(origin, special=False)
    git(origin, "init", "--quiet", "--initial-branch=main")
    for number in range(5):
        (origin / "changing").write_text(f"version {number}\n" * 1000)
        git(origin, "add", "--all")
        git(origin, "commit", "--quiet", "--message", f"commit {number}")
    for how, name in (("--no-hardlinks", "clone"), ("--no-local", "packed")):
        git(place, "clone", "--quiet", how, origin, name)
        clone = place / name
        git(clone, "fsck", "--full", "--strict")
        assert git(clone, "rev-parse", "HEAD^{tree}") == git(origin, "rev-parse", "HEAD^{tree}")
        assert git(clone, "status", "--porcelain") == ""
    git(clone, "checkout", "--quiet", "-b", "side", "HEAD~3")
    (clone / "changing").write_text("otherwise\n")
    git(clone, "commit", "--quiet", "--all", "--message", "on the side")
    git(clone, "merge", "--quiet", "--strategy-option=ours", "--message", "merged", "main")
    git(clone, "gc", "--quiet", "--prune=now")
    git(clone, "fsck", "--full", "--strict")
    git(tmp_path, "clone", "--quiet", "--no-local", "--branch", "side", clone, "back")
    assert git(tmp_path / "back", "rev-parse", "HEAD") == git(clone, "rev-parse", "HEAD")
    git(tmp_path / "back", "fsck", "--full")


def test_pip_installs_here(place: pathlib.Path) -> None:
    """From source, in the mount: pip builds a wheel, unpacks and compiles it, and the result runs."""
    source = place / "source"
    package = source / "greeting"
    package.mkdir(parents=True)
    (source / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "greeting"\nversion = "1.0"\n'
        '[project.scripts]\ngreet = "greeting.words0:greet"\n[tool.setuptools]\npackages = ["greeting"]\n'
    )
    (package / "__init__.py").write_text("")
    for number in range(100):
        (package / f"words{number}.py").write_text(f"def greet():\n    print('hello {number}')\n")
    run(sys.executable, "-m", "venv", "--without-pip", place / "environment")
    python = place / "environment" / "bin" / "python"
    run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
        "--no-build-isolation",
        "--no-cache-dir",
        "--find-links",
        place,
        source,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path.endswith("site-packages"))},
    )
    assert run(place / "environment" / "bin" / "greet").stdout == "hello 0\n"
    assert run(python, "-c", "import greeting.words99 as w; w.greet()").stdout == "hello 99\n"
    compiled = list((place / "environment").rglob("words*.pyc"))
    assert len(compiled) == 100


# ---- SQLite ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("journal_mode", ["wal", "delete", "truncate", "persist"])
def test_sqlite(place: pathlib.Path, journal_mode: str) -> None:
    path = place / "data.db"
    thread_count, row_count = 3, 150
    with sqlite3.connect(path) as database:
        assert database.execute(f"pragma journal_mode={journal_mode}").fetchone() == (journal_mode,)
        database.execute("create table entry (writer integer, number integer, content blob)")
        database.execute("create index by_number on entry (number)")
    database.close()
    failures = []

    def write(writer: int) -> None:
        try:
            connection = sqlite3.connect(path, timeout=60, isolation_level=None)
            for number in range(row_count):
                connection.execute("begin immediate")
                connection.execute("insert into entry values (?, ?, ?)", (writer, number, os.urandom(500)))
                if number % 10 == 9:
                    connection.execute("delete from entry where writer = ? and number = ?", (writer, number - 5))
                connection.execute("commit" if number % 7 else "rollback")
            connection.close()
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(thread_count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    program = run("sqlite3", path, "pragma integrity_check; select count(*) from entry;").stdout.split()
    kept = {number for number in range(row_count) if number % 7}
    for number in range(9, row_count, 10):
        if number % 7:
            kept.discard(number - 5)
    assert program == ["ok", str(thread_count * len(kept))]
    run("sqlite3", path, "vacuum")
    assert run("sqlite3", path, "pragma integrity_check").stdout == "ok\n"


def test_sqlite_recovers_a_hot_journal(place: pathlib.Path) -> None:
    """A program that dies inside a transaction leaves a journal, and the next one to open rolls it back."""
    script = (
        "import os, sqlite3\n"
        f"d = sqlite3.connect({str(place / 'data.db')!r}, isolation_level=None)\n"
        "d.execute('pragma cache_size=5'); d.execute('create table t (a)')\n"
        "d.execute('insert into t values (1)'); d.execute('begin')\n"
        "d.executemany('insert into t values (?)', [(os.urandom(3000),) for _ in range(200)])\n"
        "os._exit(9)\n"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=30).returncode == 9
    assert (place / "data.db-journal").stat().st_size > 0
    assert run("sqlite3", place / "data.db", "pragma integrity_check; select count(*) from t").stdout == "ok\n1\n"


# ---- fio ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "options"),
    [
        ("randwrite", ["--bs=4k", "--fsync=64"]),
        ("randrw", ["--bsrange=512-130k", "--bs_unaligned=1"]),
        ("write", ["--bs=1m", "--end_fsync=1"]),
        ("randwrite", ["--bs=4k", "--direct=1"]),
    ],
)
def test_fio_verifies_what_it_wrote(place: pathlib.Path, pattern: str, options: list[str]) -> None:
    size = "--size=32m"
    output = run(
        "fio",
        "--name=verify",
        f"--directory={place}",
        f"--rw={pattern}",
        size,
        "--verify=crc32c",
        "--do_verify=1",
        "--verify_fatal=1",
        "--verify_state_save=0",
        "--ioengine=psync",
        "--randseed=1",
        *options,
        timeout_s=110,
    )
    assert "err= 0" in output.stdout
