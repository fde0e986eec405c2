"""Power failures at file-system level, by the C enumerator. What it says of a failure holds the command and the seed
that show it again.

Images that were tried are told apart by their content: what a test counts are different ones."""

import struct
from pathlib import Path

import pytest

from btree import Storage, Store
from cowfs._native import ROOT_INODE, FileSystem
from tests.crash import enumerator

JOBS = 2
SEEDS = 90
STATES_MIN = 20_000
POOL_SIZE_BYTES = 16 << 20
LOG_MAGIC = 0x6A736677736872
LOG_FLAG_FLUSH = 1


@pytest.mark.timeout(300)
def test_power_failures() -> None:
    """All sequences of one and two operations, some of three, and drawn workloads."""
    jobs = [
        *enumerator.bounded(1, JOBS),
        *enumerator.bounded(2, JOBS),
        *enumerator.bounded(3, JOBS, every=200),
        *enumerator.drawn(1, SEEDS, JOBS),
    ]
    totals = enumerator.run_all(jobs, JOBS, timeout_seconds=280)
    print(dict(totals))
    assert totals["images"] >= STATES_MIN
    assert totals["recoveries_cut"] > 0


@pytest.mark.timeout(120)
def test_flipped_bits() -> None:
    """The checksums' part: what is read after a bit has flipped is right, or an error."""
    totals = enumerator.run_all(enumerator.drawn(1, 400, JOBS, "rot"), JOBS, timeout_seconds=110)
    assert totals["flips"] > 5000


def test_a_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    program = enumerator.build()
    logs = [tmp_path / "first", tmp_path / "second"]
    for log in logs:
        enumerator.run(program, ["random", "--seed", 3, "--states", 1, "--log", log])
    assert logs[0].read_bytes() == logs[1].read_bytes()


def replay(log: bytes) -> tuple[bytearray, int]:
    """What the medium holds when all of a log of dm-log-writes was replayed, and how many flushes it has."""
    magic, version, entries, sector_size = struct.unpack_from("<QQQI", log)
    assert (magic, version) == (LOG_MAGIC, 1)
    image, flushes, at = bytearray(POOL_SIZE_BYTES), 0, sector_size
    for _ in range(entries):
        sector, sectors, flags, data_length = struct.unpack_from("<QQQQ", log, at)
        assert flags in (0, LOG_FLAG_FLUSH)
        assert data_length == 0
        at += sector_size
        image[sector * sector_size : (sector + sectors) * sector_size] = log[at : at + sectors * sector_size]
        at += sectors * sector_size
        flushes += flags == LOG_FLAG_FLUSH
    assert at == len(log)
    return image, flushes


def test_log_for_replayers(tmp_path: Path) -> None:
    """The log begins with mkfs, so that it can be replayed to an empty device of the pool's size."""
    log = tmp_path / "log"
    enumerator.run(enumerator.build(), ["random", "--seed", 3, "--states", 1, "--log", log])
    image, flushes = replay(log.read_bytes())
    assert flushes > 5
    storage = Storage.open_memory(len(image))
    storage.write(0, image)
    with Store(storage, background=False) as store:
        volume_id = store.volume_find("main").id
        file_system = FileSystem(store, volume_id)
        assert store.check(read_data=True) == []
        assert file_system.check(volume_id) == []
        assert file_system.readdir(ROOT_INODE, 0, 100, False)
    storage.close()
