"""How the jobs are measured: peers in turns on fresh volumes of the same disk, several repetitions, every trial kept
with the load of the machine beside it, disturbed trials made again."""

import contextlib
import dataclasses
import datetime
import gzip
import json
import os
import pathlib
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence, Set
from typing import Any

from benchmarks.ground import Disk, drop_caches, make_disk
from benchmarks.isolation import check_interrupted
from benchmarks.jobs import FRESH_VOLUME, NEVER, Context, Group, Job, NotPossible, Outcome, Scale
from benchmarks.machine import Load, Observation, Watch
from benchmarks.peers.base import DISK, Peer, Volume


@dataclasses.dataclass
class Trial:
    """One run of one job on one peer. `reason` is why it could not be done, `error` that it failed; else there are
    figures."""

    medium: str
    peer: str
    group: str
    job: str
    repetition: int
    attempt: int = 0
    started: str = ""
    elapsed_s: float = 0.0
    reason: str | None = None
    error: str | None = None
    figures: dict[str, float] = dataclasses.field(default_factory=dict)
    distribution_us: dict[str, float] = dataclasses.field(default_factory=dict)
    load: dict[str, float] = dataclasses.field(default_factory=dict)
    disturbed: bool = False
    raw: Any = None

    @property
    def is_measured(self) -> bool:
        return self.reason is None and self.error is None


