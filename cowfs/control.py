"""The control socket: JSON lines between commands and the daemon.

A request is {"verb": …, "arguments": {…}}, a reply {"ok": true, "result": …} or {"ok": false, "error": {…}}, in the
order of the requests; a connection may carry any number. Only root and the daemon's own user are heard. Nothing that
comes in can do more than fail: it is limited in size and every argument is checked against the verb's table.
"""

import errno
import json
import logging
import os
import socket
import stat
import struct
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

import trio

from cowfs.deletion import Selection, destroy_selected
from cowfs.errors import CowfsError
from cowfs.heads import find_step
from cowfs.travel_verbs import TRAVEL_VERBS
from cowfs.volumes import MountedPool, describe_snapshot

log = logging.getLogger("cowfs")

REQUEST_LENGTH_MAX_BYTES = 64 << 10
# Of what the kernel keeps a rollback waits for what is open, and for the rest of it as long as that is little: so many
# nodes, 1 to 5 us each, found in so many steps. Neither paths nor descriptors lead to what is left then.
NODES_AT_ONCE = 500
STEPS_AT_ONCE = 8
# The command that rolled back is told first.
FORGETTING_DELAY_S = 0.01
CONNECTIONS_MAX = 128
"""More than anybody needs: whoever comes then takes the place of the one who has asked for nothing the longest."""
_CREDENTIALS = struct.Struct("3i")
_REQUIRED = ...

Arguments = dict[str, Any]


class Verb(NamedTuple):
    """What serves a verb, and its arguments: name to (types, default)."""

    serve: Callable[[MountedPool, Arguments], Awaitable[object]]
    parameters: Mapping[str, tuple[tuple[type, ...], object]]


_TEXT = ((str,), _REQUIRED)
_OPTIONAL_TEXT = ((str, type(None)), None)
_VOLUME = {"volume": _OPTIONAL_TEXT}


async def _snapshot(pool: MountedPool, arguments: Arguments) -> object:
    details: Arguments = {"message": arguments["message"], "tags": arguments["tags"]}
    if arguments["for_ns"]:
        details["expires"] = time.time_ns() + arguments["for_ns"]

    def take() -> object:
        return pool.take_snapshot(arguments["volume"], arguments["name"], sync=arguments["sync"], details=details)

    waits = arguments["sync"] or pool.cache_flush is not None
    return await trio.to_thread.run_sync(take) if waits else take()


async def _list(pool: MountedPool, arguments: Arguments) -> object:
    def find() -> object:
        return pool.list_snapshots(arguments["volume"], arguments["after"], arguments["before"], arguments["limit"],
                                   sizes=arguments["sizes"])

    return await trio.to_thread.run_sync(find)


async def _find(pool: MountedPool, arguments: Arguments) -> object:
    return describe_snapshot(pool.find_snapshot(pool.find_volume(arguments["volume"]), arguments["name"]))


async def _rollback(pool: MountedPool, arguments: Arguments) -> object:
    return await _switch(pool, arguments["volume"], "rollback", lambda: str(arguments["name"]))


async def _undo(pool: MountedPool, arguments: Arguments) -> object:
    volume = arguments["volume"]
    return await _switch(pool, volume, "undo", lambda: find_step(pool, pool.find_volume(volume), "undo").name)


async def _redo(pool: MountedPool, arguments: Arguments) -> object:
    volume = arguments["volume"]
    return await _switch(pool, volume, "redo", lambda: find_step(pool, pool.find_volume(volume), "redo").name)


async def _switch(pool: MountedPool, volume: str | None, kind: str, find: Callable[[], str]) -> object:
    if pool.cache_flush is not None:
        # For the guard. What is written between this and the rollback goes with the tree that it was written to.
        await trio.to_thread.run_sync(pool.flush_cache)
    result, nodes, view = pool.roll_back(volume, find(), kind)

    def finish() -> int:
        pool.announce_rollback(result["guard"]["id"], nodes)
        found = cursor = 0
        for _ in range(STEPS_AT_ONCE):
            count, cursor = pool.forget_held_nodes(view, cursor)
            found += count
            if cursor == 0 or found >= NODES_AT_ONCE:
                break
        pool.store.commit()
        return cursor

    cursor = await trio.to_thread.run_sync(finish)
    if cursor and pool.forget_view_later is not None:
        pool.forget_view_later(view, cursor)
    return result


async def _clone(pool: MountedPool, arguments: Arguments) -> object:
    return await trio.to_thread.run_sync(pool.clone, arguments["volume"], arguments["name"], arguments["clone"])


