"""Takes a snapshot of the volume at DIR and prints its name.

It captures every operation that returned before, and is durable when the command returns. Without NAME it is named
after the time in UTC.
"""

import argparse

from cowfs.client import connect
from cowfs.commands.output import add_json, print_result
from cowfs.errors import ExitCode


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", help="a path on the mount")
    parser.add_argument("name", metavar="NAME", nargs="?", help="the snapshot's name")
    parser.add_argument("--no-sync", action="store_true", help="do not wait until the snapshot is durable")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    with connect(arguments.directory) as client:
        snapshot = client.snapshot(arguments.name, sync=not arguments.no_sync)
    print_result(arguments, snapshot, snapshot["name"])
    return ExitCode.OK
