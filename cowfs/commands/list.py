"""Lists the snapshots of the volume at DIR, oldest first.

WRITTEN is the data that a snapshot has and the one before did not; UNIQUE is what destroying it alone would free, of
what has reached the medium ('cowfs destroy -n' tells for any set, exactly). '-' stands for what is not known at once.
"""

import argparse

from cowfs.client import Client, connect
from cowfs.commands.output import add_table, format_size, format_time, print_json, print_table
from cowfs.errors import CowfsError, ExitCode


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", help="a path on the mount")
    parser.add_argument("--limit", metavar="COUNT", type=int, default=0, help="list at most so many")
    parser.add_argument("--after", metavar="NAME", help="only those after this one, in the order of the list")
    parser.add_argument("--newest", action="store_true", help="newest first")
    parser.add_argument("--no-sizes", action="store_true", help="leave out WRITTEN and UNIQUE")
    add_table(parser)


def find_id(client: Client, name: str) -> int:
    found: int = client.request("find", name=name, volume=client.volume)["id"]
    return found


def run(arguments: argparse.Namespace) -> int:
    if arguments.limit < 0:
        raise CowfsError("usage", "--limit is less than nothing", "give a number from 1 on")
    with connect(arguments.directory) as client:
        after = find_id(client, arguments.after) if arguments.after is not None else 0
        found = client.iterate(sizes=not arguments.no_sizes, limit=arguments.limit, after=after,
                               newest_first=arguments.newest)
        if arguments.json:
            print_json([*found])
            return ExitCode.OK

        def size(value: int | None) -> str:
            return "-" if value is None else format_size(value, exact=arguments.exact)

        rows = []
        for snapshot in found:
            row = [snapshot["name"], format_time(snapshot["created_ns"], exact=arguments.exact)]
            if not arguments.no_sizes:
                row += [size(snapshot["written_bytes"]), size(snapshot["unique_bytes"])]
            tags = [f"{key}={value}" for key, value in snapshot.get("tags", {}).items()]
            row += [str(snapshot["clone_count"]), ",".join(snapshot["holds"]) or "-", ",".join(tags) or "-",
                    snapshot.get("message", "") or "-"]
            rows.append(row)
        header = ["NAME", "CREATED", *([] if arguments.no_sizes else ["WRITTEN", "UNIQUE"]), "CLONES", "HOLDS", "TAGS",
                  "MESSAGE"]
        print_table(header, rows, bare=arguments.bare)
    return ExitCode.OK
