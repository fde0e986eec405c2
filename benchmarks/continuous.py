"""Snapshots taken and destroyed at the same rate for a long time: whether the rate is held, and whether space and
memory stay flat. Or what is felt of many deletions in the background.

    python -m benchmarks.continuous --seconds 600                  each kind after the other
    python -m benchmarks.continuous --seconds 600 --kinds 16       one; several may run at the same time
    python -m benchmarks.continuous --deletion                     writes beside 100,000 deletions

A kind is a number of random 4 KiB writes between two snapshots. One client takes durable snapshots at a rate, a second
destroys the oldest at the same rate, as soon as more than --keep are there; who falls behind goes on as fast as it can.
With --beside N, N snapshots are there all the time. The results are lines of JSON, in --output or on the standard
output after the table."""

import argparse
import array
import contextlib
import json
import os
import pathlib
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cowfs
from benchmarks.ground import BLOCK_SIZE_BYTES
from tools.scratch import MIB, Mount, Pool

FILE_BYTES = 64 * MIB
BACKLOG_MAX = 2000
RATES_PER_SECOND = {0: 5000.0, 1: 2000.0, 16: 1000.0}
WINDOW_SECONDS_MAX = 60.0
SHORTEST_SLEEP_S = 50e-6
PINNED_BYTES = 64 << 10
"""More than a snapshot with one block written takes: that, and the nodes that lead to it, twice."""
FIGURES = ("taken_per_second", "destroyed_per_second", "p50_us", "p99_us", "used_mib", "memory_mib", "queue")


class Pace:
    """Moments at a rate: who was late goes on at once until it has caught up. 0: all at once."""

    def __init__(self, per_second: float) -> None:
        self._interval_s = 1 / per_second if per_second else 0.0
        self._next = time.perf_counter()

    def wait(self) -> None:
        left_s = self._next - time.perf_counter()
        if left_s > SHORTEST_SLEEP_S:
            time.sleep(left_s)
        self._next += self._interval_s


class Worker(threading.Thread):
    """Does something until it is told to end; what it raised is raised again by end()."""

    def __init__(self, name: str, work: Callable[["Worker"], None]) -> None:
        super().__init__(name=name)
        self._work = work
        self.ending = threading.Event()
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            self._work(self)
        except BaseException as failure:
            self.failure = failure

    def end(self) -> None:
        self.ending.set()
        self.join()
        if self.failure is not None:
            raise self.failure


class Counts:
    """What both clients have done. Each figure is changed by one thread."""

    def __init__(self) -> None:
        self.taken = 0
        self.destroyed = 0
        self.moments_s = array.array("d")
        self.latencies_s = array.array("f")


