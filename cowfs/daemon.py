"""The daemon of one mount: from the fork to the last byte on disk.

The process forks before anything with threads is imported. The child opens the pool, mounts, serves, and reports once
over a pipe: when the mount answers, or with the error that kept it from that. The parent passes this on and ends.
"""

import gc
import json
import logging
import logging.handlers
import os
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from cowfs.errors import CowfsError
from cowfs.mount_options import MountOptions
from cowfs.mounting import (
    Notifier,
    limit_malloc_arenas,
    mount_as_root,
    mount_as_user,
    mount_at,
    set_io_flusher,
    tune_device,
    unmount,
)

if TYPE_CHECKING:
    import socket

    import trio

    from btree import Store
    from cowfs.control import ControlServer
    from cowfs.schedule import Scheduler
    from cowfs.serving import PumpServer
    from cowfs.volumes import MountedPool

log = logging.getLogger("cowfs")

LOG_LENGTH_MAX_BYTES = 1 << 20
LOG_FILES_KEPT = 3
DAMAGE_INTERVAL_S = 1.0

STORE_LOOK_INTERVAL_S = 1.0

Report = Callable[[CowfsError | None], None]


class MountRequest(NamedTuple):
    """What to mount where; both paths absolute and real."""

    pool_path: str
    mountpoint: str
    options: MountOptions


def log_directory() -> str:
    """/var/log/cowfs, or the user's state directory. Made when missing."""
    if os.geteuid() == 0:
        directory = "/var/log/cowfs"
    else:
        base = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
        directory = os.path.join(base, "cowfs")
    os.makedirs(directory, mode=0o755, exist_ok=True)
    return directory


def log_path_of(mountpoint: str) -> str:
    """The log of whatever is mounted there: /mnt/my-data becomes mnt-my-data.log."""
    name = mountpoint.strip("/").replace("/", "-").encode()[:200].decode(errors="ignore") or "root"
    return os.path.join(log_directory(), name + ".log")


# ---- starting


def start(request: MountRequest) -> None:
    """Mounts in a daemon of its own and returns when the mount answers; CowfsError is the daemon's."""
    log_path = log_path_of(request.mountpoint)
    read_end, write_end = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.close(read_end)
        _run_child(request, log_path, write_end)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        message = pipe.read()
    if not message:
        os.waitpid(child, 0)
        raise CowfsError("error", "the daemon ended before the mount answered",
                         f"see its log, {log_path}")
    error = json.loads(message)
    if error is not None:
        os.waitpid(child, 0)
        raise CowfsError.from_json(error)


def _run_child(request: MountRequest, log_path: str, write_end: int) -> None:
    """Does not return."""

    def report(error: CowfsError | None) -> None:
        os.write(write_end, json.dumps(error.to_json() if error else None).encode())
        os.close(write_end)

    status = 1
    try:
        os.setsid()
        os.chdir("/")
        _detach(log_path, write_end)
        handler = logging.handlers.RotatingFileHandler(
            log_path, maxBytes=LOG_LENGTH_MAX_BYTES, backupCount=LOG_FILES_KEPT - 1, encoding="utf-8",
            errors="backslashreplace")
        status = serve(request, report, handler, log_path)
    except CowfsError as error:
        report(error)
        # A mount that never was leaves no log, unless something was said in it.
        if os.stat(log_path).st_size == 0:
            os.unlink(log_path)
    except OSError as error:
        report(CowfsError.from_os_error(error, "start the daemon"))
    except BaseException:
        log.exception("the daemon ended by something unexpected")
    finally:
        logging.shutdown()
        os._exit(status)


def _detach(log_path: str, keep: int) -> None:
    """Lets go of the caller's files. What C code or the interpreter print in their last moment goes to the log."""
    null = os.open("/dev/null", os.O_RDWR)
    last_words = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.dup2(last_words, 2)
    os.closerange(3, keep)
    os.closerange(keep + 1, os.sysconf("SC_OPEN_MAX") if os.sysconf("SC_OPEN_MAX") < 1 << 16 else 1 << 16)


def serve_in_foreground(request: MountRequest, ready: Callable[[], None]) -> int:
    """Like start(), in this process: returns the exit code after the unmount. `ready` is called when it answers."""
    failures: list[CowfsError] = []

    def report(error: CowfsError | None) -> None:
        if error is None:
            ready()
        else:
            failures.append(error)

    status = serve(request, report, logging.StreamHandler(), "the standard error")
    if failures:
        raise failures[0]
    return status


# ---- serving


