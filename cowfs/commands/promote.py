"""Gives the clone at DIR the snapshots up to the one that it was made of.

They are its own then, to browse, roll back to and destroy, and the volume that had them becomes a clone of the last of
them. No content changes, neither's space either; nobody who uses the two notices.
"""

import argparse

from cowfs.client import connect
from cowfs.commands.output import add_json, print_result
from cowfs.errors import ExitCode


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", help="a path in the clone: below DIR/.cowfs/volume/NAME/")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    with connect(arguments.directory) as client:
        result = client.promote()
    print_result(arguments, result, f"{result['volume']} has {len(result['snapshots'])} snapshots more")
    return ExitCode.OK
