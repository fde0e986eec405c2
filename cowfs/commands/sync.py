"""Returns when everything that was written to the mount at DIR before is on the medium.

sync(1) does not reach a FUSE file system; this and fsync(2) do. Files that processes have mapped shared and writable
are flushed first, as far as this user may see the mappings.
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
        client.sync()
    print_result(arguments, {"synced": True}, "")
    return ExitCode.OK
