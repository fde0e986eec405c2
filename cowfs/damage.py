"""Where damage is, in words that a user knows: volume, snapshot, path, offset, and which snapshots have it, too.

Plain functions that wait for the medium; called from worker threads.
"""

import contextlib
import errno
import logging
import os
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from btree import Store
    from cowfs._native import FileSystem

log = logging.getLogger("cowfs")

BLOCK_SIZE_BYTES = 4096
_INODE_LENGTH_BYTES = 8
_VIEW_SHIFT = 40  # of a node id; the rest is the inode number
# Item types, and offsets in their values (docs/FORMAT.md).
_DIRECTORY_ENTRY, _EXTENT, _SHARED = 0x05, 0x07, 0x09
_EXTENT_BLOCKS_AT, _EXTENT_FLAGS_AT = 16, 21
_BORROWED = 1
_EXTENT_BLOCKS_MAX = 32
_NAMES_MAX = 100
_SCAN_PAGE_ITEMS = 1000
# Finding every tree that has a block costs a look at each of them.
SNAPSHOTS_SHOWN_MAX = 20


def _key(inode: int, kind: int, number: int) -> bytes:
    return inode.to_bytes(8, "big") + bytes([kind]) + number.to_bytes(8, "big")


def _covers(value: bytes, address: int) -> bool:
    first = int.from_bytes(value[:8], "little")
    return first <= address < first + int.from_bytes(value[_EXTENT_BLOCKS_AT : _EXTENT_BLOCKS_AT + 2], "little")


class Locator:
    """Names what one piece of damage, as Store.damages() and Store.scrub() give it, belongs to."""

    def __init__(self, store: "Store", filesystem: "FileSystem") -> None:
        self._store = store
        self._filesystem = filesystem

    def locate(self, damage: dict[str, Any]) -> dict[str, Any]:
        """The same without raw keys, and with `volume`, `snapshot`, `paths`, `inode`, `offset_bytes`, `in_volumes` and
        `in_snapshots` as far as they can be found out."""
        located = {name: damage[name] for name in ("kind", "address", "blocks", "copy", "repaired", "count", "sequence",
                                                   "first_ns", "last_ns")}
        key, object_id = damage["key"], damage["object_id"]
        located |= {"volume": None, "snapshot": None, "inode": None, "offset_bytes": None, "paths": [],
                    "in_volumes": [], "in_snapshots": []}
        if not object_id or (len(key) < _INODE_LENGTH_BYTES and damage["kind"] != "node"):
            return located
        volume_id = self._name_tree(object_id, located)
        places: list[tuple[int, int]] = []  # (inode, block) of each file that has it
        inode = int.from_bytes(key[:_INODE_LENGTH_BYTES].ljust(_INODE_LENGTH_BYTES, b"\0"), "big")
        if damage["kind"] in ("data", "read") and inode:
            located["inode"] = inode
            block = int.from_bytes(key[9:17], "big") + damage["extent_block"]
            located["offset_bytes"] = block * BLOCK_SIZE_BYTES
            located["paths"] = self._path(object_id, volume_id, inode)
            places.append((inode, block))
        elif damage["kind"] in ("data", "node"):
            located["paths"] = self._named_by_scan(object_id, volume_id, damage, places)
        if damage["kind"] in ("data", "node"):
            self._find_trees(damage, places, located)
        return located

    def _name_tree(self, object_id: int, located: dict[str, Any]) -> int:
        """The id of the volume; 0 when the tree is gone or hidden."""
        with contextlib.suppress(FileNotFoundError):
            volume = self._store.volume_get(object_id)
            located["volume"] = volume.name
            return volume.id
        with contextlib.suppress(FileNotFoundError):
            snapshot = self._store.snapshot_get(object_id)
            located["snapshot"] = snapshot.name
            located["volume"] = self._store.volume_get(snapshot.volume_id).name
            return snapshot.volume_id
        return 0

    def _root(self, object_id: int, volume_id: int) -> int:
        if object_id == volume_id:
            return self._filesystem.view_of_volume(object_id)
        return self._filesystem.view_of_snapshot(object_id)

    def _path(self, object_id: int, volume_id: int, inode: int) -> list[str]:
        """One path of the inode; none when what leads there is damaged itself, or the file has no name any more."""
        try:
            root = self._root(object_id, volume_id)
            path = self._filesystem.path((root >> _VIEW_SHIFT << _VIEW_SHIFT) + inode)
        except OSError as error:
            log.info("no path of inode %d: %s", inode, os.strerror(error.errno or errno.EIO))
            return []
        return [os.fsdecode(path)]

    def _named_by_scan(self, object_id: int, volume_id: int, damage: dict[str, Any],
                       places: list[tuple[int, int]]) -> list[str]:
        """Of shared blocks: the files that borrow them. Of a node: the files that have, or may have, items there. Up to
        _NAMES_MAX."""
        first = int.from_bytes(damage["key"][:8].ljust(8, b"\0"), "big")
        last = int.from_bytes(damage["end"][:8].ljust(8, b"\0"), "big") if damage["end"] else (1 << 64) - 1
        is_node = damage["kind"] == "node"
        paths: dict[str, None] = {}
        for key, value in self._items(object_id, damage["end"] if is_node else b""):
            if len(paths) >= _NAMES_MAX:
                break
            kind, found = key[8], []
            if is_node and kind == _DIRECTORY_ENTRY and first <= int.from_bytes(value[:8], "little") <= last:
                parent = self._path(object_id, volume_id, int.from_bytes(key[:8], "big"))
                found = [path.rstrip("/") + "/" + os.fsdecode(value[9:]) for path in parent]
            elif not is_node and kind == _EXTENT and value[_EXTENT_FLAGS_AT] & _BORROWED and _covers(
                    value, damage["address"]):
                block = int.from_bytes(key[9:17], "big") + damage["address"] - int.from_bytes(value[:8], "little")
                places.append((int.from_bytes(key[:8], "big"), block))
                found = self._path(object_id, volume_id, int.from_bytes(key[:8], "big"))
            paths |= dict.fromkeys(found)
        return list(paths)

    def _items(self, object_id: int, skip_to: bytes) -> Iterator[tuple[bytes, bytes]]:
        """All items of a file system's tree that can be read; past what cannot, it goes on at `skip_to`, once."""
        start = b""
        while True:
            try:
                page = self._store.scan(object_id, start, limit=_SCAN_PAGE_ITEMS)
            except FileNotFoundError:
                return
            except OSError:
                # A page of fewer items may come to an end before what cannot be read.
                page = self._scan_one(object_id, start)
                if not page and start < skip_to:
                    start = skip_to
                    continue
            if not page:
                return
            yield from (item for item in page if len(item[0]) > _INODE_LENGTH_BYTES)
            start = page[-1][0] + b"\0"

    def _scan_one(self, object_id: int, start: bytes) -> list[tuple[bytes, bytes]]:
        try:
            return self._store.scan(object_id, start, limit=1)
        except OSError:
            return []

    def _find_trees(self, damage: dict[str, Any], places: list[tuple[int, int]], located: dict[str, Any]) -> None:
        """Every volume and snapshot that has the damaged block."""
        for volume in self._store.volumes():
            if self._has(volume.id, damage, places):
                located["in_volumes"].append(volume.name)
            located["in_snapshots"] += [f"{volume.name}@{snapshot.name}" for snapshot in
                                        self._store.snapshots(volume.id) if self._has(snapshot.id, damage, places)]

    def _has(self, object_id: int, damage: dict[str, Any], places: list[tuple[int, int]]) -> bool:
        """Files may have come to share the block, or have ceased to."""
        try:
            if damage["kind"] == "node":
                self._store.scan(object_id, damage["key"], limit=1)
                return False
            address = damage["address"]
            return self._covered(object_id, 0, _SHARED, address, address) or any(
                self._covered(object_id, inode, _EXTENT, block, address) for inode, block in places)
        except OSError as error:
            return damage["kind"] == "node" and error.errno == errno.EIO

    def _covered(self, object_id: int, inode: int, kind: int, number: int, address: int) -> bool:
        """Whether one of the extents that can cover this number covers the address."""
        first = _key(inode, kind, max(0, number - _EXTENT_BLOCKS_MAX + 1))
        return any(_covers(value, address) for _, value in self._store.scan(
            object_id, first, _key(inode, kind, number + 1)))


