"""The scrub of a mounted pool: C reads and verifies a step, this decides when the next one is due, and remembers over
unmounting and crashes how far it has come."""

import json
import logging
import os
import time
from typing import Any

import trio

from cowfs.damage import DamageLog
from cowfs.errors import CowfsError
from cowfs.volumes import MountedPool

log = logging.getLogger("cowfs")

STEP_LENGTH_BYTES = 1 << 20
RATE_DEFAULT_BYTES = 64 << 20
"""A second: some 3% of a core, and a third of what a slow disk can do."""
_SAVE_INTERVAL_S = 5.0
_FIGURES = ("bytes", "nodes", "data_blocks", "damaged", "repaired")


def state_path(uuid: str) -> str:
    """Where a pool's scrub is remembered. The directory is made when missing."""
    if os.geteuid() == 0:
        directory = "/var/lib/cowfs"
    else:
        base = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
        directory = os.path.join(base, "cowfs")
    os.makedirs(directory, mode=0o755, exist_ok=True)
    return os.path.join(directory, f"{uuid}.scrub.json")


class Scrubber:
    """One per mount. State is one of never, running, paused, cancelled, finished."""

    def __init__(self, pool: MountedPool, damage: DamageLog) -> None:
        self._pool = pool
        self._damage = damage
        self._path = ""
        try:
            self._path = state_path(pool.store.statistics()["uuid"].hex())
        except OSError as error:
            log.warning("a scrub will not be remembered over unmounting: %s", error)
        self._wake = trio.Event()
        self._saved_s = 0.0
        self._state = self._load()

    def _fresh(self) -> dict[str, Any]:
        return {"state": "never", "position": "", "started_ns": 0, "ended_ns": 0, "rate_bytes": RATE_DEFAULT_BYTES,
                **dict.fromkeys(_FIGURES, 0)}

    def _load(self) -> dict[str, Any]:
        state = self._fresh()
        if not self._path:
            return state
        try:
            with open(self._path, encoding="utf-8") as file:
                loaded = json.load(file)
            bytes.fromhex(loaded["position"])
            if {name: type(value) for name, value in loaded.items()} == {
                    name: type(value) for name, value in state.items()}:
                return dict(loaded)
            log.warning("%s is not what a scrub leaves: it begins anew", self._path)
        except FileNotFoundError:
            return state
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("%s cannot be understood (%s): the scrub begins anew", self._path, error)
        return state

    def save(self) -> None:
        """Waits for the medium."""
        self._saved_s = time.monotonic()
        if not self._path:
            return
        temporary = f"{self._path}.{os.getpid()}"
        try:
            with open(temporary, "w", encoding="utf-8") as file:
                json.dump(self._state, file)
            os.replace(temporary, self._path)
        except OSError as error:
            log.warning("how far the scrub has come cannot be written to %s: %s", self._path, error)

    # ---- what commands ask for, on the event loop

    def start(self, rate_bytes: int | None) -> dict[str, Any]:
        """Begins, or goes on with what was paused. 0: as fast as it can."""
        if self._state["state"] != "paused":
            if self._state["state"] == "running":
                raise CowfsError("busy", "a scrub is running already", "see it with 'cowfs scrub --status'")
            self._state = self._fresh()
            self._state["started_ns"] = time.time_ns()
        self._state["state"] = "running"
        if rate_bytes is not None:
            self._state["rate_bytes"] = rate_bytes
        log.info("scrub: %s", "goes on" if self._state["position"] else "begins")
        self._wake.set()
        return self.describe()

    def stop(self, *, cancel: bool) -> dict[str, Any]:
        if self._state["state"] not in ("running", "paused"):
            raise CowfsError("not_found", "no scrub is running", "start one with 'cowfs scrub DIR'")
        self._end("cancelled" if cancel else "paused")
        return self.describe()

    def describe(self) -> dict[str, Any]:
        """The figures, and how much there is to read in all as far as that is known."""
        state = {name: value for name, value in self._state.items() if name != "position"}
        statistics = self._pool.store.statistics()
        total = (statistics["used_blocks"] - statistics["pending_blocks"]) * 4096
        if state["state"] == "finished":
            total = state["bytes"]
        return {**state, "total_bytes": max(total, state["bytes"])}

    def _end(self, state: str) -> None:
        self._state["state"] = state
        self._state["ended_ns"] = time.time_ns()
        log.info("scrub: %s after %d bytes; %d damaged, %d of them repaired", state, self._state["bytes"],
                 self._state["damaged"], self._state["repaired"])
        self.save()

    # ---- the work

    async def run(self) -> None:
        """Until cancelled. What was running when the daemon ended goes on."""
        try:
            while True:
                if self._state["state"] != "running":
                    self._wake = trio.Event()
                    await self._wake.wait()
                    continue
                started_s = trio.current_time()
                length_bytes = await self._step()
                rate_bytes = self._state["rate_bytes"]
                due_s = started_s + (length_bytes / rate_bytes if rate_bytes else 0.0)
                await trio.sleep_until(due_s)
        finally:
            if self._state["state"] == "running":
                self.save()

    async def _step(self) -> int:
        """Returns how much it read."""
        state = self._state
        position = bytes.fromhex(state["position"])
        try:
            position, figures, damage = await trio.to_thread.run_sync(
                self._pool.store.scrub, position, STEP_LENGTH_BYTES)
        except OSError as error:
            log.error("scrub: %s", error)
            self._end("cancelled")
            return 0
        state["position"] = position.hex()
        for name in _FIGURES:
            state[name] += figures[name]
        if damage:
            await trio.to_thread.run_sync(self._damage.refresh)
        if state is not self._state or state["state"] != "running":
            return 0
        if figures["finished"]:
            self._end("finished")
            state["position"] = ""
        if time.monotonic() - self._saved_s > _SAVE_INTERVAL_S:
            await trio.to_thread.run_sync(self.save)
        return int(figures["bytes"])
