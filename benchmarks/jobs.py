"""What a job is, how large it is made, and what it is given."""

import contextlib
import dataclasses
import os
import pathlib
import random
from collections.abc import Callable
from typing import Any

from benchmarks.ground import MIB
from benchmarks.peers.base import Peer, Snapshots, Volume

# How a disturbed trial is repeated: as it is; on a volume made anew, by jobs that use up what they work on; or not at
# all, because what it works on takes too long to make.
SAME_VOLUME = "same volume"
FRESH_VOLUME = "fresh volume"
NEVER = "never"


class NotPossible(Exception):
    """The job cannot be done on this peer or in this time; the text says why and stands in the report."""


@dataclasses.dataclass(frozen=True)
class Scale:
    """How much is done. A job's results are comparable within one scale only."""

    name: str
    disk_bytes: int
    file_bytes: int
    seconds: float
    """Of each job that runs for a time."""
    file_count: int
    tree_files_max: int
    """How many files of the source tree are unpacked."""
    snapshot_seconds: float
    repetitions: int
    snapshots_present: tuple[int, ...]
    snapshot_fill_seconds: float
    """How long filling up to each of these may take."""
    growth_file_counts: tuple[int, ...]
    pool_sizes_bytes: tuple[int, ...]
    quiet_wait_seconds: float
    """How long a trial waits for the machine to become quiet."""
    attempts: int
    """How often a trial is made when something disturbs it."""
    time_limit_seconds: float | None = None
    """Nothing is begun that would probably end after this."""
    throughput_writes: tuple[str, ...] = ("",)
    """Which of the write jobs are measured while snapshots are taken, by the beginning of their names."""
    slow_repetitions: int = 1
    """Of the groups that take minutes each."""


WRITES_THROUGHOUT = ("sequential_write_1m", "sequential_write_4k", "random_write", "fsync")
"""All but the one that is about compression."""

SCALES = {
    scale.name: scale
    for scale in (
        Scale(
            name="smoke",
            disk_bytes=768 * MIB,
            file_bytes=8 * MIB,
            seconds=0.3,
            file_count=100,
            tree_files_max=60,
            snapshot_seconds=0.3,
            repetitions=1,
            snapshots_present=(10, 30),
            snapshot_fill_seconds=5,
            growth_file_counts=(0, 200),
            pool_sizes_bytes=(1 << 30,),
            quiet_wait_seconds=0,
            attempts=1,
        ),
        Scale(
            name="quick",
            disk_bytes=1536 * MIB,
            file_bytes=32 * MIB,
            seconds=0.5,
            file_count=1000,
            tree_files_max=150,
            snapshot_seconds=0.5,
            repetitions=3,
            snapshots_present=(10, 100),
            snapshot_fill_seconds=5,
            growth_file_counts=(0,),
            pool_sizes_bytes=(),
            quiet_wait_seconds=1,
            attempts=2,
            time_limit_seconds=270,
        ),
        Scale(
            name="medium",
            disk_bytes=2048 * MIB,
            file_bytes=96 * MIB,
            seconds=0.5,
            file_count=2000,
            tree_files_max=800,
            snapshot_seconds=0.5,
            repetitions=5,
            snapshots_present=(10, 1_000, 100_000),
            snapshot_fill_seconds=15,
            growth_file_counts=(0, 10_000, 100_000),
            pool_sizes_bytes=(1 << 30, 4 << 30, 16 << 30),
            quiet_wait_seconds=5,
            attempts=2,
            time_limit_seconds=60 * 60,
            throughput_writes=WRITES_THROUGHOUT,
        ),
        Scale(
            name="full",
            disk_bytes=4096 * MIB,
            file_bytes=256 * MIB,
            seconds=3,
            file_count=10_000,
            tree_files_max=1_000_000,
            snapshot_seconds=3,
            repetitions=5,
            snapshots_present=(10, 1_000, 100_000),
            snapshot_fill_seconds=240,
            growth_file_counts=(0, 10_000, 100_000),
            pool_sizes_bytes=(1 << 30, 4 << 30, 16 << 30, 64 << 30),
            quiet_wait_seconds=30,
            attempts=3,
            throughput_writes=WRITES_THROUGHOUT,
            slow_repetitions=5,
        ),
    )
}


