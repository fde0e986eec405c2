"""Damage is named: path, tree, offset, and every volume and snapshot that has the block."""

import random
from typing import Any

import pytest

from btree import Store
from cowfs._native import FileSystem
from cowfs.damage import DamageLog, Locator, describe
from tests.unit.filesystem_pool import BLOCK
from tests.unit.test_rot import Image, opened, read_all, scrub

UNREADABLE = b"EIO"


@pytest.fixture(scope="module")
def image() -> Image:
    return Image()


def locate(store: Store, image: Image) -> list[dict[str, Any]]:
    _figures, damage = scrub(store)
    locator = Locator(store, FileSystem(store, image.volume_id, read_only=True))
    return [locator.locate(entry | {"count": 1, "sequence": 1}) for entry in damage]


def test_damaged_data_names_what_cannot_be_read(image: Image) -> None:
    """The files that scrub names are those that answer EIO, in every tree, for every block of data."""
    draw = random.Random(6)
    blocks, shared = 0, 0
    for block in draw.sample(image.used, len(image.used) // 2):
        with opened(image.damaged(block, draw.randrange(8 * BLOCK))) as store:
            located = [entry for entry in locate(store, image) if entry["kind"] == "data"]
            if not located:
                continue
            (entry,) = located
            unreadable = {where for where, content in read_all(store).items() if content == UNREADABLE}
            trees = {*entry["in_volumes"], *entry["in_snapshots"]}
            assert {tree for tree, _ in unreadable} == trees
            # Names are those of the oldest tree that has the block.
            first = entry["volume"] + (f"@{entry['snapshot']}" if entry["snapshot"] else "")
            assert {path.decode() for tree, path in unreadable if tree == first} == set(entry["paths"]), entry
            assert all(path in describe(entry) for path in entry["paths"])
            blocks += 1
            shared += entry["inode"] is None
    assert blocks > 50 and shared > 0


def test_a_lost_node_names_files() -> None:
    """Metadata once: what a lost leaf held is told by the directories' entries that lead there."""
    image = Image(copies=1)
    paths = {path.decode() for _, path in image.content}
    named = 0
    for block in image.used:
        storage = image.damaged(block, 12345)
        if image.bytes[block * BLOCK :][:4] != b"BTND":
            continue
        try:
            with opened(storage) as store:
                for entry in (entry for entry in locate(store, image) if entry["kind"] == "node"):
                    assert set(entry["paths"]) <= paths
                    assert not entry["paths"] or entry["in_volumes"] or entry["in_snapshots"]
                    named += bool(entry["paths"])
        except OSError:
            continue  # what all depends on is gone: the pool or the volume cannot be opened, and says so
    assert named > 3


def test_the_list_is_bounded_and_counts(image: Image) -> None:
    draw = random.Random(7)
    with opened(image.storage_with(image.used[::2], draw)) as store:
        log = DamageLog(store, FileSystem(store, image.volume_id, read_only=True))
        for _ in range(2):
            scrub(store)
            log.refresh()
        assert not log.has_news()
        state = log.to_json()
        data = [place for place in state["places"] if place["kind"] == "data"]
        assert 50 < len(state["places"]) <= 256 and state["total"] > len(state["places"])
        assert all(place["count"] == 2 for place in data) and any(place["repaired"] for place in state["places"])
