"""The ceiling: a FUSE server in C that keeps names and sizes in memory and no content. What it reaches is what any FUSE
file system could reach here at best, over the transport in question and without the writeback cache."""

import contextlib
import os
import pathlib
import select
import subprocess
import time
from collections.abc import Iterator
from typing import ClassVar

from benchmarks.ground import Disk, drop_caches
from benchmarks.isolation import URING_PARAMETER
from benchmarks.peers.base import Peer, PeerFailed, Volume, command, process_memory_bytes

ROOT = pathlib.Path(__file__).parents[2]
PROGRAM = ROOT / "build" / "ceiling"
STARTING_TIMEOUT_S = 20
ENDING_TIMEOUT_S = 20


@contextlib.contextmanager
def uring_enabled(wanted: bool) -> Iterator[None]:
    before = URING_PARAMETER.read_text() if wanted else ""
    if wanted:
        URING_PARAMETER.write_text("Y")
    try:
        yield
    finally:
        if wanted:
            URING_PARAMETER.write_text(before)


class CeilingVolume(Volume):
    def __init__(self, disk: Disk, mountpoint: pathlib.Path, transport: str) -> None:
        super().__init__(disk, mountpoint)
        self.transport = transport
        self._server: subprocess.Popen[bytes] | None = None

    def mount(self) -> None:
        # What the kernel asks when it answers INIT; the mount keeps it when others lose it.
        with uring_enabled(self.transport == "uring"):
            self._server = subprocess.Popen(
                [PROGRAM, self.transport, self.mountpoint],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                start_new_session=True,
            )
            assert self._server.stdout is not None
            ready, _, _ = select.select([self._server.stdout], [], [], STARTING_TIMEOUT_S)
            if not ready or self._server.stdout.readline() != b"ready\n":
                raise PeerFailed(f"the ceiling over {self.transport} did not start: {self._server.poll()}")
            os.stat(self.mountpoint)

    def unmount(self) -> None:
        for attempt in range(50):
            try:
                command("umount", self.mountpoint)
                break
            except PeerFailed:
                if attempt == 49 or not os.path.ismount(self.mountpoint):
                    raise
                time.sleep(0.1)
        self._end()

    def _end(self) -> None:
        server, self._server = self._server, None
        if server is None:
            return
        try:
            server.wait(ENDING_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        if server.stdout is not None:
            server.stdout.close()

    def close(self) -> None:
        if os.path.ismount(self.mountpoint):
            command("umount", "-l", self.mountpoint)
        if self._server is not None and self._server.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._server.wait(1)
            self._server.kill()
        self._end()

    def remount(self) -> float:
        """It has nothing to read from: only the kernel's caches are emptied."""
        drop_caches()
        return 0.0

    def sync(self) -> None:
        """There is nothing to write to."""

    def server_pid(self) -> int | None:
        return self._server.pid if self._server else None

    def memory_bytes(self) -> int | None:
        return process_memory_bytes(self._server.pid) if self._server else None


class Ceiling(Peer):
    abilities = frozenset()
    transport: ClassVar[str]

    def absent(self) -> str | None:
        if not PROGRAM.exists():
            return f"not built: make {PROGRAM.relative_to(ROOT)}"
        return None if os.path.exists("/dev/fuse") else "there is no /dev/fuse"

    def version(self) -> str:
        return "protocol 7.42"

    def options(self) -> str:
        return f"ceiling {self.transport} DIR"

    def make(self, disk: Disk, mountpoint: pathlib.Path) -> Volume:
        volume = CeilingVolume(disk, mountpoint, self.transport)
        try:
            volume.mount()
        except BaseException:
            volume.close()
            raise
        return volume


class CeilingUring(Ceiling):
    name = "ceiling_uring"
    title = "ceiling (io_uring)"
    transport = "uring"

    def absent(self) -> str | None:
        if not URING_PARAMETER.exists():
            return "this kernel has no FUSE over io_uring (it came with Linux 6.14)"
        return super().absent()


class CeilingDevice(Ceiling):
    name = "ceiling_device"
    title = "ceiling (/dev/fuse)"
    transport = "device"
