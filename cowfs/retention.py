"""Which automatic snapshots are kept for how long, and the pass that finds those to go.

A rule is spans of age, youngest first, and what is kept in each: `1m(all) | 1h(1s) | 1d(1m) | 30d(1h)` keeps all for a
minute, then one for each second until they are an hour old, one for each minute until a day, one for each hour until
30 days, and nothing older. The last span may be `forever`. Of those in one second (minute, hour: counted from 1970)
the oldest is kept.
"""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from btree.records import SnapshotInfo
from cowfs.errors import CowfsError

DEFAULT_RULE = "1m(all) | 1h(1s) | 1d(1m) | 30d(1h)"
AUTOMATIC_PREFIX = "auto-"
_AUTOMATIC = re.compile(r"auto-\d{8}T\d{6}\.\d{6}Z")
_UNITS_NS = {"us": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9, "d": 86400 * 10**9,
             "w": 7 * 86400 * 10**9, "y": 365 * 86400 * 10**9}
_DURATION = re.compile(r"(\d{1,9})(" + "|".join(_UNITS_NS) + ")")
_SPAN = re.compile(r"\s*(\w+)\s*\(\s*(\w+)\s*\)\s*")
_PAGE_LENGTH = 64


def is_automatic(name: str) -> bool:
    """Whether a snapshot has a name of the form that continuous mode gives: auto-20261122T174500.123456Z, in UTC.
    Only these are thinned."""
    return name.startswith(AUTOMATIC_PREFIX) and _AUTOMATIC.fullmatch(name) is not None


def parse_duration(text: str) -> int:
    """Nanoseconds of `10ms`, `90s`, `2h`."""
    match = _DURATION.fullmatch(text.strip())
    if match is None or int(match[1]) == 0:
        raise CowfsError("usage", f"'{text}' is not a duration",
                         f"write a number and one of {', '.join(_UNITS_NS)}, such as 10ms")
    return int(match[1]) * _UNITS_NS[match[2]]


class Span(NamedTuple):
    age_ns: int | None
    """How old its snapshots grow; None: for ever."""
    every_ns: int
    """One is kept of each such stretch of time; 0: all."""


Rule = tuple[Span, ...]


def parse_rule(text: str) -> Rule:
    spans: list[Span] = []
    for part in text.split("|"):
        match = _SPAN.fullmatch(part)
        if match is None:
            raise CowfsError("usage", f"'{part.strip()}' is not part of a retention rule",
                             f"write AGE(all) or AGE(ONE-PER), such as '{DEFAULT_RULE}'")
        age_ns = None if match[1] == "forever" else parse_duration(match[1])
        span = Span(age_ns, 0 if match[2] == "all" else parse_duration(match[2]))
        if spans:
            last = spans[-1]
            if last.age_ns is None or (span.age_ns is not None and span.age_ns <= last.age_ns):
                raise CowfsError("usage", f"in the rule '{text}' ages do not rise", "put the youngest span first")
            if span.every_ns < last.every_ns:
                raise CowfsError("usage", f"in the rule '{text}' older snapshots would be denser than younger ones",
                                 "make the later spans coarser")
        spans.append(span)
    return tuple(spans)


def check_rule(text: str) -> str:
    parse_rule(text)
    return " | ".join("".join(part.split()) for part in text.split("|"))


def check_every(text: str) -> str:
    """The value of the property snapshot-every."""
    text = text.strip()
    if text != "off" and parse_duration(text) < 10**6:
        raise CowfsError("usage", f"'{text}' is too short a time between snapshots", "use 1ms or more, or off")
    return text


class RuleFilter:
    """The rule applied to snapshots in one go, oldest first, whatever their names are."""

    def __init__(self, rule: Rule, now_ns: int) -> None:
        self._rule = rule
        self._now_ns = now_ns
        self._buckets: list[int | None] = [None] * len(rule)

    def keeps(self, created_ns: int) -> bool:
        for boundary, span in enumerate(self._rule):
            if span.age_ns is None or created_ns + span.age_ns > self._now_ns:
                return True
            if boundary + 1 == len(self._rule):
                return False
            every_ns = self._rule[boundary + 1].every_ns
            if every_ns:
                bucket = created_ns // every_ns
                if bucket == self._buckets[boundary]:
                    return False
                self._buckets[boundary] = bucket
        return True


class Thinner:
    """Thins one volume's automatic snapshots by a rule, in steps.

    For each boundary between spans it remembers up to which snapshot it has decided, so that a step looks at those
    which have come of age since the last one, and at no others. The first steps after a mount look at all once."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self._cursors = [0] * len(rule)
        self._buckets: list[int | None] = [None] * len(rule)
        self._not_before_ns = [0] * len(rule)

    def step(self, fetch: Callable[[int, int], Sequence[SnapshotInfo]], destroy: Callable[[SnapshotInfo], None],
             now_ns: int, looks_max: int) -> bool:
        """`fetch` gives snapshots after an id, by id, at most so many. Returns whether there is more to do now."""
        for boundary in range(len(self.rule) - 1, -1, -1):
            age_ns = self.rule[boundary].age_ns
            while age_ns is not None and self._not_before_ns[boundary] <= now_ns:
                if looks_max <= 0:
                    return True
                page = fetch(self._cursors[boundary], _PAGE_LENGTH)
                looks_max -= len(page)
                self._pass(boundary, page, destroy, now_ns, age_ns)
        return False

    def _pass(self, boundary: int, page: Sequence[SnapshotInfo], destroy: Callable[[SnapshotInfo], None],
              now_ns: int, age_ns: int) -> None:
        if not page:
            self._not_before_ns[boundary] = now_ns + 1
        for snapshot in page:
            if snapshot.created_ns + age_ns > now_ns:
                self._not_before_ns[boundary] = snapshot.created_ns + age_ns
                return
            self._cursors[boundary] = snapshot.id
            if is_automatic(snapshot.name) and not self._keeps(boundary, snapshot.created_ns):
                destroy(snapshot)

    def _keeps(self, boundary: int, created_ns: int) -> bool:
        """Whether one that leaves a span by its older end is kept in the next."""
        if boundary + 1 == len(self.rule):
            return False
        every_ns = self.rule[boundary + 1].every_ns
        if every_ns == 0:
            return True
        bucket = created_ns // every_ns
        kept = bucket != self._buckets[boundary]
        self._buckets[boundary] = bucket
        return kept
