"""Takes a snapshot of the volume at DIR and prints its name.

It captures every operation that returned before, and is durable when the command returns. Files that processes
have mapped shared and writable are flushed first, as far as this user may see the mappings. Without NAME it is named
after the time in UTC. DIR@NAME means the same as DIR NAME, unless there is such a path.
"""

import argparse
import os

from cowfs.client import connect
from cowfs.commands.flush import flush_mappings
from cowfs.commands.output import add_json, print_result
from cowfs.errors import ExitCode
from cowfs.snapshots import split_target


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", help="a path on the mount, or DIR@NAME")
    parser.add_argument("name", metavar="NAME", nargs="?", help="the snapshot's name")
    parser.add_argument("--no-sync", action="store_true", help="do not wait until the snapshot is durable")
    add_json(parser)


def directory_and_name(directory: str, name: str | None) -> tuple[str, str | None]:
    """Takes DIR@NAME apart, the form that the other commands have, when it is no path itself and DIR is one."""
    if name is None and "@" in os.path.basename(directory) and not os.path.lexists(directory):
        target = split_target(directory)
        if os.path.lexists(target.directory):
            return target.directory, target.snapshot
    return directory, name


def run(arguments: argparse.Namespace) -> int:
    directory, name = directory_and_name(arguments.directory, arguments.name)
    with connect(directory) as client:
        flush_mappings(client.mountpoint)
        snapshot = client.snapshot(name, sync=not arguments.no_sync)
    print_result(arguments, snapshot, snapshot["name"])
    return ExitCode.OK
