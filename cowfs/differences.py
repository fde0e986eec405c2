"""What changed between two trees of a volume, with names: the verbs' inodes made into paths.

A change is a dict: kind ("added", "removed", "modified", "renamed", "metadata"), path, type ("file", "directory",
"symlink", "other"), for a rename old_path, and where both trees have it: content, metadata and xattrs (bool), ranges
([[offset, length], …], bytes that differ), old_size and size. Directories whose entries alone changed are left out:
their entries say it.
"""

import stat
from collections.abc import Iterator
from typing import Any

from cowfs._native import Attributes, FileSystem

CONTENT, METADATA, TIMES, XATTRS, NAMES, ENTRIES = 1, 2, 4, 8, 16, 32
ROOT_INODE = 1
_MODE, _SIZE = 1, 6

Change = dict[str, Any]


def _type(attributes: Attributes) -> str:
    kind = stat.S_IFMT(attributes[_MODE])
    return {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink"}.get(kind, "other")


class Paths:
    """Paths of inodes in one tree. Those of directories are kept: changes mostly come many from one."""

    _KEPT_MAX = 10_000

    def __init__(self, filesystem: FileSystem, object_id: int) -> None:
        self._filesystem = filesystem
        self._object_id = object_id
        self._kept: dict[int, bytes | None] = {}

    def of(self, inode: int) -> bytes | None:
        """None when no name leads to it."""
        try:
            return self._filesystem.object_path(self._object_id, inode)
        except FileNotFoundError:
            return None

    def under(self, parent: int, name: bytes) -> bytes | None:
        if parent not in self._kept:
            if len(self._kept) >= self._KEPT_MAX:
                self._kept.clear()
            self._kept[parent] = self.of(parent)
        above = self._kept[parent]
        return None if above is None else b"/" + name if above == b"/" else above + b"/" + name


def is_inside(path: bytes, directory: bytes) -> bool:
    return directory == b"/" or path == directory or path.startswith(directory + b"/")


def _decode(path: bytes) -> str:
    return path.decode("utf-8", "surrogateescape")


def describe_difference(kinds: int, old: Attributes, new: Attributes, ranges: list[tuple[int, int]]) -> Change:
    """The part of a change that does not depend on names."""
    size = max(old[_SIZE], new[_SIZE])
    return {"content": bool(kinds & CONTENT), "metadata": bool(kinds & (METADATA | TIMES)),
            "xattrs": bool(kinds & XATTRS), "old_size": old[_SIZE], "size": new[_SIZE],
            "ranges": [[offset, min(length, size - offset)] for offset, length in ranges if offset < size]}


def _changes_of(old_paths: Paths, new_paths: Paths, inode: int, kinds: int, old: Attributes | None,
                new: Attributes | None, ranges: list[tuple[int, int]],
                names: list[tuple[bool, int, bytes]]) -> Iterator[Change]:
    present = new or old
    if present is None:
        return  # gone from the live tree while it was looked at
    head = {"type": _type(present), "inode": inode}
    removed = [old_paths.under(parent, name) for is_new, parent, name in names if not is_new]
    added = [new_paths.under(parent, name) for is_new, parent, name in names if is_new]
    detail = describe_difference(kinds, old, new, ranges) if old is not None and new is not None else {}
    renamed = False
    if detail and len(removed) == 1 and len(added) == 1:
        if removed[0] is not None and added[0] is not None:
            yield {"kind": "renamed", "path": added[0], "old_path": removed[0], **head, **detail}
        renamed = True
    else:
        for path in removed:
            if path is not None:
                yield {"kind": "removed", "path": path, **head, "old_size": old[_SIZE] if old else 0}
        for path in added:
            if path is not None:
                yield {"kind": "added", "path": path, **head, "size": new[_SIZE] if new else 0}
    directory = head["type"] == "directory"
    if directory and not kinds & (METADATA | XATTRS) and kinds & (ENTRIES | NAMES):
        return
    if not detail or renamed or not kinds & (CONTENT | METADATA | TIMES | XATTRS):
        return
    path = new_paths.of(inode)
    if path is not None and path not in added:
        yield {"kind": "modified" if kinds & CONTENT else "metadata", "path": path, **head, **detail}


def differences(filesystem: FileSystem, old_object_id: int, new_object_id: int, *, directory: bytes = b"/",
                first_inode: int = 0, limit: int = 1000) -> tuple[list[Change], int | None]:
    """Changes of some inodes from first_inode on, within a directory (or of one file), and where to go on. Waits."""
    old_paths, new_paths = Paths(filesystem, old_object_id), Paths(filesystem, new_object_id)
    found = filesystem.diff(old_object_id, new_object_id, first_inode=first_inode, limit=limit)
    changes: list[Change] = []
    for inode, kinds, old, new, ranges, names in found:
        for change in _changes_of(old_paths, new_paths, inode, kinds, old, new, ranges, names):
            places = [change[key] for key in ("path", "old_path") if key in change]
            if any(is_inside(place, directory) for place in places):
                changes.append({key: _decode(value) if isinstance(value, bytes) else value
                                for key, value in change.items()})
    return changes, found[-1][0] + 1 if len(found) == limit else None
