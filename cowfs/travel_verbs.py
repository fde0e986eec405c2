"""The control socket's verbs that move through history. Plain functions; all of them wait."""

import os
from collections.abc import Callable, Mapping
from typing import Any

from cowfs.differences import differences
from cowfs.errors import CowfsError
from cowfs.heads import describe_log
from cowfs.travel import find_reference
from cowfs.versions import describe_versions
from cowfs.volumes import MountedPool, describe_snapshot

Arguments = dict[str, Any]
Parameters = Mapping[str, tuple[tuple[type, ...], object]]

DIFF_LIMIT = 1000


def _path(text: str) -> bytes:
    """From the root of the volume, without slashes at its ends."""
    path = os.fsencode(text).strip(b"/")
    if b"\0" in path or any(part in (b"", b".", b"..") for part in path.split(b"/") if path):
        raise CowfsError("usage", f"'{text}' is not a path from the root of the volume", "see cowfs.client")
    return path


def _resolve(pool: MountedPool, arguments: Arguments) -> object:
    """The snapshot that a name, an @ID or a time stands for."""
    return describe_snapshot(find_reference(pool.store, pool.find_volume(arguments["volume"]), arguments["at"]))


def _diff(pool: MountedPool, arguments: Arguments) -> object:
    volume_id = pool.find_volume(arguments["volume"])
    old, new = (find_reference(pool.store, volume_id, arguments[end]).id if arguments[end] else volume_id
                for end in ("old", "new"))
    if volume_id in (old, new):
        pool.flush_cache()
    try:
        changes, after = differences(pool.filesystem, old, new, directory=b"/" + _path(arguments["path"]),
                                     first_inode=arguments["first_inode"], limit=DIFF_LIMIT)
    except FileNotFoundError:
        raise CowfsError("not_found", "one of the two snapshots was destroyed meanwhile",
                         "'cowfs list DIR' lists those that are left") from None
    return {"changes": changes, "next_inode": after}


def _versions(pool: MountedPool, arguments: Arguments) -> object:
    pool.flush_cache()
    return describe_versions(pool, pool.find_volume(arguments["volume"]), _path(arguments["path"]))


def _log(pool: MountedPool, arguments: Arguments) -> object:
    return describe_log(pool, pool.find_volume(arguments["volume"]))


def _promote(pool: MountedPool, arguments: Arguments) -> object:
    return pool.promote(arguments["volume"])


_VOLUME = ((str, type(None)), None)
TRAVEL_VERBS: Mapping[str, tuple[Callable[[MountedPool, Arguments], object], Parameters]] = {
    "resolve": (_resolve, {"volume": _VOLUME, "at": ((str,), ...)}),
    "diff": (_diff, {"volume": _VOLUME, "old": ((str,), ""), "new": ((str,), ""), "path": ((str,), ""),
                     "first_inode": ((int,), 0)}),
    "promote": (_promote, {"volume": _VOLUME}),
    "log": (_log, {"volume": _VOLUME}),
    "versions": (_versions, {"volume": _VOLUME, "path": ((str,), ...)}),
}
"""The function and the parameters of each: types, and a default or `...` for those that must be given."""
