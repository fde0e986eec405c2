"""Renders the Markdown report and the plots of a run from what is in its folder, and from nothing else."""

import collections
import json
import pathlib
from typing import Any

from benchmarks.method import Record, Summary, Trial, kept_trials, ratio, read_trials, summarize

META_NAME = "meta.json"
TRIALS_NAME = "trials.jsonl.gz"
REPORT_NAME = "report.md"
PLOTS = "plots"
BASELINE = "btrfs"
OWN = "cowfs"
DISK = "disk"  # the ability; peers without it have results of the first medium only


class Results:
    """A run, with its trials by medium, peer and job."""

    def __init__(self, meta: dict[str, Any], trials: list[Trial]) -> None:
        self.meta = meta
        self.all_trials = trials
        self.jobs: list[dict[str, Any]] = meta["jobs"]
        self._trials: dict[tuple[str, str, str], list[Trial]] = collections.defaultdict(list)
        for trial in kept_trials(trials):
            self._trials[trial.medium, trial.peer, trial.job].append(trial)

    @property
    def media(self) -> list[str]:
        return list(self.meta["media"])

    @property
    def peers(self) -> list[str]:
        """Those that ran, in the order of every table."""
        return [name for name, peer in self.meta["peers"].items() if not peer["absent"]]

    def machine(self, medium: str, job: str) -> dict[str, Any]:
        """What the job was measured on; all its peers and repetitions on the same."""
        groups = [one["group"] for one in self.jobs if one["name"] == job]
        for part in self.meta.get("elsewhere", ()):
            if part["medium"] == medium and part["group"] in groups:
                return dict(part["machine"])
        return dict(self.meta["machine"])

    def title(self, peer: str) -> str:
        return str(self.meta["peers"][peer]["title"])

    def trials(self, medium: str, peer: str, job: str) -> list[Trial]:
        if DISK not in self.meta["peers"][peer]["abilities"]:
            if self.machine(medium, job) != self.machine(self.media[0], job):
                return []
            medium = self.media[0]
        return self._trials.get((medium, peer, job), [])

    def was_tried(self, medium: str, job: str) -> bool:
        """Whether the job was part of the run on this medium."""
        return any((medium, peer, job) in self._trials for peer in self.peers)

    def summary(self, medium: str, peer: str, job: str, figure: str) -> Summary | None:
        measured = [one for one in self.trials(medium, peer, job) if one.is_measured and figure in one.figures]
        if not measured:
            return None
        return summarize([one.figures[figure] for one in measured], sum(one.disturbed for one in measured))

    def shown(self, medium: str, peer: str, job: dict[str, Any]) -> Summary | None:
        """Of the figure that the job is about."""
        return self.summary(medium, peer, job["name"], job["figure"])

    def ratio(self, medium: str, peer: str, job: dict[str, Any], other: str) -> float | None:
        """How many times better the peer is than the other; None when one has no figure."""
        own, others = self.shown(medium, peer, job), self.shown(medium, other, job)
        if own is None or others is None:
            return None
        return ratio(own.median, others.median, lower_is_better=job["lower_is_better"])

    def why_not(self, medium: str, peer: str, job: str) -> str | None:
        """Why there is no figure."""
        for trial in self.trials(medium, peer, job):
            if not trial.is_measured:
                return f"failed: {trial.error}" if trial.error else trial.reason
        return None

    def distribution_us(self, medium: str, peer: str, job: str) -> dict[float, float]:
        """Latency by percentile: of each the median over the repetitions."""
        values: dict[float, list[float]] = collections.defaultdict(list)
        for trial in self.trials(medium, peer, job):
            if trial.is_measured:
                for percentile, value in trial.distribution_us.items():
                    values[float(percentile)].append(value)
        return {percentile: summarize(found).median for percentile, found in sorted(values.items())}


