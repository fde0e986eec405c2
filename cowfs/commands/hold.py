"""Keeps a snapshot from being destroyed until 'cowfs release' with the same tag. A snapshot may have several holds."""

import argparse

from cowfs.client import connect
from cowfs.commands.output import add_json, print_result
from cowfs.errors import ExitCode
from cowfs.snapshots import split_target


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("tag", metavar="TAG", help="what the hold is called, such as who wants it")
    parser.add_argument("target", metavar="DIR@SNAPSHOT", help="a path on the mount and the snapshot's name")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    target = split_target(arguments.target)
    with connect(target.directory) as client:
        print_result(arguments, client.hold(target.snapshot, arguments.tag), "")
    return ExitCode.OK