class Figures:
    """What the daemon says of itself, once in so many seconds."""

    def __init__(self, mount: Mount, counts: Counts, every_s: float) -> None:
        self._client = mount.client()
        self._pid = mount.daemon_pid()
        self._counts = counts
        self._every_s = every_s
        self.samples: list[dict[str, float]] = []

    def sample(self, at_s: float) -> dict[str, float]:
        status = self._client.status()["statistics"]
        resident = int(pathlib.Path(f"/proc/{self._pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        blocks = {name: status[f"{name}_blocks"] * BLOCK_SIZE_BYTES for name in ("used", "dead", "pending")}
        bytes_of = {**blocks, **{name: status[f"{name}_bytes"] for name in ("cache", "dirty", "buffer")}}
        return {"at_s": round(at_s, 1), "memory_mib": round(resident / MIB, 1),
                **{f"{name}_mib": round(value / MIB, 1) for name, value in bytes_of.items()},
                "queue": status["deletion_queue_length"], "snapshots": status["snapshot_count"],
                "taken": self._counts.taken, "destroyed": self._counts.destroyed}

    def watch(self, worker: Worker) -> None:
        started = time.perf_counter()
        while True:
            self.samples.append(self.sample(time.perf_counter() - started))
            if worker.ending.wait(started + len(self.samples) * self._every_s - time.perf_counter()):
                return


@contextlib.contextmanager
def working(*workers: Worker) -> Iterator[None]:
    for worker in workers:
        worker.start()
    try:
        yield
    finally:
        for worker in workers:
            worker.ending.set()
        for worker in workers:
            worker.join()
    for worker in workers:
        worker.end()


@contextlib.contextmanager
def open_file(mount: Mount, chance: random.Random) -> Iterator[int]:
    descriptor = os.open(mount.directory / "file", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC)
    try:
        for offset in range(0, FILE_BYTES, MIB):
            os.pwrite(descriptor, chance.randbytes(MIB), offset)
        yield descriptor
    finally:
        os.close(descriptor)


def write_somewhere(descriptor: int, content: bytes, chance: random.Random) -> None:
    os.pwrite(descriptor, content, chance.randrange(FILE_BYTES // BLOCK_SIZE_BYTES) * BLOCK_SIZE_BYTES)


# ---- both at the same rate ------------------------------------------------------------------------------------------


def measure(mount: Mount, kind: int, options: argparse.Namespace) -> dict[str, Any]:
    chance = random.Random(1)
    content = chance.randbytes(BLOCK_SIZE_BYTES)
    client, destroying = mount.client(), mount.client()
    counts = Counts()
    keep, rate = options.keep, options.rates[kind]

    def destroy(worker: Worker) -> None:
        pace = None
        while not worker.ending.is_set():
            if counts.taken - counts.destroyed <= keep:
                time.sleep(0.0002)
                continue
            pace = pace or Pace(rate)
            pace.wait()
            destroying.destroy(f"s{counts.destroyed}")
            counts.destroyed += 1

    destroyer = Worker("destroyer", destroy)
    figures = Figures(mount, counts, options.sample_seconds)
    with open_file(mount, chance) as descriptor, working(destroyer, Worker("figures", figures.watch)):
        started = last = time.perf_counter()
        pace = Pace(rate)
        while last - started < options.seconds and destroyer.failure is None:
            pace.wait()
            for _ in range(kind):
                write_somewhere(descriptor, content, chance)
            before = time.perf_counter()
            client.snapshot(f"s{counts.taken}")
            last = time.perf_counter()
            counts.moments_s.append(last - started)
            counts.latencies_s.append(last - before)
            counts.taken += 1
            while counts.taken - counts.destroyed > keep + BACKLOG_MAX and destroyer.failure is None:
                time.sleep(0.001)  # the rate is that of both
        figures.samples.append(figures.sample(last - started))
    return summarize(kind, rate, last - started, counts, figures.samples)


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


def of_window(counts: Counts, samples: Sequence[dict[str, float]], begin_s: float, end_s: float) -> dict[str, float]:
    """What held between two moments: rates and latencies of what was done then, the mean of the samples."""
    latencies = [latency for moment, latency in zip(counts.moments_s, counts.latencies_s, strict=True)
                 if begin_s <= moment < end_s]
    inside = [each for each in samples if begin_s <= each["at_s"] <= end_s] or [samples[-1]]
    span_s = inside[-1]["at_s"] - inside[0]["at_s"]
    destroyed = inside[-1]["destroyed"] - inside[0]["destroyed"]
    window = {"begin_s": round(begin_s, 1), "end_s": round(end_s, 1),
              "taken_per_second": round(len(latencies) / (end_s - begin_s)),
              "destroyed_per_second": round(destroyed / span_s) if span_s else 0,
              "p50_us": round(percentile(latencies, 0.5) * 1e6), "p99_us": round(percentile(latencies, 0.99) * 1e6)}
    for name in ("used_mib", "memory_mib", "queue"):
        window[name] = round(sum(each[name] for each in inside) / len(inside), 1)
    return window


def summarize(kind: int, rate: float, elapsed_s: float, counts: Counts,
              samples: Sequence[dict[str, float]]) -> dict[str, Any]:
    """The first minute after warming up, which takes as long again, and the last one; thirds of shorter runs."""
    length_s = min(WINDOW_SECONDS_MAX, elapsed_s / 3)
    return {"writes_between": kind, "wanted_per_second": rate, "seconds": round(elapsed_s, 1),
            "taken_per_second": round(counts.taken / elapsed_s),
            "destroyed_per_second": round(counts.destroyed / elapsed_s),
            "p50_us": round(percentile(counts.latencies_s, 0.5) * 1e6),
            "p99_us": round(percentile(counts.latencies_s, 0.99) * 1e6),
            "max_us": round(max(counts.latencies_s) * 1e6),
            "first": of_window(counts, samples, length_s, 2 * length_s),
            "last": of_window(counts, samples, elapsed_s - length_s, elapsed_s + 1e-9),
            "samples": list(samples)}


def table(results: Sequence[dict[str, Any]]) -> str:
    lines = [f"{'writes':>6} {'wanted/s':>8} {'figure':<21} {'first':>9} {'last':>9} {'change':>8}"]
    for result in results:
        for name in FIGURES:
            first, last = result["first"][name], result["last"][name]
            change = f"{(last / first - 1) * 100:+.1f} %" if first else ""
            lines.append(f"{result['writes_between']:>6} {result['wanted_per_second']:>8.0f} {name:<21} {first:>9,} "
                         f"{last:>9,} {change:>8}")
    return "\n".join(lines)


# ---- writes beside deletions ----------------------------------------------------------------------------------------


def measure_deletion(mount: Mount, options: argparse.Namespace) -> dict[str, Any]:
    """Latencies of paced 4 KiB writes with all the snapshots there, and while they are deleted: until the last of their
    space is free."""
    chance = random.Random(1)
    content = chance.randbytes(BLOCK_SIZE_BYTES)
    client, deleting = mount.client(), mount.client()
    figures = Figures(mount, Counts(), options.sample_seconds)
    deleted_s: list[float] = []
    with open_file(mount, chance) as descriptor:
        for number in range(options.snapshots):
            write_somewhere(descriptor, content, chance)
            client.snapshot(f"s{number}", sync=False)
        client.sync()
        before = figures.sample(0)

        def write_until(done: Callable[[], bool]) -> list[float]:
            latencies_s = []
            pace = Pace(options.write_rate)
            while not done():
                pace.wait()
                begun = time.perf_counter()
                write_somewhere(descriptor, content, chance)
                latencies_s.append(time.perf_counter() - begun)
            return latencies_s

        def delete(worker: Worker) -> None:
            begun = time.perf_counter()
            count = deleting.destroy_many("s*")["count"]
            deleted_s.append(time.perf_counter() - begun)
            if count != options.snapshots:
                raise RuntimeError(f"{count} snapshots were deleted, not {options.snapshots}")
            while not worker.ending.is_set() and client.status()["statistics"]["deletion_queue_length"]:
                time.sleep(0.05)
            deleted_s.append(time.perf_counter() - begun)

        end = time.perf_counter() + options.quiet_seconds
        quiet_s = write_until(lambda: time.perf_counter() > end)
        deleter = Worker("deleter", delete)
        with working(Worker("figures", figures.watch)):
            deleter.start()
            try:
                busy_s = write_until(lambda: not deleter.is_alive())
            finally:
                deleter.end()

    def describe(latencies_s: Sequence[float]) -> dict[str, float]:
        return {"writes": len(latencies_s), "p50_us": round(percentile(latencies_s, 0.5) * 1e6),
                "p99_us": round(percentile(latencies_s, 0.99) * 1e6),
                "p99_9_us": round(percentile(latencies_s, 0.999) * 1e6), "max_us": round(max(latencies_s) * 1e6)}

    return {"deleted": options.snapshots, "answered_s": round(deleted_s[0], 2), "all_free_s": round(deleted_s[1], 2),
            "without": describe(quiet_s), "beside": describe(busy_s), "before": before, "after": figures.sample(0),
            "samples": figures.samples}


def deletion_table(result: dict[str, Any]) -> str:
    lines = [f"{result['deleted']:,} snapshots: deleted after {result['answered_s']} s, all free after "
             f"{result['all_free_s']} s", f"{'4 KiB writes':<17} {'without':>9} {'beside':>9}"]
    for name in result["without"]:
        lines.append(f"{name:<17} {result['without'][name]:>9,} {result['beside'][name]:>9,}")
    return "\n".join(lines)


# ---- the program ----------------------------------------------------------------------------------------------------


def rates_from(text: str) -> dict[int, float]:
    """`0=5000,16=1000`: those that are named, and the usual ones of the others."""
    given = dict(part.split("=", 1) for part in text.split(",") if part)
    return RATES_PER_SECOND | {int(kind): float(rate) for kind, rate in given.items()}


@contextlib.contextmanager
def mounted(options: argparse.Namespace) -> Iterator[Mount]:
    """A pool of its own, in a folder of its own: several of these programs may run at once."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="cowfs-continuous-", dir=options.folder))
    pool = Pool(folder, size_bytes=options.size_mib * MIB)
    try:
        mount = pool.make().mount()
        beside: cowfs.Client = mount.client()
        for number in range(options.beside):
            beside.snapshot(f"beside-{number}", sync=False)
        yield mount
    finally:
        pool.close()
        shutil.rmtree(folder)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.continuous", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600, help="for each kind (600)")
    parser.add_argument("--kinds", default="0,1,16", help="random 4 KiB writes before each snapshot (0,1,16)")
    parser.add_argument("--rates", type=rates_from, default="", metavar="KIND=RATE,...",
                        help="snapshots per second, 0 for as many as can be (0=5000,1=2000,16=1000)")
    parser.add_argument("--keep", type=int, default=1000, help="so many of the newest stay (1000)")
    parser.add_argument("--sample-seconds", type=float, default=10, help="between two samples of space and memory (10)")
    parser.add_argument("--deletion", action="store_true", help="measure writes beside deletions instead")
    parser.add_argument("--snapshots", type=int, default=100_000, help="with --deletion: so many (100000)")
    parser.add_argument("--write-rate", type=float, default=1000, help="with --deletion: writes per second (1000)")
    parser.add_argument("--quiet-seconds", type=float, default=20, help="with --deletion: of writes before it (20)")
    parser.add_argument("--beside", type=int, default=0, help="so many others are there all the time")
    parser.add_argument("--size-mib", type=int, help="of the pool (4096; with --deletion more, for what they pin)")
    parser.add_argument("--folder", default="/dev/shm", help="where the pool's file lies (/dev/shm)")
    parser.add_argument("--output", type=pathlib.Path, metavar="FILE", help="where the lines of JSON are added")
    options = parser.parse_args(arguments)
    if options.size_mib is None:
        options.size_mib = 4096 + (options.snapshots * PINNED_BYTES // MIB if options.deletion else 0)
    results = []
    for kind in [None] if options.deletion else [int(word) for word in options.kinds.split(",")]:
        if kind is not None:
            options.rates.setdefault(kind, 0.0)
        with mounted(options) as mount:
            results.append(measure_deletion(mount, options) if kind is None else measure(mount, kind, options))
        if options.output is not None:  # at once: the next kind may take long
            with open(options.output, "a") as file:
                print(json.dumps(results[-1]), file=file)
    print(deletion_table(results[0]) if options.deletion else table(results))
    if options.output is None:
        for result in results:
            json.dump(result, sys.stdout)
            print()


if __name__ == "__main__":
    main()
