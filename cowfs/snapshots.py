"""Names of snapshots and volumes, the form DIR@SNAP, and the holds that a snapshot's annotation carries.

The annotation is JSON of at most 512 bytes: {"holds": ["tag", …], "message": "…", "tags": {"key": "value", …},
"expires": nanoseconds since 1970}, each where there is one. Keys that this version does not know are kept.
"""

import json
import os
import time
from typing import NamedTuple

from cowfs.errors import CowfsError

NAME_LENGTH_MAX_BYTES = 255
ANNOTATION_LENGTH_MAX_BYTES = 512
GUARD_PREFIX = "before-rollback-to-"
UNDO_GUARD_PREFIX = "before-undo@"
REDO_GUARD_PREFIX = "before-redo@"


class Target(NamedTuple):
    """What DIR@SNAP names."""

    directory: str
    snapshot: str


def check_name(name: str, what: str) -> str:
    """The name itself when it can name a snapshot or volume; else a CowfsError that says why not."""
    try:
        length_bytes = len(name.encode())
    except UnicodeEncodeError:
        raise CowfsError("name", f"a {what} name must be UTF-8", "choose another name") from None
    if length_bytes > NAME_LENGTH_MAX_BYTES:
        raise CowfsError("name", f"a {what} name of {length_bytes} bytes is too long",
                         f"use at most {NAME_LENGTH_MAX_BYTES} bytes")
    if not name or name in (".", "..") or "/" in name or not name.isprintable():
        raise CowfsError("name", f"{name!r} cannot name a {what}",
                         "use 1 to 255 bytes of printable characters without '/', and not '.' or '..'")
    return name


def split_target(text: str) -> Target:
    """Splits DIR@SNAP at the last '@', or at an earlier one when only that leaves a path that exists."""
    last_slash = text.rfind("/")
    positions = [index for index in range(len(text) - 1, last_slash, -1) if text[index] == "@" and index > 0]
    if not positions or positions[0] == len(text) - 1:
        raise CowfsError("usage", f"'{text}' names no snapshot", "write DIR@SNAPSHOT ('cowfs list DIR' shows them)")
    position = next((index for index in positions if os.path.lexists(text[:index])), positions[0])
    return Target(text[:position], text[position + 1 :])


class NameSource:
    """Names for snapshots taken without one: the time in UTC down to the microsecond. Each call gives a later name
    than the one before, also when the clock stands still or goes back."""

    def __init__(self) -> None:
        self._latest_us = 0

    def next_name(self) -> str:
        self._latest_us = max(self._latest_us + 1, time.time_ns() // 1000)
        return format_time_us(self._latest_us)

    def next_automatic_name(self, prefix: str) -> str:
        """auto-20261122T174500.123456Z for the prefix `auto-`."""
        date, _, clock = self.next_name().partition("T")
        return f"{prefix}{date.replace('-', '')}T{clock}"

    def next_guard_name(self, target: str, kind: str = "rollback") -> str:
        """The name of the snapshot that a rollback to `target`, an "undo" or a "redo" takes first. A guard of a guard
        does not grow."""
        if kind != "rollback":
            return (UNDO_GUARD_PREFIX if kind == "undo" else REDO_GUARD_PREFIX) + self.next_name()
        original = target
        while original.startswith(GUARD_PREFIX):
            original = original[len(GUARD_PREFIX) :].rpartition("@")[0] or "guard"
        stamp = self.next_name()
        room = NAME_LENGTH_MAX_BYTES - len(GUARD_PREFIX) - len(stamp) - 1
        short = original.encode()[:room].decode(errors="ignore")
        return f"{GUARD_PREFIX}{short}@{stamp}"


def format_time_us(time_us: int) -> str:
    """2026-11-22T114510.123456Z: sorts by time, and has no character that a shell or rsync gives a meaning to."""
    seconds, microseconds = divmod(time_us, 1_000_000)
    return time.strftime("%Y-%m-%dT%H%M%S", time.gmtime(seconds)) + f".{microseconds:06d}Z"


def _annotation_fields(annotation: bytes) -> dict[str, object]:
    if not annotation:
        return {}
    try:
        fields = json.loads(annotation)
    except ValueError:
        raise CowfsError("damaged", "the snapshot's annotation is not JSON", "run fsck.cowfs on the pool") from None
    if not isinstance(fields, dict):
        raise CowfsError("damaged", "the snapshot's annotation is no JSON object", "run fsck.cowfs on the pool")
    return fields


def hold_tags(annotation: bytes) -> list[str]:
    holds = _annotation_fields(annotation).get("holds", [])
    return [str(tag) for tag in holds] if isinstance(holds, list) else []


def with_hold_tags(annotation: bytes, tags: list[str]) -> bytes:
    """The annotation with these holds in place of the old ones; CowfsError when that does not fit."""
    return with_fields(annotation, "another hold of this length", "use a shorter tag or release another hold",
                       holds=tags)


def with_fields(annotation: bytes, what: str, hint: str, **changes: object) -> bytes:
    """The annotation with these fields in place of the old ones; what is empty goes. `what` and `hint` are for the
    CowfsError when it does not fit."""
    fields = {key: value for key, value in (_annotation_fields(annotation) | changes).items() if value}
    encoded = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode() if fields else b""
    if len(encoded) > ANNOTATION_LENGTH_MAX_BYTES:
        raise CowfsError("name", f"the snapshot has no room for {what}", hint)
    return encoded


def expiry_ns(annotation: bytes) -> int:
    """When the snapshot's time is over; 0: never."""
    expires = _annotation_fields(annotation).get("expires", 0)
    return expires if isinstance(expires, int) else 0


def describe_annotation(annotation: bytes) -> dict[str, object]:
    """What is there of message, tags and expires_ns."""
    fields = _annotation_fields(annotation)
    described: dict[str, object] = {}
    if isinstance(message := fields.get("message"), str):
        described["message"] = message
    if isinstance(tags := fields.get("tags"), dict):
        described["tags"] = {str(key): str(value) for key, value in tags.items()}
    if expires := expiry_ns(annotation):
        described["expires_ns"] = expires
    return described
