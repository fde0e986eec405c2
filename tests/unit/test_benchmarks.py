"""The benchmarks' method, on made-up results, and that their parts fit together. Nothing is timed here."""

import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import re
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Set
from typing import Any

import pytest

from benchmarks import __main__ as bench_main
from benchmarks import continuous, ground, isolation, machine, method, profiling, report, stalls
from benchmarks.__main__ import parse_arguments
from benchmarks.ground import make_disk
from benchmarks.jobs import SCALES, percentiles_us
from benchmarks.jobs_fio import figures_of, job_file
from benchmarks.method import Record, kept_trials, ratio, read_trials, summarize
from benchmarks.peers import PEERS
from benchmarks.plan import QUICK, all_groups, groups_of
from tests.unit.benchmark_trials import trial

ROOT = pathlib.Path(__file__).parents[2]
BLKDISCARD = 0x1277  # linux/fs.h
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for namespaces and loop devices")


# ---- method


def test_summary_is_median_and_range() -> None:
    summary = summarize([30.0, 10.0, 20.0], disturbed=1)
    assert (summary.median, summary.low, summary.high, summary.count, summary.disturbed) == (20, 10, 30, 3, 1)
    assert summary.spread == 0.5
    assert summarize([0.0]).spread == 0


@pytest.mark.parametrize(
    ("own", "other", "lower_is_better", "expected"),
    [(200, 100, False, 2), (200, 100, True, 0.5), (100, 200, True, 2), (0, 100, False, None), (5, 0, True, None)],
)
def test_ratio(own: float, other: float, lower_is_better: bool, expected: float | None) -> None:
    assert ratio(own, other, lower_is_better=lower_is_better) == expected


def test_of_several_attempts_the_undisturbed_one_is_kept() -> None:
    first = trial(attempt=0, disturbed=True, figures={"a": 1.0})
    second = trial(attempt=1, disturbed=False, figures={"a": 2.0})
    third = trial(attempt=2, disturbed=True, figures={"a": 3.0})
    failed = trial(attempt=3, error="gone")
    assert kept_trials([first, second, third, failed]) == [second]
    assert kept_trials([first, third]) == [third]
    assert kept_trials([first, failed]) == [first]
    assert kept_trials([failed]) == [failed]
    assert len(kept_trials([first, trial(repetition=1)])) == 2


def test_record_keeps_every_trial(tmp_path: pathlib.Path) -> None:
    trials = [trial(figures={"a": 1.5}, distribution_us={"50": 3.0}, raw={"fio": [1]}), trial(reason="no snapshots")]
    record = Record(tmp_path / "trials.gz")
    for one in trials:
        record.add(one)
    record.close()
    assert read_trials(tmp_path / "trials.gz") == trials


