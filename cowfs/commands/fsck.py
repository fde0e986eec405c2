"""Checks a cowfs pool that is not mounted, and with -y repairs it.

Walks the store (structure, checksums, every block of space) and each volume's files (names, link counts, extents).
What a crash left is no damage: the journal is replayed in memory for the check, and for good at the next mount.

A repair writes only what is wrong: free space and what belongs to which snapshot are found out anew by walking, bad
copies of metadata are written again, names, link counts and sizes are put right, and what has lost its name gets one in
lost+found. Files that can be read stay as they are. Snapshots are not changed.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NoReturn

from cowfs.commands.output import print_json
from cowfs.commands.version import add_version
from cowfs.errors import CowfsError
from cowfs.pools import open_store

if TYPE_CHECKING:
    from btree import Store

# fsck(8), "EXIT STATUS"
CLEAN = 0
CORRECTED = 1
PROBLEMS = 4
OPERATIONAL_ERROR = 8
USAGE_ERROR = 16
CANCELLED = 32
SHOWN_MAX = 100
ADVICE = "nothing was changed; 'fsck.cowfs -y' repairs, after you copied what you need from a read-only mount (-o ro)"
ADVICE_REPAIRED = "what is left cannot be repaired; copy what you need from a read-only mount (-o ro)"
RING_SLOTS = 16
SCRUB_STEP_BYTES = 16 << 20

EPILOG = """\
exit codes, as in fsck(8):
  0  no problems     1  all were repaired     4  problems are left     8  the check could not be done
  16  wrong usage    32  interrupted
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(USAGE_ERROR, f"fsck.cowfs: {message}\n")


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="fsck.cowfs", description=__doc__, epilog=EPILOG,
                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pool", metavar="POOL", help="the file or block device")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("-n", dest="never", action="store_true", help="change nothing (also without any option)")
    what.add_argument("-y", dest="repair", action="store_true", help="repair what can be repaired")
    what.add_argument("-p", "-a", dest="preen", action="store_true",
                      help="as at boot: only open and recover; with -f check everything, and repair")
    parser.add_argument("-f", "--force", action="store_true", help="check everything, with -p too")
    parser.add_argument("-C", dest="progress", metavar="FD", nargs="?", type=int, const=0, default=None,
                        help="show progress; a number above 0: lines for fsck(8) to that descriptor")
    parser.add_argument("--all", action="store_true", help="check the files of every snapshot, too")
    parser.add_argument("--data", action="store_true", help="read all data and compare its checksums")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    add_version(parser)
    return parser