def join(meta: dict[str, Any], added: dict[str, Any]) -> None:
    """Describes two runs as one. Raises ValueError where trials of both cannot stand in one row: of another scale, or
    machine."""
    if meta.get("elsewhere") or added.get("elsewhere"):
        raise ValueError("it has figures of several machines; measure into another folder, and --merge that one")
    join_sizes(meta, added)
    if meta["machine"] != added["machine"]:
        raise ValueError(f"the runs differ in their machine: {meta['machine']} and {added['machine']}")


def join_sizes(meta: dict[str, Any], added: dict[str, Any]) -> None:
    """What join() does, wherever the two were made."""
    for name in ("scale", "sizes", "device"):
        if meta[name] != added[name]:
            raise ValueError(f"the runs differ in their {name}: {meta[name]} and {added[name]}")
    known = {job["name"] for job in meta["jobs"]}
    meta["jobs"] += [job for job in added["jobs"] if job["name"] not in known]
    meta["media"] += [medium for medium in added["media"] if medium not in meta["media"]]
    meta["commands"] += added["commands"]
    meta["peers"] |= {name: peer for name, peer in added["peers"].items() if not peer["absent"]}
    if added["revision"] not in meta["revision"].split(", "):
        meta["revision"] += f", {added['revision']}"


def merge(folder: pathlib.Path, extra: pathlib.Path) -> None:
    """Adds a run to the results of another of the same scale, replacing what it measured again.

    A run of another machine replaces whole groups of jobs, so that whatever is compared was measured on one machine;
    the report says on which. Raises ValueError where it lacks jobs or peers of one, or one of the runs is of another
    scale.
    """
    meta, added = (json.loads((each / META_NAME).read_text()) for each in (folder, extra))
    before, trials = read_trials(folder / TRIALS_NAME), read_trials(extra / TRIALS_NAME)
    if added.get("elsewhere"):
        raise ValueError("it has figures of several machines itself; merge the runs that it was made of")
    machines = {(part["medium"], part["group"]): part["machine"] for part in meta.get("elsewhere", ())}
    parts = sorted({(trial.medium, trial.group) for trial in trials})
    replaced = {part for part in parts if machines.get(part, meta["machine"]) != added["machine"]}
    lacking = {(one.job, one.peer, one.medium) for one in before if (one.medium, one.group) in replaced}
    lacking -= {(trial.job, trial.peer, trial.medium) for trial in trials}
    if lacking:
        missing = ", ".join(f"{job} of {peer} ({medium})" for job, peer, medium in sorted(lacking))
        raise ValueError(f"it is of another machine and has a part of a group only; --continue it for {missing}")
    join_sizes(meta, added)
    machines |= dict.fromkeys(parts, added["machine"])
    meta["elsewhere"] = [
        {"medium": medium, "group": group, "machine": machine}
        for (medium, group), machine in machines.items()
        if machine != meta["machine"]
    ]
    again = {(trial.medium, trial.job) for trial in trials}
    kept = [one for one in before if (one.medium, one.job) not in again]
    Record(folder / TRIALS_NAME, kept + trials).close()
    (folder / META_NAME).write_text(json.dumps(meta, indent=2) + "\n")


def load(folder: pathlib.Path) -> Results:
    return Results(json.loads((folder / META_NAME).read_text()), read_trials(folder / TRIALS_NAME))


def repetitions(trials: list[Trial]) -> str:
    """How often each job was measured, in words: the least and the most."""
    found: dict[tuple[str, str], set[int]] = collections.defaultdict(set)
    for trial in trials:
        if trial.is_measured:
            found[trial.medium, trial.job].add(trial.repetition)
    counts = sorted({len(each) for each in found.values()}) or [0]
    return f"{' to '.join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))} repetitions of each job"


# ---- Markdown --------------------------------------------------------------------------------------------------------


