"""Unmounts the cowfs mount at DIR and returns when everything is on disk.

A mount whose daemon was killed is taken away, too: the pool recovers when it is mounted again.
"""

import argparse
import os
import select
import sys

from cowfs.client import Client
from cowfs.commands.output import add_json, print_result
from cowfs.errors import CowfsError, ExitCode
from cowfs.mounting import FILE_SYSTEM_TYPE, is_dead, mount_at, unmount


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", help="the mountpoint")
    parser.add_argument("-l", "--lazy", action="store_true",
                        help="take the mount away at once, and wait until those who still use it are done")
    parser.add_argument("-f", "--force", action="store_true",
                        help="let go of requests that the daemon does not answer")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    note = unmount_and_wait(arguments.directory, lazy=arguments.lazy, force=arguments.force)
    if note:
        print(f"cowfs: {note}", file=sys.stderr)
    print_result(arguments, {"unmounted": arguments.directory}, "")
    return ExitCode.OK


def unmount_and_wait(directory: str, *, lazy: bool = False, force: bool = False) -> str:
    """Returns when the daemon has closed the pool and ended; "" or a note for the user."""
    entry = mount_at(directory)
    if entry is None or entry.kind != FILE_SYSTEM_TYPE:
        raise CowfsError("not_cowfs", f"no cowfs is mounted at {directory}", "'cowfs status' lists the mounts")
    if is_dead(entry.mountpoint):
        unmount(entry.mountpoint, lazy=True, force=force)
        return f"the daemon of {directory} was gone; mounting {entry.source} again recovers its last changes"
    try:
        client = Client(entry.mountpoint)
        client.announce_wait()
    except CowfsError as error:
        if not force:
            raise
        unmount(entry.mountpoint, lazy=lazy, force=True)
        return f"could not wait for the daemon: {error}"
    with client:
        daemon = os.pidfd_open(client.daemon_pid())
        try:
            unmount(entry.mountpoint, lazy=lazy, force=force)
            client.wait_unmounted()
            select.select([daemon], [], [])
        finally:
            os.close(daemon)
    return ""
