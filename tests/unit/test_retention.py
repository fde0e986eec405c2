"""Retention rules: what they mean, and the streaming pass against the rule applied to everything at once."""

import random

import pytest

from btree.records import SnapshotInfo
from cowfs.errors import CowfsError, ExitCode
from cowfs.retention import (
    DEFAULT_RULE,
    Rule,
    Span,
    Thinner,
    check_every,
    check_rule,
    is_automatic,
    parse_duration,
    parse_rule,
)
from cowfs.snapshots import NameSource

SECOND = 10**9


def test_rules_and_durations() -> None:
    assert parse_rule("1m(all) | 1h(1s)|2h( 90s )") == (
        Span(60 * SECOND, 0), Span(3600 * SECOND, SECOND), Span(7200 * SECOND, 90 * SECOND))
    assert parse_rule("forever(all)") == (Span(None, 0),)
    assert check_rule(" 1m( all ) |1h(1s) ") == "1m(all) | 1h(1s)"
    assert check_rule(DEFAULT_RULE) == DEFAULT_RULE
    assert (parse_duration("10ms"), parse_duration("2w")) == (10**7, 14 * 86400 * SECOND)
    assert check_every(" off ") == "off" and check_every("1ms") == "1ms"


@pytest.mark.parametrize("text", ["", "1m", "1m()", "1m(all", "all(1m)", "1m(all) |", "1h(all) | 1m(1s)",
                                  "1m(1m) | 1h(1s)", "forever(all) | 1h(1s)", "1m(all) | 1m(1s)", "0s(all)"])
def test_what_is_no_rule(text: str) -> None:
    with pytest.raises(CowfsError) as raised:
        parse_rule(text)
    assert raised.value.exit_code == ExitCode.USAGE


@pytest.mark.parametrize("text", ["", "10", "ms", "-1s", "1.5s", "0s", "1 s", "9999999999s", "500us"])
def test_what_is_no_interval(text: str) -> None:
    with pytest.raises(CowfsError):
        check_every(text)


def test_automatic_names() -> None:
    name = NameSource().next_automatic_name("auto-")
    assert is_automatic(name) and len(name) == len("auto-20261122T174500.123456Z")
    for other in ("auto-", "auto-mine", name + "x", "x" + name, "2026-11-22T114510.123456Z"):
        assert not is_automatic(other)


class Snapshots:
    """A volume's list, by id."""

    def __init__(self) -> None:
        self.present: dict[int, SnapshotInfo] = {}
        self.next_id = 1
        self.looks = 0

    def take(self, now_ns: int, name: str) -> None:
        self.present[self.next_id] = SnapshotInfo(self.next_id, 1, name, 0, now_ns, 0, 0, b"")
        self.next_id += 1

    def fetch(self, after_id: int, limit: int) -> list[SnapshotInfo]:
        found = [each for id_, each in self.present.items() if id_ > after_id][:limit]
        self.looks += len(found)
        return found

    def destroy(self, snapshot: SnapshotInfo) -> None:
        del self.present[snapshot.id]


def expected(taken: list[tuple[int, int]], rule: Rule, now_ns: int) -> list[int]:
    """Ids that the rule keeps: one that has left span i is the oldest of its stretch of time in span i + 1, among
    those that were kept before."""
    left = taken
    for index, span in enumerate(rule):
        if span.age_ns is None:
            break
        every_ns = rule[index + 1].every_ns if index + 1 < len(rule) else None
        seen: set[int] = set()
        kept = []
        for id_, created_ns in left:
            if created_ns + span.age_ns > now_ns or every_ns == 0:
                kept.append((id_, created_ns))
            elif every_ns is not None and created_ns // every_ns not in seen:
                seen.add(created_ns // every_ns)
                kept.append((id_, created_ns))
        left = kept
    return [id_ for id_, _ in left]


NAME = NameSource().next_automatic_name("auto-")


@pytest.mark.parametrize("text", ["10s(all) | 1m(1s) | 5m(10s)", "10s(all) | 1m(3s) | forever(30s)",
                                  "20s(2s)", "forever(all)", "5s(all) | 1m(all) | 3m(1m)"])
@pytest.mark.parametrize("seed", [1, 2])
def test_the_pass_does_what_the_rule_says(text: str, seed: int) -> None:
    chance = random.Random(seed)
    rule = parse_rule(text)
    snapshots, thinner = Snapshots(), Thinner(rule)
    now_ns, taken = 10**18, []
    for step in range(4000):
        now_ns += chance.choice([10**7, 10**8, 3 * 10**8])
        if chance.random() < 0.9:
            taken.append((snapshots.next_id, now_ns))
            snapshots.take(now_ns, NAME)
        if step % 97 == 0:
            thinner = Thinner(rule)  # a new mount
        if step % 1500 == 700:
            now_ns += 40 * SECOND  # nobody looked for a while
        while thinner.step(snapshots.fetch, snapshots.destroy, now_ns, 100):
            pass
        if step % 50 == 0:
            assert list(snapshots.present) == expected(taken, rule, now_ns)
    assert list(snapshots.present) == expected(taken, rule, now_ns)


def test_a_pass_looks_at_what_came_of_age_only() -> None:
    snapshots, thinner = Snapshots(), Thinner(parse_rule("10s(all) | forever(1s)"))
    now_ns = 10**18
    for _ in range(5000):
        now_ns += 10**7
        snapshots.take(now_ns, NAME)
        thinner.step(snapshots.fetch, snapshots.destroy, now_ns, 1000)
    # Each is looked at when it comes of age; what lies in a page after those is looked at and left.
    before = snapshots.looks
    for _ in range(100):
        thinner.step(snapshots.fetch, snapshots.destroy, now_ns, 1000)
    assert snapshots.looks - before <= 100 * 64
    now_ns += SECOND
    before = snapshots.looks
    thinner.step(snapshots.fetch, snapshots.destroy, now_ns, 1000)
    assert snapshots.looks - before <= 100 + 64


def test_others_are_left_alone() -> None:
    snapshots, thinner = Snapshots(), Thinner(parse_rule("1s(all)"))
    for name in ("mine", NAME, "auto-mine"):
        snapshots.take(10**18, name)
    assert not thinner.step(snapshots.fetch, snapshots.destroy, 10**18 + 2 * SECOND, 1000)
    assert [each.name for each in snapshots.present.values()] == ["mine", "auto-mine"]
