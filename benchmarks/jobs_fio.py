"""Reads and writes, by fio. The job files are generated here and kept with fio's own JSON in the results."""

import dataclasses
import json
import pathlib
import re
import subprocess
from collections.abc import Callable
from typing import Any

from benchmarks.jobs import Context, Job, Outcome
from benchmarks.peers.base import PeerFailed

PERCENTILES = (1, 5, 10, 20, 30, 40, 50, 60, 70, 75, 80, 85, 90, 95, 97, 99, 99.5, 99.9, 99.95, 99.99)
BLOCK_BYTES = 4096
FSYNC_JOBS = 4

Options = dict[str, object]


def job_file(name: str, options: Options) -> str:
    """fio's ini format. Options that are None are left out; True is a flag."""
    lines = [f"[{name}]"]
    for key, value in options.items():
        if value is True:
            lines.append(key)
        elif value is not None and value is not False:
            lines.append(f"{key}={value}")
    return "\n".join(lines) + "\n"


def run_fio(context: Context, name: str, options: Options) -> dict[str, Any]:
    """Runs one job and returns {"job_file": …, "fio": …}."""
    text = job_file(
        name,
        {
            "fallocate": "none",
            "group_reporting": True,
            "clat_percentiles": 0,
            "lat_percentiles": 1,
            "percentile_list": ":".join(f"{p:g}" for p in PERCENTILES),
            "thread": True,
            "randrepeat": 0,
            "norandommap": True,
            **options,
        },
    )
    path = context.scratch / f"{name}.fio"
    path.write_text(text)
    words = ["fio", "--output-format=json", f"--aux-path={context.scratch}", str(path)]
    result = subprocess.run(
        words, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL, cwd=context.scratch
    )
    start = result.stdout.find("{")
    if result.returncode != 0 or start < 0:
        raise PeerFailed(f"fio {name}: exit code {result.returncode}: {(result.stderr or result.stdout).strip()[:400]}")
    return {"job_file": text, "fio": json.loads(result.stdout[start:])}


def figures_of(raw: dict[str, Any]) -> tuple[dict[str, float], dict[str, float]]:
    """Figures by name, and the latency distribution of what the job is about: fsyncs, else writes, else reads."""
    job = raw["fio"]["jobs"][0]
    figures: dict[str, float] = {}
    distribution: dict[str, float] = {}
    for kind in ("read", "write"):
        part = job[kind]
        if part["total_ios"] == 0:
            continue
        figures[f"{kind}_iops"] = part["iops"]
        figures[f"{kind}_mib_per_second"] = part["bw_bytes"] / (1 << 20)
        distribution = _distribution_us(part["lat_ns"])
        figures |= {f"{kind}_p{p}_us": distribution[p] for p in ("50", "99", "99.9") if p in distribution}
    if job["sync"]["total_ios"] and re.search(r"^fsync=", raw["job_file"], re.MULTILINE):
        distribution = _distribution_us(job["sync"]["lat_ns"])
        figures |= {f"fsync_p{p}_us": distribution[p] for p in ("50", "99", "99.9") if p in distribution}
    figures["total_iops"] = figures.get("read_iops", 0) + figures.get("write_iops", 0)
    return figures, distribution


def _distribution_us(latency: dict[str, Any]) -> dict[str, float]:
    return {f"{float(p):g}": value / 1000 for p, value in latency.get("percentile", {}).items()}


def outcome_of(raw: dict[str, Any]) -> Outcome:
    figures, distribution = figures_of(raw)
    written = raw["fio"]["jobs"][0]["write"]["io_bytes"]
    return Outcome(figures, written_bytes=written, distribution_us=distribution, raw=raw)


# ---- the options of each job -----------------------------------------------------------------------------------------


def timed(context: Context) -> Options:
    return {"time_based": True, "runtime": f"{int(context.scale.seconds * 1000)}ms"}


