"""The store's core and the verbs, each in a C driver, under AddressSanitizer and UndefinedBehaviorSanitizer, and under
ThreadSanitizer; and under the first two with each allocation made to fail, also those of a pump.

Any report fails. The driver prints what it did; its seed is in the command that a failure shows.
"""

import os
import secrets
import subprocess

import pytest

from tests.native.conftest import ENVIRONMENT, SANITIZERS, Build

RUN_SECONDS = 4
NO_RING = 3  # as pump_allocation_driver exits


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("name", ["store_driver", "filesystem_driver"])
@pytest.mark.parametrize("sanitizer", list(SANITIZERS))
def test_no_report(drivers_of: Build, sanitizer: str, name: str, threads: int) -> None:
    command = [*drivers_of(sanitizer)[name], str(RUN_SECONDS), str(threads), str(secrets.randbits(32))]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=110, check=False, env={**os.environ, **ENVIRONMENT}
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-1000:]}\n{done.stderr[-8000:]}"
    assert "rounds" in done.stdout


@pytest.mark.parametrize("sanitizer", list(SANITIZERS))
def test_deletions_beside_a_checkpoint(drivers_of: Build, sanitizer: str) -> None:
    """What a bucket still names that the deletion queue will forget is not taken for used: by the check, nor by what
    builds a damaged bitmap anew."""
    command = drivers_of(sanitizer)["deletion_driver"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=110, check=False, env={**os.environ, **ENVIRONMENT}
    )
    assert done.returncode == 0, f"{done.stdout[-1000:]}\n{done.stderr[-8000:]}"
    assert "checkpoints" in done.stdout


def test_every_allocation_may_fail(drivers_of: Build) -> None:
    """Walks every error path: no crash, no leak, and nothing that was durable is lost."""
    command = [*drivers_of("address")["allocation_driver"], "1"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=110, check=False, env={**os.environ, **ENVIRONMENT}
    )
    assert done.returncode == 0, f"{done.stdout[-1000:]}\n{done.stderr[-8000:]}"
    failed, verified = (int(word) for word in done.stdout.split() if word.isdigit())
    assert failed > 400 and verified > 4000, done.stdout


# Between the allocations that fail. What begins a process each time takes long: all of it in make test-long.
PUMP_STEPS = {("device", "through"): 1, ("device", "back"): 5, ("uring", "through"): 1, ("uring", "back"): 5}


def run_pump_allocations(drivers_of: Build, transport: str, cache: str, step: int, timeout_s: int) -> None:
    command = [*drivers_of("address")["pump_allocation_driver"], transport, cache, str(step)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=timeout_s, check=False, env={**os.environ, **ENVIRONMENT}
    )
    if done.returncode == NO_RING:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-1000:]}\n{done.stderr[-8000:]}"
    failed, heard, anew, verified = (int(word) for word in done.stdout.split() if word.isdigit())
    assert failed > 200 // step and heard > failed and anew > 10 // step and verified > failed, done.stdout


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("transport", "cache"), list(PUMP_STEPS))
def test_every_allocation_of_a_pump_may_fail(drivers_of: Build, transport: str, cache: str) -> None:
    """Each request is answered once, rightly or with an error; a pump that cannot begin says so, and the next one can;
    no crash, no leak, and nothing that an fsync promised is lost."""
    run_pump_allocations(drivers_of, transport, cache, PUMP_STEPS[transport, cache], 280)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("transport", "cache"), [way for way, step in PUMP_STEPS.items() if step > 1])
def test_every_allocation_of_a_pump_may_fail_at_length(drivers_of: Build, transport: str, cache: str) -> None:
    run_pump_allocations(drivers_of, transport, cache, 1, 880)
