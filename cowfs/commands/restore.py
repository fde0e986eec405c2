"""Brings FILE, or a directory with all that is in it, back as it was at a time or in a snapshot.

FILE may be gone now. It goes to where it was; what is there already is not overwritten: pass --to for another place, or
--in-place to make what is there now what it was then (a snapshot is taken first, so that this can be undone).
"""

import argparse
import os
import sys
import time
from typing import Any

from cowfs.client import Client, connect_to
from cowfs.commands.flush import flush_mappings
from cowfs.commands.output import accept_spans, add_json, print_result
from cowfs.errors import CowfsError, ExitCode
from cowfs.restore import Restorer, restore_beside
from cowfs.snapshots import format_time_us


def add_arguments(parser: argparse.ArgumentParser) -> None:
    accept_spans(parser)
    parser.add_argument("file", metavar="FILE", help="a file or directory on the mount, perhaps gone")
    parser.add_argument("--at", metavar="WHEN", required=True,
                        help="a snapshot's name, @ID, a time as 2026-11-22T11:45, or a span before now as -30s")
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--to", metavar="PATH", help="restore to this path, or into this directory")
    place.add_argument("--in-place", action="store_true", help="overwrite what is there now")
    parser.add_argument("--delete", action="store_true",
                        help="with --in-place, also delete what a directory did not have then")
    add_json(parser)


def _target(arguments: argparse.Namespace, original: str) -> str:
    if arguments.to is None:
        return original
    target = os.path.abspath(arguments.to)
    return os.path.join(target, os.path.basename(original)) if os.path.isdir(target) else target


def _check_new(target: str, *, chosen: bool) -> None:
    if os.path.lexists(target):
        raise CowfsError("exists", f"{target} is there already",
                         "give another path" if chosen else
                         "pass --to PATH to restore beside it, or --in-place to overwrite it")
    if not os.path.isdir(os.path.dirname(target)):
        raise CowfsError("not_found", f"there is no directory {os.path.dirname(target)}",
                         "make it, restore that directory as a whole, or pass --to PATH")


def _restore(client: Client, arguments: argparse.Namespace, path: str) -> dict[str, Any]:
    snapshot = client.resolve(arguments.at)
    # The path through the snapshot by its id, which is the same for every volume; real, because a new snapshot may
    # take the place of a name.
    source = os.path.join(os.path.realpath(os.path.join(client.mountpoint, ".cowfs", "at", f"@{snapshot['id']}")), path)
    original = os.path.join(client.directory, path) if path else client.directory
    if not os.path.lexists(source):
        raise CowfsError("not_found", f"the snapshot '{snapshot['name']}' has no '{path}'",
                         f"'cowfs versions {original}' lists what snapshots have")
    restorer = Restorer(delete=arguments.delete)
    target = _target(arguments, original)
    guard = None
    try:
        if arguments.in_place:
            flush_mappings(client.mountpoint)
            guard = client.snapshot(f"before-restore-{format_time_us(time.time_ns() // 1000)}")["name"]
            restorer.overwrite(source.rstrip("/"), target)
        else:
            _check_new(target, chosen=arguments.to is not None)
            restore_beside(restorer, source.rstrip("/"), target, original)
    finally:
        for note in restorer.notes:
            print(f"cowfs: note: {note}", file=sys.stderr)
    return {"path": target, "snapshot": snapshot["name"], "guard": guard, "files": restorer.files,
            "written_bytes": restorer.written_bytes, "notes": restorer.notes}


def run(arguments: argparse.Namespace) -> int:
    if arguments.delete and not arguments.in_place:
        raise CowfsError("usage", "--delete goes with --in-place only", "leave it out: nothing is there to delete")
    client, path = connect_to(arguments.file)
    with client:
        result = _restore(client, arguments, path)
    undo = f"\nbefore that: snapshot {result['guard']}" if result["guard"] else ""
    print_result(arguments, result, f"{result['path']} as in {result['snapshot']}{undo}")
    return ExitCode.OK
