"""Takes a snapshot of the volume at DIR and prints its name.

It captures every operation that returned before, and is durable when the command returns. Files that processes
have mapped shared and writable are flushed first, as far as this user may see the mappings. Without NAME it is named
after the time in UTC. DIR@NAME means the same as DIR NAME, unless there is such a path.

With --every the daemon takes them from now on, also after the next mount, until --every off; those in which nothing
has changed are left out, and --keep says which are kept for how long. Both are properties of the volume
('cowfs get DIR' shows them).

With -- COMMAND a snapshot is taken before it and one after it, and its exit status is passed on.
"""

import argparse
import os
import subprocess
import sys
from typing import Any

from cowfs.client import Client, connect
from cowfs.commands.flush import flush_mappings
from cowfs.commands.output import add_json, print_json, print_result
from cowfs.errors import CowfsError, ExitCode
from cowfs.retention import DEFAULT_RULE, parse_duration
from cowfs.snapshots import split_target

TAKES_COMMAND = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", help="a path on the mount, or DIR@NAME")
    parser.add_argument("name", metavar="NAME", nargs="?",
                        help="the snapshot's name; with a command what its two snapshots' names begin with")
    parser.add_argument("--no-sync", action="store_true", help="do not wait until the snapshot is durable")
    parser.add_argument("--message", metavar="TEXT", default="", help="kept with the snapshot, shown by list")
    parser.add_argument("--tag", metavar="KEY=VALUE", action="append", default=[],
                        help="kept with the snapshot too; may be given several times")
    parser.add_argument("--for", dest="duration", metavar="DURATION",
                        help="destroy the snapshot after this time, such as 90s, 2h or 30d")
    parser.add_argument("--every", metavar="DURATION|off",
                        help="take none now, but let the daemon take one so often, such as 10ms")
    parser.add_argument("--keep", metavar="RULE",
                        help=f"which of the daemon's snapshots are kept for how long: '{DEFAULT_RULE}'")
    add_json(parser)


def directory_and_name(directory: str, name: str | None) -> tuple[str, str | None]:
    """Takes DIR@NAME apart, the form that the other commands have, when it is no path itself and DIR is one."""
    if name is None and "@" in os.path.basename(directory) and not os.path.lexists(directory):
        target = split_target(directory)
        if os.path.lexists(target.directory):
            return target.directory, target.snapshot
    return directory, name


def parse_tags(words: list[str]) -> dict[str, str]:
    tags = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not key or not equals:
            raise CowfsError("usage", f"'{word}' is not a tag", "write KEY=VALUE")
        tags[key] = value
    return tags


def run(arguments: argparse.Namespace) -> int:
    directory, name = directory_and_name(arguments.directory, arguments.name)
    details: dict[str, Any] = {"message": arguments.message, "tags": parse_tags(arguments.tag),
                               "for_ns": parse_duration(arguments.duration) if arguments.duration else 0}
    continuous = arguments.every is not None or arguments.keep is not None
    if continuous and (name is not None or arguments.command is not None or any(details.values())):
        raise CowfsError("usage", "--every and --keep take no snapshot themselves",
                         "leave out NAME, --message, --tag, --for and the command")
    with connect(directory) as client:
        if continuous:
            return set_policy(client, arguments)
        sync = not arguments.no_sync
        if arguments.command is not None:
            return bracket(client, name, sync, details, arguments)
        flush_mappings(client.mountpoint)
        snapshot = client.snapshot(name, sync, **details)
    print_result(arguments, snapshot, snapshot["name"])
    return ExitCode.OK


def set_policy(client: Client, arguments: argparse.Namespace) -> int:
    changes = {"snapshot-every": arguments.every, "snapshot-keep": arguments.keep}
    result = client.set_properties({name: value for name, value in changes.items() if value is not None})
    print_result(arguments, result, "")
    return ExitCode.OK


def bracket(client: Client, name: str | None, sync: bool, details: dict[str, Any],
            arguments: argparse.Namespace) -> int:
    """A snapshot, the command, a snapshot. The names go to the standard error: the output is the command's."""
    if not arguments.command:
        raise CowfsError("usage", "there is no command after --", "write cowfs snapshot DIR -- COMMAND")
    taken = {}

    def take(when: str) -> None:
        flush_mappings(client.mountpoint)
        taken[when] = client.snapshot(f"{name}-{when}" if name is not None else None, sync, **details)
        if not arguments.json:
            print(f"cowfs: {when}: {taken[when]['name']}", file=sys.stderr, flush=True)

    take("before")
    try:
        status = subprocess.run(arguments.command, check=False).returncode
    except OSError as error:
        take("after")
        raise CowfsError("not_found", f"cannot run '{arguments.command[0]}': {error.strerror}",
                         "check the command") from None
    take("after")
    if arguments.json:
        print_json({**taken, "status": status})
    return status if status >= 0 else 128 - status
