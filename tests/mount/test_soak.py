"""The short form of `make soak`: three rounds, one of which ends in a kill."""

import pathlib
import time

import pytest

from tests.mount.folders import remove_folder, temporary_folder
from tools.soak import STEPS, soak


@pytest.fixture
def folder() -> pathlib.Path:
    return temporary_folder()


@pytest.mark.long
@pytest.mark.timeout(600)
def test_everything_at_once(folder: pathlib.Path) -> None:
    seed = time.time_ns() % (1 << 32)
    try:
        done = soak(20, 7, seed, folder)
    finally:
        remove_folder(folder)
    assert "with 0 kills" not in done, (seed, done)
    assert all(f" {name}" in done and f" 0 {name}" not in done for name in STEPS), (seed, done)
