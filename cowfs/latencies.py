"""How often each kind of request came, how long its answer took, and who gave it: what `cowfs status` shows."""

from typing import Any

from cowfs._native import Pump

Classes = list[tuple[int, int]]
"""(upper bound in nanoseconds, count), ascending."""

_FIRST_OCTAVE = 8


def _class_ns(elapsed_ns: int) -> int:
    """Upper bound of the quarter of an octave that a latency lies in, as the pump has them."""
    if elapsed_ns < 1 << _FIRST_OCTAVE:
        return 1 << _FIRST_OCTAVE
    octave = elapsed_ns.bit_length() - 1
    quarter = elapsed_ns >> octave - 2 & 3
    return (1 << octave) + (quarter + 1 << octave - 2)


class HandlerLatencies:
    """Counts what Python answers where there is no pump. On the event loop only."""

    def __init__(self) -> None:
        self._totals_ns: dict[str, int] = {}
        self._classes: dict[str, dict[int, int]] = {}

    def add(self, name: str, elapsed_ns: int) -> None:
        self._totals_ns[name] = self._totals_ns.get(name, 0) + elapsed_ns
        classes = self._classes.setdefault(name, {})
        bound = _class_ns(elapsed_ns)
        classes[bound] = classes.get(bound, 0) + 1

    def rows(self) -> list[dict[str, Any]]:
        rows = []
        for name, total_ns in self._totals_ns.items():
            classes = self._classes[name]
            rows.append(describe(name, "python", sum(classes.values()), total_ns, sorted(classes.items())))
        return rows


def pump_rows(pump: Pump) -> list[dict[str, Any]]:
    return [describe(name, "python" if forwarded else "c", count, total_ns, classes)
            for name, forwarded, (count, total_ns, classes) in pump.latencies()]


def describe(name: str, answered_in: str, count: int, total_ns: int, classes: Classes) -> dict[str, Any]:
    """Percentiles are upper bounds of classes: at most a quarter of an octave, 19 %, too high."""
    return {"request": name, "answered_in": answered_in, "count": count, "mean_us": round(total_ns / count / 1000, 1),
            "p50_us": percentile_us(classes, 0.5), "p99_us": percentile_us(classes, 0.99)}


def percentile_us(classes: Classes, fraction: float) -> float:
    """Upper bound of the class in which so many of all lie. There is at least one."""
    wanted = fraction * sum(count for _bound, count in classes)
    reached = bound_ns = 0
    for class_ns, count in classes:
        bound_ns = class_ns
        reached += count
        if reached >= wanted:
            break
    return round(bound_ns / 1000, 1)
