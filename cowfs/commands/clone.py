"""Makes a volume called NAME whose content is the snapshot's.

It is writable, costs nothing until it is changed, and is at DIR/.cowfs/volume/NAME/ at once. A pool is mounted once:
after it was unmounted, 'mount.cowfs -o volume=NAME' mounts the clone instead.
"""

import argparse
import os

from cowfs.client import connect
from cowfs.commands.output import add_json, print_result
from cowfs.errors import ExitCode
from cowfs.snapshots import split_target


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="DIR@SNAPSHOT", help="a path on the mount and the snapshot's name")
    parser.add_argument("name", metavar="NAME", help="the new volume's name")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    target = split_target(arguments.target)
    with connect(target.directory) as client:
        result = client.clone(target.snapshot, arguments.name)
        path = os.path.join(client.mountpoint, ".cowfs", "volume", arguments.name)
    print_result(arguments, {**result, "path": path}, path)
    return ExitCode.OK
