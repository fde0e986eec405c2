"""Large writes to compressed volumes on a mount: several programs at a time, exact snapshots between them, and other
requests of the same CPU meanwhile. The pool fixture has fsck.cowfs look at the pool of each test at its end."""

import concurrent.futures
import mmap
import os
import pathlib
import random
import threading
import time

import pytest

import cowfs
from tools.scratch import Pool, run

KIB = 1 << 10
MIB = 1 << 20
PIECE = 64 * KIB
WRITERS = 3
GENERATIONS = 25
SNAPSHOTS = 30
TIMEOUT_S = 60
# Requests answered while one write is: some may slip in before it reaches the daemon, and after it has left.
WITHIN = 20
WAYS = ["lz4", "zstd:1"]


def content(writer: int, generation: int) -> bytes:
    """A MiB that compresses to less than half; each piece of it tells whose and which it is."""
    generator = random.Random(writer)
    stamp = f"{writer} {generation} ".encode()
    words = [bytes(generator.choices(b"abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(200)]
    filling = b" ".join(generator.choices(words, k=PIECE // 7))
    return (stamp + filling)[:PIECE].ljust(PIECE, b".") * (MIB // PIECE)


def generation_of(writer: int, data: bytes) -> int:
    found = data.split(b" ", 2)
    assert int(found[0]) == writer
    return int(found[1])


@pytest.mark.parametrize("direct", [False, True], ids=["buffered", "direct"])
@pytest.mark.parametrize("how", WAYS)
def test_snapshots_between_large_writes(pool: Pool, how: str, direct: bool) -> None:
    """Writers that overwrite their files all the time, and snapshots meanwhile: each has every write that was answered
    before it, and none that began after it."""
    root = pool.mount("-o", f"compress={how}").directory
    begun, answered = [0] * WRITERS, [0] * WRITERS
    ended = threading.Event()
    seen: list[tuple[str, list[int], list[int]]] = []

    def write(writer: int) -> None:
        memory = mmap.mmap(-1, MIB)  # aligned, as O_DIRECT wants it
        file = os.open(root / f"file{writer}", os.O_CREAT | os.O_RDWR | (os.O_DIRECT if direct else 0))
        generation = 0
        while generation < GENERATIONS or not ended.is_set():
            generation += 1
            memory[:] = content(writer, generation)
            begun[writer] = generation
            assert os.pwrite(file, memory, 0) == MIB
            answered[writer] = generation
        os.close(file)

    def take_snapshots() -> None:
        with cowfs.connect(str(root)) as client:
            for _ in range(SNAPSHOTS):
                before = list(answered)
                name = client.snapshot(sync=False)["name"]
                seen.append((name, before, list(begun)))
                time.sleep(0.01)
        ended.set()

    with concurrent.futures.ThreadPoolExecutor(WRITERS + 1) as threads:
        work = [threads.submit(take_snapshots), *(threads.submit(write, writer) for writer in range(WRITERS))]
        try:
            for done in work:
                done.result(TIMEOUT_S)
        finally:
            ended.set()
    for name, before, after in seen:
        for writer in range(WRITERS):
            path = root / ".cowfs" / "snapshot" / name / f"file{writer}"
            data = path.read_bytes() if path.exists() else b""
            assert len(data) == MIB or before[writer] == 0
            for at in range(0, len(data), PIECE):
                generation = generation_of(writer, data[at : at + PIECE])
                assert before[writer] <= generation <= after[writer]
                assert data[at : at + PIECE] == content(writer, generation)[:PIECE]
    for writer in range(WRITERS):
        path = root / f"file{writer}"
        assert path.read_bytes() == content(writer, answered[writer])
        assert path.stat().st_blocks * 512 < MIB // 2


@pytest.mark.parametrize("how", WAYS)
def test_programs_that_write_at_the_same_time(pool: Pool, how: str) -> None:
    root = pool.mount("-o", f"compress={how}").directory
    sources = [root / f"source{number}" for number in range(4)]
    for number, source in enumerate(sources):
        source.write_bytes(b"".join(content(number, generation) for generation in range(8)))

    def copy(number: int) -> None:
        for turn in range(3):
            run("dd", f"if={sources[number]}", f"of={root}/copy{number}", "bs=1M", f"seek={turn * 8}", "conv=notrunc")

    with concurrent.futures.ThreadPoolExecutor(len(sources)) as threads:
        list(threads.map(copy, range(len(sources)), timeout=TIMEOUT_S))
    for number, source in enumerate(sources):
        assert (root / f"copy{number}").read_bytes() == source.read_bytes() * 3


def test_the_same_cpu_goes_on_meanwhile(pool: Pool, transport: str) -> None:
    """Of the requests that come from the CPU of a long write some are answered before it."""
    if transport == "nopump":
        pytest.skip("the event loop of Python answers one request at a time")
    root = pool.mount("-o", "compress=zstd:19").directory
    cpu = min(os.sched_getaffinity(0))
    data = content(1, 1)
    ended = threading.Event()
    intervals: list[tuple[float, float]] = []

    def write() -> None:
        os.sched_setaffinity(0, {cpu})
        with open(root / "file", "wb", buffering=0) as file:
            while not ended.is_set():
                began = time.monotonic()
                os.pwrite(file.fileno(), data, 0)
                intervals.append((began, time.monotonic()))

    def ask() -> int:
        """The most lookups that were within one write."""
        os.sched_setaffinity(0, {cpu})
        lookups: list[tuple[float, float]] = []
        most, checked = 0, 0
        deadline = time.monotonic() + TIMEOUT_S
        while most < WITHIN and time.monotonic() < deadline:
            first = time.monotonic()
            assert not pathlib.Path(root, f"missing{len(lookups)}").exists()
            lookups.append((first, time.monotonic()))
            for began, end in intervals[checked:]:
                checked += 1
                most = max(most, sum(began < first and last < end for first, last in lookups[-10_000:]))
        ended.set()
        return most

    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        written, asked = threads.submit(write), threads.submit(ask)
        try:
            assert asked.result(TIMEOUT_S * 2) >= WITHIN, "lookups wait for a write of the same CPU"
        finally:
            ended.set()
        written.result(TIMEOUT_S)
    assert (root / "file").read_bytes() == data
