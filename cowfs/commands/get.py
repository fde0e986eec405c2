"""Shows the properties of the volume at DIR, or the value of one.

A property that is not set shows what holds without it.
"""

import argparse

from cowfs.client import connect
from cowfs.commands.output import add_table, print_json, print_table
from cowfs.errors import CowfsError, ExitCode


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", nargs="?", help="show the value of this property alone")
    parser.add_argument("directory", metavar="DIR", help="a path on the mount")
    add_table(parser)


def run(arguments: argparse.Namespace) -> int:
    with connect(arguments.directory) as client:
        properties = client.properties()
    if arguments.name is not None:
        found = [each for each in properties if each["name"] == arguments.name]
        if not found:
            raise CowfsError("not_found", f"the property '{arguments.name}' is not set",
                             "'cowfs get DIR' shows those that are")
        if arguments.json:
            print_json(found[0])
        else:
            print(found[0]["value"])
        return ExitCode.OK
    if arguments.json:
        print_json(properties)
        return ExitCode.OK
    rows = [(each["name"], each["value"] or "-", "set" if each["set"] else "default") for each in properties]
    print_table(("NAME", "VALUE", "SOURCE"), rows, bare=arguments.bare)
    return ExitCode.OK
