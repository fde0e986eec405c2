"""Makes the content of the volume at DIR what it was before the last rollback.

Again and again it goes further back, rollback by rollback; 'cowfs redo' takes it back. What is there now is kept in a
guard snapshot. 'cowfs log' shows what there is to undo. Files that are open keep their handles, which answer ESTALE.
"""

import argparse
from collections.abc import Callable
from typing import Any

from cowfs.client import Client, connect
from cowfs.commands.flush import flush_mappings
from cowfs.commands.output import add_json, print_result
from cowfs.errors import ExitCode


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", help="a path on the mount")
    add_json(parser)


def step(arguments: argparse.Namespace, take: Callable[[Client], dict[str, Any]]) -> int:
    """One step through the volume's rollbacks, in either direction."""
    with connect(arguments.directory) as client:
        flush_mappings(client.mountpoint)
        result = take(client)
    print_result(arguments, result, f"back to {result['snapshot']}")
    return ExitCode.OK


def run(arguments: argparse.Namespace) -> int:
    return step(arguments, Client.undo)
