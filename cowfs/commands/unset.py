"""Unsets properties of the volume at DIR: what cowfs does without them holds again."""

import argparse

from cowfs.client import connect
from cowfs.commands.output import add_json, print_result
from cowfs.errors import ExitCode


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", metavar="NAME", nargs="+", help="a property; that it is not set is no error")
    parser.add_argument("directory", metavar="DIR", help="a path on the mount")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    with connect(arguments.directory) as client:
        print_result(arguments, client.set_properties(dict.fromkeys(arguments.names)), "")
    return ExitCode.OK
