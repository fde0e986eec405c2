"""The plots of a report, as SVG files that are the same for the same results."""

import pathlib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from benchmarks.report import Results

matplotlib.rcParams["svg.hashsalt"] = "cowfs"
matplotlib.rcParams["font.size"] = 9

COLORS = {
    "cowfs": "#0b6e4f",
    "cowfs_device": "#3f9b78",
    "cowfs_back": "#5fd38d",
    "cowfs_zstd": "#a1d99b",
    "cowfs_nopump": "#7bc8a4",
    "btrfs": "#d95f02",
    "btrfs_zstd": "#f4a261",
    "zfs": "#1f77b4",
    "xfs": "#8c6bb1",
    "ext4": "#7f7f7f",
    "ceiling_uring": "#111111",
    "ceiling_device": "#bbbbbb",
}
BASELINE = "btrfs"
RATIO_PEERS = ("cowfs", "cowfs_device", "cowfs_back", "cowfs_nopump", "zfs", "ceiling_uring", "ceiling_device")
LATENCY_JOBS = ("fsync_1", "fsync_4", "random_write_4k", "random_read_cold", "snapshot_rate_1", "fsync_while_deleting")


def save(figure: Figure, path: pathlib.Path) -> None:
    figure.savefig(path, format="svg", bbox_inches="tight", metadata={"Date": None})


def draw_ratios(results: "Results", medium: str) -> Figure | None:
    """A bar per job and peer: how many times better than Btrfs."""
    peers = [peer for peer in RATIO_PEERS if peer in results.peers]
    rows = []
    for job in results.jobs:
        ratios = {peer: results.ratio(medium, peer, job, BASELINE) for peer in peers}
        if ratios.get("cowfs") and not re.search(r"_with_\d+$", job["name"]):
            rows.append((job["title"], ratios))
    if not rows:
        return None
    figure = Figure(figsize=(9, 1 + 0.14 * len(rows) * (len(peers) + 1)))
    axes = figure.subplots()
    height = 0.85 / len(peers)
    for place, peer in enumerate(peers):
        found = [(row, ratios[peer]) for row, (_, ratios) in enumerate(rows)]
        points = [(row + place * height, times) for row, times in found if times is not None]
        # A bar on a logarithmic axis begins at 1: to the right is better than Btrfs, to the left worse.
        widths = [times - 1 for _, times in points]
        axes.barh([y for y, _ in points], widths, height=height, left=1, color=COLORS[peer], label=results.title(peer))
    axes.set_xscale("log")
    axes.axvline(1, color=COLORS[BASELINE], linewidth=1.5)
    axes.set_yticks([row + height * (len(peers) - 1) / 2 for row in range(len(rows))], [title for title, _ in rows])
    axes.margins(y=0.01)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}×")
    axes.invert_yaxis()
    axes.grid(axis="x", which="major", alpha=0.3)
    axes.set_xlabel(f"times better than Btrfs ({medium}); the line is Btrfs")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(peers), frameon=False)
    return figure


def draw_lines(
    results: "Results", series: dict[str, list[tuple[float, float]]], xlabel: str, ylabel: str, *, is_log_y: bool = True
) -> Figure | None:
    """A line per peer, over places that stand at equal distances, for such as 0, 1, 16, 256."""
    places = sorted({x for points in series.values() for x, _ in points})
    if len(places) < 2:
        return None
    figure = Figure(figsize=(6.5, 4))
    axes = figure.subplots()
    for label, points in series.items():
        peer, _, kind = label.partition(" ")
        title = f"{results.title(peer)} {kind}".strip()
        axes.plot([places.index(x) for x, _ in points], [y for _, y in points], marker="o", color=COLORS[peer],
                  linestyle="--" if kind else "-", label=title)  # fmt: skip
    axes.set_xticks(range(len(places)), [f"{place:,.0f}" for place in places])
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    if is_log_y:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