def number(value: float) -> str:
    """Three figures that mean something, no exponent."""
    if value == 0:
        return "0"
    magnitude = abs(value)
    for limit, decimals in ((100, 0), (10, 1), (1, 2), (0.1, 3), (0.01, 4)):
        if magnitude >= limit:
            return f"{value:,.{decimals}f}"
    return f"{value:.5f}"


def table(header: list[str], rows: list[list[str]]) -> str:
    """The first column to the left, the others to the right."""
    marks = [":--", *["--:"] * (len(header) - 1)]
    lines = [header, marks, *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '¦') for cell in line)} |" for line in lines)


def cell(results: Results, medium: str, peer: str, job: dict[str, Any]) -> str:
    """Median ± half of the range, how many of the repetitions have a figure where not all have, and how many times
    better it is than the baseline."""
    summary = results.shown(medium, peer, job)
    if summary is None:
        reason = results.why_not(medium, peer, job["name"])
        return "failed" if reason and reason.startswith("failed") else "–"
    text = number(summary.median)
    if summary.count > 1:
        text += f" ±{summary.spread:.0%}"
    if summary.disturbed:
        text += "\\*"
    if summary.count < (tried := len(results.trials(medium, peer, job["name"]))):
        text += f" in {summary.count} of {tried}"
    if peer != BASELINE:
        times = results.ratio(medium, peer, job, BASELINE)
        text += f" ({number(times)}×)" if times else ""
    return text


def group_sections(results: Results, medium: str) -> list[str]:
    lines = []
    groups = {job["group"]: job["group_title"] for job in results.jobs}
    for group, title in groups.items():
        jobs = [job for job in results.jobs if job["group"] == group and results.was_tried(medium, job["name"])]
        if not jobs:
            continue
        rows = []
        for job in jobs:
            better = "less is better" if job["lower_is_better"] else "more is better"
            cells = [cell(results, medium, peer, job) for peer in results.peers]
            rows.append([f"{job['title']} [{job['unit']}, {better}]", *cells])
        lines += [f"### {title}", ""]
        if (machine := results.machine(medium, jobs[0]["name"])) != results.meta["machine"]:
            lines += [f"On another machine: {describe_machine(machine)}.", ""]
        lines += [table(["job", *map(results.title, results.peers)], rows), ""]
    return lines


def standing(results: Results, medium: str) -> str:
    """Where cowfs stands against each peer, over all jobs that both did."""
    rows = []
    for peer in results.peers:
        if peer == OWN:
            continue
        ratios = {job["title"]: times for job in results.jobs if (times := results.ratio(medium, OWN, job, peer))}
        if not ratios:
            continue
        summary = summarize([*ratios.values()])
        best, worst = max(ratios, key=lambda title: ratios[title]), min(ratios, key=lambda title: ratios[title])
        ahead = sum(times > 1 for times in ratios.values())
        rows.append([
            results.title(peer), f"{ahead} of {len(ratios)}", f"{number(summary.median)}×",
            f"{number(ratios[best])}× {best}", f"{number(ratios[worst])}× {worst}",
        ])  # fmt: skip
    return table(["against", "ahead in", "median", "best", "worst"], rows) if rows else "cowfs has no figures here."


def latency_table(results: Results, medium: str) -> str:
    rows = []
    for job in results.jobs:
        distributions = {peer: results.distribution_us(medium, peer, job["name"]) for peer in results.peers}
        if not any(distributions.values()):
            continue
        cells = []
        for peer in results.peers:
            found = distributions[peer]
            wanted = [number(found[percentile]) for percentile in (50.0, 99.0, 99.9) if percentile in found]
            cells.append(" / ".join(wanted) or "–")
        rows.append([job["title"], *cells])
    return table(["job", *map(results.title, results.peers)], rows)


