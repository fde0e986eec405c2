"""Points in time, as people write them, and what they lead to.

    2026-11-22T11:45:10.25+01:00, 2026-11-22 11:45, 2026-11-22T114510.123456Z, 2026-11-22   local time without a zone
    -5s, -1h30m, -250ms                                                                     before now
    @17                                                                                     the snapshot of that id

A point in time stands for the newest snapshot taken at or before it.
"""

import datetime
import re
import time

from btree import SnapshotInfo, Store
from cowfs.errors import CowfsError

_CLOCK = r"(\d\d):?(\d\d)(?::?(\d\d)(?:[.,](\d{1,9}))?)?"
_TIME = re.compile(rf"(\d{{4}})-(\d\d)-(\d\d)(?:[T ]{_CLOCK}(Z|[+-]\d\d(?::?\d\d)?)?)?", re.ASCII)
_BEFORE = re.compile(r"-((?:\d+(?:\.\d+)?(?:ns|us|ms|[smhdw]))+)", re.ASCII)
_PART = re.compile(r"(\d+)(?:\.(\d+))?(ns|us|ms|[smhdw])", re.ASCII)
_UNIT_NS = {"ns": 1, "us": 1_000, "ms": 1_000_000, "s": 1_000_000_000, "m": 60_000_000_000, "h": 3_600_000_000_000,
            "d": 86_400_000_000_000, "w": 604_800_000_000_000}
_ID = re.compile(r"@(\d{1,18})", re.ASCII)
_TIME_MAX_NS = (1 << 63) - 1

HELP = "a snapshot's name, @ID, a time as 2026-11-22T11:45:10.5 (local, or with Z or +01:00), or a span before now, -5s"


def parse_time(text: str, now_ns: int) -> int | None:
    """Nanoseconds since 1970, or None for what is no point in time. What came before 1970 is 0."""
    if match := _BEFORE.fullmatch(text):
        before_ns = 0
        for whole, fraction, unit in _PART.findall(match[1]):
            scale = 10 ** len(fraction)
            before_ns += (int(whole) * scale + int(fraction or 0)) * _UNIT_NS[unit] // scale
        return max(0, now_ns - before_ns)
    if match := _TIME.fullmatch(text):
        year, month, day, hour, minute, second = (int(part or 0) for part in match.groups()[:6])
        zone = match[8]
        try:
            moment = datetime.datetime(year, month, day, hour, minute, second, tzinfo=_zone(zone) if zone else None)
            seconds = int(moment.timestamp())
        except (ValueError, OverflowError, OSError):
            return None
        return min(max(0, seconds * 1_000_000_000 + int((match[7] or "").ljust(9, "0"))), _TIME_MAX_NS)
    return None


def _zone(text: str) -> datetime.timezone:
    if text == "Z":
        return datetime.UTC
    digits = text[1:].replace(":", "").ljust(4, "0")
    offset = datetime.timedelta(hours=int(digits[:2]), minutes=int(digits[2:]))
    return datetime.timezone(-offset if text[0] == "-" else offset)


def format_time_ns(time_ns: int) -> str:
    """2026-11-22T114510.123456789Z: as a snapshot's own name, and exact."""
    seconds, nanoseconds = divmod(time_ns, 1_000_000_000)
    return time.strftime("%Y-%m-%dT%H%M%S", time.gmtime(seconds)) + f".{nanoseconds:09d}Z"


def snapshot_at(store: Store, volume_id: int, text: str) -> SnapshotInfo | None:
    """What a point in time or an @ID stands for. None: there is no such snapshot, or the text says neither."""
    try:
        if match := _ID.fullmatch(text):
            return store.snapshot_get(int(match[1]))
        time_ns = parse_time(text, time.time_ns())
        found = store.snapshot_at(volume_id, time_ns) if time_ns is not None else None
        return store.snapshot_get(found) if found is not None else None
    except FileNotFoundError:
        return None  # deleted between finding and getting it, or never there


def find_reference(store: Store, volume_id: int, text: str) -> SnapshotInfo:
    """A snapshot by its name, its @ID or a point in time; CowfsError when there is none. A name goes before a time."""
    try:
        return store.snapshot_find(volume_id, text)
    except (OSError, UnicodeEncodeError, ValueError):
        found = snapshot_at(store, volume_id, text)
    if found is not None and found.volume_id == volume_id:
        return found
    if _ID.fullmatch(text):
        raise CowfsError("not_found", f"this volume has no snapshot with the id {text[1:]}",
                         "'cowfs list --json DIR' shows the ids")
    if parse_time(text, time.time_ns()) is not None:
        raise CowfsError("not_found", f"there is no snapshot as old as {text}",
                         "'cowfs list DIR' lists the snapshots and their times")
    raise CowfsError("not_found", f"'{text}' is neither a snapshot nor a time", f"give {HELP}")
