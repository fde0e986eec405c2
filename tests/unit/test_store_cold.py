"""Changes on nodes that are not in memory, and in a cache too small for them."""

import pytest

from btree import Storage, Store


def filled_pool(items: int, **options: int) -> Storage:
    storage = Storage.open_memory(64 << 20)
    Store.format(storage, **options)
    with Store(storage, background=False) as store:
        store.bulk_load(store.volume_create("v"), [(b"k%05d" % number, b"v" * 900) for number in range(items)])
    return storage


@pytest.mark.parametrize("emptied", [1, 4, 9])
def test_range_of_an_emptied_leaf_is_used_again_at_once(emptied: int) -> None:
    """One transaction empties leaves and puts keys in their range: their neighbours need not be in memory."""
    storage = filled_pool(40)
    for first in range(40 - emptied):
        with Store(storage, background=False) as store:
            volume_id = store.volume_find("v").id
            keys = [b"k%05d" % number for number in range(first, first + emptied)]
            store.apply(volume_id, [(key, None) for key in keys] + [(key, b"w" * 900) for key in keys])
            assert len(store.scan(volume_id)) == 40
            assert store.check() == []
    storage.close()


def test_tree_emptied_and_filled_in_one_transaction() -> None:
    storage = filled_pool(40)
    with Store(storage, background=False) as store:
        volume_id = store.volume_find("v").id
        keys = [b"k%05d" % number for number in range(40)]
        store.apply(volume_id, [(key, None) for key in keys] + [(b"one", b"left")])
        assert store.scan(volume_id) == [(b"one", b"left")]
        assert store.check() == []
        store.apply(volume_id, [(b"one", None)])
        assert store.scan(volume_id) == []
        assert store.check() == []
    storage.close()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("node_size_bytes", [4096, 16384])
def test_transaction_larger_than_the_cache(node_size_bytes: int) -> None:
    storage = filled_pool(20000, node_size_bytes=node_size_bytes)
    with Store(storage, background=False, cache_bytes_max=1 << 20) as store:
        volume_id = store.volume_find("v").id
        keys = [b"k%05d" % number for number in range(0, 20000, 40)]
        store.apply(volume_id, [(key, b"changed") for key in keys])
        assert all(store.get(volume_id, key) == b"changed" for key in keys)
        store.checkpoint()
        assert store.statistics()["cache_bytes"] <= 2 << 20
    storage.close()
