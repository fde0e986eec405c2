"""The crash tests are tested: with each flush, each ordering point and each checksum check taken out in turn
(btree/native/mutation.h), the enumerator in a short form finds a broken promise. A mutant that survives is a missing
test."""

import os
import random
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.crash import enumerator

SECONDS_MAX = 600
FORMS: list[list[object]] = [
    ["bounded", "--length", 1],
    ["bounded", "--length", 2, "--step", 7],
    ["rot", "--seeds", 300],
    ["random", "--seeds", 300, "--choices", 8],
]
MUTANTS_DRAWN = 6


def mutants() -> list[str]:
    listed = subprocess.run(
        [str(enumerator.build()), "--mutation", "list"], check=True, capture_output=True, text=True, timeout=20
    )
    return listed.stdout.split()


def survives(mutant: str) -> bool:
    for form in FORMS:
        try:
            enumerator.run(enumerator.build(), [*form, "--mutation", mutant], SECONDS_MAX)
        except enumerator.Broken:
            return False
    return True


def survivors(chosen: Sequence[str]) -> list[str]:
    """Two at a time, each in processes of its own."""
    with ThreadPoolExecutor(2) as pool:
        return [mutant for mutant, lives in zip(chosen, pool.map(survives, chosen), strict=True) if lives]


@pytest.mark.timeout(600)
def test_some_mutants_are_noticed() -> None:
    """The environment's COWFS_SEED draws others."""
    seed = os.environ.get("COWFS_SEED", "1")
    drawn = random.Random(seed).sample(mutants(), MUTANTS_DRAWN)
    assert survivors(drawn) == [], f"COWFS_SEED={seed}"


@pytest.mark.long
@pytest.mark.timeout(0)
def test_all_mutants_are_noticed() -> None:
    assert survivors(mutants()) == []


def test_production_has_none() -> None:
    """What is shipped holds nothing of it."""
    for module in ("btree/_store", "cowfs/_native"):
        paths = list(enumerator.ROOT.glob(f"{module}*.so"))
        assert paths
        for path in paths:
            assert b"store_mutation" not in path.read_bytes()
            assert b"MUTATION" not in path.read_bytes()
