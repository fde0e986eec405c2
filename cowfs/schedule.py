"""Continuous mode: a thread of the daemon that takes the snapshots which volumes' properties ask for, thins them, and
destroys those whose time is over.

    snapshot-every  how often; a volume whose content has not changed since its newest snapshot is passed over
    snapshot-keep   which of the automatic snapshots are kept for how long (cowfs.retention)

Automatic snapshots are not waited for: like every other change they are durable after the next commit.
"""

import heapq
import logging
import threading
import time
from collections.abc import Callable

from btree import SnapshotInfo
from cowfs.errors import CowfsError
from cowfs.retention import AUTOMATIC_PREFIX, DEFAULT_RULE, Thinner, parse_duration, parse_rule
from cowfs.snapshots import expiry_ns
from cowfs.volumes import MountedPool

log = logging.getLogger("cowfs")

EVERY = "snapshot-every"
KEEP = "snapshot-keep"

# One step of thinning looks at so many snapshots, which takes about a millisecond; then the foreground has ten.
_LOOKS_PER_STEP = 64
_PAUSE_NS = 10 * 10**6
# How long what has come of age may wait, and how often holds that kept some are looked at again.
_THIN_INTERVAL_NS = 10**9
_RESTART_INTERVAL_NS = 3600 * 10**9
_RETRY_NS = 60 * 10**9
_FAILURE_PAUSE_NS = 10**9


class _Policy:
    """What one volume's properties ask for."""

    def __init__(self) -> None:
        self.every_ns = 0
        self.rule_text: str | None = None
        self.thinner: Thinner | None = None
        self.due_ns = 0
        self.thin_due_ns = 0
        self.restart_ns = 0

    def update(self, now_ns: int) -> None:
        text = self.rule_text if self.rule_text is not None or not self.every_ns else DEFAULT_RULE
        rule = parse_rule(text) if text is not None else None
        if rule is None:
            self.thinner = None
        elif self.thinner is None or self.thinner.rule != rule:
            self.thinner = Thinner(rule)
            self.restart_ns = now_ns + _RESTART_INTERVAL_NS
        self.due_ns = now_ns
        self.thin_due_ns = now_ns

    @property
    def wake_ns(self) -> int:
        times = [self.due_ns] * bool(self.every_ns) + [self.thin_due_ns] * (self.thinner is not None)
        return min(times, default=1 << 63)