def describe(located: dict[str, Any]) -> str:
    """One line for the log and for people."""
    what = {"read": "read failed", "node copy": "bad copy of a node", "node": "unreadable node",
            "data": "damaged data", "bitmap": "damaged free-space page", "superblock": "damaged superblock",
            "journal": "damaged journal"}
    text = what[located["kind"]]
    if located["address"]:
        text += f" at block {located['address']}"
    if located["repaired"]:
        text += ", written again"
    tree = located["volume"] or ""
    if located["snapshot"]:
        tree += f"@{located['snapshot']}"
    if located["paths"]:
        text += f": {tree}:" + f", {tree}:".join(located["paths"])
        if located["offset_bytes"] is not None:
            text += f" (offset {located['offset_bytes']})"
    elif located["inode"] is not None:
        text += f": {tree} inode {located['inode']}"
    trees = located["in_volumes"] + located["in_snapshots"]
    if trees:
        shown = trees[:SNAPSHOTS_SHOWN_MAX]
        more = f" and {len(trees) - len(shown)} more" if len(trees) > len(shown) else ""
        text += f"; in {', '.join(shown)}{more}"
    return text


class DamageLog:
    """What has been found damaged since the mount, located, and logged when it was new."""

    def __init__(self, store: "Store", filesystem: "FileSystem") -> None:
        self._store = store
        self._locator = Locator(store, filesystem)
        self._located: dict[int, dict[str, Any]] = {}
        self._lock = threading.Lock()
        self.total = 0
        """How often damage was met, what was met again included."""

    def refresh(self) -> None:
        """Waits: locates and logs what is new."""
        with self._lock:
            damages, self.total = self._store.damages()
            located = {}
            for damage in damages:
                known = self._located.get(damage["sequence"])
                if known is None:
                    known = self._locate(damage)
                    log.log(logging.WARNING if known["repaired"] else logging.ERROR, "%s", describe(known))
                located[damage["sequence"]] = known | {name: damage[name] for name in ("count", "last_ns", "repaired")}
            self._located = located

    def _locate(self, damage: dict[str, Any]) -> dict[str, Any]:
        try:
            return self._locator.locate(damage)
        except OSError as error:
            # What would tell is damaged too.
            log.info("where block %d belongs to cannot be found out: %s", damage["address"], error)
            return self._locator.locate(damage | {"object_id": 0})

    def has_news(self) -> bool:
        """Does not wait."""
        return self._store.damages(1 << 62)[1] != self.total

    def to_json(self) -> dict[str, Any]:
        """`places` are the last 256, oldest first."""
        return {"total": self.total, "places": list(self._located.values())}
