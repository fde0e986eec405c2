"""Shows what takes the space of the pool at DIR, or of every mounted pool.

SNAPSHOTS is what only snapshots refer to, PENDING what comes back with the next checkpoint, RESERVED what the pool
needs for itself. AVAIL is what files can still take.
"""

import argparse

from cowfs.commands.output import add_table, format_size, print_json, print_table
from cowfs.commands.status import ask_mounts
from cowfs.errors import ExitCode

COLUMNS = {"SIZE": "size", "USED": "used", "AVAIL": "available", "SNAPSHOTS": "dead", "PENDING": "pending",
           "RESERVED": "reserved"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", nargs="?", help="a path on the mount")
    add_table(parser)


def run(arguments: argparse.Namespace) -> int:
    figures, failures = ask_mounts(arguments.directory, lambda client: client.df())
    if arguments.json:
        print_json(figures[0] if arguments.directory else figures)
    else:
        rows = [[*(format_size(figure[f"{column}_bytes"], exact=arguments.exact) for column in COLUMNS.values()),
                 figure["pool"], figure["mountpoint"]] for figure in figures]
        print_table([*COLUMNS, "POOL", "MOUNTPOINT"], rows, bare=arguments.bare)
    return failures or ExitCode.OK
