"""Properties as commands see them: names and values that are refused, who is told of a change."""

import pytest

from btree import Storage, Store
from cowfs.commands.set import parse_assignments
from cowfs.errors import CowfsError, ExitCode
from cowfs.properties import PROPERTIES, Property, VolumeProperties, check_property
from tests.unit.store_helpers import POOL_SIZE_BYTES


@pytest.fixture
def store() -> Store:
    storage = Storage.open_memory(POOL_SIZE_BYTES)
    Store.format(storage)
    return Store(storage, background=False)


def refused(name: str, value: str) -> str:
    with pytest.raises(CowfsError) as raised:
        check_property(name, value)
    assert raised.value.exit_code == ExitCode.USAGE
    return str(raised.value)


def test_names_and_values(monkeypatch: pytest.MonkeyPatch) -> None:
    def check_switch(value: str) -> str:
        if value.lower() not in ("on", "off"):
            raise CowfsError("name", f"'{value}' is neither on nor off", "")
        return value.lower()

    monkeypatch.setitem(PROPERTIES, "switch", Property("A switch.", "off", check_switch))
    assert check_property("switch", "ON") == "on"
    assert check_property("user:any thing", "é") == "é"
    assert "neither" in refused("switch", "maybe")
    assert "switch" in refused("swich", "on") and "user:swich" in refused("swich", "on")
    for name in ("", ":", "a:\n", "user:a=b", "user:" + "x" * 60, "a:/b", "user:\udcff"):
        refused(name, "x")
    for value in ("", "x" * 513, "\udcff"):
        refused("user:x", value)


def test_watchers_are_told(store: Store) -> None:
    volume = store.volume_create("main")
    properties = VolumeProperties(store)
    properties.change(volume, {"user:a": "1"})
    told: list[tuple[int, str | None]] = []
    properties.watch("user:a", lambda volume_id, value: told.append((volume_id, value)))
    properties.change(volume, {"user:a": "2", "user:b": "3"})
    clone = store.clone(store.snapshot(volume, "s").id, "clone")
    properties.announce(clone)
    properties.change(volume, {"user:a": None})
    properties.announce_end(clone)
    assert told == [(volume, "1"), (volume, "2"), (clone, "2"), (volume, None), (clone, None)]
    assert properties.all(volume) == {"user:b": "3"}
    with pytest.raises(CowfsError):
        properties.change(volume, {"user:b": "4", "unknown": "1"})
    assert properties.get(volume, "user:b") == "3"
    store.close()


def test_assignments() -> None:
    assert parse_assignments(["a=1", "b=c=d", "e="]) == {"a": "1", "b": "c=d", "e": None}
    with pytest.raises(CowfsError):
        parse_assignments(["a"])
