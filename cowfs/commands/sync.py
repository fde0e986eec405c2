"""Returns when everything that was written to the mount at DIR before is on the medium.

sync(1) does not reach a FUSE file system; this and fsync(2) do.
"""

import argparse

from cowfs.client import connect
from cowfs.commands.output import add_json, print_result
from cowfs.errors import ExitCode


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", help="a path on the mount")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    with connect(arguments.directory) as client:
        client.sync()
    print_result(arguments, {"synced": True}, "")
    return ExitCode.OK
