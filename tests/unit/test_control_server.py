"""The control socket: a real store in memory behind it, the Python client in front, and whatever else may connect."""

import json
import logging
import os
import pathlib
import socket
import stat
import threading
from collections.abc import Iterator

import pytest
import trio

from btree import Storage, Store
from cowfs import control
from cowfs._native import FileSystem
from cowfs.client import Client
from cowfs.control import (
    NODES_AT_ONCE,
    REQUEST_LENGTH_MAX_BYTES,
    ControlServer,
    check_arguments,
    listen,
    parse_request,
)
from cowfs.errors import CowfsError, ExitCode
from cowfs.mounting import Notifier
from cowfs.volumes import MountedPool


class RecordingNotifier(Notifier):
    """Keeps what the kernel would have been told."""

    def __init__(self, *, knows_epochs: bool = True) -> None:
        super().__init__(-1)
        self.sent: list[tuple[object, ...]] = []
        self._knows_epochs = knows_epochs

    def increase_epoch(self) -> bool:
        self.sent.append(("epoch",))
        return self._knows_epochs

    def invalidate_inode(self, node: int) -> bool:
        self.sent.append(("inode", node))
        return True

    def invalidate_entry(self, parent: int, name: bytes) -> bool:
        self.sent.append(("entry", parent, name))
        return True


@pytest.fixture
def pool(tmp_path: pathlib.Path) -> Iterator[MountedPool]:
    storage = Storage.open_memory(64 << 20)
    Store.format(storage, label="tests")
    store = Store(storage)
    volume_id = store.volume_create("main")
    FileSystem.initialize(store, volume_id, uid=os.getuid(), gid=os.getgid())
    filesystem = FileSystem(store, volume_id)
    pool = MountedPool(store, filesystem, store.volume_find("main"), pool_path="memory",
                       mountpoint=str(tmp_path / "mnt"), read_only=False, log_path="nowhere")
    pool.socket_path = str(tmp_path / "socket")
    pool.notifier = RecordingNotifier()
    pool.snapshots_node, pool.volumes_node = 100, 200
    yield pool
    store.close()


@pytest.fixture
def server(pool: MountedPool, tmp_path: pathlib.Path) -> Iterator[ControlServer]:
    (tmp_path / "mnt" / ".cowfs").mkdir(parents=True)
    (tmp_path / "mnt" / ".cowfs" / "socket").symlink_to(pool.socket_path)
    listener = listen(pool.socket_path)
    ready = threading.Event()
    running: list[tuple[ControlServer, trio.lowlevel.TrioToken, trio.CancelScope]] = []

    async def serve() -> None:
        with trio.CancelScope() as scope:
            served = ControlServer(pool, listener)
            running.append((served, trio.lowlevel.current_trio_token(), scope))
            ready.set()
            await served.serve()

    thread = threading.Thread(target=trio.run, args=(serve,))
    thread.start()
    assert ready.wait(10)
    served, token, scope = running[0]
    yield served
    token.run_sync_soon(scope.cancel)
    thread.join(10)
    assert not thread.is_alive()
    served.farewell(None)
    listener.close()


@pytest.fixture
def client(server: ControlServer, pool: MountedPool) -> Iterator[Client]:
    with Client(pool.mountpoint) as client:
        yield client


def connect(pool: MountedPool) -> socket.socket:
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    peer.settimeout(10)
    peer.connect(pool.socket_path)
    return peer


def code_of(reply: bytes) -> str:
    decoded = json.loads(reply)
    assert decoded["ok"] is False and decoded["error"]["message"]
    code: str = decoded["error"]["code"]
    return code


def failure(code: str, exit_code: ExitCode) -> "pytest.RaisesContext[CowfsError]":  # type: ignore[name-defined]
    def matches(error: CowfsError) -> bool:
        return error.code == code and error.exit_code == exit_code and bool(error.hint)

    return pytest.raises(CowfsError, check=matches)


# ---- what works


def test_snapshots(client: Client) -> None:
    first = client.snapshot("first")
    unnamed = client.snapshot()
    fast = client.snapshot(sync=False)
    assert [snapshot["name"] for snapshot in client.list()] == ["first", unnamed["name"], fast["name"]]
    assert first["holds"] == [] and first["created_ns"] > 0
    client.destroy("first")
    assert [snapshot["name"] for snapshot in client.list()] == [unnamed["name"], fast["name"]]
    with failure("not_found", ExitCode.NOT_FOUND):
        client.destroy("first")
    with failure("exists", ExitCode.EXISTS):
        client.snapshot(unnamed["name"])
    for name in ("", "a/b", "x" * 256, ".", "a\nb"):
        with failure("name", ExitCode.USAGE):
            client.snapshot(name)