def serve(request: MountRequest, report: Report, handler: logging.Handler, log_path: str) -> int:
    """Opens, mounts, serves until unmounted, closes. `report` is called exactly once unless an exception leaves here
    first. Returns the exit code."""
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    limit_malloc_arenas()
    store, pool = _open_pool(request, log_path)
    if os.geteuid() == 0 and not set_io_flusher():
        log.info("PR_SET_IO_FLUSHER is not permitted here: under memory pressure the daemon may wait for itself")
    try:
        listener = _listen(pool)
    except BaseException:
        store.close()
        raise
    return _Session(request, store, pool, listener, report).run()


def _open_pool(request: MountRequest, log_path: str) -> "tuple[Store, MountedPool]":
    from cowfs._native import FileSystem
    from cowfs.pools import open_store
    from cowfs.volumes import MountedPool

    options = request.options
    store = open_store(request.pool_path, read_only=options.read_only, cache_bytes_max=options.cache_bytes_max,
                       commit_interval_ms=options.commit_interval_ms)
    try:
        volume = store.volume_find(options.volume)
        filesystem = FileSystem(store, volume.id, read_only=options.read_only)
    except FileNotFoundError:
        names = ", ".join(volume.name for volume in store.volumes()) or "none"
        store.close()
        raise CowfsError("not_found", f"there is no volume '{options.volume}' in {request.pool_path}",
                         f"it has: {names}") from None
    except OSError as error:
        store.close()
        raise CowfsError.from_os_error(error, f"open the volume '{options.volume}'") from None
    return store, MountedPool(store, filesystem, volume, pool_path=request.pool_path, mountpoint=request.mountpoint,
                              read_only=options.read_only, log_path=log_path, compression=options.compression)


def _listen(pool: "MountedPool") -> "socket.socket":
    """A pool that is open for writing has one daemon, and its uuid names the socket; read-only it may have more."""
    from cowfs.control import listen, runtime_directory

    name = pool.store.statistics()["uuid"].hex() + (f"-{os.getpid()}" if pool.read_only else "")
    path = os.path.join(runtime_directory(), name + ".sock")
    listener = listen(path)
    pool.socket_path = path
    return listener