def numbered(results: "Results", medium: str, pattern: str, label: str = "") -> dict[str, list[tuple[float, float]]]:
    """Points of the jobs whose name matches; the pattern's group is the place on the x axis."""
    series: dict[str, list[tuple[float, float]]] = {}
    for job in results.jobs:
        found = re.fullmatch(pattern, job["name"])
        for peer in results.peers if found else []:
            summary = results.shown(medium, peer, job)
            if found and summary is not None:
                series.setdefault(f"{peer}{label}", []).append((float(found[1]), summary.median))
    return series


def draw_latencies(results: "Results", medium: str, job: dict[str, Any]) -> Figure | None:
    """Latency against the share of requests that took longer, so that the tail has room."""
    figure = Figure(figsize=(6.5, 4))
    axes = figure.subplots()
    is_empty = True
    for peer in results.peers:
        points = results.distribution_us(medium, peer, job["name"])
        if points:
            is_empty = False
            axes.plot([1 - p / 100 for p in points], [*points.values()], color=COLORS[peer], marker=".",
                      label=results.title(peer))  # fmt: skip
    if is_empty:
        return None
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.invert_xaxis()
    ticks = (0.5, 0.1, 0.01, 0.001, 0.0001)
    axes.set_xticks(ticks, [f"{100 * (1 - tick):g} %" for tick in ticks])
    axes.set_xlabel("share of requests that are quicker")
    axes.set_ylabel("latency [µs]")
    axes.set_title(f"{job['title']} ({medium})", fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


def figures_of(results: "Results", medium: str) -> Iterator[tuple[str, str, Figure | None]]:
    """Name, title and figure of every plot."""
    yield "ratio", f"Each job against Btrfs, {medium}", draw_ratios(results, medium)
    rates = numbered(results, medium, r"snapshot_rate_(\d+)")
    rates |= numbered(results, medium, r"snapshot_rate_(\d+)_unsynced", " (not waited for)")
    yield (
        "snapshot-rate",
        f"Snapshots per second, {medium}",
        draw_lines(results, rates, "random 4 KiB writes before each", "snapshots/s"),
    )
    present = numbered(results, medium, r"snapshot_at_(\d+)")
    yield (
        "snapshot-present",
        f"Cost of a snapshot with many present, {medium}",
        draw_lines(results, present, "snapshots present", "p50 [µs]"),
    )
    bases = {match[1]: job for job in results.jobs if (match := re.fullmatch(r"(.*)_with_\d+", job["name"]))}
    for base, job in bases.items():
        title = job["title"].partition(",  while")[0]
        series = numbered(results, medium, rf"{base}_with_(\d+)")
        drawn = draw_lines(results, series, "snapshots/s wanted meanwhile", f"{job['unit']}", is_log_y=False)
        yield f"meanwhile-{base}", f"{title}, {medium}", drawn
    mounts = numbered(results, medium, r"mount_(\d+)_files")
    yield "mount-files", f"Mount time, {medium}", draw_lines(results, mounts, "files", "seconds")
    sizes = numbered(results, medium, r"mount_(\d+)_gib")
    yield "mount-size", f"Mount time, {medium}", draw_lines(results, sizes, "GiB", "seconds")
    for job in results.jobs:
        if job["name"] in LATENCY_JOBS:
            drawn = draw_latencies(results, medium, job)
            yield f"latency-{job['name']}", f"Latency: {job['title']}, {medium}", drawn


def draw_all(results: "Results", folder: pathlib.Path, name: str) -> dict[str, str]:
    """Draws into the folder of this name below; titles by path relative to `folder`."""
    (folder / name).mkdir(exist_ok=True)
    for old in (folder / name).glob("*.svg"):
        old.unlink()
    drawn = {}
    for medium in results.media:
        for kind, title, figure in figures_of(results, medium):
            if figure is not None:
                path = f"{name}/{kind}-{medium}.svg"
                save(figure, folder / path)
                drawn[path] = title
    return drawn
