"""Takes a snapshot of the volume at DIR and prints its name.

It captures every operation that returned before, and is durable when the command returns. Files that processes
have mapped shared and writable are flushed first, as far as this user may see the mappings. Without NAME it is named
after the time in UTC.
"""

import argparse

from cowfs.client import connect
from cowfs.commands.output import add_json, print_result
from cowfs.errors import CowfsError, ExitCode
from cowfs.mappings import flush_shared_mappings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", help="a path on the mount")
    parser.add_argument("name", metavar="NAME", nargs="?", help="the snapshot's name")
    parser.add_argument("--no-sync", action="store_true", help="do not wait until the snapshot is durable")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    with connect(arguments.directory) as client:
        try:
            flush_shared_mappings(client.mountpoint)
        except OSError as error:
            raise CowfsError.from_os_error(error, "flush a shared mapping", "see 'cowfs status'") from None
        snapshot = client.snapshot(arguments.name, sync=not arguments.no_sync)
    print_result(arguments, snapshot, snapshot["name"])
    return ExitCode.OK
