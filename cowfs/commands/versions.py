"""Lists the versions of FILE that snapshots hold, and the present one when none does, the oldest first.

For each: when the first snapshot that has it was taken, its size, what had changed, and that snapshot's name. The file
may be gone. DIR/.cowfs/versions/PATH/ has a link to each version.
"""

import argparse
from typing import Any

from cowfs.client import connect_to
from cowfs.commands.output import add_table, format_size, format_time, print_json, print_table
from cowfs.errors import CowfsError, ExitCode


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="a file or directory on the mount")
    add_table(parser)


def describe_change(version: dict[str, Any]) -> str:
    kind = str(version["kind"])
    if kind == "modified" and version.get("ranges"):
        changed = sum(length for _offset, length in version["ranges"])
        return f"modified ({format_size(changed)})"
    return kind


def run(arguments: argparse.Namespace) -> int:
    client, path = connect_to(arguments.file)
    with client:
        found = client.versions(path)
    if not found:
        raise CowfsError("not_found", f"no snapshot has {arguments.file}, nor is it there now", "check the path")
    if arguments.json:
        print_json(found)
        return ExitCode.OK
    rows = ((format_time(version["created_ns"], exact=arguments.exact) if version["snapshot"] else "now",
             format_size(version["size"], exact=arguments.exact) if version["size"] is not None else "-",
             describe_change(version), version["snapshot"] or "-") for version in found)
    print_table(("SINCE", "SIZE", "CHANGE", "SNAPSHOT"), rows, bare=arguments.bare)
    return ExitCode.OK