def test_lists_are_fetched_in_pages(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [client.snapshot(sync=False)["name"] for _ in range(10)]
    for length in (3, 5, 10, 11):
        monkeypatch.setattr("cowfs.client._PAGE_LENGTH", length)
        assert [snapshot["name"] for snapshot in client.list()] == names
    assert [found["name"] for found in client.request("list", after=0, limit=2)] == names[:2]


def test_holds(client: Client) -> None:
    client.snapshot("kept")
    client.hold("kept", "backup")
    assert client.hold("kept", "legal")["holds"] == ["backup", "legal"]
    with failure("exists", ExitCode.EXISTS):
        client.hold("kept", "legal")
    with failure("held", ExitCode.BUSY):
        client.destroy("kept")
    assert client.list()[0]["holds"] == ["backup", "legal"]
    client.release("kept", "backup")
    with failure("not_found", ExitCode.NOT_FOUND):
        client.release("kept", "backup")
    client.release("kept", "legal")
    client.destroy("kept")
    assert client.list() == []


def test_rollback_tells_the_kernel(client: Client, pool: MountedPool) -> None:
    filesystem = pool.filesystem
    filesystem.create(1, b"old", stat.S_IFREG | 0o644, 0, 0)
    client.snapshot("before")
    added = filesystem.create(1, b"new", stat.S_IFREG | 0o644, 0, 0)
    result = client.rollback("before")
    assert [name for name, _cookie, _attributes in filesystem.readdir(1, 0, 10, False)] == [b"old"]
    assert filesystem.is_stale(added[0])
    notifier = pool.notifier
    assert isinstance(notifier, RecordingNotifier)
    assert notifier.sent[:2] == [("epoch",), ("inode", 1)] and ("inode", added[0]) in notifier.sent
    client.rollback(result["guard"]["name"])
    assert {name for name, _cookie, _attributes in filesystem.readdir(1, 0, 10, False)} == {b"old", b"new"}
    with failure("not_found", ExitCode.NOT_FOUND):
        client.rollback("never")


def test_what_a_rollback_waits_for_follows_what_is_open(client: Client, pool: MountedPool) -> None:
    """Of 30,000 nodes that the kernel holds, the answer waits for those that are open and a few others."""
    filesystem = pool.filesystem
    held = [filesystem.create(1, b"%d" % number, stat.S_IFREG | 0o644, 0, 0)[0] for number in range(30_000)]
    opened = held[123::1000]
    handles = [filesystem.opened(node) for node in opened]
    client.snapshot("before")
    left: list[tuple[int, int]] = []
    pool.forget_view_later = lambda view, cursor: left.append((view, cursor))
    pool.notifier = notifier = RecordingNotifier()
    client.rollback("before")
    told = [node for kind, node, *_ in notifier.sent[2:] if kind == "inode"]
    assert set(told[:len(opened)]) == set(opened)
    assert len(told) <= len(opened) + NODES_AT_ONCE + 1024
    (view, cursor), = left
    while cursor:
        count, cursor = pool.forget_held_nodes(view, cursor)
        assert count <= 1500
    assert {node for kind, node, *_ in notifier.sent[2:] if kind == "inode"} == set(held)
    for node, handle in zip(opened, handles, strict=True):
        filesystem.closed(node, handle)


def test_rollback_without_epochs_names_the_old_and_the_new_root(client: Client, pool: MountedPool) -> None:
    pool.notifier = notifier = RecordingNotifier(knows_epochs=False)
    pool.filesystem.create(1, b"old", stat.S_IFREG | 0o644, 0, 0)
    client.snapshot("before")
    pool.filesystem.unlink(1, b"old")
    for index in range(300):
        pool.filesystem.create(1, b"new%d" % index, stat.S_IFREG | 0o644, 0, 0)
    client.rollback("before")
    named = {entry[2] for entry in notifier.sent if entry[0] == "entry" and entry[1] == 1}
    assert named == {b"old", *(b"new%d" % index for index in range(300))}


def test_volumes(client: Client, pool: MountedPool) -> None:
    client.snapshot("base")
    client.clone("base", "work")
    assert [volume["name"] for volume in client.volumes()] == ["main", "work"]
    with failure("exists", ExitCode.EXISTS):
        client.clone("base", "work")
    with failure("not_found", ExitCode.NOT_FOUND):
        client.clone("never", "more")
    with Client(pool.mountpoint, "work") as other:
        other.snapshot("inside")
        assert [snapshot["name"] for snapshot in other.list()] == ["inside"]
        other.rollback("inside")
    with failure("busy", ExitCode.BUSY):
        client.destroy_volume("main")
    client.destroy_volume("work")
    with failure("not_found", ExitCode.NOT_FOUND):
        client.destroy_volume("work")
    notifier = pool.notifier
    assert isinstance(notifier, RecordingNotifier)
    assert ("entry", pool.volumes_node, b"work") in notifier.sent


def test_figures(client: Client, pool: MountedPool) -> None:
    client.sync()
    usage = client.df()
    assert usage["size_bytes"] == 64 << 20 and 0 < usage["available_bytes"] < usage["size_bytes"]
    status = client.status()
    assert status["label"] == "tests" and status["pid"] == os.getpid() == client.daemon_pid()
    assert status["failure"] is None and status["statistics"]["commits"] >= 0
    assert status["socket"] == pool.socket_path


def test_read_only_pools_refuse_changes(client: Client, pool: MountedPool) -> None:
    client.snapshot("kept")
    pool.read_only = True
    for change in (lambda: client.snapshot("more"), lambda: client.destroy("kept"), lambda: client.rollback("kept"),
                   lambda: client.clone("kept", "work"), lambda: client.hold("kept", "tag"),
                   lambda: client.destroy_volume("work")):
        with failure("read_only", ExitCode.PERMISSION):
            change()
    assert len(client.list()) == 1


def test_the_end_is_told_to_those_who_wait(server: ControlServer, pool: MountedPool) -> None:
    with Client(pool.mountpoint) as first, Client(pool.mountpoint) as second:
        first.announce_wait()
        server.farewell(None)
        first.wait_unmounted()
        second.announce_wait()
        server.farewell(CowfsError("damaged", "closing failed", "run fsck.cowfs"))
        with failure("damaged", ExitCode.DAMAGED):
            second.wait_unmounted()


# ---- what does not


@pytest.mark.parametrize("line", [
    b"", b"nonsense", b"\xff\xfe", b"null", b"[]", b"{}", b'{"verb":5}', b'{"verb":"nothing"}', b"[" * 60000,
    b'{"verb":"snapshot","arguments":[]}', b'{"verb":"snapshot","arguments":null}',
    b'{"verb":"snapshot","arguments":{"nmae":"x"}}', b'{"verb":"snapshot","arguments":{"name":5}}',
    b'{"verb":"snapshot","arguments":{"sync":1}}', b'{"verb":"rollback"}',
    b'{"verb":"rollback","arguments":{"name":null}}',
    b'{"verb":"list","arguments":{"limit":-1}}', b'{"verb":"list","arguments":{"after":1e3}}',
    b'{"verb":"list","arguments":{"after":99999999999999999999}}', b'{"verb":"list","arguments":{"limit":true}}',
])
def test_malformed_requests_are_answered(server: ControlServer, pool: MountedPool, line: bytes) -> None:
    with connect(pool) as peer, peer.makefile("rb") as replies:
        peer.sendall(line + b"\n" + b'{"verb":"volumes"}\n')
        assert code_of(replies.readline()) == "usage"
        assert json.loads(replies.readline())["ok"] is True


def test_names_that_are_no_unicode(server: ControlServer, pool: MountedPool) -> None:
    with connect(pool) as peer, peer.makefile("rb") as replies:
        for verb, code in (("snapshot", "name"), ("rollback", "not_found"), ("destroy", "not_found")):
            peer.sendall(b'{"verb":"%s","arguments":{"name":"\\udc80"}}\n' % verb.encode())
            assert code_of(replies.readline()) == code
        peer.sendall(b'{"verb":"list","arguments":{"volume":"\\udc80"}}\n')
        assert code_of(replies.readline()) == "not_found"
    assert pool.events["unexpected"] == 0


def test_requests_that_are_too_long_end_the_connection(server: ControlServer, pool: MountedPool) -> None:
    for length in (REQUEST_LENGTH_MAX_BYTES + 1, 10 * REQUEST_LENGTH_MAX_BYTES):
        with connect(pool) as peer:
            try:
                peer.sendall(b"x" * length)
                peer.shutdown(socket.SHUT_WR)
                received = b"".join(iter(lambda peer=peer: peer.recv(4096), b""))  # type: ignore[misc]
            except (BrokenPipeError, ConnectionResetError):
                continue  # the server had seen enough before all of it was sent
            assert code_of(received) == "usage"
    with connect(pool) as peer, peer.makefile("rb") as replies:
        peer.sendall(b'{"verb":"volumes"}\n')
        assert json.loads(replies.readline())["ok"] is True


def test_requests_in_pieces_and_in_bundles(server: ControlServer, pool: MountedPool) -> None:
    request = b'{"verb":"snapshot","arguments":{"name":"%d"}}\n'
    with connect(pool) as peer, peer.makefile("rb") as replies:
        for byte in request % 0:
            peer.sendall(bytes([byte]))
        peer.sendall(b"".join(request % index for index in range(1, 50)))
        assert [json.loads(replies.readline())["result"]["name"] for _ in range(50)] == [str(i) for i in range(50)]


def test_a_peer_that_leaves_in_the_middle(server: ControlServer, pool: MountedPool) -> None:
    for message in (b"", b'{"verb":', b'{"verb":"snapshot"}\n' * 100):
        with connect(pool) as peer:
            peer.sendall(message)
    with connect(pool) as peer, peer.makefile("rb") as replies:
        peer.sendall(b'{"verb":"status"}\n')
        assert json.loads(replies.readline())["result"]["events"]["unexpected"] == 0


def test_the_unexpected_is_answered_and_logged(client: Client, pool: MountedPool, monkeypatch: pytest.MonkeyPatch,
                                               caplog: pytest.LogCaptureFixture) -> None:
    def fail(*arguments: object, **keywords: object) -> object:
        raise ZeroDivisionError

    monkeypatch.setattr(pool, "take_snapshot", fail)
    monkeypatch.setattr(logging.getLogger("cowfs"), "propagate", True)
    with failure("error", ExitCode.ERROR):
        client.snapshot()
    assert pool.events["unexpected"] == 1 and "ZeroDivisionError" in caplog.text
    assert client.volumes()


def test_strangers_are_refused(server: ControlServer, pool: MountedPool, monkeypatch: pytest.MonkeyPatch) -> None:
    assert stat.S_IMODE(os.stat(pool.socket_path).st_mode) == 0o600
    monkeypatch.setattr(control, "_CREDENTIALS", StrangerCredentials())
    with connect(pool) as peer, peer.makefile("rb") as replies:
        assert code_of(replies.readline()) == "permission"
        assert replies.readline() == b""


class StrangerCredentials:
    """Those of a user who is neither root nor the daemon's."""

    size = 12

    def unpack(self, credentials: bytes) -> tuple[int, int, int]:
        assert len(credentials) == self.size
        return 1, os.geteuid() + 12345, 0


def test_a_socket_left_behind_is_replaced(tmp_path: pathlib.Path) -> None:
    path = str(tmp_path / "socket")
    listen(path).close()
    with listen(path):
        assert stat.S_ISSOCK(os.stat(path).st_mode)
    with pytest.raises(CowfsError):
        listen(str(tmp_path / ("x" * 120)))


def test_a_daemon_that_is_gone(pool: MountedPool, tmp_path: pathlib.Path) -> None:
    directory = tmp_path / "mnt" / ".cowfs"
    directory.mkdir(parents=True)
    (directory / "socket").symlink_to(pool.socket_path)
    with failure("dead", ExitCode.DEAD):
        Client(pool.mountpoint)
    with listen(pool.socket_path) as listener:
        client = Client(pool.mountpoint)
        listener.accept()[0].close()
        with client, failure("dead", ExitCode.DEAD):
            client.sync()


def test_arguments_are_checked_against_the_table() -> None:
    for verb, found in control.VERBS.items():
        for name, (types, default) in found.parameters.items():
            assert types
            if default is not control._REQUIRED:
                assert type(default) in types, (verb, name)
    assert check_arguments("list", control.VERBS["list"].parameters, {}) == {
        "volume": None, "after": 0, "before": 0, "limit": 0, "sizes": False}
    assert parse_request(b'{"verb":"x"}') == ("x", {})