async def _destroy(pool: MountedPool, arguments: Arguments) -> object:
    volume, name = arguments["volume"], arguments["name"]

    def destroy() -> None:
        pool.delete_snapshot(volume, name)
        if pool.find_volume(volume) == pool.volume_id:
            pool.forget_entry(pool.snapshots_node, name)

    await trio.to_thread.run_sync(destroy)
    return {"destroyed": name}


async def _destroy_many(pool: MountedPool, arguments: Arguments) -> object:
    def destroy() -> object:
        wanted = Selection(arguments["target"], arguments["older_than_ns"], arguments["keep"])
        return destroy_selected(pool, arguments["volume"], wanted, dry_run=arguments["dry_run"])

    return await trio.to_thread.run_sync(destroy)


async def _destroy_volume(pool: MountedPool, arguments: Arguments) -> object:
    name = arguments["volume"]

    def destroy() -> None:
        pool.destroy_volume(name)
        pool.forget_entry(pool.volumes_node, name)

    await trio.to_thread.run_sync(destroy)
    return {"destroyed": name}


async def _change_hold(pool: MountedPool, arguments: Arguments, *, add: bool) -> object:
    result = pool.change_hold(arguments["volume"], arguments["name"], arguments["tag"], add=add)
    await trio.to_thread.run_sync(pool.store.commit)
    return result


async def _hold(pool: MountedPool, arguments: Arguments) -> object:
    return await _change_hold(pool, arguments, add=True)


async def _release(pool: MountedPool, arguments: Arguments) -> object:
    return await _change_hold(pool, arguments, add=False)


async def _set(pool: MountedPool, arguments: Arguments) -> object:
    return await trio.to_thread.run_sync(pool.change_properties, arguments["volume"], arguments["properties"])


async def _get(pool: MountedPool, arguments: Arguments) -> object:
    return pool.list_properties(arguments["volume"])


async def _sync(pool: MountedPool, arguments: Arguments) -> object:
    def sync() -> None:
        pool.flush_cache()
        pool.store.commit()

    await trio.to_thread.run_sync(sync)
    return {}


async def _usage(pool: MountedPool, arguments: Arguments) -> object:
    return pool.usage()


async def _status(pool: MountedPool, arguments: Arguments) -> object:
    if pool.damage.has_news():
        await trio.to_thread.run_sync(pool.damage.refresh)
    scrub = {"scrub": pool.scrubber.describe()} if pool.scrubber else {}
    return {**pool.status(), **scrub}


async def _scrub(pool: MountedPool, arguments: Arguments) -> object:
    action = arguments["action"]
    if pool.scrubber is None:
        raise CowfsError("busy", "the mount is not ready", "try again in a moment")
    if action == "start":
        return pool.scrubber.start(arguments["rate_bytes"])
    if action in ("pause", "cancel"):
        return pool.scrubber.stop(cancel=action == "cancel")
    if action != "status":
        raise CowfsError("usage", f"a scrub has no action '{action[:64]}'", "use start, pause, cancel or status")
    return pool.scrubber.describe()


async def _volumes(pool: MountedPool, arguments: Arguments) -> object:
    return pool.list_volumes()


def _in_thread(serve: Callable[[MountedPool, Arguments], object]) -> Callable[[MountedPool, Arguments],
                                                                             Awaitable[object]]:
    async def wrapper(pool: MountedPool, arguments: Arguments) -> object:
        return await trio.to_thread.run_sync(serve, pool, arguments)

    return wrapper


VERBS: Mapping[str, Verb] = {
    "snapshot": Verb(_snapshot, {**_VOLUME, "name": _OPTIONAL_TEXT, "sync": ((bool,), True),
                                 "message": ((str,), ""), "tags": ((dict,), {}), "for_ns": ((int,), 0)}),
    "list": Verb(_list, {**_VOLUME, "after": ((int,), 0), "before": ((int,), 0), "limit": ((int,), 0),
                         "sizes": ((bool,), False)}),
    "find": Verb(_find, {**_VOLUME, "name": _TEXT}),
    "rollback": Verb(_rollback, {**_VOLUME, "name": _TEXT}),
    "undo": Verb(_undo, _VOLUME),
    "redo": Verb(_redo, _VOLUME),
    "clone": Verb(_clone, {**_VOLUME, "name": _TEXT, "clone": _TEXT}),
    "destroy": Verb(_destroy, {**_VOLUME, "name": _TEXT}),
    "destroy_many": Verb(_destroy_many, {**_VOLUME, "target": _TEXT, "older_than_ns": ((int,), 0),
                                         "keep": ((str,), ""), "dry_run": ((bool,), False)}),
    "destroy_volume": Verb(_destroy_volume, {"volume": _TEXT}),
    "hold": Verb(_hold, {**_VOLUME, "name": _TEXT, "tag": _TEXT}),
    "release": Verb(_release, {**_VOLUME, "name": _TEXT, "tag": _TEXT}),
    "set": Verb(_set, {**_VOLUME, "properties": ((dict,), _REQUIRED)}),
    "get": Verb(_get, {**_VOLUME}),
    "df": Verb(_usage, {}),
    "status": Verb(_status, {}),
    "scrub": Verb(_scrub, {"action": _TEXT, "rate_bytes": ((int, type(None)), None)}),
    "sync": Verb(_sync, {}),
    "volumes": Verb(_volumes, {}),
    **{name: Verb(_in_thread(serve), parameters) for name, (serve, parameters) in TRAVEL_VERBS.items()},
}
"""All but `wait_unmounted`, which the server answers itself when everything is over."""
WAIT_UNMOUNTED = "wait_unmounted"


