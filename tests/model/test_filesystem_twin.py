"""The file system against a plain directory of the host: seeded runs of 1,000 steps, and hypothesis for short ones.

A failing random run prints its seed; COWFS_SEED=<seed> runs that one again.
"""

import os
import pathlib
import random
import secrets
import tempfile

import hypothesis
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from tests.model.filesystem_pair import OPERATIONS, FileSystemPair

STEPS_PER_SEED = 1000
COMPARE_EVERY = 40
# By the seed: off, LZ4, zstd.
COMPRESSIONS = ((0, 0), (1, 0), (2, 3))


def run(seed: int, folder: pathlib.Path) -> None:
    rng = random.Random(seed)
    # A cache of 16 nodes makes bodies start over all the time.
    pair = FileSystemPair(
        folder,
        background=seed % 2 == 0,
        cache_bytes_max=rng.choice([0, 64 << 10]),
        compression=COMPRESSIONS[seed % 3],
    )
    names, weights = list(OPERATIONS), list(OPERATIONS.values())
    for step in range(STEPS_PER_SEED):
        name = rng.choices(names, weights)[0]
        try:
            getattr(pair, name)(rng)
            if step % COMPARE_EVERY == 0:
                pair.compare()
        except Exception as error:
            error.add_note(f"COWFS_SEED={seed}, step {step}: {name}")
            raise
    pair.check()
    pair.close()


@pytest.mark.timeout(300)
def test_random_run(tmp_path: pathlib.Path) -> None:
    given = os.environ.get("COWFS_SEED")
    seed = int(given) if given else secrets.randbits(32)
    print(f"COWFS_SEED={seed}")
    run(seed, tmp_path)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_random_run_with_fixed_seeds(seed: int, tmp_path: pathlib.Path) -> None:
    """The same on every machine: a failure here is not the luck of the draw."""
    run(seed, tmp_path)


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", range(100, 150))
def test_random_run_with_many_seeds(seed: int, tmp_path: pathlib.Path) -> None:
    run(seed, tmp_path)


class FileSystemMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.pair: FileSystemPair | None = None

    @initialize()
    def open(self) -> None:
        self.pair = FileSystemPair(pathlib.Path(self.folder.name))

    @rule(name=st.sampled_from(sorted(OPERATIONS)), rng=st.randoms(use_true_random=False))
    def operation(self, name: str, rng: random.Random) -> None:
        getattr(self.pair, name)(rng)

    def teardown(self) -> None:
        try:
            if self.pair is not None:
                self.pair.check()
        finally:
            if self.pair is not None:
                self.pair.close()
            self.folder.cleanup()


TestFileSystemMachine = FileSystemMachine.TestCase
TestFileSystemMachine.settings = hypothesis.settings(
    max_examples=25,
    stateful_step_count=30,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.data_too_large],
)
