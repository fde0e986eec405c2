"""The whole daemon, Python and C, under AddressSanitizer, UndefinedBehaviorSanitizer and, at its end, LeakSanitizer,
with the load of tools/soak.py; and whether a leak would be noticed."""

import contextlib
import os
import pathlib
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from cowfs.mounting import URING_PARAMETER, uring_parameter
from tests.native.conftest import ENVIRONMENT, FLAGS, SANITIZERS
from tests.native.leaking_daemon import LEAKED_BYTES
from tools import sanitized, soak
from tools.sanitized import ROOT, SanitizedMount
from tools.scratch import Pool

LEAKING_PROGRAM = """
#include <stdlib.h>
void *volatile kept;
int main(void) { kept = malloc(4321); kept = NULL; return 0; }
"""
STEPS_TIMEOUT_S = 60
TRANSPORTS = {"uring": "uring=on", "device": "uring=off", "nopump": "nopump"}

mounted = [
    pytest.mark.mount,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount without a helper"),
    pytest.mark.skipif(not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="/dev/fuse is missing: nothing mounts"),
]

MountOne = Callable[..., SanitizedMount]


@pytest.fixture(scope="module")
def extensions() -> pathlib.Path:
    """Built again only when a source has changed."""
    folder = ROOT / "build" / "sanitized"
    sanitized.build(folder)
    return folder


@pytest.fixture
def mount(extensions: pathlib.Path) -> Iterator[MountOne]:
    """Call it with mount options and, if it shall be another, the module that is the daemon."""
    before = uring_parameter()
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cowfs-sanitized-")))
        pool = Pool(folder, size_bytes=1 << 30).make()
        stack.callback(pool.close)
        directory = folder / "mount"
        directory.mkdir()

        def mount_one(options: str, module: str = sanitized.DAEMON) -> SanitizedMount:
            if options == "uring=on" and before is None:
                pytest.skip("this kernel has no FUSE over io_uring (Linux 6.14)")
            made = SanitizedMount(pool, directory, extensions, ["-o", options], module)
            stack.callback(made.end)
            return made

        yield mount_one
    if before is False and uring_parameter():
        pathlib.Path(URING_PARAMETER).write_text("N")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("transport", TRANSPORTS)
class TestDaemon:
    pytestmark = mounted

    def test_no_report(self, mount: MountOne, transport: str) -> None:
        made = mount(TRANSPORTS[transport])
        counts: Counter[str] = Counter()
        work = soak.Round(made, 1, counts)
        work.run_until(lambda: all(counts[name] for name in soak.STEPS), STEPS_TIMEOUT_S)
        soak.roll_back(made)
        soak.delete_everything(made)
        made.unmount()

    def test_a_leak_is_noticed(self, mount: MountOne, transport: str) -> None:
        made = mount(TRANSPORTS[transport], "tests.native.leaking_daemon")
        (made.directory / "file").write_text("text")
        with pytest.raises(AssertionError, match=f"Direct leak of {LEAKED_BYTES} byte"):
            made.unmount()


def test_the_drivers_would_notice_a_leak(tmp_path: pathlib.Path) -> None:
    """Built and run as the drivers are."""
    source, program = tmp_path / "leak.c", tmp_path / "leak"
    source.write_text(LEAKING_PROGRAM)
    subprocess.run(["gcc", *FLAGS, *SANITIZERS["address"], source, "-o", program], check=True, timeout=60)
    done = subprocess.run(
        [program], env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 99 and f"leak of {LEAKED_BYTES} byte" in done.stderr
