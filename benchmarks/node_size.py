"""What a node size costs: bytes written per byte of data, under random 4 KiB writes with and without snapshots.

Counts, not times, and a store in memory: the figures are the same on any machine up to when checkpoints happen to
begin. `python -m benchmarks.node_size`; the results are in docs/decisions/0005-node-size.md.
"""

import random
from typing import Any

from btree import Storage, Store
from cowfs._native import FileSystem

POOL_BYTES = 4 << 30
FILE_BYTES = 256 << 20
WRITES = 60_000
SNAPSHOTS_KEPT = 100
BLOCK = bytes(range(256)) * 16


def written_per_byte(node_size_bytes: int, metadata_copies: int, writes_per_snapshot: int) -> dict[str, float]:
    """Bytes that reach the storage for each byte of data, in all and by kind, after a file of FILE_BYTES was filled."""
    storage = Storage.open_memory(POOL_BYTES)
    Store.format(storage, node_size_bytes=node_size_bytes, metadata_copies=metadata_copies)
    with Store(storage) as store:
        volume = store.volume_create("main")
        FileSystem.initialize(store, volume, uid=0, gid=0)
        system = FileSystem(store, volume)
        node = system.create(1, b"file", 0o100644, 0, 0)[0]
        for offset in range(0, FILE_BYTES, 1 << 20):
            system.write(node, offset, BLOCK * 256)
        store.checkpoint()
        before = store.statistics()
        overwrite(store, volume, system, node, writes_per_snapshot)
        store.checkpoint()
        after = store.statistics()
        system.release_all()
    return {kind: ratio(before, after, kind) for kind in ("storage", "metadata", "journal")}


def overwrite(store: Store, volume: int, system: FileSystem, node: int, writes_per_snapshot: int) -> None:
    """Random writes; with snapshots, the newest SNAPSHOTS_KEPT stay and older ones are deleted on the way."""
    draw = random.Random(1)
    kept: list[int] = []
    for number in range(1, WRITES + 1):
        system.write(node, draw.randrange(FILE_BYTES // len(BLOCK)) * len(BLOCK), BLOCK)
        if writes_per_snapshot and number % writes_per_snapshot == 0:
            kept.append(store.snapshot(volume, str(number), sync=False).id)
            if len(kept) > SNAPSHOTS_KEPT:
                store.snapshot_delete(kept.pop(0))


def ratio(before: dict[str, Any], after: dict[str, Any], kind: str) -> float:
    """Growth of one of the counters of written bytes, per byte of data."""
    name = f"{kind}_written_bytes"
    return float(after[name] - before[name]) / (WRITES * len(BLOCK))


def main() -> None:
    """Prints one line for each combination."""
    print("| node | copies | writes between snapshots | written per byte | of it nodes | of it journal |")
    print("|---|---|---|---|---|---|")
    for node_size_bytes in (4096, 8192, 16384):
        for copies in (1, 2):
            for interval in (0, 200, 16):
                figures = written_per_byte(node_size_bytes, copies, interval)
                print(
                    f"| {node_size_bytes} | {copies} | {interval or 'none'} | {figures['storage']:.2f} | "
                    f"{figures['metadata']:.2f} | {figures['journal']:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
