"""Sets properties of the volume at DIR. They outlive remounts and rollbacks, and clones begin with a copy.

An empty value unsets ('cowfs unset' too). Names with a colon, such as user:owner, are yours to choose; for others see
'cowfs get DIR'. All of them are set, or with one that is refused none.
"""

import argparse

from cowfs.client import connect
from cowfs.commands.output import add_json, print_result
from cowfs.errors import CowfsError, ExitCode


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("assignments", metavar="NAME=VALUE", nargs="+", help="a property and what it is to be")
    parser.add_argument("directory", metavar="DIR", help="a path on the mount")
    add_json(parser)


def parse_assignments(words: list[str]) -> dict[str, str | None]:
    changes: dict[str, str | None] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise CowfsError("usage", f"'{word}' sets nothing", "write NAME=VALUE")
        changes[name] = value or None
    return changes


def run(arguments: argparse.Namespace) -> int:
    changes = parse_assignments(arguments.assignments)
    with connect(arguments.directory) as client:
        print_result(arguments, client.set_properties(changes), "")
    return ExitCode.OK
