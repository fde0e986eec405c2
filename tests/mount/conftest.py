"""Fixtures of the mounted tests. Each test leaves no mount, no daemon, and a pool that fsck.cowfs finds clean."""

import contextlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator

import pytest

from cowfs.mounting import URING_PARAMETER, uring_parameter
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


def temporary_folder() -> pathlib.Path:
    """In memory where there is room, since pools are large and most of these tests are about meaning, not speed."""
    shared = pathlib.Path("/dev/shm")
    roomy = shared.is_dir() and shutil.disk_usage(shared).free > 4 << 30
    folder = pathlib.Path(tempfile.mkdtemp(prefix="cowfs-test-", dir=shared if roomy else None))
    folder.chmod(0o711)  # tests that act as another user must get through
    return folder


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


def remove_folder(folder: pathlib.Path) -> None:
    """Never walks into something that is still mounted."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        inside = [line.split()[4] for line in table if line.split()[4].startswith(f"{folder}/")]
    assert not inside, f"still mounted: {inside}"
    shutil.rmtree(folder)


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
