"""Small files and a source tree: create, stat, read, unlink; tar, git, rm."""

import os
import pathlib
import shutil
import sysconfig
import tarfile
import time
from collections.abc import Callable

from benchmarks.jobs import FRESH_VOLUME, Context, Job, Outcome, percentiles_us
from benchmarks.peers.base import CONTENT, PeerFailed, command
from tools.demo import GIT_ENVIRONMENT, Report, download

FILE_BYTES = 1024
FILES_PER_DIRECTORY = 100
FILES = "files"
TREE = "tree"


def timed_each(count: int, action: Callable[[int], None]) -> Outcome:
    """One action after the other: rate and latencies."""
    latencies_s = []
    started = time.perf_counter()
    for number in range(count):
        before = time.perf_counter()
        action(number)
        latencies_s.append(time.perf_counter() - before)
    elapsed_s = time.perf_counter() - started
    distribution = percentiles_us(latencies_s)
    return Outcome(
        {"per_second": count / elapsed_s, "p50_us": distribution["50"], "p99_us": distribution["99"]},
        distribution_us=distribution,
    )


# ---- small files


def path_of(context: Context, number: int) -> pathlib.Path:
    return context.directory / FILES / str(number // FILES_PER_DIRECTORY) / f"file-{number}"


def make_directories(context: Context) -> None:
    for number in range(0, context.scale.file_count, FILES_PER_DIRECTORY):
        path_of(context, number).parent.mkdir(parents=True, exist_ok=True)


def create(context: Context) -> Outcome:
    content = context.random.randbytes(FILE_BYTES)
    paths = [os.fspath(path_of(context, number)) for number in range(context.scale.file_count)]

    def create_one(number: int) -> None:
        descriptor = os.open(paths[number], os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        os.write(descriptor, content)
        os.close(descriptor)

    started = time.perf_counter()
    outcome = timed_each(len(paths), create_one)
    context.volume.sync()
    outcome.figures["synced_per_second"] = len(paths) / (time.perf_counter() - started)
    outcome.written_bytes = len(paths) * FILE_BYTES
    return outcome


def shuffled_paths(context: Context) -> list[str]:
    paths = [os.fspath(path_of(context, number)) for number in range(context.scale.file_count)]
    if not os.path.exists(paths[-1]):
        make_directories(context)
        create(context)
    context.random.shuffle(paths)
    return paths


def prepare_shuffled(context: Context) -> None:
    context.state["paths"] = shuffled_paths(context)


def prepare_shuffled_cold(context: Context) -> None:
    prepare_shuffled(context)
    context.remount()


def stat_all(context: Context) -> Outcome:
    paths: list[str] = context.state["paths"]
    return timed_each(len(paths), lambda number: os.stat(paths[number]) and None)


def read_all(context: Context) -> Outcome:
    paths: list[str] = context.state["paths"]

    def read_one(number: int) -> None:
        descriptor = os.open(paths[number], os.O_RDONLY | os.O_CLOEXEC)
        length = len(os.read(descriptor, 2 * FILE_BYTES))
        os.close(descriptor)
        if length != FILE_BYTES:
            raise PeerFailed(f"{paths[number]} has {length} bytes instead of {FILE_BYTES}")

    return timed_each(len(paths), read_one)


def unlink_all(context: Context) -> Outcome:
    paths: list[str] = context.state["paths"]
    return timed_each(len(paths), lambda number: os.unlink(paths[number]))


SMALL_FILE_JOBS = (
    Job("create", "create files of 1 KiB", "per_second", "1/s", create, prepare=make_directories,
        again=FRESH_VOLUME),
    Job("stat_cold", "stat, cold", "per_second", "1/s", stat_all, prepare=prepare_shuffled_cold),
    Job("read_files_cold", "open and read files of 1 KiB, cold", "per_second", "1/s", read_all,
        prepare=prepare_shuffled_cold),
    Job("unlink", "unlink", "per_second", "1/s", unlink_all, prepare=prepare_shuffled, warm=True),
)  # fmt: skip


# ---- a source tree


def source_archive(context: Context) -> pathlib.Path:
    """A tar of a real source tree with a git repository in it, made once per run. Where no source distribution can be
    had it is the interpreter's own library."""
    archive = context.scratch / "tree.tar"
    if archive.exists():
        return archive
    unpacked = context.scratch / "unpacked"
    try:
        source = download(Report())[0]
        command("mkdir", unpacked)
        command("tar", "-xf", source, "--directory", unpacked)
    except Exception as error:
        print(f"benchmarks: no source distribution ({error}): the interpreter's library serves instead")
        shutil.rmtree(unpacked, ignore_errors=True)
        shutil.copytree(sysconfig.get_path("stdlib"), unpacked, ignore=shutil.ignore_patterns("site-packages"))
    files = sorted(path for path in unpacked.rglob("*") if path.is_file() or path.is_symlink())
    for path in files[context.scale.tree_files_max :]:
        path.unlink()
    git(unpacked, "init", "--quiet", "--initial-branch=main")
    git(unpacked, "add", "--all")
    git(unpacked, "commit", "--quiet", "--message", "as unpacked")
    with tarfile.open(archive, "w") as tar:
        tar.add(unpacked, TREE)
    shutil.rmtree(unpacked)
    return archive


def git(directory: pathlib.Path, *words: str) -> str:
    settings = [
        word for name, value in GIT_ENVIRONMENT.items() if name.startswith("GIT_") for word in [f"{name}={value}"]
    ]
    return command("env", *settings, "git", "-C", directory, *words)


def timed_command(*words: object, cwd: pathlib.Path | None = None) -> Outcome:
    started = time.perf_counter()
    command(*words, cwd=cwd)
    return Outcome({"seconds": time.perf_counter() - started})


def unpack(context: Context) -> Outcome:
    archive = source_archive(context)
    outcome = timed_command("tar", "-xf", archive, "--directory", context.directory)
    outcome.figures["files_per_second"] = context.state["tree_files"] / outcome.figures["seconds"]
    outcome.written_bytes = archive.stat().st_size
    return outcome


def prepare_unpack(context: Context) -> None:
    with tarfile.open(source_archive(context)) as tar:
        context.state["tree_files"] = sum(1 for member in tar if not member.isdir())


def need_tree(context: Context) -> None:
    if not (context.directory / TREE).exists():
        prepare_unpack(context)
        unpack(context)


def git_status(context: Context) -> Outcome:
    started = time.perf_counter()
    changed = git(context.directory / TREE, "status", "--porcelain", "--untracked-files=all")
    if changed:
        raise PeerFailed(f"git status finds changes where there are none: {changed[:200]}")
    return Outcome({"seconds": time.perf_counter() - started})


def prepare_git(context: Context) -> None:
    """The first status reads every file, because the index knows other inodes and times."""
    need_tree(context)
    git_status(context)


def prepare_git_cold(context: Context) -> None:
    prepare_git(context)
    context.remount()


def remove_tree(context: Context) -> Outcome:
    return timed_command("rm", "-r", context.directory / TREE)


TREE_JOBS = (
    Job("untar", "untar of a source tree with repository", "seconds", "s", unpack, lower_is_better=True,
        prepare=prepare_unpack, again=FRESH_VOLUME),
    Job("git_status", "git status, cached", "seconds", "s", git_status, lower_is_better=True,
        needs=frozenset({CONTENT}), prepare=prepare_git, warm=True),
    Job("git_status_cold", "git status, cold", "seconds", "s", git_status, lower_is_better=True,
        needs=frozenset({CONTENT}), prepare=prepare_git_cold),
    Job("rm_tree", "rm -r of it", "seconds", "s", remove_tree, lower_is_better=True, prepare=need_tree),
)  # fmt: skip
