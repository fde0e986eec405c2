"""The pump under a mixed load, in a mount without Python (pump_driver.c), under AddressSanitizer and
UndefinedBehaviorSanitizer, and under ThreadSanitizer.

Any report fails, and so does a tree that is not right in the end. Meanwhile the driver takes and deletes snapshots,
makes checkpoints and, where a test says so, rolls back: programs on the mount may fail then.
"""

import contextlib
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import pytest

from cowfs.mounting import URING_PARAMETER, uring_parameter
from tests.native.conftest import ENVIRONMENT, SANITIZERS, Build
from tools import scratch

pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount without a helper"),
    pytest.mark.skipif(not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="/dev/fuse is missing: nothing mounts"),
]

POOL_SIZE_BYTES = 512 << 20
STEADY_SECONDS = 3
BROKEN_SECONDS = 2
LONG_SECONDS = 60
MOUNT_TIMEOUT_S = 20
END_TIMEOUT_S = 40

TRANSPORTS = ["uring", "device"]

# Each in a directory of its own on the mount; SECONDS is how long to go on. What fails ends the program.
LOADS = {
    "fio": "fio --name=random --directory=. --rw=randrw --bs=4k-64k --size=8m --numjobs=2 --fsync=16 --time_based "
    "--runtime=SECONDS --ioengine=psync --fallocate=none --output=/dev/null",
    "git": """
        git init --quiet
        for number in $(seq 150); do echo $number > file$number; done
        git add .
        git -c user.name=nobody -c user.email=nobody@example.org commit --quiet --message=all
        git fsck --full --strict""",
    "sqlite": """
        sqlite3 data 'create table t(a, b)'
        while [ $(date +%s) -lt $END ]; do
            sqlite3 data "insert into t values(1, 'x'); insert into t select * from t limit 10;"
        done
        test "$(sqlite3 data 'pragma integrity_check')" = ok""",
    "mapped": "fio --name=mapped --directory=. --rw=randrw --bs=4k --size=4m --fsync=64 --time_based --runtime=SECONDS "
    "--ioengine=mmap --fallocate=none --output=/dev/null",
} | {
    f"names{number}": """
        while [ $(date +%s) -lt $END ]; do
            mkdir names
            for file in a b c d e f; do
                echo hello > names/$file
                setfattr --name=user.name --value=value$file names/$file
                mv names/$file names/$file-moved
                ln names/$file-moved names/$file
                getfattr --dump names/$file > listing
                setfattr --remove=user.name names/$file
                ln --symbolic $file names/$file-link
                truncate --size=100 names/$file
            done
            ls -lR .. > listing 2> /dev/null || true
            ls -l ../.cowfs 2> /dev/null || true
            rm --recursive names
        done"""
    for number in range(3)
}

# Asks for nothing but what the pump forwards.
ASK = """
import os
while True:
    try:
        os.lstat("../.cowfs")
    except OSError:
        pass
"""
# Large writes, which several threads compress, read again and compared.
FIO = (
    "fio --name=large --directory=. --size=12m --loops=4 --refill_buffers --buffer_compress_percentage=60 "
    "--verify=crc32c --fallocate=none --output=/dev/null "
)
COMPRESSED = {
    "large": FIO + "--rw=write --bs=1m --ioengine=psync --numjobs=2",
    "unaligned": FIO + "--rw=randwrite --bsrange=64k-700k --bs_unaligned --ioengine=psync",
    "parallel": FIO + "--rw=randwrite --bs=512k --direct=1 --ioengine=libaio --iodepth=8",
    "names": LOADS["names0"],
    "fio": LOADS["fio"],
}
FORWARDED = {f"forwarded{number}": f"exec {sys.executable} -c '{ASK}'" for number in range(4)}


