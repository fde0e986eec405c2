"""How long requests have to wait while the daemon writes checkpoints and frees what snapshots leave: latencies as the
caller sees them, up to the longest, and beside them the daemon's own counters of what held its locks.

    python -m benchmarks.stalls --seconds 30

One process each overwrites 4 KiB at random, writes and fsyncs, creates and unlinks; another takes snapshots and deletes
all but the newest, and asks for a checkpoint every --checkpoint-ms. On a machine that does other things too the longest
latencies are theirs; the CPU time of what held a lock (`cpu_max_ns`) is not. Runs in namespaces of its own, as root."""

import argparse
import array
import contextlib
import json
import multiprocessing
import os
import pathlib
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.sharedctypes import Synchronized
from typing import Any

import cowfs
from benchmarks.isolation import Surroundings, backing_prefix, run_isolated
from tools.scratch import MIB, Mount, Pool

BLOCK_BYTES = 4096
FILE_COUNT = 8
FILES_PER_DIRECTORY = 1000
QUANTILES = (("p50", 0.5), ("p99", 0.99), ("p99_9", 0.999), ("p99_99", 0.9999))
ENDING_TIMEOUT_S = 60

Step = Callable[[random.Random], None]


def prefill(root: pathlib.Path, size_bytes: int, file_count: int) -> None:
    content = os.urandom(MIB)
    for number in range(FILE_COUNT):
        with open(root / f"data-{number}", "wb", buffering=0) as file:
            for _ in range(size_bytes // FILE_COUNT // MIB):
                file.write(content)
    for number in range(file_count):
        directory = root / f"small-{number // FILES_PER_DIRECTORY}"
        if number % FILES_PER_DIRECTORY == 0:
            directory.mkdir()
        descriptor = os.open(directory / f"{number}", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC)
        os.write(descriptor, content[:100])
        os.close(descriptor)


def overwrites(root: pathlib.Path, size_bytes: int) -> Step:
    content = os.urandom(BLOCK_BYTES)
    blocks = size_bytes // FILE_COUNT // MIB * MIB // BLOCK_BYTES
    files = [os.open(root / f"data-{number}", os.O_WRONLY | os.O_CLOEXEC) for number in range(FILE_COUNT)]

    def step(chance: random.Random) -> None:
        os.pwrite(chance.choice(files), content, chance.randrange(blocks) * BLOCK_BYTES)

    return step


def fsyncs(root: pathlib.Path, size_bytes: int) -> Step:
    content = os.urandom(BLOCK_BYTES)
    file = os.open(root / "synced", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC)

    def step(chance: random.Random) -> None:
        os.pwrite(file, content, chance.randrange(1024) * BLOCK_BYTES)
        os.fsync(file)

    return step


def creates(root: pathlib.Path, size_bytes: int) -> Step:
    made = root / "made"
    made.mkdir(exist_ok=True)
    number = 0

    def step(chance: random.Random) -> None:
        nonlocal number
        os.close(os.open(made / f"{number}", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC))
        number += 1

    return step


def unlinks(root: pathlib.Path, size_bytes: int) -> Step:
    """Of the small files, as long as there are any."""
    paths = iter([path for directory in root.glob("small-*") for path in directory.iterdir()])

    def step(chance: random.Random) -> None:
        os.unlink(next(paths))

    return step


KINDS: dict[str, Callable[[pathlib.Path, int], Step]] = {
    "overwrite 4 KiB": overwrites, "write and fsync": fsyncs, "create": creates, "unlink": unlinks}  # fmt: skip


def work(kind: str, root: pathlib.Path, size_bytes: int, ended: "Synchronized[int]", result: pathlib.Path) -> None:
    """One process: the latencies of a kind, in nanoseconds, go to a file."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    latencies_ns = array.array("Q")
    chance = random.Random(kind)
    step = KINDS[kind](root, size_bytes)
    with contextlib.suppress(StopIteration):
        while not ended.value:
            before = time.perf_counter_ns()
            step(chance)
            latencies_ns.append(time.perf_counter_ns() - before)
    with open(result, "wb") as file:
        latencies_ns.tofile(file)


def disturb(client: cowfs.Client, options: argparse.Namespace) -> tuple[list[int], int]:
    """Takes and deletes snapshots, and asks for checkpoints, until the time is over. How long each snapshot took, in
    nanoseconds, and how many checkpoints were asked for."""
    latencies_ns: list[int] = []
    taken = destroyed = asked = 0
    started = time.monotonic()
    next_checkpoint = started
    while (now := time.monotonic()) < started + options.seconds:
        if now >= next_checkpoint:
            client.destroy_many("s*", dry_run=True)  # what it would free is told after a checkpoint
            asked += 1
            next_checkpoint = now + options.checkpoint_ms / 1000
        before = time.perf_counter_ns()
        client.snapshot(f"s{taken}", sync=False)
        latencies_ns.append(time.perf_counter_ns() - before)
        taken += 1
        while taken - destroyed > options.keep:
            client.destroy(f"s{destroyed}")
            destroyed += 1
        time.sleep(1 / options.snapshots_per_second)
    return latencies_ns, asked


def summarize(latencies_ns: Sequence[int]) -> dict[str, float]:
    """Microseconds: the shares of QUANTILES, and the longest; `over_10_ms` counts."""
    ordered = sorted(latencies_ns)
    if not ordered:
        return {"count": 0}
    summary: dict[str, float] = {"count": len(ordered)}
    for name, share in QUANTILES:
        summary[f"{name}_us"] = round(ordered[min(len(ordered) - 1, int(len(ordered) * share))] / 1000, 1)
    summary["max_us"] = round(ordered[-1] / 1000, 1)
    summary["over_10_ms"] = sum(latency > 10_000_000 for latency in ordered)
    return summary


def measure(mount: Mount, folder: pathlib.Path, options: argparse.Namespace) -> dict[str, Any]:
    root, size_bytes = mount.directory, options.fill_mib * MIB
    client = mount.client()
    print(f"filling {options.fill_mib} MiB and {options.files} files", file=sys.stderr, flush=True)
    prefill(root, size_bytes, options.files)
    client.sync()
    before = client.status()
    ended = multiprocessing.Value("i", 0)
    results = {kind: folder / f"latencies-{index}" for index, kind in enumerate(KINDS)}
    processes = [multiprocessing.Process(target=work, args=(kind, root, size_bytes, ended, results[kind]))
                 for kind in KINDS]
    for process in processes:
        process.start()
    try:
        snapshots_ns, asked = disturb(client, options)
    finally:
        ended.value = 1
        for process in processes:
            process.join(ENDING_TIMEOUT_S)
    requests = {}
    for kind, path in results.items():
        latencies_ns = array.array("Q")
        latencies_ns.frombytes(path.read_bytes())
        requests[kind] = summarize(latencies_ns)
    requests["snapshot, not synced"] = summarize(snapshots_ns)
    after = client.status()
    return {"seconds": options.seconds, "requests": requests, "checkpoints_asked": asked,
            "checkpoints": after["statistics"]["checkpoints"] - before["statistics"]["checkpoints"],
            "stalls": after["stalls"], "stalls_of_filling": before["stalls"]}


def print_table(result: dict[str, Any]) -> None:
    def line(*cells: object) -> None:
        print(f"{cells[0]!s:24}" + "".join(f"{cell!s:>12}" for cell in cells[1:]), file=sys.stderr)

    line("us, as the caller sees it", "count", *(name for name, _ in QUANTILES), "max", "> 10 ms")
    for kind, summary in result["requests"].items():
        line(kind, *summary.values())
    print(f"\n{result['checkpoints']} checkpoints\n", file=sys.stderr)
    line("held in the daemon", "count", "us at most", "CPU us", "steps")
    for name, hold in result["stalls"]["holds"].items():
        line(name, hold["count"], hold["held_max_ns"] // 1000, hold["cpu_max_ns"] // 1000, hold["steps_max"])
    print(file=sys.stderr)
    line("waited in the daemon", "count", "us at most")
    for name, wait in result["stalls"]["waits"].items():
        line(name, wait["count"], wait["waited_max_ns"] // 1000)


def run(surroundings: Surroundings, options: argparse.Namespace) -> int:
    folder = (backing_prefix(surroundings.folder, pathlib.Path(options.folder)) if options.folder
              else surroundings.folder / "pool")
    scratch = surroundings.folder / "scratch"
    directory = surroundings.folder / "mount"
    for made in (folder, scratch, directory):
        made.mkdir(mode=0o700)
    pool = Pool(folder, size_bytes=options.size_mib * MIB)
    try:
        result = measure(pool.make().mount(directory=directory), scratch, options)
    finally:
        pool.close()
        shutil.rmtree(folder)
    print_table(result)
    print(json.dumps(result), flush=True)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stalls", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30, help="of measuring (30)")
    parser.add_argument("--fill-mib", type=int, default=2048, help="of data before (2048)")
    parser.add_argument("--files", type=int, default=200_000, help="small ones before (200000)")
    parser.add_argument("--checkpoint-ms", type=float, default=200, help="a checkpoint at least so often (200)")
    parser.add_argument("--snapshots-per-second", type=float, default=100, help="at most (100)")
    parser.add_argument("--keep", type=int, default=50, help="so many of the newest snapshots stay (50)")
    parser.add_argument("--size-mib", type=int, default=8192, help="of the pool (8192)")
    parser.add_argument("--folder", help="where the pool's file lies (in memory that nobody else sees)")
    options = parser.parse_args(arguments)
    folders = [pathlib.Path(options.folder)] if options.folder else []
    return run_isolated(lambda surroundings: run(surroundings, options), folders)


if __name__ == "__main__":
    sys.exit(main())