def sequential_write_1m(context: Context) -> Options:
    return {"filename": context.directory / "sequential", "rw": "write", "bs": "1m", "ioengine": "psync",
            "size": context.scale.file_bytes, "end_fsync": 1}  # fmt: skip


def sequential_write_halving(context: Context) -> Options:
    """Half of each block is random, the rest repeats: what source texts and tables compress to, about."""
    return sequential_write_1m(context) | {
        "filename": context.directory / "sequential-halving",
        "refill_buffers": True,
        "buffer_compress_percentage": 50,
        "buffer_compress_chunk": 4096,
    }


def sequential_write_4k(context: Context) -> Options:
    return {"filename": context.directory / "sequential-4k", "rw": "write", "bs": "4k", "ioengine": "psync",
            "size": context.scale.file_bytes // 2, "end_fsync": 1}  # fmt: skip


def random_write_4k(context: Context) -> Options:
    return {"filename": context.directory / "overwritten", "rw": "randwrite", "bs": "4k", "ioengine": "psync",
            "size": context.scale.file_bytes, "end_fsync": 1, **timed(context)}  # fmt: skip


def random_write_direct_1(context: Context) -> Options:
    return {"filename": context.directory / "overwritten", "rw": "randwrite", "bs": "4k", "ioengine": "psync",
            "direct": 1, "size": context.scale.file_bytes, "end_fsync": 1, **timed(context)}  # fmt: skip


def random_write_direct_16(context: Context) -> Options:
    return {"filename": context.directory / "overwritten", "rw": "randwrite", "bs": "4k", "ioengine": "io_uring",
            "iodepth": 16, "direct": 1, "size": context.scale.file_bytes, "end_fsync": 1,
            **timed(context)}  # fmt: skip


def fsync_write(context: Context, jobs: int) -> Options:
    return {"directory": context.directory, "filename_format": "fsync.$jobnum", "rw": "randwrite", "bs": "4k",
            "ioengine": "psync", "fsync": 1, "numjobs": jobs, "size": context.scale.file_bytes // FSYNC_JOBS,
            **timed(context)}  # fmt: skip


def fsync_write_1(context: Context) -> Options:
    return fsync_write(context, 1)


def fsync_write_4(context: Context) -> Options:
    return fsync_write(context, FSYNC_JOBS)


def sequential_read(context: Context) -> Options:
    return {"filename": context.directory / "read", "rw": "read", "bs": "1m", "ioengine": "psync",
            "invalidate": 0, "size": context.scale.file_bytes}  # fmt: skip


def random_read_cached(context: Context) -> Options:
    return {
        "filename": context.directory / "read",
        "rw": "randread",
        "bs": "4k",
        "ioengine": "psync",
        "invalidate": 0,
        "size": context.scale.file_bytes,
        **timed(context),
    }


def random_read_cold(context: Context) -> Options:
    """Each block at most once, or it would soon be a cached one."""
    return random_read_cached(context) | {"norandommap": False, "time_based": False}


def random_read_direct(context: Context) -> Options:
    return random_read_cold(context) | {"direct": 1}


def mixed(context: Context) -> Options:
    return {"filename": context.directory / "overwritten", "rw": "randrw", "rwmixread": 70, "bs": "4k",
            "ioengine": "psync", "size": context.scale.file_bytes, "end_fsync": 1, **timed(context)}  # fmt: skip


# ---- preparations ----------------------------------------------------------------------------------------------------


def overwritten_file(context: Context) -> pathlib.Path:
    return context.fill_file("overwritten", context.scale.file_bytes)


def prepare_overwritten(context: Context) -> None:
    overwritten_file(context)


def prepare_fsync(context: Context) -> None:
    for number in range(FSYNC_JOBS):
        context.fill_file(f"fsync.{number}", context.scale.file_bytes // FSYNC_JOBS)


def prepare_absent(context: Context) -> None:
    for name in ("sequential", "sequential-4k", "sequential-halving"):
        (context.directory / name).unlink(missing_ok=True)


def prepare_cold(context: Context) -> None:
    context.fill_file("read", context.scale.file_bytes)
    context.remount()


def prepare_cached(context: Context) -> None:
    path = context.fill_file("read", context.scale.file_bytes)
    with open(path, "rb", buffering=0) as file:
        while file.read(1 << 20):
            pass


def fio_job(
    name: str,
    title: str,
    figure: str,
    unit: str,
    options: Any,
    prepare: Any = None,
    needs: frozenset[str] = frozenset(),
) -> Job:
    return Job(
        name,
        title,
        figure,
        unit,
        run=lambda context: outcome_of(run_fio(context, name, options(context))),
        needs=needs,
        **({"prepare": prepare} if prepare else {}),
    )


@dataclasses.dataclass(frozen=True)
class WriteJob:
    """The parts of a write job, for jobs that do the same under other circumstances."""

    name: str
    title: str
    figure: str
    unit: str
    options: Callable[[Context], Options]
    prepare: Callable[[Context], None]

    def run(self, context: Context) -> Outcome:
        return outcome_of(run_fio(context, self.name, self.options(context)))

    def job(self) -> Job:
        return Job(self.name, self.title, self.figure, self.unit, self.run, prepare=self.prepare)


WRITES = (
    WriteJob("sequential_write_1m", "sequential write, 1 MiB", "write_mib_per_second", "MiB/s", sequential_write_1m,
             prepare_absent),
    WriteJob("sequential_write_halving", "sequential write, 1 MiB, compressible by half", "write_mib_per_second",
             "MiB/s", sequential_write_halving, prepare_absent),
    WriteJob("sequential_write_4k", "sequential write, 4 KiB", "write_mib_per_second", "MiB/s", sequential_write_4k,
             prepare_absent),
    WriteJob("random_write_4k", "random overwrite, 4 KiB", "write_iops", "1/s", random_write_4k, prepare_overwritten),
    WriteJob("random_write_direct_1", "random overwrite, 4 KiB direct, queue depth 1", "write_iops", "1/s",
             random_write_direct_1, prepare_overwritten),
    WriteJob("random_write_direct_16", "random overwrite, 4 KiB direct, queue depth 16", "write_iops", "1/s",
             random_write_direct_16, prepare_overwritten),
    WriteJob("fsync_1", "4 KiB write + fsync, 1 job", "write_iops", "1/s", fsync_write_1, prepare_fsync),
    WriteJob("fsync_4", "4 KiB write + fsync, 4 jobs", "write_iops", "1/s", fsync_write_4, prepare_fsync),
)  # fmt: skip
WRITE_JOBS = tuple(write.job() for write in WRITES)


def read_job(
    name: str,
    title: str,
    figure: str,
    unit: str,
    options: Callable[[Context], Options],
    prepare: Callable[[Context], None],
) -> Job:
    def run(context: Context) -> Outcome:
        return outcome_of(run_fio(context, name, options(context)))

    return Job(name, title, figure, unit, run, prepare=prepare, warm=prepare is prepare_cached)


READ_JOBS = (
    read_job("sequential_read_cold", "sequential read, 1 MiB, cold", "read_mib_per_second", "MiB/s", sequential_read,
             prepare_cold),
    read_job("sequential_read_cached", "sequential read, 1 MiB, cached", "read_mib_per_second", "MiB/s",
             sequential_read, prepare_cached),
    read_job("random_read_cold", "random read, 4 KiB, cold", "read_iops", "1/s", random_read_cold, prepare_cold),
    read_job("random_read_direct", "random read, 4 KiB direct, cold", "read_iops", "1/s", random_read_direct,
             prepare_cold),
    read_job("random_read_cached", "random read, 4 KiB, cached", "read_iops", "1/s", random_read_cached,
             prepare_cached),
    read_job("mixed_70_30", "random reads and overwrites, 70 to 30, 4 KiB", "total_iops", "1/s", mixed,
             prepare_overwritten),
)  # fmt: skip
