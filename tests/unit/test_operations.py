"""Handlers called as pyfuse3 calls them, where the kernel would have to be caught at a certain moment."""

import errno
import os
import stat
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pyfuse3
import pytest
import trio

from btree import Storage, Store
from cowfs._native import FileSystem
from cowfs.latencies import HandlerLatencies
from cowfs.operations import Operations

CALLER = cast(pyfuse3.RequestContext, SimpleNamespace(uid=0, gid=0, pid=1, umask=0o022))
FILE = stat.S_IFREG | 0o644


@pytest.fixture
def operations() -> Iterator[Operations]:
    """Over a store in memory, without a mount."""
    storage = Storage.open_memory(16 << 20)
    Store.format(storage)
    with Store(storage, background=False) as store:
        volume = store.volume_create("main")
        FileSystem.initialize(store, volume, uid=0, gid=0)
        system = FileSystem(store, volume)
        pool = SimpleNamespace(filesystem=system, store=store, volume_id=volume, open_files=0, started_ns=0,
                               history_changed_ns=0, socket_path="/nowhere", events={"unexpected": 0, "io_error": 0},
                               handler_latencies=HandlerLatencies())
        yield Operations(cast(Any, pool))
        system.release_all()


def create(operations: Operations, flags: int) -> Any:
    return trio.run(operations.create, pyfuse3.ROOT_INODE, b"name", FILE, flags, CALLER)


@pytest.mark.parametrize(("flags", "expected"), [
    (os.O_WRONLY, errno.ESTALE),
    (os.O_WRONLY | os.O_TRUNC, errno.ESTALE),
    (os.O_WRONLY | os.O_EXCL, errno.EEXIST),
])
def test_create_of_a_name_that_the_kernel_thought_missing(operations: Operations, flags: int, expected: int) -> None:
    """Nothing is opened past the permission check, and nothing is truncated or left untruncated in silence."""
    _info, entry = create(operations, os.O_WRONLY)
    operations.filesystem.write(entry.st_ino, 0, b"content")
    with pytest.raises(pyfuse3.FUSEError) as raised:
        create(operations, flags | os.O_CREAT)
    assert raised.value.errno == expected
    assert operations.filesystem.read(entry.st_ino, 0, 100) == b"content"
    assert operations.filesystem.lookup_count(entry.st_ino) == 1


def test_a_handler_that_meets_anything_unexpected_answers_eio(
        operations: Operations, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "filesystem", SimpleNamespace(getattr=lambda node: 1 / 0))
    with pytest.raises(pyfuse3.FUSEError) as raised:
        trio.run(operations.getattr, pyfuse3.ROOT_INODE, CALLER)
    assert raised.value.errno == errno.EIO
    assert operations.pool.events["unexpected"] == 1