class Record:
    """The trials of a run, each written as soon as it is made, one JSON object per line."""

    def __init__(self, path: pathlib.Path, known: Iterable[Trial] = ()) -> None:
        """Begins with the trials that are known already, and replaces what stands at the path when they are written."""
        self.path = path
        written = path.with_name(f"{path.name}.new")
        self._file = gzip.open(written, "wt", encoding="utf-8")  # noqa: SIM115 closed by close()
        for trial in known:
            self.add(trial)
        written.replace(path)

    def add(self, trial: Trial) -> None:
        self._file.write(json.dumps(dataclasses.asdict(trial), separators=(",", ":")) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_trials(path: pathlib.Path) -> list[Trial]:
    """All that a record holds; of a run that was killed, whose record lacks its end, all trials before."""
    trials: list[Trial] = []
    with gzip.open(path, "rt", encoding="utf-8") as file:
        try:
            for line in file:
                trials.append(Trial(**json.loads(line)))
        except EOFError:
            print(f"benchmarks: {path} has no end, its run was killed: {len(trials)} trials read", file=sys.stderr)
    return trials


TIME_OVER = "the time was over"


def tried_already(trials: Iterable[Trial]) -> set[tuple[str, str, int, str]]:
    """Medium, peer, repetition and job of what a run that goes on need not do again: failures it tries again, and
    what there was no time for."""
    return {
        (trial.medium, trial.peer, trial.repetition, trial.job)
        for trial in trials
        if trial.error is None and trial.reason != TIME_OVER
    }


# ---- statistics ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Summary:
    """Of one figure over the repetitions."""

    median: float
    low: float
    high: float
    count: int
    disturbed: int = 0

    @property
    def spread(self) -> float:
        """Half of the range, relative to the median."""
        return (self.high - self.low) / 2 / self.median if self.median else 0.0


def summarize(values: Sequence[float], disturbed: int = 0) -> Summary:
    return Summary(statistics.median(values), min(values), max(values), len(values), disturbed)


def kept_trials(trials: Iterable[Trial]) -> list[Trial]:
    """Of the attempts at each repetition the best: measured rather than not, undisturbed rather than disturbed, and
    of equals the later."""
    best: dict[tuple[str, str, str, str, int], Trial] = {}

    def worth(trial: Trial) -> tuple[bool, bool]:
        return trial.is_measured, not trial.disturbed

    for trial in trials:
        key = (trial.medium, trial.peer, trial.group, trial.job, trial.repetition)
        if key not in best or worth(trial) >= worth(best[key]):
            best[key] = trial
    return [*best.values()]


def ratio(own: float, other: float, *, lower_is_better: bool) -> float | None:
    """How many times better `own` is than `other`; None where that means nothing."""
    if own <= 0 or other <= 0:
        return None
    return other / own if lower_is_better else own / other


# ---- measuring -------------------------------------------------------------------------------------------------------


HURRY_AFTER = 0.5
"""Of the time limit."""


@dataclasses.dataclass
class Run:
    """Everything that a run needs, and where it stands."""

    scale: Scale
    peers: list[Peer]
    groups: tuple[Group, ...]
    media: list[str]
    repetitions: int
    folder: pathlib.Path
    watch: Watch
    record: Record
    seed: int
    time_limit_s: float | None
    tried: Set[tuple[str, str, int, str]] = frozenset()
    began: float = dataclasses.field(default_factory=time.monotonic)
    _took_s: dict[tuple[str, str], float] = dataclasses.field(default_factory=dict)

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self.began:7.1f} s] {text}", flush=True)

    def is_hurried(self, repetition: int) -> bool:
        """On a machine that never becomes quiet, waiting for that and measuring again would leave no time for one
        whole repetition, and some peers out."""
        limit_s = self.time_limit_s
        return repetition == 0 and limit_s is not None and time.monotonic() - self.began > HURRY_AFTER * limit_s

    def is_late(self, repetition: int) -> bool:
        """Later repetitions are not begun when they would end too late; of the first nobody knows how long it takes."""
        limit_s = self.time_limit_s
        return repetition == 0 and limit_s is not None and time.monotonic() - self.began > limit_s

    def measure(self) -> int:
        """The number of whole repetitions that were made."""
        with contextlib.ExitStack() as stack:
            disks = [
                stack.enter_context(make_disk(medium, self.folder, self.scale.disk_bytes)) for medium in self.media
            ]
            for disk in disks:
                self.say(f"{disk.medium}: {disk.path}, {disk.size_bytes >> 20} MiB, direct-io {disk.is_direct()}")
            for repetition in range(self.repetitions):
                for disk in disks:
                    if not self.repeat(disk, repetition):
                        self.say(f"no time for more: {repetition} of {self.repetitions} whole repetitions made")
                        return repetition
        return self.repetitions

    def repeat(self, disk: Disk, repetition: int) -> bool:
        """One repetition of everything on one medium, the peers in another order each time; the slow groups come
        last. False when the time was over before the end."""
        for number, group in enumerate(sorted(self.groups, key=lambda group: group.is_slow)):
            if group.is_slow and repetition >= self.scale.slow_repetitions:
                continue
            began = time.monotonic()
            turn = (repetition + number) % len(self.peers)
            peers = [
                peer
                for peer in self.peers[turn:] + self.peers[:turn]
                if not self.is_tried(disk, group, peer, repetition)
            ]
            if not peers:
                continue
            key = (disk.medium, group.name)
            limit_s = self.time_limit_s
            if limit_s is not None and began - self.began + self._took_s.get(key, 0.0) > limit_s:
                return False
            for peer in peers:
                self.run_group(disk, group, peer, repetition)
            self._took_s[key] = time.monotonic() - began
        return True

    def is_tried(self, disk: Disk, group: Group, peer: Peer, repetition: int) -> bool:
        return all((disk.medium, peer.name, repetition, job.name) in self.tried for job in group.jobs)

    def run_group(self, disk: Disk, group: Group, peer: Peer, repetition: int) -> None:
        if DISK not in peer.abilities and disk.medium != self.media[0]:
            # What uses no disk is the same on all of them.
            return
        with contextlib.ExitStack() as stack:
            used = disk
            if group.disk_bytes is not None:
                own = make_disk(disk.medium, self.folder, group.disk_bytes, sparse=group.is_disk_sparse)
                used = stack.enter_context(own)
            GroupRun(self, used, group, peer, repetition).run()


