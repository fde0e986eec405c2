"""Fixtures of the mounted tests. Each test leaves no mount, no daemon, and a pool that fsck.cowfs finds clean."""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator

import pytest

from cowfs.mounting import URING_PARAMETER, uring_parameter
from tests.mount.folders import clear_abandoned_folders, remove_folder, temporary_folder
from tools import scratch
from tools.scratch import Mount, Pool


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = pathlib.Path(__file__).parent
    for item in items:
        if here not in item.path.parents:
            continue
        item.add_marker(pytest.mark.mount)
        if not os.access("/dev/fuse", os.R_OK | os.W_OK):
            item.add_marker(
                pytest.mark.skip(reason="/dev/fuse is missing or closed to this user: nothing can be mounted")
            )


@pytest.fixture(scope="session", autouse=True)
def nothing_abandoned() -> None:
    """What an earlier run left that was killed."""
    clear_abandoned_folders()


TRANSPORTS = {"io_uring": "uring=on", "device": "uring=off", "nopump": "nopump"}


@pytest.fixture(
    scope="session", autouse=True, params=os.environ.get("COWFS_TEST_TRANSPORT", ",".join(TRANSPORTS)).split(",")
)
def transport(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every mounted test runs over each way that requests can take; COWFS_TEST_TRANSPORT names fewer."""
    name = str(request.param)
    before = uring_parameter()
    if name == "io_uring" and (before is None or (not before and os.geteuid() != 0)):
        pytest.skip("the kernel has no FUSE over io_uring (Linux 6.14), or only root may switch it on here")
    scratch.mount_options[:] = ["-o", TRANSPORTS[name]]
    yield name
    scratch.mount_options.clear()
    if before is False and uring_parameter():
        pathlib.Path(URING_PARAMETER).write_text("N")


@contextlib.contextmanager
def pools_in_folder() -> Iterator[Callable[..., Pool]]:
    folder = temporary_folder()
    pools: list[Pool] = []

    def make_pool(name: str = "pool", size_bytes: int = 1 << 30) -> Pool:
        pool = Pool(folder, name, size_bytes)
        pools.append(pool)
        return pool

    try:
        yield make_pool
    finally:
        with contextlib.ExitStack() as stack:
            stack.callback(remove_folder, folder)
            for pool in pools:
                stack.callback(pool.close)


@pytest.fixture
def new_pool() -> Iterator[Callable[..., Pool]]:
    """Call it for a pool (not made yet) in a folder of this test."""
    with pools_in_folder() as make_pool:
        yield make_pool


@pytest.fixture
def pool(new_pool: Callable[..., Pool]) -> Pool:
    return new_pool().make()


@pytest.fixture
def mount(pool: Pool) -> Mount:
    return pool.mount()


@pytest.fixture
def root(mount: Mount) -> pathlib.Path:
    """The root directory of a fresh file system."""
    return mount.directory


@pytest.fixture(scope="module")
def shared_root() -> Iterator[pathlib.Path]:
    """One file system for the tests of a module that do not look at its state as a whole. COWFS_TEST_DIRECTORY names
    a directory of another file system to run them on instead: that is how these tests are themselves tested."""
    if elsewhere := os.environ.get("COWFS_TEST_DIRECTORY"):
        with tempfile.TemporaryDirectory(dir=elsewhere) as directory:
            os.chmod(directory, 0o711)
            yield pathlib.Path(directory)
    else:
        with pools_in_folder() as make_pool:
            options = ("-o", "allow_other") if os.geteuid() == 0 else ()
            yield make_pool().make().mount(*options).directory


@pytest.fixture
def place(shared_root: pathlib.Path, request: pytest.FixtureRequest) -> pathlib.Path:
    """A directory of this test in the module's file system."""
    path = shared_root / request.node.name.replace("/", "_")
    path.mkdir()
    return path
