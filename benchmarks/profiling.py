"""Where the time of cowfs' daemon goes during a job: python -m benchmarks.profiling JOB … (as root, with perf).

Prints, as Markdown, how much processor time the daemon takes of the job's time (what is left is waiting, wake-ups, the
kernel on the caller's side and the caller), and what of it is spent in which library and function, sampled by perf.
"""

import argparse
import dataclasses
import os
import pathlib
import random
import signal
import subprocess
import sys
import time
from collections import Counter

from benchmarks.ground import MEDIA, make_disk
from benchmarks.isolation import Surroundings, run_isolated
from benchmarks.jobs import SCALES, Context, Job
from benchmarks.machine import TICKS_PER_SECOND
from benchmarks.peers.base import command
from benchmarks.peers.cowfs import Cowfs
from benchmarks.plan import all_groups
from benchmarks.report import table

SECONDS = 5
FILE_COUNT = 10_000
SAMPLES_PER_SECOND = 997
FUNCTIONS_SHOWN = 12


def processor_s(pid: int) -> tuple[float, float]:
    """In user mode and in the kernel, so far."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) / TICKS_PER_SECOND, int(fields[12]) / TICKS_PER_SECOND


def share_table(title: str, shares: Counter[str], total: float, limit: int) -> str:
    return table([title, "share"], [[name, f"{value / total:.1%}"] for name, value in shares.most_common(limit)])


def parse_report(text: str) -> tuple[Counter[str], Counter[str]]:
    """Shares by library, and by library and function, of what `perf report` printed."""
    libraries: Counter[str] = Counter()
    functions: Counter[str] = Counter()
    for line in text.splitlines():
        parts = [part.strip() for part in line.split(";")]
        if len(parts) < 3 or not parts[0].endswith("%"):
            continue
        share, library, symbol = (
            float(parts[0].removesuffix("%")),
            parts[1],
            parts[2].removeprefix("[.] ").removeprefix("[k] "),
        )
        libraries[library] += share  # type: ignore[assignment]
        functions[f"{library}: {symbol}"] += share  # type: ignore[assignment]
    return libraries, functions


def profile(job: Job, context: Context, scratch: pathlib.Path) -> str:
    job.prepare(context)
    context.volume.sync()
    pid = context.volume.server_pid()
    assert pid is not None
    data = scratch / f"{job.name}.perf"
    words = ["perf", "record", "--quiet", f"--freq={SAMPLES_PER_SECOND}", f"--pid={pid}", f"--output={data}"]
    recorder = subprocess.Popen(words, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        time.sleep(0.5)
        user_s, system_s = processor_s(pid)
        started = time.perf_counter()
        outcome = job.run(context)
        elapsed_s = time.perf_counter() - started
        user_s, system_s = (now - before for now, before in zip(processor_s(pid), (user_s, system_s), strict=True))
    finally:
        recorder.send_signal(signal.SIGINT)
        recorder.wait(60)
    words = ["perf", "report", "--stdio", "--field-separator=;", "--sort=dso,symbol", f"--input={data}"]
    printed = command(*words)
    libraries, functions = parse_report(printed)
    total = sum(libraries.values()) or 1.0
    return "\n".join((
        f"### {job.title}",
        "",
        f"{outcome.figures[job.figure]:,.0f} {job.unit} under perf; of {elapsed_s:.1f} s the daemon ran {user_s:.1f} s "
        f"in user mode and {system_s:.1f} s in the kernel.",
        "",
        share_table("library", libraries, total, 8),
        "",
        share_table("function", functions, total, FUNCTIONS_SHOWN),
        "",
    ))  # fmt: skip


def work(names: list[str], surroundings: Surroundings) -> int:
    scale = dataclasses.replace(SCALES["medium"], seconds=SECONDS, file_count=FILE_COUNT)
    jobs = {job.name: job for group in all_groups(scale) for job in group.jobs}
    scratch = surroundings.folder / "scratch"
    scratch.mkdir()
    for name in names:
        mountpoint = surroundings.folder / name
        mountpoint.mkdir()
        with make_disk("memory", surroundings.folder, scale.disk_bytes) as disk:
            disk.wipe()
            volume = Cowfs().make(disk, mountpoint)
            try:
                context = Context(Cowfs(), volume, scale, random.Random(1), scratch)
                print(profile(jobs[name], context, scratch), flush=True)
                context.close_snapshots()
            finally:
                volume.close()
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profiling", description=__doc__)
    parser.add_argument("jobs", nargs="+", metavar="JOB", help="names, as python -m benchmarks --list shows them")
    names: list[str] = parser.parse_args().jobs
    if os.geteuid() != 0:
        raise SystemExit("profiling needs root")
    return run_isolated(lambda surroundings: work(names, surroundings), [MEDIA["memory"]])


if __name__ == "__main__":
    sys.exit(main())
