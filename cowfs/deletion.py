"""Destroying many snapshots at once: those of a range, a pattern, an age, or that a rule does not keep."""

import fnmatch
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

from btree import SnapshotInfo
from cowfs.errors import CowfsError
from cowfs.retention import RuleFilter, parse_rule
from cowfs.volumes import MountedPool

_PAGE_LENGTH = 1000
_NAMES_MAX = 1000
_BATCH_LENGTH = 8
_RATE_PER_SECOND = 4000
_PATTERN_CHARACTERS = frozenset("*?[")


class Selection:
    """Which snapshots: all conditions must hold. `target` is a name, FIRST..LAST (either may be left out) or a pattern
    of the shell; what names a snapshot exactly is that name."""

    def __init__(self, target: str, older_than_ns: int = 0, keep: str = "") -> None:
        self.target = target
        self.older_than_ns = older_than_ns
        self.rule = parse_rule(keep) if keep else None

    def of(self, pool: MountedPool, volume_id: int) -> Iterator[SnapshotInfo]:
        """Oldest first. May be deleted while this goes on."""
        first_id, last_id, matches = self._limits(pool, volume_id)
        now_ns = time.time_ns()
        keeper = RuleFilter(self.rule, now_ns) if self.rule is not None else None
        after_id = first_id - 1
        while page := pool.store.snapshots(volume_id, after_id=after_id, limit=_PAGE_LENGTH):
            for snapshot in page:
                if snapshot.id > last_id or (self.older_than_ns and snapshot.created_ns > now_ns - self.older_than_ns):
                    return
                if matches(snapshot.name) and not (keeper is not None and keeper.keeps(snapshot.created_ns)):
                    yield snapshot
            after_id = page[-1].id

    def _limits(self, pool: MountedPool, volume_id: int) -> tuple[int, int, Callable[[str], object]]:
        everything = (1, (1 << 63) - 1)
        if self.target == "*":
            return (*everything, lambda name: True)
        try:
            exact = pool.store.snapshot_find(volume_id, self.target)
        except OSError:
            # No such snapshot, or what cannot be the name of one: then it is a range or a pattern, or nothing.
            if ".." in self.target:
                return (*self._range(pool, volume_id), lambda name: True)
            if _PATTERN_CHARACTERS & set(self.target):
                return (*everything, re.compile(fnmatch.translate(self.target)).fullmatch)
            pool.find_snapshot(volume_id, self.target)
            raise
        return exact.id, exact.id, lambda name: True

    def _range(self, pool: MountedPool, volume_id: int) -> tuple[int, int]:
        first, _, last = self.target.partition("..")
        first_id = pool.find_snapshot(volume_id, first).id if first else 1
        last_id = pool.find_snapshot(volume_id, last).id if last else (1 << 63) - 1
        if first_id > last_id:
            raise CowfsError("usage", f"'{first}' is younger than '{last}'", "write the older one first")
        return first_id, last_id


def destroy_selected(pool: MountedPool, volume: str | None, selection: Selection, *,
                     dry_run: bool) -> dict[str, Any]:
    """Waits until the deletions are durable. Held snapshots stay. With `dry_run` nothing is deleted, and the result
    says exactly how much space would come free."""
    if not dry_run:
        pool.check_writable()
    volume_id = pool.find_volume(volume)
    names: list[str] = []
    held: list[str] = []
    ids: list[int] = []
    count = 0
    started = time.monotonic()
    for snapshot in selection.of(pool, volume_id):
        if snapshot.hold_count:
            if len(held) < _NAMES_MAX:
                held.append(snapshot.name)
            continue
        if dry_run:
            ids.append(snapshot.id)
        elif not pool.delete_quietly(snapshot):
            continue
        count += 1
        if not dry_run and count % _BATCH_LENGTH == 0:
            # What is deleted between two checkpoints the second one does in one go, while writers wait; and they wait
            # for what is deleted in one go: with 64 their p99 was three times what it is with 8.
            time.sleep(max(0.0, started + count / _RATE_PER_SECOND - time.monotonic()))
        if len(names) < _NAMES_MAX:
            names.append(snapshot.name)
    result: dict[str, Any] = {"count": count, "names": names, "held": held}
    if dry_run:
        result["freed_bytes"] = pool.store.snapshots_space(ids) * 4096
    else:
        pool.store.commit()
    return result