class _Session:
    """One mount's life: run() returns the daemon's exit code when all is closed."""

    def __init__(self, request: MountRequest, store: "Store", pool: "MountedPool", listener: "socket.socket",
                 report: Report) -> None:
        self._request = request
        self._store = store
        self._pool = pool
        self._listener = listener
        self._report: Report | None = report
        self._pump: PumpServer | None = None
        self._scheduler: Scheduler | None = None
        self._failure: CowfsError | None = None

    def run(self) -> int:
        import trio

        from cowfs.control import ControlServer

        error: CowfsError | None = None
        server: ControlServer | None = None
        try:
            self._mount()
            # What was imported and made so far lives as long as the daemon: no collection needs to look at it.
            gc.collect()
            gc.freeze()
            server = ControlServer(self._pool, self._listener)
            trio.run(self._serve, server)
        except CowfsError as failure:
            error = failure
        except BaseException as failure:
            log.exception("the mount ended by something unexpected")
            error = CowfsError("error", f"the mount ended by something unexpected: {failure!r}",
                               f"see the daemon's log, {self._pool.log_path}")
        error = self._close() or error or self._failure
        self._tell(error)
        if server is not None:
            server.farewell(error)
        return 0 if error is None else error.exit_code

    def _tell(self, error: CowfsError | None) -> None:
        if self._report is not None:
            self._report(error)
            self._report = None

    def _mount(self) -> None:
        import pyfuse3

        from cowfs.operations import Operations
        from cowfs.serving import HandlerServer, PumpServer, check_cache, choose_uring

        options = self._request.options
        check_cache(options)
        operations = Operations(self._pool, honours_setuid=options.honours_setuid)
        uring = choose_uring(options)
        mount = mount_as_root if os.geteuid() == 0 else mount_as_user
        device = mount(self._request.pool_path, self._request.mountpoint, options)
        served = device
        if options.pump:
            try:
                self._pump = PumpServer(self._pool, device, options, uring)
            except BaseException:
                os.close(device)  # or whoever touches the mountpoint waits for ever
                raise
            served = self._pump.forward.detach()
        else:
            HandlerServer(self._pool)
        pyfuse3.init(operations, f"/dev/fd/{served}", set())
        self._pool.notifier = Notifier(device)

    async def _serve(self, server: "ControlServer") -> None:
        import pyfuse3
        import trio

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(server.serve)
                # Nothing is answered before that: whoever sees the mount may send a signal.
                await nursery.start(self._watch_signals)
                if self._pump is not None:
                    nursery.start_soon(self._watch_pump, self._pump)
                    self._pump.pump.start()
                self._pool.filesystem.gather_start()
                nursery.start_soon(self._confirm)
                nursery.start_soon(self._watch_damage)
                nursery.start_soon(self._scrub)
                nursery.start_soon(self._watch_store)
                try:
                    await pyfuse3.main()
                except* ConnectionAbortedError:
                    # The kernel's other word for "unmounted", when that cuts off a request while it is being read.
                    log.info("the connection ended in the middle of a request")
                log.info("the mount at %s has ended", self._request.mountpoint)
                nursery.cancel_scope.cancel()
        finally:
            if self._scheduler is not None:
                self._scheduler.ask_to_stop()
                if self._pump is not None:
                    # It may wait for a flush of the kernel's cache, which this cuts short.
                    self._pump.pump.stop()
                await trio.to_thread.run_sync(self._scheduler.stop)
            # Closes the connection: whoever still waits for an answer gets ENOTCONN instead.
            self._pool.notifier = None
            if self._pump is not None:
                self._pump.close()
            pyfuse3.close(unmount=False)

    async def _watch_pump(self, pump: "PumpServer") -> None:
        import pyfuse3

        self._failure = await pump.watch()
        if self._failure is not None:
            # Before anything waits for those that wait for the mount.
            pump.abandon()
        # While its socket is open still: libfuse takes the end of it for an error.
        pyfuse3.terminate()

    async def _watch_damage(self) -> None:
        """Names what was found damaged in the log. Whoever asks for the status has it at once."""
        import trio

        while True:
            if self._pool.damage.has_news():
                await trio.to_thread.run_sync(self._pool.damage.refresh)
            await trio.sleep(DAMAGE_INTERVAL_S)

    async def _scrub(self) -> None:
        from cowfs.scrub import Scrubber

        scrubber = Scrubber(self._pool, self._pool.damage)
        self._pool.scrubber = scrubber
        await scrubber.run()

    async def _watch_store(self) -> None:
        """Says once in the log that the pool could not be written any more: nobody may be waiting for what failed."""
        import trio

        while True:
            await trio.sleep(STORE_LOOK_INTERVAL_S)
            failed_errno = self._store.statistics()["failed_errno"]
            if failed_errno:
                break
        log.error("the pool %s cannot be written (%s): the mount is read-only from now on. What was synced before is "
                  "safe, what was not may be lost. Find the cause, unmount, run fsck.cowfs and mount again",
                  self._request.pool_path, os.strerror(failed_errno))

    def _tune(self) -> list[str]:
        return tune_device(self._request.mountpoint, cache_back=self._request.options.cache_back)

    async def _confirm(self) -> None:
        """Reports success when the mount has answered a request."""
        import trio

        from cowfs.schedule import Scheduler

        try:
            await trio.to_thread.run_sync(os.statvfs, self._request.mountpoint)
            failures = await trio.to_thread.run_sync(self._tune) if os.geteuid() == 0 else []
        except OSError:
            if self._failure is None:
                raise
            return
        for failure in failures:
            log.info("not tuned: %s", failure)
        if not self._pool.read_only:
            self._scheduler = Scheduler(self._pool)
            self._scheduler.start()
        transport = self._pool.transport.describe() if self._pool.transport else {}
        log.info("mounted %s (volume %s) at %s, requests over %s %s", self._request.pool_path, self._pool.volume_name,
                 self._request.mountpoint, transport["kind"],
                 "and the pump" if transport["pump"] else "without the pump")
        if transport["io_uring_refused"]:
            log.info("FUSE over io_uring is not used: %s", transport["io_uring_refused"])
        self._tell(None)

    async def _watch_signals(self, task_status: "trio.TaskStatus[None]") -> None:
        """SIGTERM and SIGINT unmount; files that are open then lose their mount."""
        import pyfuse3
        import trio

        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            task_status.started()
            async for number in signals:
                log.info("unmounting on %s", signal.Signals(number).name)
                try:
                    await trio.to_thread.run_sync(unmount, self._request.mountpoint)
                except CowfsError as error:
                    log.warning("%s: unmounting lazily", error.message)
                    await trio.to_thread.run_sync(lambda: unmount(self._request.mountpoint, lazy=True))
                    pyfuse3.terminate()

    def _close(self) -> CowfsError | None:
        """Takes the mount away if it is still there, and closes the pool: everything is on disk then."""
        error: CowfsError | None = None
        entry = mount_at(self._request.mountpoint)
        if entry is not None and entry.source == self._request.pool_path:
            try:
                unmount(self._request.mountpoint, lazy=True)
            except CowfsError as failure:
                log.error("%s", failure)
        try:
            try:
                if not self._pool.read_only:
                    self._pool.filesystem.release_all()
            finally:
                self._store.close()
        except OSError as failure:
            log.error("closing the pool: %s", failure)
            error = CowfsError("damaged", f"closing the pool {self._request.pool_path} failed: {failure.strerror}",
                               "what was synced before is safe; run fsck.cowfs")
        self._listener.close()
        try:
            os.unlink(self._pool.socket_path)
        except FileNotFoundError:
            log.info("the control socket was gone already")
        log.info("closed %s", self._request.pool_path)
        return error
