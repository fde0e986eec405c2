"""Checks a cowfs pool that is not mounted, and changes nothing.

Walks the store (structure, checksums, every block of space) and each volume's files (names, link counts, extents).
What a crash left is no damage: the journal is replayed in memory for the check, and for good at the next mount.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from typing import NoReturn

from cowfs.commands.output import print_json
from cowfs.commands.version import add_version
from cowfs.errors import CowfsError
from cowfs.pools import open_store

# fsck(8), "EXIT STATUS"
CLEAN = 0
PROBLEMS = 4
OPERATIONAL_ERROR = 8
USAGE_ERROR = 16
CANCELLED = 32
SHOWN_MAX = 100
ADVICE = "nothing was changed; copy what you need from a read-only mount (-o ro)"

EPILOG = """\
exit codes, as in fsck(8):
  0  no problems     4  problems found     8  the check could not be done     16  wrong usage     32  interrupted
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(USAGE_ERROR, f"fsck.cowfs: {message}\n")


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="fsck.cowfs", description=__doc__, epilog=EPILOG,
                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pool", metavar="POOL", help="the file or block device")
    parser.add_argument("-n", "-y", dest="unused", action="store_true", help="accepted: nothing is ever changed")
    parser.add_argument("-p", "-a", dest="preen", action="store_true",
                        help="as at boot: only open and recover, unless -f")
    parser.add_argument("-f", "--force", action="store_true", help="check everything, with -p too")
    parser.add_argument("-C", dest="progress", metavar="FD", nargs="?", help="accepted and ignored")
    parser.add_argument("--all", action="store_true", help="check the files of every snapshot, too")
    parser.add_argument("--data", action="store_true", help="read all data and compare its checksums")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    add_version(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    options = build_parser().parse_args(arguments)
    started = time.monotonic()
    try:
        checked, problems = check_pool(options)
    except CowfsError as error:
        # What is too damaged to be opened is a finding; not to get at it is none.
        return _fail(error, PROBLEMS if error.code == "damaged" else OPERATIONAL_ERROR, as_json=options.json)
    except OSError as error:
        failure = CowfsError.from_os_error(error, f"check {options.pool}")
        return _fail(failure, OPERATIONAL_ERROR, as_json=options.json)
    except KeyboardInterrupt:
        print("fsck.cowfs: interrupted; nothing was changed", file=sys.stderr)
        return CANCELLED
    if options.json:
        print_json({"pool": options.pool, "checked": checked, "problems": problems})
    else:
        for problem in problems[:SHOWN_MAX]:
            print(problem)
        if len(problems) > SHOWN_MAX:
            print(f"and {len(problems) - SHOWN_MAX} more; --json prints all")
        verdict = f"{len(problems)} problems" if problems else "clean"
        print(f"{options.pool}: {verdict} ({', '.join(checked)}; {time.monotonic() - started:.1f} s)")
        if problems:
            print(f"{options.pool}: {ADVICE}")
    return PROBLEMS if problems else CLEAN


def _fail(error: CowfsError, status: int, *, as_json: bool) -> int:
    """Says why there is no result, and returns the exit code, which is that of fsck(8)."""
    print(f"fsck.cowfs: {error}", file=sys.stderr)
    if as_json:
        print_json({**error.to_json(), "exit_code": status})
    return status


def check_pool(options: argparse.Namespace) -> tuple[list[str], list[str]]:
    """What was checked, and the problems found."""
    with open_store(options.pool, read_only=True) as store:
        if options.preen and not options.force:
            return ["opened and recovered"], []
        from cowfs._native import FileSystem

        checked = ["store and data" if options.data else "store"]
        problems = store.check(read_data=options.data)
        for volume in store.volumes():
            filesystem = FileSystem(store, volume.id, read_only=True)
            checked.append(f"volume {volume.name}")
            problems += [f"volume {volume.name}: {problem}" for problem in filesystem.check(volume.id)]
            if options.all:
                snapshots = store.snapshots(volume.id)
                checked.append(f"{len(snapshots)} snapshots")
                problems += [f"snapshot {volume.name}@{snapshot.name}: {problem}" for snapshot in snapshots
                             for problem in filesystem.check(snapshot.id)]
        return checked, problems


if __name__ == "__main__":
    sys.exit(main())
