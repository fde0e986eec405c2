"""What snapshots cost: how many per second, what they do to writers, whether having many matters, deletion, clones,
rollback, space."""

import contextlib
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType

from benchmarks.jobs import NEVER, Context, Job, NotPossible, Outcome, destroy_all_snapshots, percentiles_us
from benchmarks.jobs_fio import (
    BLOCK_BYTES,
    WRITES,
    WriteJob,
    fsync_write_1,
    outcome_of,
    overwritten_file,
    prepare_fsync,
    prepare_overwritten,
    run_fio,
)
from benchmarks.peers.base import SNAPSHOTS, UNSYNCED

WRITES_BETWEEN = (0, 1, 16, 256)
RATES_PER_SECOND = (0, 10, 100, 1000)
RATE_MAX_SNAPSHOTS = 20_000
SAMPLES = 100
CLONE_SAMPLES = 20
SPACE_SNAPSHOTS = 50
SPACE_WRITES = 16
UNSYNCED_FILES = 200


class RandomWriter:
    """Overwrites blocks of the prefilled file, buffered, each at a random place."""

    def __init__(self, context: Context) -> None:
        self.path = overwritten_file(context)
        self.random = context.random
        self.content = context.random.randbytes(BLOCK_BYTES)
        self.blocks = context.scale.file_bytes // BLOCK_BYTES
        self.written_bytes = 0
        self.descriptor = -1

    def __enter__(self) -> "RandomWriter":
        self.descriptor = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self.descriptor)

    def write(self, count: int) -> None:
        for _ in range(count):
            os.pwrite(self.descriptor, self.content, self.random.randrange(self.blocks) * BLOCK_BYTES)
        self.written_bytes += count * BLOCK_BYTES


def crash_at_work(context: Context) -> float:
    """Durable and not yet durable work, then kill -9 or power failure: seconds that mounting again took."""
    with RandomWriter(context) as writer:
        for _ in range(50):
            writer.write(4)
            os.fsync(writer.descriptor)
        folder = context.directory / "unsynced"
        folder.mkdir(exist_ok=True)
        for number in range(UNSYNCED_FILES):
            (folder / f"file-{context.random.randrange(1 << 40)}-{number}").touch()
        writer.write(100)
    return context.crash()


def names_of(context: Context, prefix: str) -> Iterator[str]:
    """New names, also for later jobs of the same volume."""
    counter: Iterator[int] = context.state.setdefault("snapshot_numbers", itertools.count())
    return (f"{prefix}-{number}" for number in counter)


def take_until(
    context: Context, take: Callable[[str], None], writes_between: int, *, seconds: float, count_max: int
) -> Outcome:
    """Writes and snapshots in turns."""
    latencies_s: list[float] = []
    names = names_of(context, "rate")
    with RandomWriter(context) as writer:
        started = time.perf_counter()
        while time.perf_counter() - started < seconds and len(latencies_s) < count_max:
            writer.write(writes_between)
            before = time.perf_counter()
            take(next(names))
            latencies_s.append(time.perf_counter() - before)
        elapsed_s = time.perf_counter() - started
    distribution = percentiles_us(latencies_s)
    return Outcome(
        {
            "snapshots_per_second": len(latencies_s) / elapsed_s,
            "p50_us": distribution["50"],
            "p99_us": distribution["99"],
            "snapshots": len(latencies_s),
        },
        written_bytes=writer.written_bytes,
        distribution_us=distribution,
    )


def rate_job(writes_between: int, *, unsynced: bool = False) -> Job:
    def run(context: Context) -> Outcome:
        snapshots = context.snapshots
        take = snapshots.take_quickly if unsynced else snapshots.take
        seconds = context.scale.snapshot_seconds
        return take_until(context, take, writes_between, seconds=seconds, count_max=RATE_MAX_SNAPSHOTS)

    what = "not waited for" if unsynced else "durable"
    return Job(
        f"snapshot_rate_{writes_between}{'_unsynced' if unsynced else ''}",
        f"snapshots, {what}, {writes_between} random 4 KiB writes before each",
        "snapshots_per_second",
        "1/s",
        run,
        needs=frozenset({SNAPSHOTS, UNSYNCED} if unsynced else {SNAPSHOTS}),
        prepare=prepare_overwritten,
        finish=destroy_all_snapshots,
    )


RATE_JOBS = tuple(rate_job(count) for count in WRITES_BETWEEN) + tuple(
    rate_job(count, unsynced=True) for count in WRITES_BETWEEN
)


# ---- writers while snapshots are taken


