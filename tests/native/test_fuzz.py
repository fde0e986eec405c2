"""The fuzz targets of tests/fuzz, unguided and for half a minute: images whose checksums are right and whose content is
not, and messages that no kernel would send. `make fuzz` is the long form."""

import os
import secrets
import subprocess

import pytest

from tests.native.conftest import ENVIRONMENT, ROOT, Build

# On a quiet machine about ten seconds on one core for each of the two.
INPUTS = {"image_random": 6000, "pump_random": 14000}
SHARES = 2
LIMITS = ":max_allocation_size_mb=64:allocator_may_return_null=0:quarantine_size_mb=8:malloc_context_size=4"


FAILURES = (ROOT / "tests/fuzz/failures.txt").read_text().splitlines()


def environment() -> dict[str, str]:
    return {**os.environ, **ENVIRONMENT, "ASAN_OPTIONS": ENVIRONMENT["ASAN_OPTIONS"] + LIMITS}


def test_what_failed_once(drivers_of: Build) -> None:
    failures = [line.split() for line in FAILURES if not line.startswith("#")]
    assert failures
    for target, digits in failures:
        command = [*drivers_of("address")[f"{target}_random"], "input", digits]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment())
        assert done.returncode == 0, f"{digits}\n{done.stderr[-8000:]}"


@pytest.mark.timeout(280)
@pytest.mark.parametrize("name", list(INPUTS))
def test_hostile_inputs_end_in_errors(drivers_of: Build, name: str) -> None:
    """Two processes share the inputs. A failure shows the seed, and the input for `NAME input HEXADECIMAL`."""
    commands = [
        [*drivers_of("address")[name], str(INPUTS[name] // SHARES), str(secrets.randbits(32))] for _ in range(SHARES)
    ]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())
        for command in commands
    ]
    outcomes = [process.communicate(timeout=240) for process in running]
    for process, command, (output, errors) in zip(running, commands, outcomes, strict=True):
        assert process.returncode == 0, f"{' '.join(command)}\n{output[-1000:]}\n{errors[-12000:]}"
        assert f"{INPUTS[name] // SHARES} inputs" in output
