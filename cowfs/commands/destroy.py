"""Deletes a snapshot (DIR@SNAPSHOT), or a volume with all its snapshots (DIR --volume NAME).

Its name is free at once; the space that nothing else uses comes back in the background. A snapshot that is held, and
the volume that is mounted, are refused.
"""

import argparse

from cowfs.client import connect
from cowfs.commands.output import add_json, print_result
from cowfs.errors import ExitCode
from cowfs.snapshots import split_target


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="DIR@SNAPSHOT|DIR", help="the snapshot, or a path on the mount")
    parser.add_argument("--volume", metavar="NAME", help="delete this volume; the first argument is only DIR then")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    if arguments.volume is not None:
        with connect(arguments.target) as client:
            client.destroy_volume(arguments.volume)
        print_result(arguments, {"destroyed": arguments.volume}, "")
        return ExitCode.OK
    target = split_target(arguments.target)
    with connect(target.directory) as client:
        client.destroy(target.snapshot)
    print_result(arguments, {"destroyed": target.snapshot}, "")
    return ExitCode.OK