class Taker(threading.Thread):
    """Takes snapshots at a rate, or as fast as it goes when that is slower, until stopped."""

    def __init__(self, context: Context, rate_per_second: int) -> None:
        super().__init__(name="snapshots")
        self.take = context.snapshots.take if rate_per_second else None
        self.names = names_of(context, "taken")
        self.rate_per_second = rate_per_second
        self.stopping = threading.Event()
        self.latencies_s: list[float] = []
        self.error: BaseException | None = None
        self.elapsed_s = 0.0

    def run(self) -> None:
        try:
            self._take_all()
        except BaseException as error:
            self.error = error

    def _take_all(self) -> None:
        if self.take is None:
            return
        started = due = time.perf_counter()
        while not self.stopping.wait(max(0.0, due - time.perf_counter())):
            before = time.perf_counter()
            self.take(next(self.names))
            self.latencies_s.append(time.perf_counter() - before)
            # Those that were missed are not made up for.
            due = max(due + 1 / self.rate_per_second, time.perf_counter())
        self.elapsed_s = time.perf_counter() - started

    def __enter__(self) -> "Taker":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopping.set()
        self.join()
        if self.error is not None and error is None:
            raise self.error


def throughput_job(write: WriteJob, rate_per_second: int) -> Job:
    def run(context: Context) -> Outcome:
        with Taker(context, rate_per_second) as taker:
            outcome = write.run(context)
        if taker.latencies_s:
            outcome.figures["achieved_snapshots_per_second"] = len(taker.latencies_s) / taker.elapsed_s
            outcome.figures["snapshot_p99_us"] = percentiles_us(taker.latencies_s)["99"]
        return outcome

    return Job(
        f"{write.name}_with_{rate_per_second}",
        f"{write.title}, while {rate_per_second:,} snapshots/s are wanted",
        write.figure,
        write.unit,
        run,
        needs=frozenset({SNAPSHOTS}),
        prepare=write.prepare,
        finish=destroy_all_snapshots,
    )


def throughput_jobs(writes: tuple[str, ...]) -> tuple[Job, ...]:
    """Of the write jobs whose names begin so, each at every rate."""
    chosen = [write for write in WRITES if write.name.startswith(writes)]
    return tuple(throughput_job(write, rate) for write in chosen for rate in RATES_PER_SECOND)


# ---- many snapshots present


def fill_up(context: Context, present: int) -> None:
    """Snapshots until so many are there, by the quickest way the peer has."""
    snapshots = context.snapshots
    have = context.state.get("present", 0)
    names = names_of(context, "present")
    deadline = time.monotonic() + context.scale.snapshot_fill_seconds
    with RandomWriter(context) as writer:
        while have < present:
            writer.write(1)
            snapshots.take_quickly(next(names))
            have += 1
            context.state["present"] = have
            if time.monotonic() > deadline:
                limit_s = context.scale.snapshot_fill_seconds
                raise NotPossible(f"only {have:,} snapshots had been made after {limit_s:.0f} s")
    context.volume.sync()


def present_job(present: int) -> Job:
    def run(context: Context) -> Outcome:
        outcome = take_until(context, context.snapshots.take, 1, seconds=30, count_max=SAMPLES)
        context.state["present"] += int(outcome.figures["snapshots"])
        started = time.perf_counter()
        listed = len(context.snapshots.names())
        outcome.figures["list_seconds"] = time.perf_counter() - started
        if listed < present:
            raise NotPossible(f"lists {listed} snapshots of {present}")
        if (memory := context.volume.memory_bytes()) is not None:
            outcome.figures["memory_mib"] = memory / (1 << 20)
        outcome.figures["mount_seconds"] = context.remount()
        outcome.figures["recovery_seconds"] = crash_at_work(context)
        return outcome

    return Job(
        f"snapshot_at_{present}",
        f"taking a snapshot with {present:,} present",
        "p50_us",
        "µs",
        run,
        lower_is_better=True,
        needs=frozenset({SNAPSHOTS}),
        prepare=lambda context: fill_up(context, present),
        again=NEVER,
        timeout_s=3600,
    )


def top_up(context: Context) -> None:
    """So many at least as the second of the jobs with many snapshots has: fewer would measure the start of deletion."""
    least = context.scale.snapshots_present[1]
    context.state["present"] = len(context.snapshots.names())
    if context.state["present"] < least:
        # A peer that cannot make so many in time deletes what it has made.
        with contextlib.suppress(NotPossible):
            fill_up(context, least)


def deletion_job(
    name: str, title: str, choose: Callable[[list[str]], list[str]], prepare: Callable[[Context], None]
) -> Job:
    def run(context: Context) -> Outcome:
        snapshots = context.snapshots
        chosen = choose(snapshots.names())
        if not chosen:
            raise NotPossible("there are no snapshots to delete")
        latencies_s = []
        limit_s = context.scale.snapshot_fill_seconds
        started = time.perf_counter()
        for one in chosen:
            before = time.perf_counter()
            snapshots.destroy(one)
            latencies_s.append(time.perf_counter() - before)
            if before - started > limit_s:
                break
        returned_s = time.perf_counter() - started
        snapshots.wait_destroyed()
        elapsed_s = time.perf_counter() - started
        distribution = percentiles_us(latencies_s)
        return Outcome(
            {
                "deleted_per_second": len(latencies_s) / elapsed_s,
                "returned_per_second": len(latencies_s) / returned_s,
                "p50_us": distribution["50"],
                "p99_us": distribution["99"],
                "deleted": len(latencies_s),
                "wanted": len(chosen),
            },
            distribution_us=distribution,
        )

    return Job(
        name,
        title,
        "deleted_per_second",
        "1/s",
        run,
        needs=frozenset({SNAPSHOTS}),
        prepare=prepare,
        again=NEVER,
        timeout_s=3600,
    )


