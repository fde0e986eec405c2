"""What commands print: tables for people, the same for scripts (-H, -p), or JSON."""

import argparse
import json
import re
import time
from collections.abc import Iterable, Sequence


def accept_spans(parser: argparse.ArgumentParser) -> None:
    """Takes "-5s" for a value, as argparse takes negative numbers, and not for an option."""
    parser._negative_number_matcher = re.compile(r"-\d")


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def add_table(parser: argparse.ArgumentParser) -> None:
    add_json(parser)
    parser.add_argument("-H", dest="bare", action="store_true", help="no header, columns separated by one tab")
    parser.add_argument("-p", dest="exact", action="store_true",
                        help="exact numbers: bytes, and nanoseconds since 1970")


def print_json(result: object) -> None:
    print(json.dumps(result, indent=2, ensure_ascii=False).encode("utf-8", "replace").decode())


def print_result(arguments: argparse.Namespace, result: object, text: str) -> None:
    """A verb's result: as JSON when that was asked for, else the text, if there is any."""
    if arguments.json:
        print_json(result)
    elif text:
        print(text)


def format_size(size_bytes: int, *, exact: bool = False) -> str:
    if exact:
        return str(size_bytes)
    value = float(size_bytes)
    for unit in ("B", "K", "M", "G", "T"):
        if value < 1024:
            return f"{value:.0f}{unit}" if unit == "B" or value >= 100 else f"{value:.1f}{unit}"
        value /= 1024
    return f"{value:.1f}P"


def format_time(time_ns: int, *, exact: bool = False) -> str:
    """Local time for people."""
    if exact:
        return str(time_ns)
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time_ns // 1_000_000_000))


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]], *, bare: bool) -> None:
    """Columns aligned under a header, or bare: each row as it comes, with tabs."""
    if bare:
        for row in rows:
            print("\t".join(row))
        return
    table = [header, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    for row in table:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
