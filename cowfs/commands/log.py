"""Lists what happened to the volume at DIR as a whole, the oldest first: how it was made, its rollbacks, undos and
redos, and the clones of its snapshots that there are.

TO is the snapshot that the volume went back to, or that the clone was made of; BEFORE is the guard snapshot that keeps
what the content was. What 'cowfs undo' and 'cowfs redo' would lead back to is marked.
"""

import argparse
from typing import Any

from cowfs.client import connect
from cowfs.commands.output import add_table, format_time, print_json, print_table
from cowfs.errors import ExitCode


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", help="a path on the mount")
    add_table(parser)


def _row(event: dict[str, Any], log: dict[str, Any], *, exact: bool) -> tuple[str, ...]:
    to = event["snapshot"] or "-"
    if event["event"] == "cloned" and event["snapshot"]:
        to = f"{event['volume']}@{to}"
    elif event["event"] == "clone":
        to = f"{to} as {event['volume']}"
    marks = [step for step in ("undo", "redo") if event["guard"] and log[step] == event["guard"]]
    return (format_time(event["time_ns"], exact=exact) if event["time_ns"] is not None else "-", event["event"], to,
            event["guard"] or ("destroyed" if event["event"] in ("rollback", "undo", "redo") else "-"),
            ",".join(marks) or "-")


def run(arguments: argparse.Namespace) -> int:
    with connect(arguments.directory) as client:
        log = client.log()
    if arguments.json:
        print_json(log)
        return ExitCode.OK
    rows = (_row(event, log, exact=arguments.exact) for event in log["events"])
    print_table(("TIME", "EVENT", "TO", "BEFORE", "NEXT"), rows, bare=arguments.bare)
    return ExitCode.OK
