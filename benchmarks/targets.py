"""What cowfs is meant to reach, and what a run reached: python -m benchmarks.targets FOLDER.

Each figure is a median of ratios: of what cowfs did to what the other did in the same repetition of the same run.
"""

import argparse
import pathlib
import statistics
from typing import NamedTuple

from benchmarks.jobs_snapshots import RATES_PER_SECOND
from benchmarks.method import ratio
from benchmarks.report import Results, load, number, table

MEMORY = "memory"
CEILING = "ceiling_uring"
BESIDE = "random_write_4k_with_"
LEAST_OF_ITSELF = {100: 0.9, 1000: 0.7}


class Target(NamedTuple):
    """Least ratios of one row; None where there is none."""

    jobs: tuple[str, ...]
    peer: str = "cowfs"
    btrfs: float | None = None
    zfs: float | None = None
    ceiling: float | None = None


TARGETS = (
    Target(("sequential_write_1m",), btrfs=2.0, zfs=4, ceiling=0.6),
    Target(("sequential_write_4k",), btrfs=0.8, zfs=5, ceiling=0.7),
    Target(("sequential_write_4k",), peer="cowfs_back", btrfs=1.2),
    Target(("random_write_4k",), btrfs=3.0, zfs=15, ceiling=0.6),
    Target(("random_write_direct_1", "random_write_direct_16"), btrfs=5.0, zfs=8, ceiling=0.6),
    Target(("fsync_1", "fsync_4"), btrfs=4.0, zfs=4),
    Target(("random_read_direct",), btrfs=0.8, zfs=2),
    Target(("sequential_read_cold",), btrfs=1.0, zfs=4),
    Target(("create", "unlink"), btrfs=0.6, zfs=5, ceiling=0.6),
    Target(("untar", "git_status", "rm_tree"), btrfs=0.8, zfs=4),
    Target(("sqlite_wal",), btrfs=2.0, zfs=2.0),
)


def ratio_of(results: Results, job: str, peer: str, other: str) -> float | None:
    """Median over the repetitions that both measured; None when there is none."""
    described = next((one for one in results.jobs if one["name"] == job), None)
    if described is None or not {peer, other} <= set(results.peers):
        return None
    own, others = (
        {trial.repetition: trial.figures[described["figure"]]
         for trial in results.trials(MEMORY, name, job) if trial.is_measured}
        for name in (peer, other)
    )  # fmt: skip
    found = [ratio(own[at], others[at], lower_is_better=described["lower_is_better"]) for at in own if at in others]
    ratios = [one for one in found if one is not None]
    return statistics.median(ratios) if ratios else None


def cell(results: Results, job: str, peer: str, other: str, least: float | None) -> str:
    reached = ratio_of(results, job, peer, other)
    text = "–" if reached is None else f"{number(reached)}×"
    if least is None:
        return text
    mark = "" if reached is None else (" reached" if reached >= least else " **missed**")
    return f"{text} (≥ {least:g}){mark}"


def itself(results: Results, peer: str, rate: int) -> float | None:
    """Random overwrites while so many snapshots per second are wanted, to the same peer's without: median over the
    repetitions."""
    found = [
        {trial.repetition: trial.figures["write_iops"]
         for trial in results.trials(MEMORY, peer, f"{BESIDE}{wanted}") if trial.is_measured}
        for wanted in (rate, 0)
    ]  # fmt: skip
    ratios = [found[0][at] / found[1][at] for at in found[0] if found[1].get(at)]
    return statistics.median(ratios) if ratios else None


def beside_cell(results: Results, peer: str, rate: int) -> str:
    """Writes per second, of itself without snapshots, snapshots taken per second, bytes on the device per byte."""
    job = f"{BESIDE}{rate}"
    found = [
        results.summary(MEMORY, peer, job, figure)
        for figure in ("write_iops", "achieved_snapshots_per_second", "write_amplification")
    ]
    values = [number(one.median) if one else "–" for one in found]
    share = itself(results, peer, rate)
    return f"{values[0]}, {'–' if share is None else f'{share:.2f}'}, {values[1]}, {values[2]}"


def render_beside(results: Results) -> str:
    """Random overwrites while snapshots are taken."""
    rows = []
    for rate in RATES_PER_SECOND:
        if not results.summary(MEMORY, "cowfs", f"{BESIDE}{rate}", "write_iops"):
            continue
        least, reached = LEAST_OF_ITSELF.get(rate), itself(results, "cowfs", rate)
        verdict = "–"
        if least is not None and reached is not None:
            verdict = f"{reached:.2f} of itself (≥ {least:g}) {'reached' if reached >= least else '**missed**'}"
        to_zfs = ratio_of(results, f"{BESIDE}{rate}", "cowfs", "zfs")
        if rate == 100 and to_zfs is not None:
            verdict += f"; {number(to_zfs)}× ZFS (≥ 15) {'reached' if to_zfs >= 15 else '**missed**'}"
        rows.append([f"{rate:,}", *(beside_cell(results, peer, rate) for peer in ("cowfs", "btrfs", "zfs")), verdict])
    header = ["snapshots/s wanted", *("cowfs", "Btrfs", "ZFS"), "target"]
    return table(header, rows) if rows else ""


def render(results: Results) -> str:
    """A row for each job of each target; the fallback over /dev/fuse stands beside, against Btrfs."""
    titles = {job["name"]: job["title"] for job in results.jobs}
    rows = []
    for target in TARGETS:
        for job in target.jobs:
            if job not in titles:
                continue
            fallback = ratio_of(results, job, "cowfs_device", "btrfs") if target.peer == "cowfs" else None
            rows.append([
                titles[job] + ("" if target.peer == "cowfs" else ", cache=back"),
                cell(results, job, target.peer, "btrfs", target.btrfs),
                cell(results, job, target.peer, "zfs", target.zfs),
                cell(results, job, target.peer, CEILING, target.ceiling),
                "–" if fallback is None else f"{number(fallback)}×",
            ])  # fmt: skip
    header = ["job", "to Btrfs", "to ZFS", "to the ceiling, io_uring", "/dev/fuse, to Btrfs"]
    return table(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.targets", description=__doc__)
    parser.add_argument("folder", type=pathlib.Path, help="of a run")
    results = load(parser.parse_args().folder)
    print(render(results))
    if beside := render_beside(results):
        print("\nRandom overwrites beside snapshots: writes/s, of itself without, taken/s, written per byte.\n")
        print(beside)


if __name__ == "__main__":
    main()
