"""The control socket against whoever gets through to it and means no good: noise, requests of every shape, connections
without end, peers that never finish a request or never read an answer."""

import json
import os
import pathlib
import random
import secrets
import socket
import time

import pytest

from cowfs.client import Client
from cowfs.control import CONNECTIONS_MAX, REQUEST_LENGTH_MAX_BYTES, VERBS, ControlServer
from cowfs.volumes import MountedPool
from tests.unit.test_control_server import client, connect, pool, server

__all__ = ["client", "pool", "server"]


def resident_bytes() -> int:
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def answers(pool: MountedPool, requests: list[bytes]) -> list[dict[str, object]]:
    """One connection for each request, since some end theirs."""
    replies = []
    for request in requests:
        with connect(pool) as peer, peer.makefile("rb") as stream:
            peer.sendall(request + b"\n")
            reply = json.loads(stream.readline())
            assert reply["ok"] in (True, False)
            replies.append(reply)
    return replies


def connect_patiently(pool: MountedPool) -> socket.socket:
    """When the server's queue is full, connecting waits."""
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    peer.connect(pool.socket_path)
    peer.settimeout(10)
    return peer


NOISE = [
    b"[" * 60000, b'{"a":' * 10000, b"9" * 60000, b'{"verb":' + b"9" * 50000 + b"}", b"\0" * 60000, b"\xff\xfe" * 30000,
    b'{"verb":"list","arguments":{"limit":1e999}}', b'{"verb":"list","arguments":{"limit":-0.0}}',
    b'{"verb":"list","arguments":{"limit":NaN}}', b'{"verb":"list","arguments":{"after":Infinity}}',
    b'{"verb":"\\ud800"}', b'{"verb":"' + b"v" * 60000 + b'"}', b'"wait_unmounted"', b'[{"verb":"wait_unmounted"}]',
    b'{"verb":"list","arguments":' + b"[" * 900 + b"]" * 900 + b"}",
    b'{"verb":"hold","arguments":{"name":"a","tag":"' + b"\\u0000" * 9000 + b'"}}',
]  # fmt: skip


def test_noise_is_refused_in_words(server: ControlServer, pool: MountedPool) -> None:
    seed = secrets.randbits(32)
    draw = random.Random(seed)
    noise = [*NOISE, *(draw.randbytes(draw.randrange(1, 300)).replace(b"\n", b"") or b"x" for _ in range(300))]
    for request, reply in zip(noise, answers(pool, noise), strict=True):
        assert reply["ok"] is False, (seed, request[:200])
    assert pool.events["unexpected"] == 0, seed


def some_value(draw: random.Random) -> object:
    return draw.choice((
        None, True, False, 0, 1, -1, 2**31, 2**63 - 1, 2**63, 2**64, 10**4000, 1.5, "", "main", "one", "../one", "a/b",
        "\0", "\n", "x" * 255, "x" * 256, "\ud800", "\U0001f600" * 64, [], {}, [[]], {"a": {}},
    ))  # fmt: skip


def test_requests_of_every_shape_are_answered(server: ControlServer, pool: MountedPool) -> None:
    """Verbs that exist, with arguments that they take and others."""
    seed = secrets.randbits(32)
    draw = random.Random(seed)
    requests = []
    for _ in range(600):
        verb = draw.choice([*VERBS, "nothing"])
        names = [*(VERBS[verb].parameters if verb in VERBS else ()), "other"]
        arguments = {name: some_value(draw) for name in names if draw.randrange(3)}
        arguments.pop("other", None) if draw.randrange(4) else None
        requests.append(json.dumps({"verb": verb, "arguments": arguments}).encode())
    requests.append(b'{"verb":"snapshot","arguments":{"volume":"\\ud800"}}')
    replies = answers(pool, requests)
    assert pool.events["unexpected"] == 0, seed
    for request, reply in zip(requests, replies, strict=True):
        error = reply.get("error")
        assert reply["ok"] or (isinstance(error, dict) and error["message"] and error["code"] != "error"), (
            seed, request[:300], reply)


def test_connections_without_end_lock_nobody_out(server: ControlServer, pool: MountedPool, client: Client) -> None:
    """Each has begun a request and goes on with it, byte by byte."""
    assert client.snapshot("before")["name"] == "before"
    peers: list[socket.socket] = []
    before = resident_bytes()
    try:
        for _ in range(CONNECTIONS_MAX * 2):
            peers.append(connect_patiently(pool))
            peers[-1].sendall(b'{"verb":"snap' + b" " * 30000)
            for peer in peers[-3:]:
                peer.sendall(b" ")
        started = time.monotonic()
        with Client(pool.mountpoint) as late:
            assert late.snapshot("late")["name"] == "late"
        assert time.monotonic() - started < 5
        assert resident_bytes() - before < 4 * CONNECTIONS_MAX * REQUEST_LENGTH_MAX_BYTES
        assert peers[0].recv(1) == b"", "the one that was idle the longest had to go"
        peers[-1].sendall(b'shot"}\n')
        assert json.loads(peers[-1].makefile("rb").readline())["ok"] is False, "what it sent is no verb"
    finally:
        for peer in peers:
            peer.close()


def test_peers_that_never_read_hold_up_nobody(server: ControlServer, pool: MountedPool, client: Client) -> None:
    for number in range(50):
        client.snapshot(f"s{number}", sync=False)
    peers = [connect(pool) for _ in range(8)]
    try:
        for peer in peers:
            peer.setblocking(False)
            sent = 0
            while sent < 4 << 20:
                try:
                    sent += peer.send(b'{"verb":"list"}\n' * 1000)
                except BlockingIOError:
                    break
        started = time.monotonic()
        assert client.snapshot("meanwhile")["name"] == "meanwhile"
        assert time.monotonic() - started < 5
    finally:
        for peer in peers:
            peer.close()


@pytest.mark.parametrize("length", [REQUEST_LENGTH_MAX_BYTES, 64 << 20])
def test_endless_requests_take_no_memory(server: ControlServer, pool: MountedPool, length: int) -> None:
    before = resident_bytes()
    with connect(pool) as peer:
        sent = 0
        try:
            while sent <= length:
                sent += peer.send(b"x" * (64 << 10))
        except (BrokenPipeError, ConnectionResetError):
            assert sent >= REQUEST_LENGTH_MAX_BYTES
    assert resident_bytes() - before < 16 << 20