class GroupRun:
    """The jobs of one group on one peer, one after the other, on a volume made for them."""

    def __init__(self, run: Run, disk: Disk, group: Group, peer: Peer, repetition: int) -> None:
        self.run_all = run
        self.disk = disk
        self.group = group
        self.peer = peer
        self.repetition = repetition
        self.mountpoint = run.folder / f"{peer.name}-{group.name}"
        self.context: Context | None = None

    def trial_of(self, job: Job, attempt: int = 0) -> Trial:
        started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        return Trial(
            self.disk.medium, self.peer.name, self.group.name, job.name, self.repetition, attempt, started=started
        )

    def run(self) -> None:
        if self.run_all.is_late(self.repetition):
            for job in self.group.jobs:
                self.leave_out(job, TIME_OVER)
            return
        jobs = [job for job in self.group.jobs if not self.skip(job)]
        try:
            for job in jobs:
                self.run_job(job)
        finally:
            self.close()

    def skip(self, job: Job) -> bool:
        """Records why when it is known that the job cannot be done."""
        reason = self.peer.lacks(job.needs)
        if reason is None:
            return False
        self.leave_out(job, reason)
        return True

    def leave_out(self, job: Job, reason: str) -> None:
        trial = self.trial_of(job)
        trial.reason = reason
        self.run_all.record.add(trial)

    def open(self) -> Context:
        if self.context is None:
            self.disk.wipe()
            self.mountpoint.mkdir(exist_ok=True)
            volume = self.peer.make(self.disk, self.mountpoint)
            seed = f"{self.run_all.seed} {self.group.name} {self.repetition}"
            scratch = self.run_all.folder / "scratch"
            scratch.mkdir(exist_ok=True)
            self.context = Context(self.peer, volume, self.run_all.scale, random.Random(seed), scratch)
        return self.context

    def close(self) -> None:
        context, self.context = self.context, None
        if context is not None:
            context.close_snapshots()
            context.volume.close()
            os.rmdir(self.mountpoint)

    def run_job(self, job: Job) -> None:
        for attempt in range(self.run_all.scale.attempts):
            if attempt > 0 and self.run_all.is_hurried(self.repetition):
                return
            check_interrupted()
            trial = self.trial_of(job, attempt)
            try:
                self.attempt(job, trial)
            except NotPossible as error:
                trial.reason = str(error)
            except Exception as error:
                check_interrupted()
                trial.error = f"{type(error).__name__}: {error}"[:1000]
                traceback.print_exc(file=sys.stderr)
            self.run_all.record.add(trial)
            self.tell(job, trial)
            is_last = not (trial.is_measured and trial.disturbed and job.again != NEVER)
            if trial.error is not None or (job.again == FRESH_VOLUME and not is_last):
                # After a failure nobody knows what state the volume is in.
                self.replace_volume()
            if is_last:
                return

    def replace_volume(self) -> None:
        try:
            self.close()
        except Exception:
            traceback.print_exc(file=sys.stderr)
            force_unmount(self.mountpoint)

    def attempt(self, job: Job, trial: Trial) -> None:
        context = self.open()
        with watchdog(context.volume, job.timeout_s):
            job.prepare(context)
            context.volume.sync()
            if not job.warm:
                drop_caches()
            is_hurried = self.run_all.is_hurried(self.repetition)
            observation = Observation(self.run_all.watch, 0 if is_hurried else self.run_all.scale.quiet_wait_seconds)
            before = self.disk.counts()
            began = time.perf_counter()
            outcome = job.run(context)
            trial.elapsed_s = time.perf_counter() - began
            note_load(trial, observation.load())
            context.volume.sync()
            reached = self.disk.counts().since(before)
            note_outcome(trial, outcome)
            if DISK in self.peer.abilities:
                trial.figures["device_written_bytes"] = reached.written_bytes
                trial.figures["device_flushes"] = reached.flush_count
                if outcome.written_bytes:
                    trial.figures["write_amplification"] = reached.written_bytes / outcome.written_bytes
            if (memory := context.volume.memory_bytes()) is not None:
                trial.figures.setdefault("memory_mib", memory / (1 << 20))
            job.finish(context)

    def tell(self, job: Job, trial: Trial) -> None:
        where = f"{trial.medium} {trial.repetition + 1}/{self.run_all.repetitions} {self.peer.name:<14} {job.name:<34}"
        if trial.is_measured:
            result = f"{trial.figures[job.figure]:>14,.1f} {job.unit}{'  (disturbed)' if trial.disturbed else ''}"
        else:
            result = f"FAILED: {trial.error}" if trial.error else f"absent: {trial.reason}"
        self.run_all.say(f"{where} {result}")


def note_load(trial: Trial, load: Load) -> None:
    trial.load = load._asdict()
    trial.disturbed = load.is_disturbed


def note_outcome(trial: Trial, outcome: Outcome) -> None:
    trial.figures = dict(outcome.figures)
    trial.distribution_us = outcome.distribution_us
    trial.raw = outcome.raw
    trial.figures["program_written_bytes"] = outcome.written_bytes


def force_unmount(mountpoint: pathlib.Path) -> None:
    while os.path.ismount(mountpoint):
        subprocess.run(["umount", "-l", str(mountpoint)], check=False, timeout=60)


@contextlib.contextmanager
def watchdog(volume: Volume, timeout_s: float) -> Iterator[None]:
    """A FUSE server that hangs would hang the job for ever: after so long it is killed, and the job fails."""

    def kill() -> None:
        pid = volume.server_pid()
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    timer = threading.Timer(timeout_s, kill)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
