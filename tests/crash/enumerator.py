"""Builds and runs the crash enumerator, C that goes through power failures in-process (native/enumerator.c).

    python -m tests.crash.enumerator --states 2000000 --seeds 1000 --jobs 2 --summary build/crash.json

is the long form: all sequences of one and two operations and a quarter of those of three (with --every 1 all), then
drawn workloads until so many different images were tried, one after another in so many processes. It ends with 1 and
the enumerator's words when a promise was broken."""

import argparse
import array
import collections
import concurrent.futures
import hashlib
import itertools
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = ROOT / "build" / "crash"
FLAGS = [
    *("-std=gnu11", "-O2", "-g1", "-pthread", "-fvisibility=hidden", "-fno-strict-overflow", "-DCOWFS_MUTATIONS"),
    *("-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Wstrict-prototypes", "-Werror"),
]
# What the code under test asks the machine for comes from the enumerator, so that a seed gives the same bytes again.
LINK_FLAGS = ["-pthread", "-Wl,--wrap=clock_gettime,--wrap=getrandom"]
LIBRARIES = ["-lxxhash", "-luring", "-llz4", "-lzstd"]
LENGTH_MAX = 3
CHOICES = 8
IMAGE_PARTS = 16
# Every image is another store with tables and buffers of its own: without these, half of the time goes into pages that
# malloc gives back to the kernel and takes again at once.
MALLOC_KEEPS = "glibc.malloc.mmap_threshold=1073741824:glibc.malloc.trim_threshold=4294967296"

Totals = collections.Counter[str]


def sources() -> list[pathlib.Path]:
    folders = [ROOT / "btree/native", ROOT / "cowfs/native", ROOT / "tests/crash/native"]
    return sorted(path for folder in folders for path in folder.glob("*.c") if not path.name.startswith("binding"))


def build(jobs: int = os.cpu_count() or 1) -> pathlib.Path:
    """The program, compiled anew when any of its sources has changed."""
    folders = ("btree/native", "cowfs/native", "tests/crash/native")
    headers = sorted(path for folder in folders for path in (ROOT / folder).glob("*.h"))
    digest = hashlib.sha256(" ".join([*FLAGS, *LINK_FLAGS, *LIBRARIES]).encode())
    for path in [*sources(), *headers]:
        digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    target = FOLDER / digest.hexdigest()[:16] / "enumerator"
    if target.exists():
        return target
    shutil.rmtree(FOLDER, ignore_errors=True)
    target.parent.mkdir(parents=True)

    def compile_one(source: pathlib.Path) -> str:
        output = target.parent / (str(source.relative_to(ROOT)).replace("/", "_") + ".o")
        subprocess.run(["gcc", *FLAGS, f"-I{ROOT}", "-c", str(source), "-o", str(output)], check=True, timeout=110)
        return str(output)

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        objects = list(pool.map(compile_one, sources()))
    linked = target.with_suffix(".new")
    subprocess.run(["gcc", *LINK_FLAGS, *objects, *LIBRARIES, "-o", str(linked)], check=True, timeout=110)
    linked.rename(target)
    return target


class Broken(Exception):
    """A promise was broken, or the enumerator itself: the command that shows it again, and what it said."""


def run(program: pathlib.Path, arguments: Iterable[object], timeout_seconds: float | None = None) -> Totals:
    command = [str(program), *map(str, arguments)]
    environment = {**os.environ, "GLIBC_TUNABLES": MALLOC_KEEPS}
    result = subprocess.run(command, capture_output=True, text=True, timeout=timeout_seconds, env=environment)
    if result.returncode != 0:
        raise Broken(f"{' '.join(command)}\nended with {result.returncode}\n{result.stderr}")
    return collections.Counter(json.loads(result.stdout))


def count_images(files: Iterable[pathlib.Path]) -> int:
    """Different images in all of them. In parts, since a set takes ten times the memory of what it holds."""
    images = []
    for file in files:
        images.append(array.array("Q"))
        images[-1].frombytes(file.read_bytes())
    return sum(
        len({image for digests in images for image in digests if image % IMAGE_PARTS == part})
        for part in range(IMAGE_PARTS)
    )


def run_all(jobs: Iterable[list[object]], job_count: int, timeout_seconds: float | None = None) -> Totals:
    """Runs each, so many at a time; what all of them did, and the number of different images as "images"."""
    program = build()
    totals: Totals = collections.Counter()
    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor(job_count) as pool:
        files = []
        running = []
        for number, arguments in enumerate(jobs):
            files.append(pathlib.Path(folder) / str(number))
            running.append(pool.submit(run, program, [*arguments, "--hashes", files[-1]], timeout_seconds))
        for future in concurrent.futures.as_completed(running):
            totals.update(future.result())
        totals["images"] = count_images(files)
    return totals


def bounded(length: int, shards: int, *, every: int = 1) -> list[list[object]]:
    """All sequences of a length, or every so-manieth, in shards."""
    return [["bounded", "--length", length, "--from", shard, "--step", shards * every] for shard in range(shards)]


def drawn(first_seed: int, seeds: int, shards: int, mode: str = "random") -> list[list[object]]:
    return [
        [mode, "--seed", first_seed + shard, "--seeds", seeds - shard, "--step", shards, "--choices", CHOICES]
        for shard in range(shards)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description="Power failures, many of them.")
    parser.add_argument("--states", type=int, default=2_000_000, help="different images to try at least")
    parser.add_argument("--every", type=int, default=4, help="of the longest sequences every so-manieth; 1: all")
    parser.add_argument("--seeds", type=int, default=2000, help="drawn workloads in one round")
    parser.add_argument("--first-seed", type=int, default=1_000_000, help="of the first round")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--summary", type=pathlib.Path, default=FOLDER.with_suffix(".json"), help="file of the results")
    arguments = parser.parse_args()
    begun = time.monotonic()
    sum_of_all: Totals = collections.Counter()
    shards = arguments.jobs * 4
    rounds = itertools.chain(
        (bounded(length, shards) for length in range(1, LENGTH_MAX)),
        [bounded(LENGTH_MAX, shards, every=arguments.every)],
        (drawn(arguments.first_seed + n * arguments.seeds, arguments.seeds, shards) for n in itertools.count()),
    )
    try:
        for jobs in rounds:
            totals = run_all(jobs, arguments.jobs)
            # Sequences of one length and workloads of one seed share no image with those of others but the first.
            sum_of_all.update(totals)
            summary = dict(sum_of_all) | {"wall_seconds": round(time.monotonic() - begun)}
            arguments.summary.write_text(json.dumps(summary) + "\n")
            print(" ".join(map(str, jobs[0])), "…:", summary, flush=True)
            if sum_of_all["images"] >= arguments.states:
                return 0
    except Broken as error:
        print(error, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
