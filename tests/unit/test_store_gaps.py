"""Stretches of keys that go, so that whole inner nodes go with them, and come back: a tree's lower bounds move with
what is there."""

import random

import pytest

from btree import Storage, Store

COUNT = 330_000
"""With values of 100 bytes: more leaves than two levels of inner nodes hold, so that there are three."""
VALUE = b"v" * 100


def key_of(number: int) -> bytes:
    return b"%07d" % number


def build(count: int) -> tuple[Store, int]:
    storage = Storage.open_memory(1 << 30)
    Store.format(storage)
    store = Store(storage, background=False)
    volume = store.volume_create("main")
    store.bulk_load(volume, ((key_of(number), VALUE) for number in range(count)))
    store.checkpoint()
    return store, volume


def remove(store: Store, volume: int, first: int, last: int) -> None:
    for start in range(first, last, 250):
        store.apply(volume, [(key_of(number), None) for number in range(start, min(start + 250, last))])


def fill(store: Store, volume: int, numbers: list[int]) -> None:
    for start in range(0, len(numbers), 250):
        store.apply(volume, [(key_of(number), VALUE) for number in numbers[start : start + 250]])


@pytest.mark.parametrize("order", ["ascending", "descending", "random"])
@pytest.mark.parametrize("checkpoint", [True, False])
def test_the_first_keys(order: str, checkpoint: bool) -> None:
    store, volume = build(60_000)
    snapshot = store.snapshot(volume, "whole")
    for _ in range(2):
        remove(store, volume, 0, 9000)
        if checkpoint:
            store.checkpoint()
        assert store.check() == []
        numbers = list(range(9000))
        if order == "descending":
            numbers.reverse()
        elif order == "random":
            random.Random(1).shuffle(numbers)
        fill(store, volume, numbers)
        assert store.check() == []
    store.checkpoint()
    assert store.check() == []
    assert store.scan(volume) == [(key_of(number), VALUE) for number in range(60_000)]
    assert store.diff(snapshot.id, volume) == []
    store.close()


def test_stretches_anywhere() -> None:
    """A stretch of 9,000 keys empties inner nodes, of which some are the first below theirs."""
    store, volume = build(COUNT)
    snapshot = store.snapshot(volume, "whole")
    chance = random.Random(2)
    for first in range(0, COUNT - 9000, 12_000):
        remove(store, volume, first, first + 9000)
        if chance.random() < 0.5:
            store.checkpoint()
        numbers = list(range(first, first + 9000))
        if chance.random() < 0.5:
            numbers.reverse()
        fill(store, volume, numbers)
    store.checkpoint()
    assert store.check() == []
    assert [key for key, _ in store.scan(volume)] == [key_of(number) for number in range(COUNT)]
    assert store.diff(snapshot.id, volume) == []
    # What was joined while keys were there that are smaller than an inner node's must not have lost them.
    for first in range(0, COUNT - 9000, 12_000):
        remove(store, volume, first + 10, first + 8000)
    store.checkpoint()
    assert store.check() == []
    left = [number for number in range(COUNT)
            if not (number // 12_000 * 12_000 < COUNT - 9000 and 10 <= number % 12_000 < 8000)]
    assert [key for key, _ in store.scan(volume)] == [key_of(number) for number in left]
    store.close()
