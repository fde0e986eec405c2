"""The store's core and the verbs, each in a C driver, under AddressSanitizer and UndefinedBehaviorSanitizer, and under
ThreadSanitizer; and under the first two with each allocation made to fail.

Any report fails. The driver prints what it did; its seed is in the command that a failure shows.
"""

import os
import secrets
import subprocess

import pytest

from tests.native.conftest import ENVIRONMENT, SANITIZERS, Build

RUN_SECONDS = 6


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


def test_every_allocation_may_fail(drivers_of: Build) -> None:
    """Walks every error path: no crash, no leak, and nothing that was durable is lost."""
    command = [*drivers_of("address")["allocation_driver"], "1"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=110, check=False, env={**os.environ, **ENVIRONMENT}
    )
    assert done.returncode == 0, f"{done.stdout[-1000:]}\n{done.stderr[-8000:]}"
    failed, verified = (int(word) for word in done.stdout.split() if word.isdigit())
    assert failed > 400 and verified > 4000, done.stdout
