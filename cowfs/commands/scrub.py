"""Reads and verifies everything that volumes and snapshots of the pool at DIR refer to, while it is in use.

A bad copy of metadata is written again from the good one; damaged data is named with its path and the snapshots that
have it ('cowfs status DIR', and the daemon's log). Goes on by itself after the next mount when it was not done. The
exit code is 9 when something was found that could not be repaired.
"""

import argparse
import sys
import time
from typing import Any

from cowfs.client import Client, connect
from cowfs.commands.output import add_json, format_size, print_result
from cowfs.errors import ExitCode
from cowfs.pools import parse_size

_POLL_INTERVAL_S = 0.2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", help="a path on the mount")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--status", action="store_true", help="show how far it is, and what it has found")
    what.add_argument("--pause", action="store_true", help="stop; the next start goes on from there")
    what.add_argument("--cancel", action="store_true", help="stop; the next start begins anew")
    parser.add_argument("-b", "--background", action="store_true",
                        help="start it and return at once; without it one that runs already is followed")
    parser.add_argument("--rate", metavar="N", help="bytes a second at most, as in 200M; 'max': no limit; default 64M")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    rate = arguments.rate
    rate_bytes = None if rate is None else 0 if rate == "max" else parse_size(rate)
    with connect(arguments.directory) as client:
        if arguments.status:
            state = client.scrub("status")
        elif arguments.pause or arguments.cancel:
            state = client.scrub("pause" if arguments.pause else "cancel")
        else:
            state = client.scrub("status")
            if state["state"] != "running" or rate_bytes is not None or arguments.background:
                state = client.scrub("start", rate_bytes)
            if not arguments.background:
                state = _follow(client, state)
        places = client.status()["damage"]["places"] if state["damaged"] else []
    state["places"] = [place for place in places if place["kind"] != "read"]
    print_result(arguments, state, _text(state))
    return ExitCode.DAMAGED if state["damaged"] > state["repaired"] else ExitCode.OK


def _follow(client: Client, state: dict[str, Any]) -> dict[str, Any]:
    """Waits for the end, with progress for people."""
    shows = sys.stderr.isatty()
    while state["state"] == "running":
        time.sleep(_POLL_INTERVAL_S)
        state = client.scrub("status")
        if shows:
            print(f"\r{_progress(state)}\033[K", end="", file=sys.stderr, flush=True)
    if shows:
        print("\r\033[K", end="", file=sys.stderr, flush=True)
    return state


def _progress(state: dict[str, Any]) -> str:
    share = 100 * state["bytes"] / state["total_bytes"] if state["total_bytes"] else 100
    return f"{share:.0f}% of {format_size(state['total_bytes'])}, {state['damaged']} damaged"


def _text(state: dict[str, Any]) -> str:
    from cowfs.damage import describe

    if state["state"] == "never":
        return "never scrubbed"
    lines = [f"scrub {state['state']}: {_progress(state)}, {state['repaired']} of them repaired"]
    return "\n".join(lines + [f"  {describe(place)}" for place in state["places"]])
