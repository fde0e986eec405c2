"""Long fuzzing with libFuzzer: `make fuzz`, or `python -m tests.fuzz --target image --inputs 1000000 --seconds 3600`.

Builds the target with clang under AddressSanitizer and UndefinedBehaviorSanitizer, runs it until inputs or seconds are
used up, and appends a line to build/fuzz/results.txt. What fails is left in build/fuzz, and the exit status is 1. A
corpus is kept in build/fuzz between runs.
"""

import argparse
import concurrent.futures
import datetime
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

from tests.fuzz.sources import LINK_FLAGS, TARGETS, sources_of

ROOT = pathlib.Path(__file__).parents[2]
BUILD = ROOT / "build" / "fuzz"
FLAGS = ["-std=gnu11", "-O2", "-g", "-fno-omit-frame-pointer", "-pthread", "-D_FORTIFY_SOURCE=0",
         "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-sanitize=function"]
# Without the tracing of comparisons, which takes two fifths of the time: the mutators know the values that matter.
COVERAGE = ["-fsanitize-coverage=inline-8bit-counters,pc-table"]
INPUT_SECONDS_MAX = 60
"""On a quiet machine an input takes some milliseconds; beside other work it may have to wait."""
MEMORY_MAX_MB = 2048
ALLOCATION_MAX_MB = 64
# The threshold keeps the shadow of large buffers mapped: to map it anew each time takes a tenth of an input.
SANITIZER_OPTIONS = (
    "detect_leaks=1:malloc_context_size=8:quarantine_size_mb=16:clear_shadow_mmap_threshold=1073741824"
)


def find_clang() -> str:
    for name in ("clang", "clang-14", "clang-15", "clang-16", "clang-19"):
        if found := shutil.which(name):
            return found
    sys.exit("fuzz: no clang here: tools/set_up.sh fuzz installs it")


def compile_one(compiler: str, source: pathlib.Path) -> pathlib.Path:
    target = BUILD / "objects" / f"{source.parent.parent.name}_{source.stem}.o"
    flags = [*FLAGS, *([] if source.parent.name == "fuzz" else COVERAGE)]
    if source.name == "checksum_wide.c":
        flags.append("-mavx2")  # clang wants it here, before it reads the intrinsics
    command = [compiler, *flags, f"-I{ROOT}", "-c", str(source), "-o", str(target)]
    subprocess.run(command, check=True, timeout=300)
    return target


def build(name: str) -> pathlib.Path:
    (BUILD / "objects").mkdir(parents=True, exist_ok=True)
    compiler = find_clang()
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(lambda source: compile_one(compiler, source), sources_of(name)))
    program = BUILD / name
    command = [compiler, *FLAGS, "-fsanitize=fuzzer", *map(str, objects), *LINK_FLAGS, "-o", str(program)]
    subprocess.run(command, check=True, timeout=300)
    return program


def run(name: str, inputs: int, seconds: int, jobs: int) -> int:
    program = build(name)
    corpus = BUILD / f"{name}_corpus"
    corpus.mkdir(exist_ok=True)
    (corpus / "empty").write_bytes(bytes(8))  # libFuzzer wants one input that reaches something
    started = time.monotonic()
    command = [
        str(program), str(corpus), f"-artifact_prefix={BUILD}/{name}-", f"-runs={inputs // jobs}",
        f"-max_total_time={seconds}", f"-timeout={INPUT_SECONDS_MAX}", f"-rss_limit_mb={MEMORY_MAX_MB}",
        f"-malloc_limit_mb={ALLOCATION_MAX_MB}", "-print_final_stats=1", "-entropic=0", "-len_control=0",
        "-max_len=4096", "-reload=60",
    ]  # fmt: skip
    environment = {**os.environ, "ASAN_OPTIONS": SANITIZER_OPTIONS}
    logs = [BUILD / f"{name}-{job}.log" for job in range(jobs)]
    processes = []
    for log in logs:
        with open(log, "wb") as output:
            processes.append(subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment))
    statuses = [process.wait() for process in processes]
    texts = [log.read_text(errors="replace") for log in logs]
    done = sum(int(number) for text in texts for number in re.findall(r"number_of_executed_units:\s+(\d+)", text))
    covered = max((int(number) for text in texts for number in re.findall(r"cov: (\d+)", text)), default=0)
    peak = max((int(number) for text in texts for number in re.findall(r"peak_rss_mb:\s+(\d+)", text)), default=0)
    failed = [log for log, status in zip(logs, statuses, strict=True) if status != 0]
    line = (f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} {name}: {done} inputs in "
            f"{time.monotonic() - started:.0f} s, {covered} edges, {peak} MiB at most, "
            f"{f'failed: {failed[0]}' if failed else 'no failure'}")
    with open(BUILD / "results.txt", "a", encoding="utf-8") as results:
        results.write(line + "\n")
    print(line)
    return 1 if failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--target", choices=[*TARGETS, "all"], default="all")
    parser.add_argument("--inputs", type=int, default=1_000_000, help="of each target at most")
    parser.add_argument("--seconds", type=int, default=1800, help="for each target at most")
    parser.add_argument("--jobs", type=int, default=1, help="processes beside each other")
    options = parser.parse_args()
    names = list(TARGETS) if options.target == "all" else [options.target]
    return max(run(name, options.inputs, options.seconds, options.jobs) for name in names)


if __name__ == "__main__":
    sys.exit(main())