@dataclasses.dataclass
class Outcome:
    """What one run of a job found."""

    figures: dict[str, float]
    written_bytes: int = 0
    """By the program, when write amplification is to be told."""
    distribution_us: dict[str, float] = dataclasses.field(default_factory=dict)
    """Latency by percentile."""
    raw: Any = None
    """What the measuring program printed, whole."""


@dataclasses.dataclass
class Context:
    """One peer's volume, for the jobs of one group."""

    peer: Peer
    volume: Volume
    scale: Scale
    random: random.Random
    scratch: pathlib.Path
    """In memory, for job files and archives; the same during the whole run."""
    state: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What a job leaves for later ones of its group."""
    _snapshots: Snapshots | None = None

    @property
    def directory(self) -> pathlib.Path:
        return self.volume.directory

    @property
    def snapshots(self) -> Snapshots:
        if self._snapshots is None:
            self._snapshots = self.volume.snapshots()
            if self._snapshots is None:
                raise NotPossible("it has no snapshots")
        return self._snapshots

    def close_snapshots(self) -> None:
        """Before an unmount: a connection or an open directory would keep the volume busy."""
        snapshots, self._snapshots = self._snapshots, None
        if snapshots is not None:
            snapshots.close()

    def remount(self) -> float:
        self.close_snapshots()
        return self.volume.remount()

    def crash(self) -> float:
        self.close_snapshots()
        return self.volume.crash()

    def fill_file(self, name: str, size_bytes: int) -> pathlib.Path:
        """A file of this size whose every block is there and durable."""
        path = self.directory / name
        if path.exists() and path.stat().st_size == size_bytes:
            return path
        content = self.random.randbytes(MIB)
        with open(path, "wb", buffering=0) as file:
            for offset in range(0, size_bytes, MIB):
                file.write(content[: size_bytes - offset])
            os.fsync(file.fileno())
        self.volume.sync()
        return path


def _nothing(context: Context) -> None:
    """Most jobs need no preparation."""


@dataclasses.dataclass(frozen=True)
class Job:
    name: str
    title: str
    figure: str
    """Which of its figures the tables show."""
    unit: str
    run: Callable[[Context], Outcome]
    lower_is_better: bool = False
    needs: frozenset[str] = frozenset()
    prepare: Callable[[Context], None] = _nothing
    """Before the measured part; what it writes is durable and not counted."""
    finish: Callable[[Context], None] = _nothing
    warm: bool = False
    """Keeps the caches as the preparation left them; others begin with what the kernel caches dropped."""
    again: str = SAME_VOLUME
    """How a disturbed trial is repeated."""
    timeout_s: float = 600
    """After it the peer's server is killed, which ends the job."""


@dataclasses.dataclass(frozen=True)
class Group:
    """Jobs that run one after the other on one freshly made volume."""

    name: str
    title: str
    jobs: tuple[Job, ...]
    disk_bytes: int | None = None
    """A disk of this size instead of the run's own."""
    is_disk_sparse: bool = False
    """Not written whole before: where the speed of the device makes no difference."""
    is_slow: bool = False
    """Takes minutes: smaller scales repeat it less."""


def destroy_all_snapshots(context: Context) -> None:
    with contextlib.suppress(NotPossible):
        snapshots = context.snapshots
        for name in snapshots.names():
            snapshots.destroy(name)
        snapshots.wait_destroyed()


def percentiles_us(latencies_s: list[float]) -> dict[str, float]:
    """Percentiles of measured times, by name as fio has them."""
    ordered = sorted(latencies_s)
    wanted = (1, 5, 10, 25, 50, 75, 90, 95, 99, 99.9)
    return {f"{p:g}": ordered[min(len(ordered) - 1, int(len(ordered) * p / 100))] * 1e6 for p in wanted}
