"""kill -9 of the daemon under load: everything acknowledged as durable is there after the next mount, 20 times; in the
long form 200 times over each transport (COWFS_TEST_KILLS). What the long form saw is written to the file that
COWFS_TEST_KILLS_RECORD names, as JSON, beside what other transports have left there."""

import contextlib
import dataclasses
import json
import os
import pathlib
import random
import statistics
import subprocess
import sys
import sysconfig
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest

import cowfs
from tests.mount.crash_load import BLOCK, BLOCKS, block_version, file_content, fio_words
from tools import demo
from tools.scratch import CommandFailed, Mount, Pool, mount_options, run, wait_until

ROOT = pathlib.Path(__file__).parents[2]
# The file system is the same behind each transport: one of them has all the repetitions.
REPETITIONS = {"io_uring": 20, "device": 4, "nopump": 4}
REPETITIONS_LONG = int(os.environ.get("COWFS_TEST_KILLS", "200"))
RECORD = os.environ.get("COWFS_TEST_KILLS_RECORD")
KINDS = {"file", "snapshot", "row", "blocks", "churn", "fio"}
# fsck reads all data each time: a pool that lives through all kills would take it longer than all else together.
REPETITIONS_PER_POOL = 4
# Each job of fio takes a second to start, which is longer than most loads are left alone: it is waited for once a pool.
REPETITIONS_PER_FIO = REPETITIONS_PER_POOL
SNAPSHOTS_VERIFIED = 5
SEED = int(os.environ.get("COWFS_TEST_SEED", "1"))


def verify_fio(directory: pathlib.Path, number: int) -> None:
    run(*fio_words(directory, number), "--verify_only", "--do_verify=1")


def verify(mount: Mount, records: list[dict[str, object]]) -> dict[str, int]:
    """Holds the mounted state against the log; returns how much of each kind was looked at."""
    root = mount.directory
    counted = dict.fromkeys(KINDS, 0)
    going = {record["name"] for record in records if record["kind"] in ("going", "going snapshot")}
    versions = [0] * BLOCKS
    rows: dict[object, int] = {}
    snapshots = [record for record in records if record["kind"] == "snapshot"]
    durable = [int(str(record["number"])) for record in snapshots if record["durable"]]
    present = set(os.listdir(root / ".cowfs" / "snapshot"))
    for record in records:
        match record["kind"]:
            case "file" if record["name"] not in going:
                path = root / str(record["name"])
                assert path.read_bytes() == file_content(str(record["content_of"])), path
                counted["file"] += 1
            case "blocks":
                versions = [int(number) for number in record["versions"]]  # type: ignore[attr-defined]
                counted["blocks"] += 1
            case "row":
                rows[record["prefix"]] = int(str(record["number"])) + 1
                counted["row"] += 1
            case "churn":
                assert (root / str(record["name"])).is_dir()
                counted["churn"] += 1
            case "fio":
                verify_fio(root / str(record["name"]), int(str(record["number"])))
                counted["fio"] += 1
    for record in snapshots:
        # A durable snapshot makes durable what came before it, earlier snapshots that did not wait included.
        must_be_there = bool(durable) and int(str(record["number"])) <= max(durable)
        if record["name"] in going or (str(record["name"]) not in present and not must_be_there):
            continue
        view = mount.snapshot_directory(str(record["name"]))
        (counter,) = view.glob(f"{str(record['name']).split('-')[0]}-counter")
        assert counter.read_text() == f"{record['number']:06}" * 1000, record
        counted["snapshot"] += 1
    with open(root / "blocks", "rb") as file:
        for number, version in enumerate(versions):
            assert block_version(number, file.read(BLOCK) or bytes(BLOCK)) >= version, f"block {number} is too old"
    answer = run(
        "sqlite3", root / "data.db", "pragma integrity_check; select prefix, count(*) from entry group by prefix"
    )
    lines = answer.stdout.splitlines()
    assert lines[0] == "ok"
    present_rows = dict(line.split("|") for line in lines[1:])
    for prefix, count in rows.items():
        assert int(present_rows.get(str(prefix), 0)) >= count
    return counted


Records = list[dict[str, Any]]


def read_log(log: pathlib.Path) -> Records:
    """The kill may have cut the last line, which then was not acknowledged."""
    return [json.loads(line) for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]


def make_archive(path: pathlib.Path) -> None:
    """Real sources: some packages of the standard library, a few hundred files."""
    library = pathlib.Path(sysconfig.get_path("stdlib"))
    with tarfile.open(path, "w:gz") as archive:
        for package in ("email", "encodings", "importlib", "json", "xml"):
            for file in sorted((library / package).rglob("*.py")):
                archive.add(file, file.relative_to(library))


