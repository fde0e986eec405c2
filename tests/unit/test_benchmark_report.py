"""The benchmarks' report, what merges runs, and the targets, on made-up results."""

import dataclasses
import json
import pathlib
import re
import shutil
import sys

import pytest

from benchmarks import __main__ as bench_main
from benchmarks import machine, report, targets
from benchmarks.__main__ import parse_arguments
from benchmarks.jobs import SCALES
from benchmarks.method import Record, read_trials
from benchmarks.peers import PEERS
from benchmarks.plan import all_groups
from tests.unit.benchmark_trials import made_up_trials, meta, trial


@pytest.fixture
def results_folder(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / report.META_NAME).write_text(json.dumps(meta()))
    record = Record(tmp_path / report.TRIALS_NAME)
    for one in made_up_trials():
        record.add(one)
    record.close()
    return tmp_path


def test_report_shows_everything(results_folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Without the plots, as where the package that draws them is missing.
    monkeypatch.setitem(sys.modules, "benchmarks.plots", None)
    text = report.render(results_folder).read_text()
    assert "101 ±1% (0.500×)" in text, "median, spread and ratio"
    assert "10.0 ±0%\\* (4.00×)" in text, "less is better, and a disturbed trial is marked"
    assert "5,000 (24.8×)" in text, "the ceiling is compared on every medium"
    assert text.count("5,000 (24.8×)") == 2
    assert "absent: not installed: zpool" in text
    assert re.search(r"snapshots, 16 .*\| 58\.8 ±0% \| failed \| – \|", text)
    assert "- **Btrfs** failed: OSError: gone: snapshot_rate_0 (memory), snapshot_rate_16 (memory)" in text
    assert "- **ceiling** has no snapshots: clone (memory)" in text
    assert "| Btrfs | 1 of 2 | 2.25× | 4.00× clone | 0.500× create files |" in text
    assert "10.0 / 90.0" in text and "2.50" in text, "latencies and write amplification"
    assert "`python -m benchmarks --render FOLDER`" in text


def test_report_says_where_repetitions_lack(results_folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "benchmarks.plots", None)
    trials = read_trials(results_folder / report.TRIALS_NAME)
    lost = next(one for one in trials if (one.medium, one.peer, one.job) == ("disk", "btrfs", "clone"))
    trials[trials.index(lost)] = dataclasses.replace(lost, figures={}, reason="too slow")
    Record(results_folder / report.TRIALS_NAME, trials).close()
    text = report.render(results_folder).read_text()
    assert text.count("40.0 ±0% in 2 of 3") == 1, "on disk, not in memory"
    assert "- **Btrfs** too slow: clone (disk, 1 of 3)" in text


def test_targets_are_medians_of_ratios(results_folder: pathlib.Path) -> None:
    results = report.load(results_folder)
    assert targets.ratio_of(results, "create", "cowfs", "btrfs") == 0.5
    assert targets.ratio_of(results, "clone", "cowfs", "btrfs") == 4, "less is better"
    assert targets.ratio_of(results, "create", "cowfs", "ceiling_uring") == 100 / 5000, "repetitions that both made"
    assert targets.ratio_of(results, "create", "cowfs_device", "btrfs") is None
    assert targets.ratio_of(results, "unlink", "cowfs", "btrfs") is None
    assert "| create files | 0.500× (≥ 0.6) **missed** | – (≥ 5) |" in targets.render(results)


def test_targets_beside_snapshots(tmp_path: pathlib.Path) -> None:
    described = meta()
    described["jobs"] = [{**described["jobs"][0], "name": f"{targets.BESIDE}{rate}", "figure": "write_iops"}
                         for rate in (0, 100, 1000)]  # fmt: skip
    (tmp_path / report.META_NAME).write_text(json.dumps(described))
    record = Record(tmp_path / report.TRIALS_NAME)
    for repetition, (alone, beside) in enumerate([(100.0, 95.0), (200.0, 160.0), (100.0, 91.0)]):
        for rate, value in ((0, alone), (100, beside), (1000, alone / 2)):
            figures = {"write_iops": value, "achieved_snapshots_per_second": rate / 2, "write_amplification": 1.5}
            record.add(trial(f"{targets.BESIDE}{rate}", repetition=repetition, figures=figures))
    record.close()
    lines = targets.render_beside(report.load(tmp_path)).splitlines()
    assert "| 0 | 100, 1.00, 0, 1.50 | –, –, –, – | –, –, –, – | – |" in lines
    assert any("| 95.0, 0.91, 50.0, 1.50 |" in line and "0.91 of itself (≥ 0.9) reached" in line for line in lines)
    assert any("0.50 of itself (≥ 0.7) **missed**" in line for line in lines)


def test_targets_name_jobs_and_peers_that_exist() -> None:
    jobs = {job.name for group in all_groups(SCALES["full"]) for job in group.jobs}
    assert {job for target in targets.TARGETS for job in target.jobs} <= jobs
    assert {target.peer for target in targets.TARGETS} | {targets.CEILING, "cowfs_device"} <= PEERS.keys()


def test_merge_replaces_what_was_measured_again(results_folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    extra = tmp_path / "extra"
    extra.mkdir()
    described = meta(("disk",)) | {"revision": "def"}
    described["jobs"] = [*described["jobs"][:1], described["jobs"][1] | {"name": "rollback", "title": "roll back"}]
    (extra / report.META_NAME).write_text(json.dumps(described))
    record = Record(extra / report.TRIALS_NAME)
    for job, value in (("create", 7.0), ("rollback", 8.0)):
        record.add(trial(job, medium="disk", figures={"value": value}))
    record.close()
    before = report.load(results_folder)
    report.merge(results_folder, extra)
    merged = report.load(results_folder)
    assert [job["name"] for job in merged.jobs] == [*(job["name"] for job in before.jobs), "rollback"]
    assert merged.meta["media"] == ["memory", "disk"] and merged.meta["commands"] == ["x", "x"]
    assert merged.meta["revision"] == "abc, def"
    values = [merged.summary(medium, "cowfs", "create", "value") for medium in ("memory", "disk")]
    assert [value and (value.median, value.count) for value in values] == [(101, 3), (7, 1)]
    assert merged.was_tried("disk", "rollback") and not merged.was_tried("memory", "rollback")
    described["sizes"] = {}
    (extra / report.META_NAME).write_text(json.dumps(described))
    with pytest.raises(ValueError, match="differ in their sizes"):
        report.merge(results_folder, extra)


def run_of_another_machine(folder: pathlib.Path, jobs: tuple[str, ...]) -> pathlib.Path:
    """Results on disk, made on a machine that is twice as fast."""
    folder.mkdir()
    described = meta(("disk",))
    described["machine"]["cpu"] = "other"
    (folder / report.META_NAME).write_text(json.dumps(described))
    record = Record(folder / report.TRIALS_NAME)
    load = machine.Load(0.1, 0.02, 0.0, 0.0, 0.0)._asdict()
    for job in jobs:
        for peer, value in (("cowfs", 200.0), ("btrfs", 400.0)):
            record.add(trial(job, medium="disk", peer=peer, load=load, figures={"value": value}))
    record.close()
    return folder


def test_runs_of_two_machines_share_no_row(
    results_folder: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "benchmarks.plots", None)
    before = [(results_folder / name).read_bytes() for name in (report.META_NAME, report.TRIALS_NAME)]
    part = run_of_another_machine(tmp_path / "part", ("create", "clone", "snapshot_rate_0"))
    with pytest.raises(ValueError, match=r"for snapshot_rate_16 of btrfs \(disk\), snapshot_rate_16 of cowfs "):
        report.merge(results_folder, part)
    assert [(results_folder / name).read_bytes() for name in (report.META_NAME, report.TRIALS_NAME)] == before
    whole = run_of_another_machine(tmp_path / "whole", ("create", "clone", "snapshot_rate_0", "snapshot_rate_16"))
    report.merge(results_folder, whole)
    merged = report.load(results_folder)
    assert [merged.machine(medium, "create")["cpu"] for medium in ("memory", "disk")] == ["test", "other"]
    text = report.render(results_folder).read_text()
    assert "- **Another machine:** 2 CPUs of other, virtual" in text and "repetitions: Small files (disk)." in text
    assert text.count("On another machine: 2 CPUs of other") == 1
    assert text.count("5,000 (24.8×)") == 1 and "5,000 (25.0×)" not in text, "no ratio to a ceiling of another machine"
    # Trials added one by one could come to stand in a row of the other machine.
    with pytest.raises(ValueError, match="figures of several machines"):
        report.join(merged.meta, meta())
    # What is measured again on the first machine is of the first machine again.
    described = meta(("disk",))
    (whole / report.META_NAME).write_text(json.dumps(described))
    report.merge(results_folder, whole)
    assert report.load(results_folder).meta["elsewhere"] == []
    shutil.rmtree(part)
    report.merge(
        results_folder, run_of_another_machine(part, ("create", "clone", "snapshot_rate_0", "snapshot_rate_16"))
    )
    alone = run_of_another_machine(tmp_path / "alone", ("create",))
    report.merge(results_folder, alone)
    (alone / report.META_NAME).write_text(json.dumps(described))
    with pytest.raises(ValueError, match=r"for clone of btrfs \(disk\)"):
        report.merge(results_folder, alone)


def test_what_can_be_gone_on_with(results_folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    options = parse_arguments(["--continue", str(tmp_path / "none")])
    with pytest.raises(SystemExit, match="there is no run to go on with"):
        bench_main.output_folder(options)
    assert bench_main.output_folder(parse_arguments(["--continue", str(results_folder)])) == results_folder
    with pytest.raises(SystemExit):
        parse_arguments(["--continue", str(results_folder), "--output", str(tmp_path)])


def test_what_cannot_be_merged(results_folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (results_folder / report.TRIALS_NAME).read_bytes()
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--merge", str(results_folder), str(results_folder / "none")])
    with pytest.raises(SystemExit, match=r"cannot merge .*/none: .*No such file.*meta\.json"):
        bench_main.main()
    assert (results_folder / report.TRIALS_NAME).read_bytes() == before


def test_report_is_the_same_again(results_folder: pathlib.Path) -> None:
    pytest.importorskip("matplotlib", reason="draws the plots; make setup-bench installs it")
    first = report.render(results_folder).read_text()
    plots = {path.name: path.read_bytes() for path in (results_folder / report.PLOTS).iterdir()}
    assert {"ratio-memory.svg", "ratio-disk.svg", "snapshot-rate-memory.svg"} <= set(plots)
    assert all(f"({report.PLOTS}/{name})" in first for name in plots)
    assert report.render(results_folder).read_text() == first
    assert {path.name: path.read_bytes() for path in (results_folder / report.PLOTS).iterdir()} == plots


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (1234567.8, "1,234,568"), (12.34, "12.3"), (0.1234, "0.123"), (0.00123, "0.00123")]
)
def test_numbers(value: float, text: str) -> None:
    assert report.number(value) == text