def figure_table(results: Results, medium: str, figure: str) -> str | None:
    """One figure that many jobs have beside their own."""
    peers = [
        peer
        for peer in results.peers
        if any(results.summary(medium, peer, job["name"], figure) for job in results.jobs)
    ]
    rows = []
    for job in results.jobs:
        found = [results.summary(medium, peer, job["name"], figure) for peer in peers]
        if any(found):
            rows.append([job["title"], *(number(one.median) if one else "–" for one in found)])
    return table(["job", *map(results.title, peers)], rows) if rows else None


def secondary_table(results: Results, medium: str) -> str | None:
    """Figures of the snapshot and growth jobs that the main tables do not show."""
    wanted = (
        "achieved_snapshots_per_second", "snapshot_p99_us", "list_seconds", "mount_seconds",
        "recovery_seconds", "deleted",
        "returned_per_second", "deleted_per_second", "bytes_per_byte_overwritten", "synced_per_second",
    )  # fmt: skip
    rows = []
    for job in results.jobs:
        for figure in wanted:
            found = [results.summary(medium, peer, job["name"], figure) for peer in results.peers]
            if figure != job["figure"] and any(found):
                cells = [number(one.median) if one else "–" for one in found]
                rows.append([f"{job['title']}: {figure.replace('_', ' ')}", *cells])
    return table(["figure", *map(results.title, results.peers)], rows) if rows else None


def missing_list(results: Results) -> list[str]:
    """Every row without a figure, or with fewer than repetitions, with the (first) reason."""
    reasons: dict[tuple[str, str], list[str]] = collections.defaultdict(list)
    for medium in results.media:
        for peer in results.peers:
            for job in results.jobs:
                reason = results.why_not(medium, peer, job["name"])
                if reason:
                    trials = results.trials(medium, peer, job["name"])
                    without = sum(not trial.is_measured for trial in trials)
                    which = medium if without == len(trials) else f"{medium}, {without} of {len(trials)}"
                    reasons[results.title(peer), reason].append(f"{job['name']} ({which})")
    return [f"- **{peer}** {reason}: {', '.join(jobs)}" for (peer, reason), jobs in reasons.items()]


def describe_machine(machine: dict[str, Any]) -> str:
    return (
        f"{machine['cpus']} CPUs of {machine['cpu']}{', virtual' if machine['virtual'] else ''}, "
        f"{machine['memory_gib']} GiB of memory, Linux {machine['kernel']}, {machine['system']}, "
        f"Python {machine['python']}"
    )


def machine_lines(results: Results) -> list[str]:
    """The machine, and what was measured on others: a line for each."""
    meta = results.meta
    lines = [f"- **Machine:** {describe_machine(meta['machine'])}, {meta['programs']['fio']}."]
    titles = {job["group"]: job["group_title"] for job in results.jobs}
    others: dict[str, list[str]] = collections.defaultdict(list)
    for part in meta.get("elsewhere", ()):
        others[describe_machine(part["machine"])].append(f"{titles[part['group']]} ({part['medium']})")
    for described, parts in others.items():
        lines.append(
            f"- **Another machine:** {described}. Measured on it, with all peers and repetitions: "
            f"{', '.join(dict.fromkeys(parts))}. "
            "Such rows can be compared with each other, and with no other row."
        )
    return lines