def fsync_while_deleting(context: Context) -> Outcome:
    """Latency of write + fsync while another thread deletes every snapshot."""
    snapshots = context.snapshots
    names = snapshots.names()
    stopping = threading.Event()
    failures: list[BaseException] = []
    deleted = 0

    def delete() -> None:
        nonlocal deleted
        try:
            for name in names:
                if stopping.is_set():
                    return
                snapshots.destroy(name)
                deleted += 1
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=delete, name="deletion")
    thread.start()
    try:
        outcome = outcome_of(run_fio(context, "fsync_while_deleting", fsync_write_1(context)))
    finally:
        stopping.set()
        thread.join()
    if failures:
        raise failures[0]
    outcome.figures["deleted_per_second"] = deleted / context.scale.seconds
    return outcome


def prepare_deletion(context: Context) -> None:
    prepare_fsync(context)
    top_up(context)


def every_second(names: list[str]) -> list[str]:
    return names[::2]


def many_jobs(present: tuple[int, ...]) -> tuple[Job, ...]:
    """On one volume, in this order."""
    return (
        *(present_job(count) for count in present),
        deletion_job("delete_every_second", "deleting every second snapshot", every_second, top_up),
        deletion_job("delete_all", "deleting all snapshots", list, top_up),
        Job(
            "fsync_while_deleting",
            "4 KiB write + fsync while snapshots are deleted, p99",
            "fsync_p99_us",
            "µs",
            fsync_while_deleting,
            lower_is_better=True,
            needs=frozenset({SNAPSHOTS}),
            prepare=prepare_deletion,
            again=NEVER,
        ),
    )


# ---- clones, rollback, space


def one_snapshot(context: Context) -> None:
    prepare_overwritten(context)
    context.state["origin"] = name = next(names_of(context, "origin"))
    context.snapshots.take(name)


def timed_samples(count: int, action: Callable[[int], None], between: Callable[[int], None]) -> Outcome:
    latencies_s = []
    for number in range(count):
        before = time.perf_counter()
        action(number)
        latencies_s.append(time.perf_counter() - before)
        between(number)
    distribution = percentiles_us(latencies_s)
    return Outcome({"p50_us": distribution["50"], "p99_us": distribution["99"]}, distribution_us=distribution)


def clone(context: Context) -> Outcome:
    snapshots, origin = context.snapshots, context.state["origin"]
    return timed_samples(
        CLONE_SAMPLES,
        lambda number: snapshots.clone(origin, f"clone-{number}"),
        lambda number: snapshots.destroy_clone(f"clone-{number}"),
    )


def rollback(context: Context) -> Outcome:
    snapshots, origin = context.snapshots, context.state["origin"]

    def dirty(number: int) -> None:
        with RandomWriter(context) as writer:
            writer.write(SPACE_WRITES)

    return timed_samples(CLONE_SAMPLES, lambda number: snapshots.rollback(origin), dirty)


def space(context: Context) -> Outcome:
    """What a snapshot adds to the space in use when so much is overwritten before it."""
    before_bytes = context.volume.used_bytes()
    names = names_of(context, "space")
    with RandomWriter(context) as writer:
        for _ in range(SPACE_SNAPSHOTS):
            writer.write(SPACE_WRITES)
            context.snapshots.take(next(names))
    added_bytes = context.volume.used_bytes() - before_bytes
    return Outcome(
        {
            "kib_per_snapshot": added_bytes / SPACE_SNAPSHOTS / 1024,
            "bytes_per_byte_overwritten": added_bytes / writer.written_bytes,
        },
        written_bytes=writer.written_bytes,
    )


OTHER_SNAPSHOT_JOBS = (
    Job("clone", "making a writable clone", "p50_us", "µs", clone, lower_is_better=True, needs=frozenset({SNAPSHOTS}),
        prepare=one_snapshot),
    Job("rollback", "rolling back after 16 random writes", "p50_us", "µs", rollback, lower_is_better=True,
        needs=frozenset({SNAPSHOTS}), prepare=one_snapshot),
    Job("snapshot_space", "space per snapshot with 16 random 4 KiB writes", "kib_per_snapshot", "KiB", space,
        lower_is_better=True, needs=frozenset({SNAPSHOTS}), prepare=one_snapshot),
)  # fmt: skip
