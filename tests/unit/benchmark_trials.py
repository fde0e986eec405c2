"""Made-up results of benchmarks."""

from typing import Any

from benchmarks import machine
from benchmarks.method import Trial


def trial(job: str = "create", **fields: Any) -> Trial:
    return Trial(**{"medium": "memory", "peer": "cowfs", "group": "files", "job": job, "repetition": 0, **fields})


def meta(media: tuple[str, ...] = ("memory", "disk")) -> dict[str, Any]:
    def peer(title: str, absent: str | None, *abilities: str) -> dict[str, Any]:
        return {"title": title, "absent": absent, "version": "1", "options": "none", "abilities": abilities}

    def job(name: str, title: str, *, lower_is_better: bool = False) -> dict[str, Any]:
        return {"name": name, "title": title, "figure": "value", "unit": "1/s", "lower_is_better": lower_is_better,
                "group": "files", "group_title": "Small files"}  # fmt: skip

    return {
        "scale": "quick", "started": "2024-02-03T04:05:06+00:00", "revision": "abc", "commands": ["x"], "seed": 1,
        "machine": {"cpu": "test", "cpus": 2, "memory_gib": 1, "kernel": "6", "system": "s", "python": "3",
                    "virtual": True},
        "programs": {"fio": "fio-3"}, "device": {"size_bytes": 1 << 30, "block_size_bytes": 4096, "kind": "loop"},
        "sizes": {"file_bytes": 1 << 20, "seconds": 1, "file_count": 10}, "media": [*media],
        "peers": {"cowfs": peer("cowfs", None, "content", "disk", "snapshots"),
                  "btrfs": peer("Btrfs", None, "content", "disk", "snapshots"),
                  "zfs": peer("ZFS", "not installed: zpool"),
                  "ceiling_uring": peer("ceiling", None)},
        "jobs": [job("create", "create files"), job("clone", "clone", lower_is_better=True),
                 *(job(f"snapshot_rate_{count}", f"snapshots, {count}") for count in (0, 16))],
    }  # fmt: skip


def made_up_trials() -> list[Trial]:
    load = machine.Load(0.1, 0.02, 0.0, 0.0, 0.0)._asdict()
    made = []
    for medium in ("memory", "disk"):
        for repetition in range(3):
            common: dict[str, Any] = {"medium": medium, "repetition": repetition, "load": load}
            value = 100.0 + repetition
            made.append(trial("create", **common, figures={"value": value, "write_amplification": 2.5},
                              distribution_us={"50": 10.0, "99": 90.0}))  # fmt: skip
            made.append(trial("create", **common | {"peer": "btrfs"}, figures={"value": 2 * value}))
            made.append(trial("clone", **common, figures={"value": 10.0}, disturbed=repetition == 2))
            made.append(trial("clone", **common | {"peer": "btrfs"}, figures={"value": 40.0}))
            for count in (0, 16):
                made.append(trial(f"snapshot_rate_{count}", **common, figures={"value": 1000.0 / (count + 1)}))
                made.append(trial(f"snapshot_rate_{count}", **common | {"peer": "btrfs"}, error="OSError: gone"))
    made.append(trial("create", peer="ceiling_uring", load=load, figures={"value": 5000.0}))
    made.append(trial("clone", peer="ceiling_uring", reason="has no snapshots"))
    return made
