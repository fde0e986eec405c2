"""Deletes snapshots, or a volume with all its snapshots (DIR --volume NAME).

  DIR@SNAPSHOT         one
  DIR@FIRST..LAST      these and all between; either may be left out
  DIR@'PATTERN*'       those whose names match, as in a shell
  DIR --older-than 1h  those that are older
  DIR --keep RULE      those that the rule does not keep ('cowfs snapshot --help'), whatever their names are

The last two can also be added to the others. Names are free at once; the space that nothing else uses comes back in the
background. Snapshots that are held stay, and so does the volume that is mounted.
"""

import argparse
from typing import Any

from cowfs.client import connect
from cowfs.commands.output import add_json, format_size, print_result
from cowfs.errors import CowfsError, ExitCode
from cowfs.retention import check_rule, parse_duration
from cowfs.snapshots import split_target


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="DIR@SNAPSHOT|DIR", help="the snapshots, or a path on the mount")
    parser.add_argument("-n", "--dry-run", action="store_true",
                        help="destroy nothing; say what would go, and exactly how much space would come free")
    parser.add_argument("--older-than", metavar="DURATION", help="only those that are older, such as 90s, 2h or 30d")
    parser.add_argument("--keep", metavar="RULE", help="only those that this rule does not keep")
    parser.add_argument("--volume", metavar="NAME", help="delete this volume; the first argument is only DIR then")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    selects = arguments.older_than is not None or arguments.keep is not None
    if arguments.volume is not None:
        if selects or arguments.dry_run:
            raise CowfsError("usage", "--volume goes with no other option", "destroy the volume's snapshots one by one")
        with connect(arguments.target) as client:
            client.destroy_volume(arguments.volume)
        print_result(arguments, {"destroyed": arguments.volume}, "")
        return ExitCode.OK
    older_than_ns = parse_duration(arguments.older_than) if arguments.older_than else 0
    keep = check_rule(arguments.keep) if arguments.keep else ""
    directory, name = arguments.target, "*"
    if not selects or "@" in arguments.target:
        directory, name = split_target(arguments.target)
    with connect(directory) as client:
        if not selects and not arguments.dry_run and not set(name) & set("*?[") and ".." not in name:
            client.destroy(name)
            print_result(arguments, {"destroyed": name}, "")
            return ExitCode.OK
        result = client.destroy_many(name, older_than_ns=older_than_ns, keep=keep, dry_run=arguments.dry_run)
    print_result(arguments, result, _describe(result, dry_run=arguments.dry_run))
    return ExitCode.OK


def _describe(result: dict[str, Any], *, dry_run: bool) -> str:
    lines = []
    if dry_run:
        lines += result["names"]
        if result["count"] > len(result["names"]):
            lines.append(f"… {result['count'] - len(result['names'])} more")
        lines.append(f"would destroy {result['count']} and free {result['freed_bytes']} bytes "
                     f"({format_size(result['freed_bytes'])})")
    else:
        lines.append(f"destroyed {result['count']}")
    if result["held"]:
        lines.append(f"held: {', '.join(result['held'][:10])}{', …' if len(result['held']) > 10 else ''}")
    return "\n".join(lines)
