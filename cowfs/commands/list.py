"""Lists the snapshots of the volume at DIR, oldest first."""

import argparse

from cowfs.client import connect
from cowfs.commands.output import add_table, format_time, print_json, print_table
from cowfs.errors import ExitCode


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", help="a path on the mount")
    add_table(parser)


def run(arguments: argparse.Namespace) -> int:
    with connect(arguments.directory) as client:
        if arguments.json:
            print_json(client.list())
            return ExitCode.OK
        rows = ((snapshot["name"], format_time(snapshot["created_ns"], exact=arguments.exact),
                 str(snapshot["clone_count"]), ",".join(snapshot["holds"]) or "-")
                for snapshot in client.iterate())
        print_table(("NAME", "CREATED", "CLONES", "HOLDS"), rows, bare=arguments.bare)
    return ExitCode.OK
