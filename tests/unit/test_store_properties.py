"""Properties of volumes in the store: what they outlive, and what is refused."""

import errno

import pytest

from btree import Storage, Store
from tests.unit.store_helpers import NO_SUCH_ID, POOL_SIZE_BYTES, expect_errno


def make() -> tuple[Storage, Store, int]:
    storage = Storage.open_memory(POOL_SIZE_BYTES)
    Store.format(storage)
    store = Store(storage, background=False)
    return storage, store, store.volume_create("main")


def test_set_get_list_remove() -> None:
    _, store, volume = make()
    assert store.property_get(volume, "colour") is None
    store.property_set(volume, "colour", b"red")
    store.property_set(volume, "b", b"\0\xff")
    store.property_set(volume, "colour", b"green")
    assert store.property_get(volume, "colour") == b"green"
    assert list(store.properties(volume).items()) == [("b", b"\0\xff"), ("colour", b"green")]
    store.property_set(volume, "colour", b"")
    store.property_set(volume, "never there", b"")
    assert store.properties(volume) == {"b": b"\0\xff"}
    store.close()


def test_they_belong_to_the_volume_and_not_to_its_content() -> None:
    _, store, volume = make()
    before = store.snapshot(volume, "before")
    store.property_set(volume, "policy", b"keep")
    store.rollback(volume, before.id, "guard")
    assert store.property_get(volume, "policy") == b"keep"
    clone = store.clone(before.id, "clone")
    assert store.properties(clone) == {"policy": b"keep"}
    store.property_set(clone, "policy", b"other")
    store.property_set(clone, "more", b"1")
    assert store.properties(volume) == {"policy": b"keep"}
    store.close()


@pytest.mark.parametrize("checkpoint", [False, True])
def test_they_survive_a_crash_and_a_close(checkpoint: bool) -> None:
    storage, store, volume = make()
    for number in range(20):
        store.property_set(volume, f"p{number:02}", b"%d" % number)
    snapshot = store.snapshot(volume, "s")
    if checkpoint:
        store.checkpoint()
    clone = store.clone(snapshot.id, "clone")
    other = store.volume_create("other")
    store.property_set(other, "last", b"x" * 512)
    store.property_set(volume, "p00", b"")
    store.commit()
    expected = {each: store.properties(each) for each in (volume, clone, other)}
    assert len(expected[clone]) == 20
    store.abandon()
    store = Store(storage, background=False)
    assert {each: store.properties(each) for each in expected} == expected
    store.volume_destroy(clone)
    store.close()
    store = Store(storage, background=False)
    assert store.properties(volume) == expected[volume]
    assert store.properties(other) == expected[other]
    # Ids after a replay are not given out twice.
    again = store.clone(snapshot.id, "clone")
    store.property_set(again, "p01", b"changed")
    assert store.properties(volume) == expected[volume]
    assert store.check() == []
    store.close()


def test_a_volume_knows_whether_it_changed() -> None:
    _, store, volume = make()
    assert store.volume_changed(volume)
    store.put(volume, b"k", b"v")
    first = store.snapshot(volume, "first")
    assert not store.volume_changed(volume)
    store.checkpoint()
    assert not store.volume_changed(volume)
    clone = store.clone(first.id, "clone")
    assert not store.volume_changed(clone)
    store.put(volume, b"k", b"v")
    assert store.volume_changed(volume) and not store.volume_changed(clone)
    second = store.snapshot(volume, "second")
    store.rollback(volume, first.id, "guard")
    assert not store.volume_changed(volume)
    store.write_extent(volume, b"x", b"x" * 5000)
    store.snapshot(volume, "third")
    store.checkpoint()
    store.write_extent(volume, b"x", b"x" * 5000)
    store.checkpoint()
    assert store.volume_changed(volume)
    fourth = store.snapshot(volume, "fourth")
    store.snapshot_delete(fourth.id)
    assert not store.volume_changed(volume)
    store.snapshot_delete(second.id)
    expect_errno(errno.ENOENT, store.volume_changed, NO_SUCH_ID)
    store.close()


def test_limits() -> None:
    _, store, volume = make()
    expect_errno(errno.EINVAL, store.property_set, volume, "", b"x")
    expect_errno(errno.ENAMETOOLONG, store.property_set, volume, "n" * 65, b"x")
    expect_errno(errno.EMSGSIZE, store.property_set, volume, "n" * 64, b"x" * 513)
    expect_errno(errno.ENOENT, store.property_set, NO_SUCH_ID, "n", b"x")
    expect_errno(errno.ENOENT, store.property_get, NO_SUCH_ID, "n")
    expect_errno(errno.ENOENT, store.properties, NO_SUCH_ID)
    for number in range(256):
        store.property_set(volume, f"p{number}", b"x" * 512)
    expect_errno(errno.E2BIG, store.property_set, volume, "one more", b"x")
    store.property_set(volume, "p0", b"changed")
    store.checkpoint()
    assert store.check() == []
    store.close()