def test_record_of_a_killed_run_is_read_as_far_as_it_goes(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trials = [trial(job=f"job {number}", raw={"fio": [number]}) for number in range(3)]
    record = Record(tmp_path / "trials.gz")
    for one in trials[:2]:
        record.add(one)
    whole_bytes = (tmp_path / "trials.gz").stat().st_size
    record.add(trials[2])
    written = (tmp_path / "trials.gz").read_bytes()
    record.close()
    for kept_bytes, count in ((whole_bytes, 2), (len(written) - 7, 2), (len(written), 3)):
        (tmp_path / "killed.gz").write_bytes(written[:kept_bytes])
        assert read_trials(tmp_path / "killed.gz") == trials[:count]
        assert f"killed: {count} trials read" in capsys.readouterr().err


def test_record_begins_with_what_is_known(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "trials.gz"
    known = [trial(job=f"job {number}") for number in range(3)]
    Record(path, known).close()
    record = Record(path, read_trials(path))
    # A run that is killed now has lost nothing.
    assert read_trials(path) == known
    record.add(trial(job="another"))
    record.close()
    assert read_trials(path) == [*known, trial(job="another")]
    assert [each.name for each in tmp_path.iterdir()] == ["trials.gz"]


def test_going_on_tries_failures_again_and_what_there_was_no_time_for() -> None:
    trials = [
        trial("create", figures={"a": 1.0}),
        trial("clone", reason="no snapshots"),
        trial("unlink", error="gone"),
        trial("untar", reason=method.TIME_OVER),
    ]
    assert method.tried_already(trials) == {("memory", "cowfs", 0, "create"), ("memory", "cowfs", 0, "clone")}


@pytest.fixture
def run_folder() -> Iterator[pathlib.Path]:
    """As a run has it: of a name that no other run has, and files of its volumes beside it in memory."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="cowfs-benchmarks-"))
    try:
        yield folder
    finally:
        folder.rmdir()
        with contextlib.suppress(FileNotFoundError):
            isolation.backing_prefix(folder, ground.MEDIA["memory"]).rmdir()


@pytest.mark.mount
@needs_root
def test_device_gets_its_image_back_and_stays_sparse(run_folder: pathlib.Path) -> None:
    size_bytes = 1 << 30
    with make_disk("memory", run_folder, size_bytes, sparse=True) as disk:
        descriptor = os.open(disk.path, os.O_RDWR | os.O_CLOEXEC)
        try:
            kept = {0: b"first" * 1000, 300 << 20: b"middle" * 1000, size_bytes - 4096: b"z" * 4096}
            changed = {2048: b"over", 4 << 20: b"between" * 1000, 301 << 20: b"new" * 10_000}
            for offset, content in kept.items():
                os.pwrite(descriptor, content, offset)
            os.fsync(descriptor)
            image = disk.image()
            try:
                assert os.fstat(image).st_blocks * 512 < 16 << 20
                for offset, content in changed.items():
                    os.pwrite(descriptor, content, offset)
                os.fsync(descriptor)
                disk.restore(image)
            finally:
                os.close(image)
            for offset, content in kept.items():
                assert os.pread(descriptor, len(content), offset) == content
            assert os.pread(descriptor, 16 << 20, 1 << 20) == bytes(16 << 20)
            assert os.pread(descriptor, 1 << 20, 301 << 20) == bytes(1 << 20)
            assert disk.allocated_bytes() < 16 << 20
        finally:
            os.close(descriptor)


@pytest.mark.mount
@needs_root
@pytest.mark.parametrize("sparse", [False, True])
def test_device_stays_written_whole(run_folder: pathlib.Path, sparse: bool) -> None:
    """A part that the device zeroes by taking it out, as for mkfs.ext4, would be allocated again at another's cost."""
    size_bytes = 64 << 20
    with make_disk("memory", run_folder, size_bytes, sparse=sparse) as disk:
        descriptor = os.open(disk.path, os.O_RDWR | os.O_CLOEXEC)
        try:
            for offset in (0, 8 << 20, size_bytes - 4096):
                os.pwrite(descriptor, b"a" * 4096, offset)
            os.fsync(descriptor)
            whole_bytes = disk.allocated_bytes()
            for start, end in ((1 << 20, 8 << 20), ((8 << 20) + 4096, 24 << 20)):
                fcntl.ioctl(descriptor, BLKDISCARD, struct.pack("=QQ", start, end - start))
            assert disk.allocated_bytes() < whole_bytes or sparse
            disk.fill_holes()
            assert disk.allocated_bytes() == (whole_bytes if not sparse else 3 * 4096)
            disk.forget_cache()
            for offset in (0, 8 << 20, size_bytes - 4096):
                assert os.pread(descriptor, 4096, offset) == b"a" * 4096
            assert os.pread(descriptor, 7 << 20, 1 << 20) == bytes(7 << 20)
        finally:
            os.close(descriptor)


class FakeDisk:
    path, size_bytes = "/dev/null", 1 << 20

    def __init__(self, medium: str) -> None:
        self.medium = medium

    def is_direct(self) -> bool:
        return True


def run_of_fakes(
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    time_limit_s: float | None,
    tried: Set[tuple[str, str, int, str]] = frozenset(),
) -> tuple[int, list[tuple[int, str, str]]]:
    """Repetitions made, and repetition, group and peer of all that was run, in order."""
    made, order, _ = run_of_fakes_with_hurry(tmp_path, monkeypatch, time_limit_s, tried)
    return made, order


def run_of_fakes_with_hurry(
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    time_limit_s: float | None,
    tried: Set[tuple[str, str, int, str]] = frozenset(),
) -> tuple[int, list[tuple[int, str, str]], list[bool]]:
    """And whether each was in a hurry."""
    order: list[tuple[int, str, str]] = []
    hurry: list[bool] = []

    def run_group(self: method.Run, disk: Any, group: Any, peer: Any, repetition: int) -> None:
        order.append((repetition, group.name, peer.name))
        hurry.append(self.is_hurried(repetition))
        monkeypatch.setattr(clock, "now_s", clock.now_s + 10)

    class Clock:
        now_s = 0.0

    clock = Clock()
    monkeypatch.setattr(method.time, "monotonic", lambda: clock.now_s)
    monkeypatch.setattr(method.Run, "run_group", run_group)
    monkeypatch.setattr(method, "make_disk", lambda medium, *_: contextlib.nullcontext(FakeDisk(medium)))
    slow, quick = (dataclasses.replace(groups_of(SCALES["smoke"], name)[0]) for name in ("snapshot_many", "reads"))
    peers = [PEERS[name]() for name in ("cowfs", "btrfs")]
    record, watch = Record(tmp_path / "trials.gz"), machine.Watch(os.open("/proc", os.O_RDONLY))
    run = method.Run(
        SCALES["smoke"], peers, (slow, quick), ["memory"], 3, tmp_path, watch, record, 1, time_limit_s,
        tried, 0.0,
    )  # fmt: skip
    try:
        return run.measure(), order, hurry
    finally:
        record.close()
        os.close(watch.outer_proc)


def test_peers_take_turns_and_slow_groups_come_last(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, order = run_of_fakes(tmp_path, monkeypatch, time_limit_s=None)
    assert made == 3
    assert order[:4] == [(0, "reads", "cowfs"), (0, "reads", "btrfs"), (0, "snapshot_many", "btrfs"),
                         (0, "snapshot_many", "cowfs")]  # fmt: skip
    assert order[4:] == [(1, "reads", "btrfs"), (1, "reads", "cowfs"), (2, "reads", "cowfs"), (2, "reads", "btrfs")]


def test_nothing_is_begun_that_would_end_too_late(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # 20 s for each of the two groups of the first repetition: one group of the second ends just in time.
    made, order = run_of_fakes(tmp_path, monkeypatch, time_limit_s=65)
    assert made == 2
    assert {repetition for repetition, _, _ in order} == {0, 1}


def test_going_on_measures_only_what_lacks(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = {group.name: group.jobs for group in groups_of(SCALES["smoke"], "snapshot_many|reads")}

    def whole(peer: str, repetition: int, group: str) -> set[tuple[str, str, int, str]]:
        return {("memory", peer, repetition, job.name) for job in jobs[group]}

    tried = whole("cowfs", 0, "reads") | whole("btrfs", 0, "reads") | whole("cowfs", 1, "reads")
    # Of a group that was ended in its midst every job is made again.
    tried |= {*sorted(whole("btrfs", 2, "reads"))[1:]}
    made, order = run_of_fakes(tmp_path, monkeypatch, time_limit_s=None, tried=tried)
    assert made == 3
    assert order == [(0, "snapshot_many", "btrfs"), (0, "snapshot_many", "cowfs"), (1, "reads", "btrfs"),
                     (2, "reads", "cowfs"), (2, "reads", "btrfs")]  # fmt: skip


def test_results_do_not_say_where_they_were_made() -> None:
    said = bench_main.command_line(["--medium", "--output", "/a/b", "--jobs", "x", "--continue=/c"])
    assert said == "python -m benchmarks --medium --output FOLDER --jobs x --continue FOLDER"


def test_repetitions_are_counted() -> None:
    assert report.repetitions([]) == "0 repetitions of each job"
    made = [trial(repetition=number, figures={"a": 1.0}) for number in range(3)]
    assert report.repetitions(made) == "3 repetitions of each job"
    assert report.repetitions([*made, trial("clone", figures={"a": 1.0})]) == "1 to 3 repetitions of each job"
    assert report.repetitions([*made, trial(repetition=3, error="gone")]) == "3 repetitions of each job"


def test_the_first_repetition_hurries_when_it_takes_too_long(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each of the four parts of a repetition takes 10 s: half of the time is over after three of them.
    assert run_of_fakes_with_hurry(tmp_path, monkeypatch, 50)[2] == [False, False, False, True]
    # Later ones are begun only when there is time.
    assert run_of_fakes_with_hurry(tmp_path, monkeypatch, 70)[2] == [False] * 6
    assert not any(run_of_fakes_with_hurry(tmp_path, monkeypatch, None)[2])


def test_who_comes_when_the_time_is_over_is_left_out_with_the_reason(tmp_path: pathlib.Path) -> None:
    record, watch = Record(tmp_path / "trials.gz"), machine.Watch(os.open("/proc", os.O_RDONLY))
    groups, peers = groups_of(SCALES["smoke"], "untar|rm_tree"), [PEERS["btrfs"]()]
    run = method.Run(SCALES["smoke"], peers, groups, ["memory"], 1, tmp_path, watch, record, 1, -1.0)
    try:
        run.run_group(FakeDisk("memory"), groups[0], peers[0], 0)  # type: ignore[arg-type]
    finally:
        record.close()
        os.close(watch.outer_proc)
    left_out = [(trial.job, trial.reason) for trial in read_trials(tmp_path / "trials.gz")]
    assert left_out == [("untar", "the time was over"), ("rm_tree", "the time was over")]


def test_percentiles() -> None:
    found = percentiles_us([number / 1e6 for number in range(1000, 0, -1)])
    assert found["50"] == pytest.approx(501)
    assert found["99.9"] == pytest.approx(1000)
    assert percentiles_us([2e-6]) == dict.fromkeys(found, pytest.approx(2))


def test_load_that_disturbs() -> None:
    quiet = machine.Load(0.1, 0.01, 0.0, 0.0, 0.0)
    assert not quiet.is_disturbed
    assert quiet._replace(busy_share_before=0.5).is_disturbed
    assert quiet._replace(others_share=0.2).is_disturbed
    assert quiet._replace(steal_share=0.2).is_disturbed


def test_processor_times_and_others() -> None:
    times = machine.parse_times("cpu  100 10 50 1000 200 5 5 30 0 0\n")
    tick_s = 1 / machine.TICKS_PER_SECOND
    assert times == pytest.approx((170 * tick_s, 1200 * tick_s, 30 * tick_s))
    descriptor = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
    try:
        watch = machine.Watch(descriptor)
        # Everybody shares the namespace that it is told to be its own.
        assert not any(name.startswith(f"{os.getpid()}@") for name in watch.others_s())
        watch = machine.Watch(descriptor)
        watch.own_namespace = -1
        assert any(name.startswith(f"{os.getpid()}@") for name in watch.others_s())
    finally:
        os.close(descriptor)


# ---- jobs and peers


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
def test_every_scale_has_a_plan(scale: Any) -> None:
    names = [job.name for group in all_groups(scale) for job in group.jobs]
    assert len(names) == len(set(names))
    assert set(QUICK) <= set(names)
    assert [job.name for group in groups_of(scale, "^sqlite_wal$") for job in group.jobs] == ["sqlite_wal"]
    assert groups_of(scale, "no such job") == ()
    assert scale.attempts >= 1 and scale.repetitions >= 1
    assert SCALES["full"].repetitions >= 5
    (many,) = (group for group in all_groups(scale) if group.name == "snapshot_many")
    # With one block of 4 KiB changed before each, a snapshot takes some 20 KiB of cowfs.
    assert (many.disk_bytes or scale.disk_bytes) > max(scale.snapshots_present) * (32 << 10)


def test_peers_say_what_they_lack() -> None:
    lacks = {name: kind().lacks(frozenset({"snapshots", "disk"})) for name, kind in PEERS.items()}
    assert lacks["cowfs"] is None and lacks["btrfs"] is None and lacks["zfs"] is None
    assert lacks["ext4"] == "has no snapshots"
    assert lacks["ceiling_uring"] == "uses no disk, has no snapshots"
    assert PEERS["btrfs"]().lacks(frozenset({"unsynced"})) == "all its snapshots are durable"
    for kind in PEERS.values():
        reason = kind().absent()
        assert reason is None or len(reason) > 5


def test_fio_job_file_and_figures() -> None:
    text = job_file("fsync_1", {"rw": "randwrite", "fsync": 1, "thread": True, "time_based": False, "size": None})
    assert text == "[fsync_1]\nrw=randwrite\nfsync=1\nthread\n"
    latency = {"percentile": {"50.000000": 2000, "99.000000": 9000}}
    job = {
        "read": {"total_ios": 0},
        "write": {"total_ios": 10, "iops": 123.0, "bw_bytes": 1 << 20, "lat_ns": latency, "io_bytes": 4096},
        "sync": {"total_ios": 10, "lat_ns": {"percentile": {"50.000000": 70000}}},
    }
    figures, distribution = figures_of({"job_file": text, "fio": {"jobs": [job]}})
    assert figures["write_iops"] == figures["total_iops"] == 123
    assert (figures["write_mib_per_second"], figures["write_p99_us"], figures["fsync_p50_us"]) == (1, 9, 70)
    assert distribution == {"50": 70}
    # The one fsync at the end of a job is not what such a job is about.
    _, distribution = figures_of({"job_file": "[write]\nend_fsync=1\n", "fio": {"jobs": [job]}})
    assert distribution == {"50": 2, "99": 9}


def test_arguments() -> None:
    assert parse_arguments([]).scale == "quick"
    assert parse_arguments(["--full"]).scale == "full"
    with pytest.raises(SystemExit):
        parse_arguments(["--full", "--quick"])


def test_profile_is_added_up() -> None:
    printed = "# comment\n40.00%;libc.so.6;[.] memcpy\n 10.50%;libc.so.6;[.] malloc\n  20.00%;[kernel];[k] schedule\n"
    libraries, functions = profiling.parse_report(printed)
    assert libraries == {"libc.so.6": 50.5, "[kernel]": 20}
    assert functions["[kernel]: schedule"] == 20


# ---- the ceiling


@pytest.fixture(scope="module")
def ceiling(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    program = tmp_path_factory.mktemp("ceiling") / "ceiling"
    flags = ["-std=gnu11", "-O1", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror", "-pthread"]
    sources = sorted((ROOT / "benchmarks" / "ceiling").glob("*.c"))
    subprocess.run(["gcc", *flags, "-o", program, *sources, "-luring"], check=True, timeout=60)
    return program


def test_ceiling_says_how_it_is_used(ceiling: pathlib.Path) -> None:
    result = subprocess.run([ceiling], check=False, capture_output=True, text=True, timeout=10)
    assert result.returncode == 2 and "usage: ceiling" in result.stderr


@pytest.mark.mount
@needs_root
def test_ceiling_serves(ceiling: pathlib.Path, tmp_path: pathlib.Path) -> None:
    mountpoint = tmp_path / "mount"
    mountpoint.mkdir()
    with subprocess.Popen([ceiling, "device", mountpoint], stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout is not None and server.stdout.readline() == b"ready\n"
            (mountpoint / "a").mkdir()
            for number in range(300):
                (mountpoint / "a" / f"file-{number}").write_bytes(bytes(5000))
            (mountpoint / "a" / "link").symlink_to("somewhere")
            assert os.readlink(mountpoint / "a" / "link") == "somewhere"
            assert {f"file-{number}" for number in range(300)} | {"link"} == set(os.listdir(mountpoint / "a"))
            (mountpoint / "a" / "file-0").rename(mountpoint / "b")
            assert (mountpoint / "b").stat().st_size == 5000
            assert len((mountpoint / "b").read_bytes()) == 5000
            with pytest.raises(OSError, match="not empty"):
                (mountpoint / "a").rmdir()
            for path in (mountpoint / "a").iterdir():
                path.unlink()
            (mountpoint / "a").rmdir()
            assert os.listdir(mountpoint) == ["b"]
        finally:
            subprocess.run(["umount", mountpoint], check=False, timeout=20)
            if server.poll() is None:
                time.sleep(0.5)
                server.kill() if server.poll() is None else None
    assert server.returncode == 0


# ---- isolation

IN_ISOLATION = """
import os, pathlib, subprocess, sys, time
from benchmarks.ground import make_disk
from benchmarks.isolation import run_isolated

def work(surroundings):
    with make_disk("memory", surroundings.folder, 32 << 20) as disk:
        disk.wipe()
        subprocess.run(["mkfs.ext4", "-q", "-F", disk.path], check=True)
        directory = surroundings.folder / "mount"
        directory.mkdir()
        subprocess.run(["mount", disk.path, directory], check=True)
        print(disk.path, surroundings.folder, os.getpid() < 10, disk.is_direct(), flush=True)
        if sys.argv[1] == "wait":
            time.sleep(30)
    # Nothing is unmounted: that must not be needed.
    return 7

sys.exit(run_isolated(work, [pathlib.Path("/dev/shm")]))
"""


def start_isolated(mode: str) -> tuple[subprocess.Popen[str], pathlib.Path]:
    process = subprocess.Popen([sys.executable, "-c", IN_ISOLATION, mode], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        device, folder, is_in_namespace, _is_direct = process.stdout.readline().split()
    assert is_in_namespace == "True"
    assert device.startswith("/dev/loop")
    return process, pathlib.Path(folder)


def check_nothing_left(folder: pathlib.Path) -> None:
    assert not folder.exists()
    assert not pathlib.Path("/dev/shm", folder.name).exists()
    assert str(folder) not in pathlib.Path("/proc/self/mountinfo").read_text()
    deadline = time.monotonic() + 10
    while isolation.loop_devices_of(pathlib.Path("/dev/shm", folder.name)):
        assert time.monotonic() < deadline, "the loop device stays"
        time.sleep(0.05)


@pytest.mark.mount
@needs_root
def test_nothing_stays_behind() -> None:
    process, folder = start_isolated("end")
    assert process.wait(30) == 7
    check_nothing_left(folder)


@pytest.mark.mount
@needs_root
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_stays_behind_when_interrupted(number: signal.Signals) -> None:
    process, folder = start_isolated("wait")
    process.send_signal(number)
    code = process.wait(30)
    if number == signal.SIGKILL:
        assert code == -number
        # The front could remove nothing; what it had made are two empty folders.
        deadline = time.monotonic() + 10
        while isolation.loop_devices_of(pathlib.Path("/dev/shm", folder.name)) and time.monotonic() < deadline:
            time.sleep(0.05)
        folder.rmdir()
        pathlib.Path("/dev/shm", folder.name).rmdir()
    else:
        assert code == 130
    check_nothing_left(folder)


# ---- stalls

STALLS = ("-m", "benchmarks.stalls", "--fill-mib", "16", "--files", "300", "--size-mib", "256")


@pytest.mark.mount
@needs_root
def test_stalls_are_measured() -> None:
    words = [sys.executable, *STALLS, "--seconds", "2", "--checkpoint-ms", "50", "--keep", "5"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert set(result["requests"]) == {*stalls.KINDS, "snapshot, not synced"}
    for summary in result["requests"].values():
        assert summary["count"] > 0
        assert summary["p50_us"] <= summary["p99_99_us"] <= summary["max_us"]
    assert result["checkpoints"] > 0 and result["stalls"]["holds"]["freeze"]["count"] > 0
    assert "held in the daemon" in done.stderr


@pytest.mark.mount
@needs_root
def test_stalls_leave_nothing_behind_when_interrupted() -> None:
    words = [sys.executable, *STALLS, "--seconds", "60"]
    with subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("filling")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130


def test_stalls_are_summed_up() -> None:
    summary = stalls.summarize([1000] * 9_999 + [20_000_000])
    assert summary == {"count": 10_000, "p50_us": 1.0, "p99_us": 1.0, "p99_9_us": 1.0, "p99_99_us": 20_000.0,
                       "max_us": 20_000.0, "over_10_ms": 1}  # fmt: skip
    assert stalls.summarize([]) == {"count": 0}


def test_trials_are_written_with_all_their_fields() -> None:
    # What old results hold must stay readable: a field that is renamed makes them unreadable.
    assert {field.name for field in dataclasses.fields(method.Trial)} >= {"medium", "peer", "job", "figures", "load"}


# ---- snapshots taken and destroyed all the time


def test_the_last_minute_is_compared_with_the_one_after_warming_up() -> None:
    counts = continuous.Counts()
    samples = []
    for tenth in range(6000):
        counts.moments_s.append(tenth / 10)
        counts.latencies_s.append(0.001 if tenth < 3000 else 0.002)
        counts.taken += 1
    for at_s in range(0, 601, 10):
        sample = {"at_s": float(at_s), "used_mib": 100.0, "memory_mib": 50 + at_s / 10, "queue": 0.0}
        samples.append(sample | {"taken": at_s * 10, "destroyed": at_s * 10})
    counts.destroyed = counts.taken
    result = continuous.summarize(16, 10.0, 600.0, counts, samples)
    first, last = result["first"], result["last"]
    assert (first["begin_s"], first["end_s"], last["begin_s"]) == (60, 120, 540)
    assert (first["taken_per_second"], last["taken_per_second"], last["destroyed_per_second"]) == (10, 10, 10)
    assert (first["p99_us"], last["p99_us"], result["max_us"]) == (1000, 2000, 2000)
    assert (first["used_mib"], last["used_mib"]) == (100, 100)
    assert (first["memory_mib"], last["memory_mib"]) == (59, 107)
    assert re.search(r"16 +10 memory_mib +59\.0 +107\.0 +\+81\.4 %", continuous.table([result]))


def test_rates_of_kinds() -> None:
    assert continuous.rates_from("") == {0: 5000, 1: 2000, 16: 1000}
    assert continuous.rates_from("16=30,4=0") == {0: 5000, 1: 2000, 4: 0, 16: 30}


@needs_root
@pytest.mark.timeout(120)
def test_two_continuous_runs_and_one_of_deletions_at_the_same_time(tmp_path: pathlib.Path) -> None:
    command = [sys.executable, "-m", "benchmarks.continuous", "--size-mib", "256", "--folder", str(tmp_path)]
    own = [
        ["--kinds", "0,2", "--rates", "0=50", "--seconds", "1", "--keep", "10", "--sample-seconds", "0.2"],
        ["--kinds", "16", "--rates", "16=20", "--seconds", "1", "--keep", "5"],
        ["--deletion", "--snapshots", "300", "--quiet-seconds", "0.2"],
    ]
    running = [
        subprocess.Popen(
            [*command, *words, "--output", str(tmp_path / f"{number}.json")],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number, words in enumerate(own)
    ]
    try:
        tables = [process.communicate(timeout=100)[0] for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
    assert [process.returncode for process in running] == [0, 0, 0]
    results = [
        [json.loads(line) for line in (tmp_path / f"{number}.json").read_text().splitlines()] for number in range(3)
    ]
    assert [[result["writes_between"] for result in part] for part in results[:2]] == [[0, 2], [16]]
    for result in (*results[0], *results[1]):
        assert result["samples"][-1]["taken"] >= max(1, result["samples"][-1]["destroyed"])
        assert result["samples"][-1]["used_mib"] > 0 and result["samples"][-1]["memory_mib"] > 0
    assert len(results[0][0]["samples"]) >= 3
    assert results[2][0]["beside"]["writes"] > 0 and results[2][0]["after"]["snapshots"] == 0
    assert all("first" in table for table in tables[:2]) and "300 snapshots" in tables[2]
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"] * 3, "folders are gone"
