"""Shows the mount at DIR in full, or all cowfs mounts with one line each."""

import argparse
import sys
from collections.abc import Callable
from typing import Any

from cowfs.client import Client, connect
from cowfs.commands.output import add_table, format_size, format_time, print_json, print_table
from cowfs.errors import CowfsError, ExitCode
from cowfs.mounting import cowfs_mounts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", nargs="?", help="a path on the mount")
    add_table(parser)


def ask_mounts(directory: str | None, ask: Callable[[Client], dict[str, Any]]) -> tuple[list[dict[str, Any]], int]:
    """What the daemon of one mount says, or of each; and the exit code of the last that could not be asked."""
    if directory is not None:
        with connect(directory) as client:
            return [ask(client)], 0
    answers, failure = [], 0
    for entry in cowfs_mounts():
        try:
            with connect(entry.mountpoint) as client:
                answers.append(ask(client))
        except CowfsError as error:
            print(f"cowfs: {error}", file=sys.stderr)
            failure = error.exit_code
    return answers, failure


def run(arguments: argparse.Namespace) -> int:
    states, failures = ask_mounts(arguments.directory, lambda client: client.status())
    if arguments.json:
        print_json(states[0] if arguments.directory else states)
    elif arguments.directory is not None:
        print_table(("FIELD", "VALUE"), _fields(states[0], arguments.exact), bare=arguments.bare)
    else:
        rows = [(state["mountpoint"], state["pool"], state["volume"], str(state["pid"]), health(state))
                for state in states]
        print_table(("MOUNTPOINT", "POOL", "VOLUME", "PID", "STATE"), rows, bare=arguments.bare)
    return failures or ExitCode.OK


def health(state: dict[str, Any]) -> str:
    if state["failure"]:
        return f"failed: {state['failure']}"
    return "read-only" if state["read_only"] else "writable"


def scrub_summary(scrub: dict[str, Any] | None) -> str:
    if not scrub or scrub["state"] == "never":
        return "never"
    found = f"{scrub['damaged']} damaged, {scrub['repaired']} repaired"
    share = 100 * scrub["bytes"] // max(1, scrub["total_bytes"])
    when = format_time(scrub["ended_ns"] or scrub["started_ns"])
    return f"{scrub['state']} {when}, {share}%, {found}"


def _compression(compression: dict[str, Any]) -> str:
    if not compression["content_bytes"]:
        return str(compression["setting"])
    return (f"{compression['setting']}; {format_size(compression['content_bytes'])} were stored as "
            f"{format_size(compression['stored_bytes'])} since the mount")


def _stalls(stalls: dict[str, Any]) -> list[tuple[str, str]]:
    """What there was of either, with the longest of it."""
    rows = [(f"held by {name}", f"{hold['count']} times, at most {hold['held_max_ns'] // 1000} us "
             f"({hold['cpu_max_ns'] // 1000} us of CPU, {hold['steps_max']} steps)")
            for name, hold in stalls["holds"].items() if hold["count"]]
    rows += [(f"waited for {name}", f"{wait['count']} times, at most {wait['waited_max_ns'] // 1000} us")
             for name, wait in stalls["waits"].items() if wait["count"]]
    return rows


def _fields(state: dict[str, Any], exact: bool) -> list[tuple[str, str]]:
    """One row per fact; every figure of the store comes last under its own name."""
    from cowfs.damage import describe

    events = ", ".join(f"{count} {name}" for name, count in state["events"].items() if count) or "none"
    rows = [
        ("pool", state["pool"]), ("label", state["label"] or "-"), ("uuid", state["uuid"]),
        ("mountpoint", state["mountpoint"]), ("volume", state["volume"]), ("state", health(state)),
        ("daemon", str(state["pid"])), ("since", format_time(state["started_ns"], exact=exact)),
        ("requests over", state["transport"]["kind"] + ("" if state["transport"]["pump"] else ", without the pump")),
        ("scrub", scrub_summary(state.get("scrub"))),
        ("log", state["log"]), ("open files", str(state["open_files"])), ("events", events),
    ]  # fmt: skip
    rows += [("damage", describe(place)) for place in state["damage"]["places"]]
    if state["transport"]["io_uring_refused"]:
        rows.append(("io_uring", f"not used: {state['transport']['io_uring_refused']}"))
    rows.append(("compression", _compression(state["compression"])))
    rows += [(f"volume {volume['name']}", f"{volume['snapshot_count']} snapshots") for volume in state["volumes"]]
    rows += [(f"{request['request']} in {request['answered_in']}",
              f"{request['count']} times, {request['mean_us']} us (p50 {request['p50_us']}, p99 {request['p99_us']})")
             for request in state["requests"]]
    rows += _stalls(state["stalls"])
    for name, value in state["statistics"].items():
        is_size = name.endswith(("_bytes", "_blocks")) and not exact
        size_bytes = value * (4096 if name.endswith("_blocks") else 1) if is_size else 0
        rows.append((name, format_size(size_bytes) if is_size else str(value)))
    return rows
