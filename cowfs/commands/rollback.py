"""Makes the content of the volume at DIR that of the snapshot again.

Works while mounted, at once, whatever the size. What was there before is kept in a guard snapshot, newer snapshots
stay. Files that are open keep their handles, which answer ESTALE from then on. Files that processes have mapped shared
and writable are flushed first, as far as this user may see the mappings: the guard snapshot holds that, too.
"""

import argparse
import shlex

from cowfs.client import connect
from cowfs.commands.flush import flush_mappings
from cowfs.commands.output import add_json, print_result
from cowfs.errors import ExitCode
from cowfs.snapshots import split_target


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="DIR@SNAPSHOT", help="a path on the mount and the snapshot's name")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    target = split_target(arguments.target)
    with connect(target.directory) as client:
        flush_mappings(client.mountpoint)
        result = client.rollback(target.snapshot)
        undo = "cowfs rollback " + shlex.quote(f"{client.directory}@{result['guard']['name']}")
    print_result(arguments, {**result, "undo": undo}, f"rolled back to {target.snapshot}\nundo with: {undo}")
    return ExitCode.OK