class Driver:
    """A mount by pump_driver, and the programs at work on it."""

    def __init__(
        self, folder: pathlib.Path, command: list[str], *, transport: str, cache: str, rolls_back: bool, how: str
    ):
        self.pool = folder / "pool"
        self.directory = folder / "mount"
        self.directory.mkdir()
        with self.pool.open("wb") as file:
            file.truncate(POOL_SIZE_BYTES)
        self._output = folder / "output"
        self._errors = folder / "errors"
        self._loads: dict[str, subprocess.Popen[bytes]] = {}
        words = [*command, str(self.pool), str(self.directory), transport, cache, str(int(rolls_back)), how]
        self._command = shlex.join(words)
        with self._output.open("wb") as output, self._errors.open("wb") as errors:
            environment = {**os.environ, **ENVIRONMENT}
            self.process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=output, stderr=errors, cwd="/", env=environment
            )

    def wait_mounted(self) -> None:
        def is_settled() -> bool:
            return "mounted" in self._output.read_text() or self.process.poll() is not None

        scratch.wait_until(is_settled, "the driver mounts", MOUNT_TIMEOUT_S)
        assert self.process.poll() is None, self.report()

    def wait_forward_closed(self) -> None:
        scratch.wait_until(lambda: "closed" in self._output.read_text(), "nobody serves what is forwarded")

    def report(self) -> str:
        text = self._errors.read_text(errors="replace")
        return f"{self._command}\nexited {self.process.returncode}\n{text[-12000:]}"

    def start_loads(self, seconds: int, loads: dict[str, str] = LOADS) -> None:
        for name, text in loads.items():
            place = self.directory / name
            with contextlib.suppress(OSError):  # a rollback may come between
                place.mkdir()
            script = f"cd {place} || exit 1\nEND=$(($(date +%s) + {seconds}))\n{text.replace('SECONDS', str(seconds))}"
            self._loads[name] = subprocess.Popen(
                ["sh", "-e", "-c", script], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL, cwd="/", start_new_session=True,
            )  # fmt: skip

    def finish_loads(self, timeout_s: float = END_TIMEOUT_S) -> dict[str, int]:
        """How each one ended."""
        deadline = time.monotonic() + timeout_s
        for load in self._loads.values():
            load.wait(max(0.1, deadline - time.monotonic()))
        return {name: load.returncode for name, load in self._loads.items()}

    def running_loads(self) -> int:
        return sum(load.poll() is None for load in self._loads.values())

    def stop_loads(self) -> None:
        for load in self._loads.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(load.pid, signal.SIGKILL)
            load.wait(END_TIMEOUT_S)

    def unmount(self) -> None:
        scratch.wait_until(lambda: subprocess.run(["umount", self.directory], capture_output=True, check=False)
                           .returncode == 0 or self.process.poll() is not None, "the mount is not in use")  # fmt: skip

    def wait_clean(self) -> str:
        """What the driver says it did."""
        self.process.wait(END_TIMEOUT_S)
        assert self.process.returncode == 0, self.report()
        self.check()
        said = self._output.read_text().splitlines()[-1]
        assert "snapshots" in said and not said.startswith("0 snapshots")
        return said

    def check(self) -> None:
        """fsck.cowfs, on what is in the pool."""
        assert not scratch.is_mounted(self.directory)
        scratch.run("fsck.cowfs", self.pool)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        while subprocess.run(["umount", "-l", self.directory], capture_output=True, check=False).returncode == 0:
            pass
        self.process.wait()
        self.stop_loads()


Start = Callable[..., Driver]


@pytest.fixture
def start(drivers_of: Build) -> Iterator[Start]:
    """Call it for a driver that has mounted."""
    shared = pathlib.Path("/dev/shm")
    roomy = shared.is_dir() and shutil.disk_usage(shared).free > 2 * POOL_SIZE_BYTES
    before = uring_parameter()
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="cowfs-pump-", dir=shared if roomy else None))

        def mount(sanitizer: str, transport: str, cache: str, *, rolls_back: bool, how: str = "off") -> Driver:
            if transport == "uring":
                if before is None:
                    pytest.skip("this kernel has no FUSE over io_uring (Linux 6.14)")
                if not before and not uring_parameter(switch_on=True):
                    pytest.skip("FUSE over io_uring cannot be switched on")
            command = drivers_of(sanitizer)["pump_driver"]
            driver = Driver(
                pathlib.Path(folder), command, transport=transport, cache=cache, rolls_back=rolls_back, how=how
            )
            stack.callback(driver.close)
            driver.wait_mounted()
            return driver

        try:
            yield mount
        finally:
            if before is False and uring_parameter():
                pathlib.Path(URING_PARAMETER).write_text("N")