def _is_encodable(text: str) -> bool:
    """Whether it stands for bytes; JSON lets through halves of surrogate pairs that stand for nothing."""
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def check_arguments(verb: str, parameters: Mapping[str, tuple[tuple[type, ...], object]], given: object) -> Arguments:
    """The arguments with defaults filled in; CowfsError for what is unknown, missing, negative or of the wrong type."""
    if not isinstance(given, dict):
        raise CowfsError("usage", f"the arguments of '{verb}' are not an object", "send {\"arguments\": {…}}")
    unknown = sorted(set(given) - set(parameters))
    if unknown:
        raise CowfsError("usage", f"'{verb}' has no argument '{unknown[0]}'", f"it takes: {', '.join(parameters)}")
    arguments: Arguments = {}
    for name, (types, default) in parameters.items():
        value = given.get(name, default)
        if value is _REQUIRED:
            raise CowfsError("usage", f"'{verb}' needs the argument '{name}'", "send it")
        if type(value) not in types or (isinstance(value, int) and not 0 <= value < 1 << 63) or (
                isinstance(value, str) and not _is_encodable(value)):
            raise CowfsError("usage", f"the argument '{name}' of '{verb}' is not valid", "see cowfs.client")
        arguments[name] = value
    return arguments


def parse_request(line: bytes) -> tuple[str, object]:
    """Verb and arguments of one line, unchecked."""
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        raise CowfsError("usage", "the request is not JSON", "send one JSON object per line") from None
    if not isinstance(request, dict) or not isinstance(request.get("verb"), str):
        raise CowfsError("usage", "the request names no verb", "send {\"verb\": …, \"arguments\": {…}}")
    return request["verb"], request.get("arguments", {})


async def answer(pool: MountedPool, line: bytes) -> dict[str, object]:
    """The reply to one request. Whatever goes wrong becomes part of it."""
    verb = "request"
    try:
        verb, given = parse_request(line)
        found = VERBS.get(verb)
        if found is None:
            raise CowfsError("usage", f"unknown verb '{verb[:64]}'", f"known: {', '.join(VERBS)}")
        return {"ok": True, "result": await found.serve(pool, check_arguments(verb, found.parameters, given))}
    except CowfsError as error:
        return {"ok": False, "error": error.to_json()}
    except OSError as error:
        if error.errno in (errno.EIO, errno.EUCLEAN):
            log.error("%s: %s", verb, error)
        return {"ok": False, "error": CowfsError.from_os_error(error, verb.replace("_", " ")).to_json()}
    except Exception:
        pool.events["unexpected"] += 1
        log.exception("request %r met something unexpected", line[:256])
        unexpected = CowfsError("error", f"the daemon met something unexpected in '{verb}'",
                                f"see its log, {pool.log_path}")
        return {"ok": False, "error": unexpected.to_json()}