class Scheduler:
    """Runs from start() to stop()."""

    def __init__(self, pool: MountedPool) -> None:
        self._pool = pool
        self._condition = threading.Condition()
        self._policies: dict[int, _Policy] = {}
        self._expiries: list[tuple[int, int]] = []
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="schedule")
        self._failed = False

    def start(self) -> None:
        self._pool.note_expiry = self._note_expiry
        self._pool.properties.watch(EVERY, self._watch_every)
        self._pool.properties.watch(KEEP, self._watch_keep)
        self._thread.start()

    def ask_to_stop(self) -> None:
        with self._condition:
            self._stopping = True
            self._condition.notify()

    def stop(self) -> None:
        """Returns when nothing is done any more."""
        self.ask_to_stop()
        if self._thread.ident is not None:
            self._thread.join()

    # ---- what is asked for; from any thread

    def _change(self, volume_id: int, change: Callable[[_Policy], None]) -> None:
        with self._condition:
            policy = self._policies.setdefault(volume_id, _Policy())
            change(policy)
            policy.update(time.time_ns())
            if policy.wake_ns == 1 << 63:
                del self._policies[volume_id]
            self._condition.notify()

    def _watch_every(self, volume_id: int, value: str | None) -> None:
        def change(policy: _Policy) -> None:
            policy.every_ns = 0 if value is None or value == "off" else parse_duration(value)

        self._change(volume_id, change)

    def _watch_keep(self, volume_id: int, value: str | None) -> None:
        def change(policy: _Policy) -> None:
            policy.rule_text = value

        self._change(volume_id, change)

    def _note_expiry(self, snapshot_id: int, expires_ns: int) -> None:
        with self._condition:
            heapq.heappush(self._expiries, (expires_ns, snapshot_id))
            self._condition.notify()

    # ---- the thread

    def _run(self) -> None:
        self._find_expiries()
        while True:
            with self._condition:
                wake_ns = min([policy.wake_ns for policy in self._policies.values()], default=1 << 63)
                if self._expiries:
                    wake_ns = min(wake_ns, self._expiries[0][0])
                wait_s = max(0.0, min((wake_ns - time.time_ns()) / 1e9, 3600.0))
                if not self._stopping and wait_s > 0:
                    self._condition.wait(wait_s)
                if self._stopping:
                    return
                policies = list(self._policies.items())
            try:
                for volume_id, policy in policies:
                    self._serve(volume_id, policy)
                self._expire()
                self._failed = False
            except (OSError, CowfsError) as error:
                if not self._stopping:
                    self._complain(error)

    def _complain(self, error: Exception) -> None:
        if not self._failed:
            self._pool.events["unexpected"] += 1
            log.error("continuous snapshots: %s; it is tried again each second", error)
        self._failed = True
        self._pause(_FAILURE_PAUSE_NS)

    def _pause(self, time_ns: int) -> None:
        with self._condition:
            if not self._stopping:
                self._condition.wait(time_ns / 1e9)

    def _serve(self, volume_id: int, policy: _Policy) -> None:
        now_ns = time.time_ns()
        try:
            if policy.every_ns and policy.due_ns <= now_ns:
                # On the beat of the clock: what was missed is not made up for. A clock that was set back is followed.
                policy.due_ns = now_ns - now_ns % policy.every_ns + policy.every_ns
                self._pool.take_automatic_snapshot(volume_id, AUTOMATIC_PREFIX)
            elif policy.every_ns and policy.due_ns > now_ns + policy.every_ns:
                policy.due_ns = now_ns
            if policy.thinner is not None and policy.thin_due_ns <= time.time_ns():
                self._thin(volume_id, policy, policy.thinner)
        except FileNotFoundError:
            with self._condition:
                self._policies.pop(volume_id, None)

    def _thin(self, volume_id: int, policy: _Policy, thinner: Thinner) -> None:
        def fetch(after_id: int, limit: int) -> list[SnapshotInfo]:
            return self._pool.store.snapshots(volume_id, after_id=after_id, limit=limit)

        now_ns = time.time_ns()
        more = thinner.step(fetch, self._destroy, now_ns, _LOOKS_PER_STEP)
        policy.thin_due_ns = time.time_ns() + (_PAUSE_NS if more else _THIN_INTERVAL_NS)
        if now_ns >= policy.restart_ns and not more:
            policy.thinner = Thinner(thinner.rule)
            policy.restart_ns = now_ns + _RESTART_INTERVAL_NS

    def _destroy(self, snapshot: SnapshotInfo) -> None:
        if snapshot.hold_count == 0 and snapshot.clone_count == 0:
            self._pool.delete_quietly(snapshot)

    # ---- snapshots that were taken for a time

    def _find_expiries(self) -> None:
        """Once: those of former mounts."""
        for volume in self._pool.store.volumes():
            after_id = 0
            while page := self._pool.store.snapshots(volume.id, after_id=after_id, limit=1000):
                for snapshot in page:
                    if snapshot.annotation and (expires_ns := expiry_ns(snapshot.annotation)):
                        self._note_expiry(snapshot.id, expires_ns)
                after_id = page[-1].id
                self._pause(_PAUSE_NS)
                if self._stopping:
                    return

    def _expire(self) -> None:
        for _ in range(_LOOKS_PER_STEP):
            with self._condition:
                if not self._expiries or self._expiries[0][0] > time.time_ns():
                    return
                _, snapshot_id = heapq.heappop(self._expiries)
            try:
                snapshot = self._pool.store.snapshot_get(snapshot_id)
            except FileNotFoundError:
                continue
            expires_ns = expiry_ns(snapshot.annotation)
            if not expires_ns:
                continue
            if snapshot.hold_count:
                self._note_expiry(snapshot_id, time.time_ns() + _RETRY_NS)
            else:
                self._pool.delete_quietly(snapshot)