def run_steadily(driver: Driver, seconds: int, loads: dict[str, str] = LOADS) -> None:
    driver.start_loads(seconds, loads)
    ends = driver.finish_loads(seconds + END_TIMEOUT_S)
    driver.unmount()
    driver.wait_clean()
    assert ends == dict.fromkeys(loads, 0), "a program on the mount failed"


def run_with_rollbacks(driver: Driver, seconds: int) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        driver.start_loads(1)
        driver.finish_loads()
    driver.unmount()
    assert " 0 rollbacks" not in driver.wait_clean()


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("sanitizer", list(SANITIZERS))
def test_mixed_load(start: Start, sanitizer: str, transport: str) -> None:
    run_steadily(start(sanitizer, transport, "through", rolls_back=False), STEADY_SECONDS)


@pytest.mark.parametrize(("transport", "cache", "how"), [("uring", "through", "zstd"), ("uring", "back", "lz4"),
                                                         ("device", "through", "lz4")])
@pytest.mark.parametrize("sanitizer", list(SANITIZERS))
def test_compressed_load(start: Start, sanitizer: str, transport: str, cache: str, how: str) -> None:
    run_steadily(start(sanitizer, transport, cache, rolls_back=False, how=how), STEADY_SECONDS, COMPRESSED)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("sanitizer", list(SANITIZERS))
def test_rollbacks(start: Start, sanitizer: str, transport: str) -> None:
    run_with_rollbacks(start(sanitizer, transport, "back", rolls_back=True), BROKEN_SECONDS)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("sanitizer", list(SANITIZERS))
def test_ended_under_load(start: Start, sanitizer: str, transport: str) -> None:
    """Requests are under way, some of them with whoever is behind `forward`, when the pump stops: whoever waits for an
    answer gets an error, and what is in the pool is right."""
    driver = start(sanitizer, transport, "through", rolls_back=False)
    driver.start_loads(60)
    time.sleep(1)
    assert driver.running_loads() >= 3
    driver.process.send_signal(signal.SIGTERM)
    driver.wait_clean()
    driver.finish_loads()


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("sanitizer", list(SANITIZERS))
def test_forward_closed(start: Start, sanitizer: str, transport: str) -> None:
    """Whoever is behind `forward` goes away: the requests meant for them get an error, all others go on."""
    driver = start(sanitizer, transport, "through", rolls_back=False)
    driver.start_loads(60, FORWARDED)
    time.sleep(0.5)
    driver.process.send_signal(signal.SIGUSR1)
    driver.wait_forward_closed()
    with pytest.raises(OSError, match="Input/output error"):
        (driver.directory / ".cowfs").lstat()
    (driver.directory / "file").write_text("text")
    driver.process.send_signal(signal.SIGTERM)
    driver.wait_clean()
    driver.stop_loads()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_killed_under_load(start: Start, transport: str) -> None:
    driver = start("address", transport, "through", rolls_back=False)
    driver.start_loads(60)
    time.sleep(1.5)
    assert driver.running_loads() >= 3
    driver.process.kill()
    driver.process.wait(END_TIMEOUT_S)
    subprocess.run(["umount", "-l", driver.directory], check=True)
    driver.finish_loads()
    driver.check()


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("rolls_back", [False, True])
@pytest.mark.parametrize("cache", ["through", "back"])
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("sanitizer", list(SANITIZERS))
def test_long_load(start: Start, sanitizer: str, transport: str, cache: str, rolls_back: bool) -> None:
    run = run_with_rollbacks if rolls_back else run_steadily
    run(start(sanitizer, transport, cache, rolls_back=rolls_back), LONG_SECONDS)
