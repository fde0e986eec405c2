"""Which jobs run on which scale."""

import dataclasses
import re

from benchmarks.jobs import Group, Job, Scale
from benchmarks.jobs_files import SMALL_FILE_JOBS, TREE_JOBS
from benchmarks.jobs_fio import READ_JOBS, WRITE_JOBS
from benchmarks.jobs_growth import growth_groups
from benchmarks.jobs_programs import PROGRAM_JOBS
from benchmarks.jobs_snapshots import OTHER_SNAPSHOT_JOBS, RATE_JOBS, many_jobs, throughput_jobs

# What a snapshot may take with one block changed before it: cowfs takes a third of it.
SNAPSHOT_BYTES = 64 << 10

# All on one volume, because making one takes as long as two of these jobs.
QUICK = (
    "sequential_write_1m",
    "sequential_write_4k",
    "random_write_4k",
    "random_write_direct_16",
    "fsync_1",
    "random_read_cold",
    "mixed_70_30",
    "create",
    "stat_cold",
    "unlink",
    "untar",
    "sqlite_wal",
    "sqlite_rollback",
    "snapshot_rate_1",
    "snapshot_rate_16",
    "clone",
)


def all_groups(scale: Scale) -> tuple[Group, ...]:
    present_bytes = max(scale.snapshots_present) * SNAPSHOT_BYTES
    return (
        Group("writes", "Writes", WRITE_JOBS),
        Group("reads", "Reads", READ_JOBS),
        Group("files", "Small files", SMALL_FILE_JOBS),
        Group("tree", "A source tree", TREE_JOBS),
        Group("programs", "Programs", PROGRAM_JOBS),
        Group("snapshot_rate", "Snapshots: rate", RATE_JOBS),
        Group("snapshot_other", "Snapshots: clones, rollback, space", OTHER_SNAPSHOT_JOBS),
        Group(
            "snapshot_throughput",
            "Snapshots: writers meanwhile",
            throughput_jobs(scale.throughput_writes),
            is_slow=True,
        ),
        Group(
            "snapshot_many",
            "Snapshots: many present, and deletion",
            many_jobs(scale.snapshots_present),
            disk_bytes=present_bytes if present_bytes > scale.disk_bytes else None,
            is_slow=True,
        ),
        *growth_groups(scale),
    )


def groups_of(scale: Scale, pattern: str = "") -> tuple[Group, ...]:
    """Those whose name, or the name of one of whose jobs, contains the pattern, which is a regular expression."""
    groups = all_groups(scale)
    if scale.name == "quick":
        jobs = {job.name: job for group in groups for job in group.jobs}
        groups = (Group("quick", "Quick", tuple(jobs[name] for name in QUICK)),)

    def wanted(group: Group, job: Job) -> bool:
        return bool(re.search(pattern, job.name) or re.search(pattern, group.name))

    chosen = []
    for group in groups:
        jobs_wanted = tuple(job for job in group.jobs if wanted(group, job))
        if jobs_wanted:
            chosen.append(dataclasses.replace(group, jobs=jobs_wanted))
    return tuple(chosen)