def method_section(results: Results) -> list[str]:
    meta = results.meta
    trials = [trial for trial in results.all_trials if trial.is_measured]
    disturbed = sum(trial.disturbed for trial in trials)
    kept_disturbed = sum(trial.disturbed for trial in kept_trials(trials))
    busy = ""
    if trials:
        busy_shares = summarize([trial.load["busy_share_before"] for trial in trials])
        busy = (
            f" The machine was {busy_shares.median:.1%} busy before a trial (median; at most {busy_shares.high:.1%})."
        )
    sizes, device = meta["sizes"], meta["device"]
    backed = (
        f" {backed_bytes >> 20} MiB of memory are then taken and given back, in large pages and in small ones, lest "
        "the first to use them pay the host for it."
        if (backed_bytes := meta.get("backed_bytes"))
        else ""
    )
    lines = [
        "## How it was measured",
        "",
        *machine_lines(results),
        f"- **Ground:** one {device['kind']} device of {device['size_bytes'] >> 20} MiB, logical blocks of "
        f"{device['block_size_bytes']} bytes, written once whole and never discarded, over a file: `memory` in a "
        "tmpfs, `disk` on the machine's disk. A fresh file system for each group of jobs, peer and repetition.",
        f"- **Scale `{meta['scale']}`:** files of {sizes['file_bytes'] >> 20} MiB, {sizes['seconds']} s for jobs that "
        f"run for a time, {sizes['file_count']:,} small files; {repetitions(trials)}, the peers in turns within each.",
        "- Page, dentry and inode caches are dropped before each job but those called cached, and write jobs end with "
        f"an fsync.{backed} Cold means mounted anew. Figures are medians, ± is half of the range of the repetitions, "
        f"(×) is how many times better than {meta['peers'][BASELINE]['title']}.",
        f"- **Load:** of {len(trials)} trials {disturbed} were disturbed by other processes or the hypervisor and "
        f"were made again where that was possible; {kept_disturbed} of the trials in the tables are, marked \\*.{busy}",
        f"- Revision `{meta['revision']}`, begun {meta['started']}, seed {meta['seed']}, "
        f"{', '.join(f'`{command}`' for command in meta['commands'])}. Raw results, fio's JSON and job files included: "
        f"[{TRIALS_NAME}]({TRIALS_NAME}), [{META_NAME}]({META_NAME}); "
        "`python -m benchmarks --render FOLDER` makes this report of them.",
        "",
    ]  # fmt: skip
    rows = []
    for peer in meta["peers"].values():
        described = f"absent: {peer['absent']}" if peer["absent"] else f"`{peer['options']}`"
        rows.append([peer["title"], peer["version"] or "–", described])
    return [*lines, table(["peer", "version", "options"], rows), ""]


def markdown(results: Results, plots: dict[str, str]) -> str:
    lines = [f"# Comparison of {results.meta['started'][:10]}, {results.meta['scale']}", ""]
    lines += [f"![{title}]({path})" for path, title in plots.items() if path.startswith(f"{PLOTS}/ratio-")]
    lines += ["", *method_section(results)]
    for medium in results.media:
        lines += [f"## In {medium}" if medium == "memory" else f"## On {medium}", ""]
        lines += ["Where cowfs stands:", "", standing(results, medium), ""]
        lines += group_sections(results, medium)
        for path, title in plots.items():
            if path.endswith(f"-{medium}.svg") and not path.startswith(f"{PLOTS}/ratio-"):
                lines += [f"![{title}]({path})", ""]
        lines += ["### Latency, p50 / p99 / p99.9 [µs]", "", "Of jobs with fsync: of the fsync alone.", ""]
        lines += [latency_table(results, medium), ""]
        for title, figure in (
            ("Write amplification: bytes that reached the device per byte written", "write_amplification"),
            ("Flushes of the device", "device_flushes"),
            ("Memory of the serving process [MiB]", "memory_mib"),
        ):
            if text := figure_table(results, medium, figure):
                lines += [f"### {title}", "", text, ""]
        if text := secondary_table(results, medium):
            lines += ["### Further figures", "", text, ""]
    if missing := missing_list(results):
        lines += ["## What has no figure, and why", "", *missing, ""]
    return "\n".join(lines)


def render(folder: pathlib.Path) -> pathlib.Path:
    """Writes report.md and plots/ into the folder; the path of the report."""
    results = load(folder)
    try:
        from benchmarks.plots import draw_all
    except ImportError as error:
        print(f"benchmarks: no plots: {error}; `make setup-bench` installs what they need")
        plots: dict[str, str] = {}
    else:
        plots = draw_all(results, folder, PLOTS)
    path = folder / REPORT_NAME
    path.write_text(markdown(results, plots))
    return path
