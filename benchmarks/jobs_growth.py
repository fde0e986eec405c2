"""What grows: mount time, recovery time and memory, against the size of the pool and the number of files. The same
against the number of snapshots stands with the jobs that have many of them."""

import os
from collections.abc import Callable

from benchmarks.jobs import Context, Group, Job, Outcome, Scale
from benchmarks.jobs_snapshots import crash_at_work
from benchmarks.peers.base import DISK

FILES_PER_DIRECTORY = 1000


def with_memory(context: Context, figures: dict[str, float]) -> Outcome:
    if (memory := context.volume.memory_bytes()) is not None:
        figures["memory_mib"] = memory / (1 << 20)
    return Outcome(figures)


def make_files(count: int) -> Callable[[Context], None]:
    def prepare(context: Context) -> None:
        have = context.state.get("files", 0)
        for number in range(have, count):
            folder = context.directory / "many" / str(number // FILES_PER_DIRECTORY)
            if number % FILES_PER_DIRECTORY == 0:
                folder.mkdir(parents=True)
            os.close(os.open(folder / f"file-{number}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC))
        context.state["files"] = max(have, count)
        context.volume.sync()

    return prepare


def mount(context: Context) -> Outcome:
    serving = context.volume.memory_bytes()
    outcome = with_memory(context, {"seconds": context.remount()})
    if serving is not None:
        outcome.figures["memory_before_mib"] = serving / (1 << 20)
    return outcome


def recovery(context: Context) -> Outcome:
    return with_memory(context, {"seconds": crash_at_work(context)})


def files_jobs(count: int) -> tuple[Job, ...]:
    needs = frozenset({DISK})
    return (
        Job(f"mount_{count}_files", f"mounting with {count:,} files", "seconds", "s", mount, lower_is_better=True,
            needs=needs, prepare=make_files(count), timeout_s=1800),
        Job(f"recovery_{count}_files", f"recovery after kill -9 with {count:,} files", "seconds", "s", recovery,
            lower_is_better=True, needs=needs, prepare=make_files(count), timeout_s=1800),
    )  # fmt: skip


def growth_groups(scale: Scale) -> tuple[Group, ...]:
    files = tuple(job for count in scale.growth_file_counts for job in files_jobs(count))
    groups = [Group("growth_files", "Growth: files", files, is_slow=True)]
    for size_bytes in scale.pool_sizes_bytes:
        gib = size_bytes >> 30
        jobs = tuple(
            Job(f"{what}_{gib}_gib", f"{title} a pool of {gib} GiB", "seconds", "s", run, lower_is_better=True,
                needs=frozenset({DISK}))
            for what, title, run in (
                ("mount", "mounting", mount), ("recovery", "recovery after kill -9 of", recovery)
            )
        )  # fmt: skip
        groups.append(
            Group(
                f"growth_{gib}_gib", "Growth: pool size", jobs, disk_bytes=size_bytes, is_disk_sparse=True, is_slow=True
            )
        )
    return tuple(groups)
