"""kill -9 of the daemon under load: everything acknowledged as durable is there after the next mount, 20 times."""

import contextlib
import json
import os
import pathlib
import random
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from tests.mount.crash_load import BLOCK, BLOCKS, block_version, file_content
from tools.scratch import Mount, Pool, run

REPETITIONS = 20
SEED = int(os.environ.get("COWFS_TEST_SEED", "1"))


def verify(mount: Mount, records: list[dict[str, object]]) -> dict[str, int]:
    """Holds the mounted state against the log; returns how much of each kind was looked at."""
    root = mount.directory
    counted: dict[str, int] = {"file": 0, "snapshot": 0, "row": 0, "blocks": 0}
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


@pytest.mark.timeout(600)
def test_killed_under_load(new_pool: Callable[..., Pool], tmp_path: pathlib.Path) -> None:
    pool = new_pool(size_bytes=2 << 30).make()
    randomness = random.Random(SEED)
    directory = pool.folder / "mount point"
    directory.mkdir()
    log = tmp_path / "log"
    for repetition in range(REPETITIONS):
        mount = pool.mount(directory=directory)
        log.write_text("")
        load = subprocess.Popen(
            [sys.executable, "-m", "tests.mount.crash_load", directory, log, f"r{repetition}"],
            cwd=pathlib.Path(__file__).parents[2],
        )
        try:
            time.sleep(0.7 + randomness.random())
            mount.kill_daemon()
            assert load.wait(timeout=30) == 0, "the load ends by itself when the mount dies"
        finally:
            load.kill()
            load.wait()
        # The kill may have cut the last line, which then was not acknowledged.
        records = [json.loads(line) for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]
        assert sum(record["kind"] == "end" for record in records) == 5
        pool.check()
        mount = pool.mount(directory=directory)
        counted = verify(mount, records)
        assert all(counted.values()), f"the load got nowhere in repetition {repetition} (seed {SEED}): {counted}"
        run("rm", "-r", directory / f"r{repetition}-churn")
        mount.unmount()


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
