"""How a mount's requests reach those who answer them.

With the pump its threads have /dev/fuse, and pyfuse3 serves what they leave over one end of a socket pair, which
libfuse takes for a FUSE device. Without it pyfuse3 has /dev/fuse itself.
"""

import errno
import logging
import os
import pathlib
import socket
from typing import Any, NamedTuple

import trio

from cowfs._native import PUMP_EVENT_ENDED, PUMP_EVENT_ERROR, Pump
from cowfs.errors import CowfsError
from cowfs.history import NAME
from cowfs.latencies import pump_rows
from cowfs.mount_options import MountOptions
from cowfs.mounting import uring_parameter
from cowfs.volumes import MountedPool

log = logging.getLogger("cowfs")

DEVICE_THREADS = 4
# A message of either side: as large as the largest request and its header.
MESSAGE_LENGTH_MAX_BYTES = (1 << 20) + 8192
SO_SNDBUFFORCE = 32
_IDLE_DRIVER = "/sys/devices/system/cpu/cpuidle/current_driver"


class UringChoice(NamedTuple):
    """Whether io_uring is to be tried; `refused` says why not."""

    wanted: bool
    refused: str = ""


def choose_uring(options: MountOptions) -> UringChoice:
    """Before mounting: the kernel offers io_uring, or not, with the first message of a mount. `uring=on` switches it
    on in the kernel where that is permitted; CowfsError otherwise."""
    if options.uring == "off":
        return UringChoice(False, "switched off by the mount option")
    enabled = uring_parameter()
    if enabled is False and options.uring == "on":
        enabled = uring_parameter(switch_on=True)
    if enabled is None:
        return UringChoice(False, "this kernel has no FUSE over io_uring (Linux 6.14)")
    if not enabled:
        return UringChoice(False, "switched off in the kernel; 'cowfs uring enable' switches it on")
    return UringChoice(True)


def check_cache(options: MountOptions) -> None:
    """CowfsError when writes cannot wait in the kernel's cache: to fetch them for a snapshot, files are opened by
    handle."""
    if options.cache_back and os.geteuid() != 0:
        raise CowfsError("permission", "the mount option 'cache=back' is for root: a snapshot could not fetch what the "
                         "kernel keeps", "mount as root, or with '-o cache=through'")


def choose_awake(options: MountOptions) -> bool:
    """`awake=auto`: where the idle CPUs of a virtual machine may poll. Waking a halted one takes 40 to 70 us there, on
    a machine of one's own one or two, and polling would cost power."""
    if options.awake == "auto":
        try:
            return pathlib.Path(_IDLE_DRIVER).read_text().strip() == "haltpoll"
        except OSError:
            return False
    return options.awake == "on"


class PumpServer:
    """The pump of one mount, and what it tells."""

    def __init__(self, pool: MountedPool, device: int, options: MountOptions, uring: UringChoice) -> None:
        """Answers the kernel's INIT, so the device is mounted. CowfsError when `uring=on` cannot be had."""
        self._pool = pool
        self._device = device
        self._null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)  # when it is needed there may be no descriptor left
        ours, self.forward = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ours = ours
        for end in (ours, self.forward):
            _raise_buffer(end)
        self.pump = Pump(pool.filesystem, device, ours.fileno(), NAME, uring=uring.wanted, threads=DEVICE_THREADS,
                         awake=choose_awake(options), writeback=options.cache_back,
                         honours_setuid=options.honours_setuid,
                         mountpoint=os.fsencode(pool.mountpoint) if options.cache_back else None)
        self._cache_back = options.cache_back
        if options.cache_back:
            pool.cache_flush = self.pump.flush
        self.refused = self.pump.reason or uring.refused
        if options.uring == "on" and not self.pump.uses_uring:
            raise CowfsError("error", f"io_uring was asked for and cannot be used: {self.refused}",
                             "mount with '-o uring=auto', or see 'cowfs uring status'")
        pool.transport = self

    @property
    def open_files(self) -> int:
        return self.pump.open_files

    def describe(self) -> dict[str, Any]:
        return {"kind": "io_uring" if self.pump.uses_uring else "/dev/fuse", "pump": True,
                "io_uring_refused": "" if self.pump.uses_uring else self.refused,
                "cache": "back" if self._cache_back else "through",
                "protocol": f"7.{self.pump.protocol_minor}"}

    def latencies(self) -> list[dict[str, Any]]:
        return pump_rows(self.pump)

    async def watch(self) -> CowfsError | None:
        """Logs what went wrong, and returns when the mount has ended, with the reason when that was a thread's end."""
        while True:
            await trio.lowlevel.wait_readable(self.pump.event_descriptor)
            while (event := self.pump.next_event()) is not None:
                kind, request, node, error = event
                if kind == PUMP_EVENT_ENDED:
                    return None
                text = os.strerror(-error)
                if kind == PUMP_EVENT_ERROR:
                    self._pool.events["io_error"] += 1
                    log.error("%s(%#x): %s", request, node, text)
                elif error != -errno.ENODEV:  # else PUMP_EVENT_ENDED follows
                    self._pool.events["unexpected"] += 1
                    log.error("a thread of the pump gave up: %s", text)
                    return CowfsError("error", f"the mount's requests could not be served: {text}",
                                      "mount it again; '-o uring=off' leaves io_uring out")

    def abandon(self) -> None:
        """Closes the connection although threads may be about to use the descriptor, which stays one: whoever waits
        for an answer that will not come gets ENOTCONN."""
        self.pump.stop()
        os.dup2(self._null, self._device, inheritable=False)

    def close(self) -> None:
        """Waits for what the threads are doing. Closes the connection: who still waits for an answer gets ENOTCONN."""
        self.pump.stop()
        self._ours.close()
        os.close(self._device)
        os.close(self._null)


def _raise_buffer(end: socket.socket) -> None:
    """The send buffer bounds a message. Only root may raise it beyond the system's limit, but nothing that is sent
    here without being root comes near it: large listings are cut to what is asked for."""
    try:
        end.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, MESSAGE_LENGTH_MAX_BYTES)
    except PermissionError:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MESSAGE_LENGTH_MAX_BYTES)


class HandlerServer:
    """pyfuse3 alone (mount option `nopump`)."""

    def __init__(self, pool: MountedPool) -> None:
        self._pool = pool
        pool.transport = self

    @property
    def open_files(self) -> int:
        return self._pool.open_files

    def describe(self) -> dict[str, Any]:
        return {"kind": "/dev/fuse", "pump": False, "io_uring_refused": "there is no pump", "cache": "through",
                "protocol": "7.38"}

    def latencies(self) -> list[dict[str, Any]]:
        return self._pool.handler_latencies.rows()
