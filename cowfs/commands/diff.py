"""Shows what changed at PATH between A and B: snapshots' names, @IDs or times, or nothing for the present.

Each line has a sign and a path from the root of the volume: + added, - removed, M modified, R renamed, and m for what
has other metadata only. The cost follows what changed, not what is there or how many snapshots there are.
"""

import argparse
from collections import Counter
from collections.abc import Iterable
from typing import Any

from cowfs.client import Client, connect_to
from cowfs.commands.output import accept_spans, add_json, format_size, print_json
from cowfs.errors import CowfsError, ExitCode

_SIGNS = {"added": "+", "removed": "-", "modified": "M", "renamed": "R", "metadata": "m"}
_RANGES_SHOWN = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    accept_spans(parser)
    parser.add_argument("range", metavar="A..B", help="the older and the newer state; A alone means A..")
    parser.add_argument("path", metavar="PATH", nargs="?", default=".",
                        help="a directory or file on the mount; the present directory when left out")
    parser.add_argument("--stat", action="store_true", help="also how many bytes of each file changed, and sums")
    add_json(parser)


def split_range(text: str, exists: "Any") -> tuple[str, str]:
    """A and B of "A..B". Names may have dots too: of several ways to split, the first of which both ends exist."""
    places = [at for at in range(len(text) - 1) if text[at : at + 2] == ".."]
    ways = [(text[:at], text[at + 2 :]) for at in places] or [(text, "")]
    return next((way for way in ways if all(not end or exists(end) for end in way)), ways[0])


def _exists(client: Client, reference: str) -> bool:
    try:
        client.resolve(reference)
    except CowfsError as error:
        if error.code != "not_found":
            raise
        return False
    return True


def _printable(path: str) -> str:
    return path.encode("utf-8", "replace").decode()


def changed_bytes(change: dict[str, Any]) -> int:
    """How many bytes of a file are new, gone or other."""
    if change["kind"] in ("added", "removed"):
        return int(change.get("size", change.get("old_size", 0))) if change["type"] == "file" else 0
    return sum(length for _offset, length in change["ranges"])


def _ranges(change: dict[str, Any]) -> str:
    shown = [f"{offset}+{length}" for offset, length in change.get("ranges", [])[:_RANGES_SHOWN]]
    more = len(change.get("ranges", [])) - len(shown)
    return " ".join([*shown, *([f"and {more} more"] if more > 0 else [])])


def _print(changes: Iterable[dict[str, Any]], *, with_sizes: bool) -> None:
    kinds: Counter[str] = Counter()
    total = 0
    for change in changes:
        path = _printable(change["path"])
        text = f"{_printable(change['old_path'])} -> {path}" if "old_path" in change else path
        detail = ""
        if with_sizes:
            kinds[change["kind"]] += 1
            total += changed_bytes(change)
            ranges = _ranges(change)
            detail = f"\t{format_size(changed_bytes(change))}" + (f"\t{ranges}" if ranges else "")
        print(f"{_SIGNS[change['kind']]}\t{text}{detail}")
    if with_sizes:
        counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "nothing changed"
        print(f"{counts}; {format_size(total)} in {sum(kinds.values())} changes" if kinds else counts)


def run(arguments: argparse.Namespace) -> int:
    client, path = connect_to(arguments.path)
    with client:
        old, new = split_range(arguments.range, lambda end: _exists(client, end))
        changes = client.diff(old, new, path)
        if arguments.json:
            print_json([*changes])
        else:
            _print(changes, with_sizes=arguments.stat)
    return ExitCode.OK
