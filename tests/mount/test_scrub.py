"""Rot on a mount: what a user sees of it, and scrub from start to end."""

import errno
import json
import pathlib
import random
from collections.abc import Callable

import pytest

from cowfs.daemon import log_path_of
from tools.scratch import MIB, Mount, Pool, run, run_json, wait_until

BLOCK = 4096
NODE_MAGIC = b"BTND"


@pytest.fixture
def rotten(new_pool: Callable[..., Pool]) -> Pool:
    """A pool whose damage is its point: it need not be clean at the end."""
    pool = new_pool(size_bytes=64 * MIB).make()
    pool.is_sound = False
    return pool


def flip(pool: Pool, block: int, draw: random.Random) -> None:
    with open(pool.path, "r+b") as file:
        file.seek(block * BLOCK)
        content = bytearray(file.read(BLOCK))
        content[draw.randrange(BLOCK)] ^= 1 << draw.randrange(8)
        file.seek(block * BLOCK)
        file.write(content)


def find_block(pool: Pool, content: bytes) -> int:
    offset = pool.path.read_bytes().find(content)
    assert offset > 0 and offset % BLOCK == 0
    return offset // BLOCK


def log_of(mount: Mount) -> str:
    return pathlib.Path(log_path_of(str(mount.directory))).read_text()


def marker(name: str) -> bytes:
    return (name.encode() + b" ").ljust(BLOCK, b".")


def test_damaged_data_is_named(rotten: Pool) -> None:
    mount = rotten.mount()
    (mount.directory / "folder").mkdir()
    path = mount.directory / "folder" / "file with a bad block"
    path.write_bytes(marker("good") * 2 + marker("bad") + marker("good"))
    (mount.directory / "other").write_bytes(marker("other"))
    for name in ("s1", "s2"):
        run("cowfs", "snapshot", f"{mount.directory}@{name}")
    path.unlink()
    run("cowfs", "snapshot", f"{mount.directory}@s3")
    run("cowfs", "clone", f"{mount.directory}@s2", "clone")
    mount.unmount()
    block = find_block(rotten, marker("bad"))
    flip(rotten, block, random.Random(1))

    mount = rotten.mount()
    bad = mount.snapshot_directory("s1") / "folder" / path.name
    with pytest.raises(OSError) as caught:
        bad.read_bytes()
    assert caught.value.errno == errno.EIO
    assert (mount.directory / "other").read_bytes() == marker("other")
    (place,) = run_json("cowfs", "status", mount.directory)["damage"]["places"]
    assert place["kind"] == "read" and place["paths"] == [f"/folder/{path.name}"] and place["snapshot"] == "s1"
    assert place["offset_bytes"] == 2 * BLOCK
    assert f"main@s1:/folder/{path.name}" in log_of(mount)
    assert f"main@s1:/folder/{path.name}" in run("cowfs", "status", mount.directory).stdout

    result = run("cowfs", "scrub", mount.directory, "--rate", "max", check=False)
    assert result.returncode == 9 and f"/folder/{path.name}" in result.stdout
    state = json.loads(run("cowfs", "scrub", "--status", mount.directory, "--json", check=False).stdout)
    assert state["state"] == "finished" and state["damaged"] == 1 and state["repaired"] == 0
    (place,) = state["places"]
    assert place["address"] == block and place["kind"] == "data" and place["paths"] == [f"/folder/{path.name}"]
    assert place["in_volumes"] == ["clone"] and place["in_snapshots"] == ["main@s1", "main@s2"]


def test_metadata_heals(rotten: Pool) -> None:
    mount = rotten.mount()
    for number in range(400):
        (mount.directory / f"file {number}").write_bytes(b"content" * number)
    mount.unmount()
    image = rotten.path.read_bytes()
    pairs: dict[bytes, list[int]] = {}
    for offset in range(0, len(image), BLOCK):
        if image[offset : offset + 4] == NODE_MAGIC:
            pairs.setdefault(image[offset : offset + BLOCK], []).append(offset // BLOCK)
    draw = random.Random(2)
    flipped = [draw.choice(pair) for pair in pairs.values() if len(pair) == 2]
    assert len(flipped) > 20
    for block in flipped:
        flip(rotten, block, draw)

    mount = rotten.mount()
    for number in range(0, 400, 7):
        assert (mount.directory / f"file {number}").read_bytes() == b"content" * number
    # Some were written again by reading; some of the blocks are not in use any more.
    state = run_json("cowfs", "scrub", mount.directory)
    status = run_json("cowfs", "status", mount.directory)
    assert state["damaged"] == state["repaired"] and status["statistics"]["repairs"] > 10
    assert {place["kind"] for place in status["damage"]["places"]} == {"node copy"}
    assert run_json("cowfs", "scrub", mount.directory)["damaged"] == 0
    mount.unmount()
    rotten.is_sound = True


def test_scrub_is_paused_and_outlives_the_mount(pool: Pool) -> None:
    mount = pool.mount()
    (mount.directory / "large").write_bytes(bytes(range(256)) * 16 * 1024)
    run("cowfs", "sync", mount.directory)
    with mount.client() as client:
        assert client.scrub()["state"] == "never"
        assert client.scrub("start", 4 << 20)["state"] == "running"
        wait_until(lambda: client.scrub()["bytes"] > 0, "a first step is done")
        paused = client.scrub("pause")
        assert paused["state"] == "paused" and 0 < paused["bytes"] < paused["total_bytes"]
        assert client.scrub("start", 4 << 20)["bytes"] >= paused["bytes"]
        before = client.scrub()
        assert before["state"] == "running" and before["started_ns"] == paused["started_ns"]
    mount.unmount()

    mount = pool.mount()
    with mount.client() as client:
        wait_until(lambda: client.scrub()["bytes"] > before["bytes"], "it goes on by itself")
        assert client.scrub()["started_ns"] == paused["started_ns"]
        client.scrub("pause")
        client.scrub("start", 0)
        wait_until(lambda: client.scrub()["state"] == "finished", "it comes to its end")
        # Counted once each, but for inner nodes that several steps go through.
        state = client.scrub()
        assert state["damaged"] == 0 and 4 * MIB < state["bytes"] < 6 * MIB
    assert run("cowfs", "scrub", mount.directory).stdout.startswith("scrub finished: 100%")
    run("cowfs", "scrub", "-b", "--rate", "1M", mount.directory)
    assert run_json("cowfs", "scrub", "--cancel", mount.directory)["state"] == "cancelled"
    assert run("cowfs", "scrub", "--pause", mount.directory, check=False).returncode == 3
