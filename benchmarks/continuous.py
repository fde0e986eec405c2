"""Snapshots taken and destroyed at the same rate for a long time: how many per second, and whether space and memory
stay flat.

    python -m benchmarks.continuous --seconds 600 --writes 0,1,16

One client takes durable snapshots with random 4 KiB writes between them, a second destroys the oldest as soon as
more than --keep are there. Once a second the pool's space, the deletion queue and the daemon's memory are noted. With
--beside N, N snapshots are there all the time."""

import argparse
import json
import os
import pathlib
import random
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from typing import Any

import cowfs
from tools.scratch import MIB, Mount, Pool

BLOCK_BYTES = 4096
FILE_BYTES = 64 * MIB
BACKLOG_MAX = 2000


class Destroyer(threading.Thread):
    """Destroys snapshots in the order in which they were taken, until told to end."""

    def __init__(self, mount: Mount, keep: int) -> None:
        super().__init__(name="destroyer")
        self._client = cowfs.connect(str(mount.directory))
        self._keep = keep
        self.taken = 0
        self.destroyed = 0
        self.done = False
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            while not self.done:
                if self.taken - self.destroyed <= self._keep:
                    time.sleep(0.0002)
                    continue
                self._client.destroy(f"s{self.destroyed}")
                self.destroyed += 1
        except BaseException as failure:
            self.failure = failure
        finally:
            self._client.close()


def sample(client: cowfs.Client, pid: int) -> dict[str, float]:
    status = client.status()["statistics"]
    resident = int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return {"used_mib": status["used_blocks"] * BLOCK_BYTES / MIB, "memory_mib": resident / MIB,
            "queue": status["deletion_queue_length"]}


def measure(mount: Mount, writes: int, seconds: float, keep: int) -> dict[str, Any]:
    chance = random.Random(1)
    content = chance.randbytes(BLOCK_BYTES)
    path = mount.directory / "file"
    client = mount.client()
    pid = mount.daemon_pid()
    latencies_s: list[float] = []
    samples: list[dict[str, float]] = []
    destroyer = Destroyer(mount, keep)
    destroyer.start()
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC)
    try:
        for offset in range(0, FILE_BYTES, MIB):
            os.pwrite(descriptor, chance.randbytes(MIB), offset)
        started = last = time.perf_counter()
        while last - started < seconds and destroyer.failure is None:
            for _ in range(writes):
                os.pwrite(descriptor, content, chance.randrange(FILE_BYTES // BLOCK_BYTES) * BLOCK_BYTES)
            before = time.perf_counter()
            client.snapshot(f"s{destroyer.taken}")
            last = time.perf_counter()
            latencies_s.append(last - before)
            destroyer.taken += 1
            while destroyer.taken - destroyer.destroyed > keep + BACKLOG_MAX and destroyer.failure is None:
                time.sleep(0.001)  # the rate is that of both
            if len(samples) < last - started:
                samples.append(sample(client, pid))
        elapsed_s = time.perf_counter() - started
    finally:
        destroyer.done = True
        destroyer.join()
        os.close(descriptor)
    if destroyer.failure is not None:
        raise destroyer.failure
    return summarize(writes, elapsed_s, latencies_s, destroyer.destroyed, samples)


def summarize(writes: int, elapsed_s: float, latencies_s: Sequence[float], destroyed: int,
              samples: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Growth compares the last third of the time with the second: the first is for warming up."""
    third = max(1, len(samples) // 3)
    growth = {}
    for name in ("used_mib", "memory_mib", "queue"):
        values = [each[name] for each in samples]
        growth[name] = {"second_third": round(statistics.fmean(values[third : 2 * third] or values), 1),
                        "last_third": round(statistics.fmean(values[-third:]), 1), "max": round(max(values), 1)}
    ordered = sorted(latencies_s)
    return {"writes_between": writes, "seconds": round(elapsed_s, 1), "taken_per_second": round(
        len(latencies_s) / elapsed_s), "destroyed_per_second": round(destroyed / elapsed_s),
        "p50_us": round(ordered[len(ordered) // 2] * 1e6), "p99_us": round(ordered[len(ordered) * 99 // 100] * 1e6),
        "growth": growth}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.continuous", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600, help="for each number of writes (600)")
    parser.add_argument("--writes", default="0,1,16", help="random 4 KiB writes before each snapshot (0,1,16)")
    parser.add_argument("--keep", type=int, default=1000, help="so many of the newest stay (1000)")
    parser.add_argument("--beside", type=int, default=0, help="so many others are there all the time")
    parser.add_argument("--size-mib", type=int, default=4096, help="of the pool (4096)")
    parser.add_argument("--folder", default="/dev/shm", help="where the pool's file lies (/dev/shm)")
    options = parser.parse_args(arguments)
    for writes in map(int, options.writes.split(",")):
        folder = pathlib.Path(tempfile.mkdtemp(prefix="cowfs-continuous-", dir=options.folder))
        pool = Pool(folder, size_bytes=options.size_mib * MIB)
        try:
            mount = pool.make().mount()
            beside = mount.client()
            for number in range(options.beside):
                beside.snapshot(f"beside-{number}", sync=False)
            print(json.dumps(measure(mount, writes, options.seconds, options.keep)), flush=True)
        finally:
            pool.close()
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
