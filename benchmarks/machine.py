"""What the machine is, and how busy it is with other things."""

import contextlib
import os
import pathlib
import platform
import re
import time
from typing import Any, NamedTuple

PF_KTHREAD = 0x00200000
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
QUIET_WINDOW_S = 0.1
QUIET_BUSY_SHARE_MAX = 0.1
"""A machine that is busier than this before a trial is not quiet."""
DISTURBED_SHARE_MAX = 0.05
"""A trial during which others took more of the processors' time than this is disturbed."""


class Times(NamedTuple):
    """Processor time of all CPUs together, in seconds since the start of the machine."""

    busy_s: float
    idle_s: float
    steal_s: float


def parse_times(line: str) -> Times:
    """The first line of /proc/stat."""
    user, nice, system, idle, iowait, irq, softirq, steal = (int(word) for word in line.split()[1:9])
    values = (user + nice + system + irq + softirq, idle + iowait, steal)
    return Times(*(value / TICKS_PER_SECOND for value in values))


def read_times() -> Times:
    with open("/proc/stat", encoding="ascii") as file:
        return parse_times(file.readline())


class Load(NamedTuple):
    """Beside a trial: before it, and what others did during it, in shares of all processors' time."""

    average_1_minute: float
    busy_share_before: float
    others_share: float
    steal_share: float
    waited_s: float

    @property
    def is_disturbed(self) -> bool:
        is_noisy_before = self.busy_share_before > QUIET_BUSY_SHARE_MAX
        return is_noisy_before or self.others_share > DISTURBED_SHARE_MAX or self.steal_share > DISTURBED_SHARE_MAX


class Watch:
    """Watches processes outside the namespace of the benchmarks through a descriptor of the outer /proc."""

    def __init__(self, outer_proc: int) -> None:
        self.outer_proc = outer_proc
        self.own_namespace = os.stat("/proc/self/ns/pid").st_ino
        self._is_other: dict[tuple[str, str], bool] = {}

    def others_s(self) -> dict[str, float]:
        """Processor time by process, of every user process that is not the benchmarks'."""
        found = {}
        for name in os.listdir(self.outer_proc):
            if not name.isdigit():
                continue
            with contextlib.suppress(OSError):
                fields = self._read(f"{name}/stat").rpartition(")")[2].split()
                # Of proc(5) these are flags, utime and stime, and starttime, counted from the third field.
                if int(fields[6]) & PF_KTHREAD:
                    continue
                key = (name, fields[19])
                if key not in self._is_other:
                    link = os.stat(f"{name}/ns/pid", dir_fd=self.outer_proc).st_ino
                    self._is_other[key] = link != self.own_namespace
                if self._is_other[key]:
                    found[f"{name}@{fields[19]}"] = (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND
        return found

    def _read(self, path: str) -> str:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.outer_proc)
        try:
            return os.read(descriptor, 4096).decode(errors="replace")
        finally:
            os.close(descriptor)

    def wait_until_quiet(self, wait_seconds: float) -> tuple[float, float]:
        """Waits, but not longer than this; returns the share of time the machine was busy at last, and the wait."""
        started = time.monotonic()
        while True:
            before = read_times()
            time.sleep(QUIET_WINDOW_S)
            after = read_times()
            busy = after.busy_s + after.steal_s - before.busy_s - before.steal_s
            share = max(0.0, busy) / max(busy + after.idle_s - before.idle_s, 1e-9)
            waited_s = time.monotonic() - started
            if share <= QUIET_BUSY_SHARE_MAX or waited_s >= wait_seconds:
                return share, waited_s


class Observation:
    """Of one trial: made before it, asked for the load after it."""

    def __init__(self, watch: Watch, wait_seconds: float) -> None:
        self.watch = watch
        self.busy_share_before, self.waited_s = watch.wait_until_quiet(wait_seconds)
        self.average = os.getloadavg()[0]
        self.others_s = watch.others_s()
        self.times = read_times()

    def load(self) -> Load:
        times = read_times()
        total_s = max(sum(times) - sum(self.times), 1 / TICKS_PER_SECOND)
        # A process that began meanwhile counts whole; one that ended is not seen any more.
        used_s = sum(value - self.others_s.get(key, 0.0) for key, value in self.watch.others_s().items())
        return Load(
            average_1_minute=self.average,
            busy_share_before=self.busy_share_before,
            others_share=used_s / total_s,
            steal_share=(times.steal_s - self.times.steal_s) / total_s,
            waited_s=self.waited_s,
        )


def describe() -> dict[str, Any]:
    """Of the machine, what may matter to whoever reads the results."""
    cpu = re.search(r"^model name\s*:\s*(.*)$", pathlib.Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = re.search(r"^MemTotal:\s*(\d+) kB$", pathlib.Path("/proc/meminfo").read_text(), re.MULTILINE)
    found: dict[str, Any] = {
        "cpu": cpu[1] if cpu else platform.machine(),
        "cpus": os.cpu_count(),
        "memory_gib": round(int(memory[1]) / (1 << 20), 1) if memory else None,
        "kernel": platform.release(),
        "system": platform.freedesktop_os_release().get("PRETTY_NAME", ""),
        "python": platform.python_version(),
        "virtual": "hypervisor" in pathlib.Path("/proc/cpuinfo").read_text(),
    }
    for name, path in {
        "mitigations": "/sys/devices/system/cpu/vulnerabilities/spectre_v2",
        "fuse_max_pages_limit": "/proc/sys/fs/fuse/max_pages_limit",
        "dirty_ratio": "/proc/sys/vm/dirty_ratio",
        "dirty_background_ratio": "/proc/sys/vm/dirty_background_ratio",
    }.items():
        with contextlib.suppress(OSError):
            found[name] = pathlib.Path(path).read_text().strip()
    return found
