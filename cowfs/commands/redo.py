"""Takes the last 'cowfs undo' of the volume at DIR back.

A new rollback ends what can be redone. What is there now is kept in a guard snapshot. Files that are open keep their
handles, which answer ESTALE from then on.
"""

import argparse

from cowfs.client import connect
from cowfs.commands.flush import flush_mappings
from cowfs.commands.output import add_json, print_result
from cowfs.errors import ExitCode


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", help="a path on the mount")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    with connect(arguments.directory) as client:
        flush_mappings(client.mountpoint)
        result = client.redo()
    print_result(arguments, result, f"back to {result['snapshot']}")
    return ExitCode.OK