def encode(reply: dict[str, object]) -> bytes:
    return json.dumps(reply, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace") + b"\n"


def runtime_directory() -> str:
    """Where sockets are: /run/cowfs, or the user's own runtime directory. Made when missing."""
    if os.geteuid() == 0:
        directory, mode = "/run/cowfs", 0o755
    else:
        base = os.environ.get("XDG_RUNTIME_DIR")
        directory, mode = (f"{base}/cowfs", 0o700) if base else (f"/tmp/cowfs-{os.geteuid()}", 0o700)
    os.makedirs(directory, mode=mode, exist_ok=True)
    found = os.lstat(directory)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise CowfsError("permission", f"{directory} belongs to somebody else", "remove it, or set XDG_RUNTIME_DIR")
    return directory


def listen(path: str) -> socket.socket:
    """A listening socket at a path, mode 0600. One that a killed daemon left there is replaced: the caller holds the
    pool's lock, so nobody else serves it."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        log.debug("no socket of an earlier daemon at %s", path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        listener.bind(path)
        listener.listen(64)
    except OSError as error:
        listener.close()
        raise CowfsError.from_os_error(error, f"listen at {path}") from None
    finally:
        os.umask(mask)
    return listener


class ControlServer:
    """Serves one listening socket until cancelled."""

    def __init__(self, pool: MountedPool, listener: socket.socket) -> None:
        self._pool = pool
        self._listener = trio.socket.from_stdlib_socket(listener)
        self._waiting: list[socket.socket] = []
        self._open = 0
        # Connections that wait for a request, the longest first.
        self._idle: dict[trio.CancelScope, None] = {}

    async def serve(self) -> None:
        async with trio.open_nursery() as nursery:
            self._pool.forget_view_later = lambda view, cursor: nursery.start_soon(self._forget_view, view, cursor)
            while True:
                try:
                    connection, _address = await self._listener.accept()
                except OSError as error:
                    # Out of descriptors, or the peer is gone already: the next one may do better.
                    log.warning("accept on the control socket: %s", error)
                    await trio.sleep(0.1)
                    continue
                nursery.start_soon(self._serve_connection, connection)

    async def _forget_view(self, view: int, cursor: int) -> None:
        """In steps, between which an unmount can end it."""
        await trio.sleep(FORGETTING_DELAY_S)
        try:
            while cursor:
                _count, cursor = await trio.to_thread.run_sync(self._pool.forget_held_nodes, view, cursor)
        except OSError as error:
            log.warning("the kernel could not be told to forget what a rollback left behind: %s", error)

    def farewell(self, error: CowfsError | None) -> None:
        """Tells those who wait for the end that it has come, and how. Called after the loop has ended."""
        reply = {"ok": False, "error": error.to_json()} if error else {"ok": True, "result": {}}
        for peer in self._waiting:
            try:
                peer.sendall(encode(reply))
            except OSError as failure:
                log.debug("a command that waited for the unmount is gone: %s", failure)
            peer.close()
        self._waiting.clear()

    async def _serve_connection(self, connection: trio.socket.SocketType) -> None:
        with connection, trio.CancelScope() as scope:
            self._open += 1
            try:
                credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
                _pid, uid, _gid = _CREDENTIALS.unpack(credentials)
                if uid not in (0, os.geteuid()):
                    refusal = CowfsError("permission", "this daemon answers root and its own user only",
                                         "run the command as one of them")
                    await _send(connection, encode({"ok": False, "error": refusal.to_json()}))
                    return
                if self._open > CONNECTIONS_MAX and not self._make_room():
                    full = CowfsError("busy", f"{CONNECTIONS_MAX} connections wait for answers", "try again")
                    await _send(connection, encode({"ok": False, "error": full.to_json()}))
                    return
                await self._serve_requests(connection, scope)
            except OSError as error:
                log.debug("a control connection ended: %s", error)
            finally:
                self._open -= 1
                self._idle.pop(scope, None)

    def _make_room(self) -> bool:
        """Ends the connection that has been idle the longest; False when all wait for answers."""
        for scope in self._idle:
            del self._idle[scope]
            scope.cancel()
            return True
        return False

    async def _serve_requests(self, connection: trio.socket.SocketType, scope: trio.CancelScope) -> None:
        buffer = b""
        while True:
            self._idle.setdefault(scope)  # pieces of a request do not count
            received = await connection.recv(REQUEST_LENGTH_MAX_BYTES)
            if not received:
                return
            *lines, buffer = (buffer + received).split(b"\n")
            if len(buffer) > REQUEST_LENGTH_MAX_BYTES or any(len(line) > REQUEST_LENGTH_MAX_BYTES for line in lines):
                too_long = CowfsError("usage", f"a request has over {REQUEST_LENGTH_MAX_BYTES} bytes", "shorten it")
                await _send(connection, encode({"ok": False, "error": too_long.to_json()}))
                return
            if lines:
                self._idle.pop(scope, None)
            for line in lines:
                if self._waits(connection, line):
                    await _send(connection, encode({"ok": True, "result": {}}))
                    return
                await _send(connection, encode(await answer(self._pool, line)))

    def _waits(self, connection: trio.socket.SocketType, line: bytes) -> bool:
        """Whether the request is for the end of the daemon; the connection is kept for farewell() then. It is answered
        at once, too, so that the command knows that it may unmount now."""
        if WAIT_UNMOUNTED.encode() not in line:
            return False
        try:
            verb, _arguments = parse_request(line)
        except CowfsError:
            return False
        if verb != WAIT_UNMOUNTED:
            return False
        peer = socket.socket(fileno=os.dup(connection.fileno()))
        peer.settimeout(1.0)
        self._waiting.append(peer)
        return True


async def _send(connection: trio.socket.SocketType, reply: bytes) -> None:
    sent = 0
    while sent < len(reply):
        sent += await connection.send(reply[sent:])