def files_below(directory: pathlib.Path) -> demo.Manifest:
    found = demo.manifest(directory, demo.Step(demo.Report(is_terminal=False)))
    # The time of a directory depends on the order of unpacking.
    return {name: entry for name, entry in found.items() if not (directory / name).is_dir()}


def verify_demo(mount: Mount, records: Records, unpacked: demo.Manifest, scratch: pathlib.Path) -> dict[str, int]:
    """The same for the demonstration's load, where `unpacked` is what its archive holds."""
    root = mount.directory
    trees = [record for record in records if record["kind"] == "tree"]
    for record in trees:
        demo.compare(unpacked, files_below(root / record["name"]), record["name"])

    commits = [record for record in records if record["kind"] == "commit"]
    if commits:
        repository = root / commits[-1]["name"]
        assert demo.git(repository, "fsck", "--full", "--strict", "--no-dangling", "--no-progress") == ""
        demo.git(repository, "merge-base", "--is-ancestor", commits[-1]["id"], "HEAD")
        assert int(demo.git(repository, "rev-list", "--count", "HEAD")) >= len(commits)

    taken = [record for record in records if record["kind"] == "taken"]
    durable_count = max((record["number"] + 1 for record in taken if record["is_durable"]), default=0)
    present = set(os.listdir(root / ".cowfs" / "snapshot"))
    missing = [record["name"] for record in taken[:durable_count] if record["name"] not in present]
    assert not missing, f"{len(missing)} of {durable_count} durable snapshots are missing, the first is {missing[0]}"
    there = [record for record in taken if record["name"] in present]
    chosen = there[:: max(1, len(there) // SNAPSHOTS_VERIFIED)] + there[-1:]
    for record in chosen:
        view = mount.snapshot_directory(record["name"]) / record["name"].rpartition("-")[0]
        assert (view / "counter").read_bytes() == demo.counter_content(record["number"]), record
        demo.verify_database(view, scratch, record["rows_before"], record["rows_after"], record["name"])
    if durable_count:
        last = taken[durable_count - 1]
        files = root / last["name"].rpartition("-")[0]
        demo.verify_database(files, scratch, last["rows_before"], sys.maxsize, "after the kill")
    return {"tree": len(trees), "commit": len(commits), "taken": durable_count, "view": len(chosen)}


@pytest.mark.timeout(600)
def test_killed_under_load(transport: str, new_pool: Callable[..., Pool], tmp_path: pathlib.Path) -> None:
    """Two loads at the same time, that of this test and the demonstration's."""
    kill_under_load(REPETITIONS[transport], new_pool, tmp_path)


@pytest.mark.long
@pytest.mark.timeout(4 * 3600)
def test_killed_under_load_for_long(transport: str, new_pool: Callable[..., Pool], tmp_path: pathlib.Path) -> None:
    seen = kill_under_load(REPETITIONS_LONG, new_pool, tmp_path)
    print(json.dumps({transport: seen.summary()}), flush=True)
    if RECORD is not None:
        path = pathlib.Path(RECORD)
        record = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(record | {transport: seen.summary()}, indent=2) + "\n")


@dataclasses.dataclass
class Seen:
    """What a row of kills showed."""

    verified: Counter[str] = dataclasses.field(default_factory=Counter)
    """Of each kind of what had been acknowledged as durable; `view` are snapshots whose content was read."""
    journal_bytes: list[int] = dataclasses.field(default_factory=list)
    """In use just before each kill."""
    mount_s: list[float] = dataclasses.field(default_factory=list)
    """From the call of mount.cowfs after each kill to its end: some of it is the start of Python."""

    def summary(self) -> dict[str, object]:
        def spread(values: Sequence[float]) -> dict[str, float]:
            return {"median": statistics.median(values), "max": max(values)}

        return {
            "seed": SEED,
            "kills": len(self.mount_s),
            "mount_s": spread(self.mount_s),
            "journal_bytes": spread(self.journal_bytes),
            "verified": dict(self.verified),
        }


def kill_under_load(repetitions: int, new_pool: Callable[..., Pool], tmp_path: pathlib.Path) -> Seen:
    randomness = random.Random(SEED)
    archive = tmp_path / "sources.tar.gz"
    make_archive(archive)
    demo.unpack([archive], tmp_path / "unpacked", demo.Step(demo.Report(is_terminal=False)))
    unpacked = files_below(tmp_path / "unpacked")
    assert len(unpacked) >= 150
    logs = tmp_path / "log", tmp_path / "demo log"
    seen = Seen()
    total = seen.verified

    def ends() -> list[Records]:
        return [[record for record in read_log(log) if record["kind"] == "end"] for log in logs]

    def is_under_way() -> bool:
        return {record["kind"] for record in read_log(logs[0])} >= awaited

    for repetition in range(repetitions):
        awaited = KINDS if repetition % REPETITIONS_PER_FIO == 0 else KINDS - {"fio"}
        if repetition % REPETITIONS_PER_POOL == 0:
            pool = new_pool(f"pool-{repetition}", size_bytes=4 << 30).make()
            directory = pool.folder / f"mount point {repetition}"
            directory.mkdir()
        mount = pool.mount(directory=directory)
        commands: list[tuple[object, ...]] = [
            ("tests.mount.crash_demo_load", directory, logs[1], f"r{repetition}", archive),
            ("tests.mount.crash_load", directory, logs[0], f"r{repetition}"),
        ]
        # The demonstration's load has a head start, mostly a short one: that it comes far is rarer than that it is
        # killed while it unpacks or adds to its repository.
        delays_s = [0.2 + 2 * randomness.random() ** 2, 0.5 * randomness.random()]
        for log in logs:
            log.write_text("")
        loads: list[subprocess.Popen[bytes]] = []
        try:
            for words, delay_s in zip(commands, delays_s, strict=True):
                loads.append(subprocess.Popen([sys.executable, "-m", *map(str, words)], cwd=ROOT))
                time.sleep(delay_s)
            wait_until(is_under_way, "each work of the load has acknowledged something")
            time.sleep(0.3 * randomness.random())
            assert ends() == [[], []], "a work ended before the kill"
            with cowfs.connect(str(directory)) as client:
                journal_bytes = client.status()["statistics"]["journal_used_bytes"]
            mount.kill_daemon()
            seen.journal_bytes.append(journal_bytes)
            for load in loads:
                assert load.wait(timeout=30) == 0, "the load ends by itself when the mount dies"
        finally:
            for load in loads:
                load.kill()
                load.wait()
        assert [len(some) for some in ends()] == [6, 3], f"not every work noticed the kill: {ends()}"
        records, demo_records = (read_log(log) for log in logs)
        pool.check()
        started = time.monotonic()
        mount = pool.mount(directory=directory)
        seen.mount_s.append(round(time.monotonic() - started, 3))
        counted = verify(mount, records)
        idle = [kind for kind in awaited if not counted[kind]]
        assert not idle, f"the load got nowhere in repetition {repetition} (seed {SEED}): {counted}"
        total.update(counted)
        total.update(verify_demo(mount, demo_records, unpacked, tmp_path / "scratch"))
        run("rm", "-r", directory / f"r{repetition}-churn")
        mount.unmount()
        if repetition % REPETITIONS_PER_POOL == REPETITIONS_PER_POOL - 1:
            pool.close()
        print(f"{repetition + 1} kills, {dict(total)}", flush=True)
    # A kill may come before a tree or a commit is complete, but not each time.
    # Without the pump the load is slower, and may come to neither.
    has_time = repetitions >= 20 and "nopump" not in mount_options
    least = {"tree": 1, "commit": 1, "taken": 100} if has_time else {"taken": 1}
    assert all(total[kind] >= count for kind, count in least.items()), f"the load got nowhere (seed {SEED}): {total}"
    return seen


def test_fio_notices_what_is_not_there(tmp_path: pathlib.Path) -> None:
    """On a directory of the host: what the verification above stands on."""
    for number in range(2):
        run(*fio_words(tmp_path, number))
        verify_fio(tmp_path, number)
    with open(tmp_path / "0", "r+b") as file:
        file.seek(500_000)
        file.write(b"not this")
    os.truncate(tmp_path / "1", 1 << 19)
    for number in range(2):
        with pytest.raises(CommandFailed):
            verify_fio(tmp_path, number)


def test_unlinked_files_give_their_space_back_after_a_crash(pool: Pool) -> None:
    mount = pool.mount()
    run("cowfs", "sync", mount.directory)
    before = os.statvfs(mount.directory)
    descriptor = os.open(mount.directory / "file", os.O_CREAT | os.O_RDWR)
    try:
        for _ in range(50):
            os.write(descriptor, os.urandom(1 << 20))
        (mount.directory / "file").unlink()
        os.fsync(descriptor)
        mount.kill_daemon()
    finally:
        with contextlib.suppress(OSError):  # nobody answers any more
            os.close(descriptor)
    again = pool.mount()
    assert os.listdir(again.directory) == []
    again.unmount()  # which writes a checkpoint, and frees what waited for one
    after = os.statvfs(pool.mount().directory)
    assert (before.f_bfree - after.f_bfree) * after.f_frsize < 5 << 20


def test_killed_right_after_fsync(pool: Pool) -> None:
    for number in range(3):
        mount = pool.mount()
        content = os.urandom(3_000_000)
        with open(mount.directory / f"file-{number}", "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        mount.kill_daemon()
        again = pool.mount()
        assert (again.directory / f"file-{number}").read_bytes() == content
        again.unmount()