class _Progress:
    """Steps of a check, shown as -C asks."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._pool = options.pool
        self._descriptor = options.progress
        self._step = 0

    def step(self, what: str, share: float = 0.0) -> None:
        """A new step, or (share above 0) how much of it is done."""
        self._step += share == 0
        if self._descriptor is None:
            return
        if self._descriptor > 0:
            os.write(self._descriptor, f"{self._step} {int(share * 1000)} 1000 {self._pool}\n".encode())
        else:
            print(f"{self._pool}: {what}" + (f" {share:.0%}" if share else ""), file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    options = build_parser().parse_args(arguments)
    started = time.monotonic()
    repairs: list[str] = []
    try:
        checked, problems = check_pool(options)
        repairing = options.repair or (options.preen and options.force)
        if problems and repairing:
            found = problems
            repairs = repair_pool(options, problems)
            checked, problems = check_pool(options)
        else:
            found = problems
    except CowfsError as error:
        # What is too damaged to be opened is a finding; not to get at it is none.
        return _fail(error, PROBLEMS if error.code == "damaged" else OPERATIONAL_ERROR, as_json=options.json)
    except OSError as error:
        failure = CowfsError.from_os_error(error, f"check {options.pool}")
        return _fail(failure, PROBLEMS if failure.code == "damaged" and repairs else OPERATIONAL_ERROR,
                     as_json=options.json)
    except KeyboardInterrupt:
        print("fsck.cowfs: interrupted; what was not repaired yet is as it was", file=sys.stderr)
        return CANCELLED
    if options.json:
        print_json({"pool": options.pool, "checked": checked, "found": found, "repairs": repairs, "problems": problems})
    else:
        _print_result(options.pool, found, repairs, problems if repairing else found, repairing=repairing)
        verdict = f"{len(problems)} problems" if problems else "repaired" if found else "clean"
        print(f"{options.pool}: {verdict} ({', '.join(checked)}; {time.monotonic() - started:.1f} s)")
        if problems:
            print(f"{options.pool}: {ADVICE_REPAIRED if repairing else ADVICE}")
    return PROBLEMS if problems else CORRECTED if found else CLEAN


def _print_result(pool: str, found: list[str], repairs: list[str], left: list[str], *, repairing: bool) -> None:
    lists = [("", found)]
    if repairing and found:
        lists += [("repaired: ", repairs), ("left: ", left)]
    for prefix, lines in lists:
        for line in lines[:SHOWN_MAX]:
            print(prefix + line)
        if len(lines) > SHOWN_MAX:
            print(f"{prefix}and {len(lines) - SHOWN_MAX} more; --json prints all")


def _fail(error: CowfsError, status: int, *, as_json: bool) -> int:
    """Says why there is no result, and returns the exit code, which is that of fsck(8)."""
    print(f"fsck.cowfs: {error}", file=sys.stderr)
    if as_json:
        print_json({**error.to_json(), "exit_code": status})
    return status


# ---- checking


def check_pool(options: argparse.Namespace) -> tuple[list[str], list[str]]:
    """What was checked, and the problems found."""
    progress = _Progress(options)
    progress.step("opening")
    try:
        store = open_store(options.pool, read_only=True)
    except CowfsError as error:
        if error.code != "damaged" or not (options.repair or options.preen):
            raise
        return ["superblocks"], [error.message]  # an older superblock may do: repair_pool() tries
    with store:
        if options.preen and not options.force:
            return ["opened and recovered"], []
        return _check_store(store, options, progress)


def _check_store(store: "Store", options: argparse.Namespace, progress: _Progress) -> tuple[list[str], list[str]]:
    checked = ["store and data" if options.data else "store"]
    progress.step("checking the store")
    problems = store.check(read_data=options.data)
    problems += [f"a superblock is damaged at block {entry['address']}" for entry in store.scrub(b"", 1)[2]
                 if entry["kind"] == "superblock"]
    for volume in store.volumes():
        checked.append(f"volume {volume.name}")
        progress.step(f"checking the volume {volume.name}")
        problems += _check_tree(store, volume.id, volume.id, f"volume {volume.name}")
        if options.all:
            snapshots = store.snapshots(volume.id)
            checked.append(f"{len(snapshots)} snapshots")
            progress.step(f"checking {len(snapshots)} snapshots")
            problems += [problem for snapshot in snapshots for problem in _check_tree(
                store, volume.id, snapshot.id, f"snapshot {volume.name}@{snapshot.name}")]
    return checked, problems


def _check_tree(store: "Store", volume_id: int, object_id: int, name: str) -> list[str]:
    from cowfs._native import FileSystem

    try:
        return [f"{name}: {problem}" for problem in FileSystem(store, volume_id, read_only=True).check(object_id)]
    except OSError as error:
        return [f"{name}: cannot be read: {error.strerror}"]


# ---- repairing


def repair_pool(options: argparse.Namespace, problems: list[str]) -> list[str]:
    """Returns what was done. Each opening with rebuild_space ends with a checkpoint that has found out what is in
    use."""
    progress = _Progress(options)
    repairs: list[str] = []
    progress.step("finding out what is in use")
    store, sequence_max = _open_for_repair(options.pool, repairs)
    with store:
        _rewrite_copies(store, repairs, progress)
        if any(_is_about_space(problem) for problem in problems):
            repairs.append("found out anew what is in use, and what belongs to which snapshot")
        changed = 0
        for volume in store.volumes():
            progress.step(f"repairing the volume {volume.name}")
            changed += _repair_tree(store, volume.id, volume.name, repairs.append)
    if changed or sequence_max:
        progress.step("finding out again what is in use")
        with open_store(options.pool, read_only=False, rebuild_space=True):
            pass
    return repairs


def _is_about_space(problem: str) -> bool:
    return not problem.startswith(("volume ", "snapshot ", "a superblock ", "copy ", "data "))


def _open_for_repair(pool: str, repairs: list[str]) -> "tuple[Store, int]":
    """With the newest superblock that leads to a whole system tree."""
    sequence_max = 0
    while True:
        try:
            store = open_store(pool, read_only=False, rebuild_space=True, sequence_max=sequence_max)
        except CowfsError as error:
            older = _older_sequence(pool, sequence_max)
            if error.code != "damaged" or older == 0:
                raise
            sequence_max = older
            continue
        if sequence_max:
            repairs.append(f"went back to the superblock of checkpoint {sequence_max}")
        return store, sequence_max


def _older_sequence(pool: str, sequence_max: int) -> int:
    """The next older sequence in the ring; 0: there is none."""
    sequences = set()
    with open(pool, "rb") as file:
        for _ in range(RING_SLOTS):
            block = file.read(4096)
            if block[:8] == b"COWFSPL1":
                sequences.add(int.from_bytes(block[96:104], "little"))
    newest = max(sequences, default=0)
    return max((sequence for sequence in sequences if sequence < (sequence_max or newest)), default=0)


def _rewrite_copies(store: "Store", repairs: list[str], progress: _Progress) -> None:
    """Bad copies of metadata from the good ones. Opening has done so with some already."""
    position, finished, done_bytes = b"", False, 0
    total_bytes = max(1, store.statistics()["used_blocks"] * 4096)
    while not finished:
        position, figures, _damages = store.scrub(position, SCRUB_STEP_BYTES)
        finished, done_bytes = figures["finished"], done_bytes + figures["bytes"]
        progress.step("reading all", min(1.0, max(0.001, done_bytes / total_bytes)))
    repairs += [f"wrote the {damage['kind']} at block {damage['address']} again" for damage in store.damages()[0]
                if damage["repaired"]]


def _repair_tree(store: "Store", volume_id: int, name: str, say: Callable[[str], None]) -> int:
    from cowfs.repair import TreeRepair

    if not _check_tree(store, volume_id, volume_id, name):
        return 0
    try:
        return TreeRepair(store, volume_id, lambda message: say(f"volume {name}: {message}")).run()
    except OSError as error:
        say(f"volume {name}: the repair came to an end: {error.strerror}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
