"""ZFS: OpenZFS where its module is loaded, else zfs-fuse with a daemon of our own. Snapshots are taken by its command:
zfs-fuse installs no library to call."""

import contextlib
import os
import pathlib
import re
import shutil
import subprocess
import time

from benchmarks.ground import Disk, drop_caches
from benchmarks.peers.base import (
    CONTENT,
    DISK,
    SNAPSHOTS,
    Peer,
    PeerFailed,
    Snapshots,
    Volume,
    command,
    missing_program,
    process_memory_bytes,
)

POOL = "benchmark"
LIVE = f"{POOL}/live"
DAEMON = "zfs-fuse"
SOCKET = pathlib.Path("/run/zfs/zfs_socket")
SETTINGS = pathlib.Path("/etc/zfs/zfsrc")
STARTING_TIMEOUT_S = 30
ENDING_TIMEOUT_S = 60


def in_kernel() -> bool:
    return pathlib.Path("/sys/module/zfs").exists()


class ZfsSnapshots:
    def take(self, name: str) -> None:
        command("zfs", "snapshot", f"{LIVE}@{name}")

    def take_quickly(self, name: str) -> None:
        """Every ZFS snapshot waits for a transaction group."""
        self.take(name)

    def destroy(self, name: str) -> None:
        command("zfs", "destroy", f"{LIVE}@{name}")

    def wait_destroyed(self) -> None:
        """zfs-fuse frees before the command returns."""

    def clone(self, name: str, clone: str) -> None:
        command("zfs", "clone", "-o", "mountpoint=none", f"{LIVE}@{name}", f"{POOL}/{clone}")

    def destroy_clone(self, clone: str) -> None:
        command("zfs", "destroy", f"{POOL}/{clone}")

    def rollback(self, name: str) -> None:
        """Destroys the newer snapshots, which is the only way it has."""
        command("zfs", "rollback", "-r", f"{LIVE}@{name}")

    def names(self) -> list[str]:
        listed = command("zfs", "list", "-H", "-t", "snapshot", "-o", "name", "-r", LIVE, timeout_s=3600)
        return [line.partition("@")[2] for line in listed.splitlines() if "@" in line]

    def close(self) -> None:
        """There is no connection."""


class ZfsVolume(Volume):
    def __init__(self, disk: Disk, mountpoint: pathlib.Path) -> None:
        super().__init__(disk, mountpoint)
        self._daemon: subprocess.Popen[bytes] | None = None
        # What import looks through for the pool: this device and no other.
        self._devices = mountpoint.parent / f"{mountpoint.name}-devices"

    def start_daemon(self) -> None:
        if in_kernel():
            return
        self._daemon = subprocess.Popen(
            [DAEMON, "--no-daemon", "--pidfile", str(self.mountpoint.parent / "zfs-fuse.pid")],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + STARTING_TIMEOUT_S
        while not self._answers():
            if self._daemon.poll() is not None or time.monotonic() > deadline:
                raise PeerFailed(f"zfs-fuse did not start: exit code {self._daemon.poll()}")
            time.sleep(0.02)

    def _answers(self) -> bool:
        if not SOCKET.exists():
            return False
        try:
            command("zpool", "list", "-H")
        except PeerFailed:
            return False
        return True

    def end_daemon(self, *, at_once: bool = False) -> None:
        daemon, self._daemon = self._daemon, None
        if daemon is None:
            return
        if at_once:
            daemon.kill()
        else:
            daemon.terminate()
        try:
            daemon.wait(ENDING_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait(ENDING_TIMEOUT_S)
        SOCKET.unlink(missing_ok=True)

    def make(self) -> None:
        self._devices.mkdir(exist_ok=True)
        (self._devices / "disk").symlink_to(self.disk.path)
        self.start_daemon()
        command("zpool", "create", "-f", "-o", "cachefile=none", "-o", "ashift=12", "-O", "atime=off",
                "-m", "none", POOL, self.disk.path)  # fmt: skip
        command("zfs", "create", "-o", f"mountpoint={self.mountpoint}", LIVE)

    def mount(self) -> None:
        self.start_daemon()
        self.import_pool()

    def import_pool(self, *words: str) -> None:
        command("zpool", "import", "-d", self._devices, "-o", "cachefile=none", *words, POOL)

    def unmount(self) -> None:
        for attempt in range(50):
            try:
                command("zpool", "export", POOL)
                break
            except PeerFailed:
                if attempt == 49:
                    raise
                time.sleep(0.1)
        self.end_daemon()

    def remount(self) -> float:
        """Starting the daemon is not part of the time."""
        self.unmount()
        drop_caches()
        self.disk.forget_cache()
        self.start_daemon()
        started = time.perf_counter()
        self.import_pool()
        os.listdir(self.directory)
        return time.perf_counter() - started

    def crash(self) -> float:
        if in_kernel():
            return super().crash()
        self.end_daemon(at_once=True)
        command("umount", "-l", self.mountpoint)
        drop_caches()
        self.start_daemon()
        started = time.perf_counter()
        self.import_pool("-f")
        os.listdir(self.directory)
        return time.perf_counter() - started

    def close(self) -> None:
        try:
            if in_kernel() or (self._daemon is not None and self._answers()):
                self.unmount()
        finally:
            self.end_daemon(at_once=True)
            if os.path.ismount(self.mountpoint):
                with contextlib.suppress(PeerFailed):
                    command("umount", "-l", self.mountpoint)
            shutil.rmtree(self._devices, ignore_errors=True)

    def sync(self) -> None:
        """sync(2) does not reach zfs-fuse and it has no `zpool sync`; a snapshot waits for the transaction group."""
        if in_kernel():
            command("zpool", "sync", POOL)
            return
        command("zfs", "snapshot", f"{LIVE}@for-sync")
        command("zfs", "destroy", f"{LIVE}@for-sync")

    def used_bytes(self) -> int:
        self.sync()
        return int(command("zfs", "get", "-H", "-p", "-o", "value", "used", POOL).strip())

    def server_pid(self) -> int | None:
        return self._daemon.pid if self._daemon else None

    def memory_bytes(self) -> int | None:
        return process_memory_bytes(self._daemon.pid) if self._daemon else None

    def snapshots(self) -> Snapshots:
        return ZfsSnapshots()


class Zfs(Peer):
    name = "zfs"
    title = "ZFS"
    abilities = frozenset({CONTENT, DISK, SNAPSHOTS})

    def absent(self) -> str | None:
        if in_kernel():
            return missing_program("zpool", "zfs")
        return missing_program("zpool", "zfs", DAEMON)

    def version(self) -> str:
        if in_kernel():
            return f"OpenZFS {pathlib.Path('/sys/module/zfs/version').read_text().strip()}"
        described = command("dpkg-query", "-W", "-f", "${Version}", "zfs-fuse") if shutil.which("dpkg-query") else "?"
        return f"zfs-fuse {described}"

    def options(self) -> str:
        settings = ""
        if not in_kernel() and SETTINGS.exists():
            lines = [line.split("#")[0].strip() for line in SETTINGS.read_text().splitlines()]
            settings = "; zfsrc: " + ", ".join(re.sub(r"\s*=\s*", "=", line) for line in lines if line)
        return f"zpool create -o ashift=12 -O atime=off DEVICE{settings}"

    def make(self, disk: Disk, mountpoint: pathlib.Path) -> Volume:
        volume = ZfsVolume(disk, mountpoint)
        try:
            volume.make()
        except BaseException:
            volume.close()
            raise
        return volume
