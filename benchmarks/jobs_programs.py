"""dbench, and SQLite with every transaction durable."""

import contextlib
import math
import os
import re
import shutil
import sqlite3
import time
from collections.abc import Callable

from benchmarks.jobs import Context, Job, NotPossible, Outcome, percentiles_us
from benchmarks.peers.base import CONTENT, command

DBENCH_CLIENTS = 2
# In less it measures nothing.
DBENCH_SECONDS_MIN = 2
DBENCH_LOAD = "/usr/share/dbench/client.txt"
ROW_BYTES = 200


def dbench(context: Context) -> Outcome:
    if shutil.which("dbench") is None or not os.path.exists(DBENCH_LOAD):
        raise NotPossible("dbench is not installed")
    directory = context.directory / f"dbench-{context.random.randrange(1 << 32)}"
    directory.mkdir()
    seconds = max(DBENCH_SECONDS_MIN, math.ceil(context.scale.seconds))
    words = ("dbench", "-D", directory, "-c", DBENCH_LOAD, "-t", seconds, DBENCH_CLIENTS)
    printed = command(*words)
    found = re.search(r"Throughput ([\d.]+) MB/sec.*max_latency=([\d.]+) ms", printed)
    if not found:
        raise NotPossible(f"dbench printed no throughput: {printed[-200:]}")
    figures = {"mb_per_second": float(found[1]), "latency_max_us": float(found[2]) * 1000}
    return Outcome(figures, raw={"printed": printed})


def sqlite(mode: str) -> Callable[[Context], Outcome]:
    def run(context: Context) -> Outcome:
        """Rows inserted one transaction each, until the time is over."""
        content = context.random.randbytes(ROW_BYTES)
        latencies_s = []
        with contextlib.closing(sqlite3.connect(context.directory / f"{mode}.db", isolation_level=None)) as database:
            if database.execute(f"pragma journal_mode={mode}").fetchone()[0] != mode:
                raise NotPossible(f"SQLite refuses journal_mode={mode} here")
            database.execute("pragma synchronous=full")
            database.execute("create table if not exists entry (number integer primary key, content blob)")
            started = time.perf_counter()
            while (before := time.perf_counter()) - started < context.scale.seconds:
                database.execute("insert into entry (content) values (?)", (content,))
                latencies_s.append(time.perf_counter() - before)
            elapsed_s = time.perf_counter() - started
        distribution = percentiles_us(latencies_s)
        return Outcome(
            {"per_second": len(latencies_s) / elapsed_s, "p50_us": distribution["50"], "p99_us": distribution["99"]},
            written_bytes=len(latencies_s) * ROW_BYTES,
            distribution_us=distribution,
        )

    return run


PROGRAM_JOBS = (
    Job("dbench", f"dbench, {DBENCH_CLIENTS} clients", "mb_per_second", "MB/s", dbench),
    Job("sqlite_wal", "SQLite inserts, WAL, synchronous=FULL", "per_second", "1/s", sqlite("wal"),
        needs=frozenset({CONTENT})),
    Job("sqlite_rollback", "SQLite inserts, rollback journal, synchronous=FULL", "per_second", "1/s",
        sqlite("delete"), needs=frozenset({CONTENT})),
)  # fmt: skip
