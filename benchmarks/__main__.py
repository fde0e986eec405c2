"""Compares cowfs with other file systems and with what FUSE allows at best. Needs root, for loop devices and mounts.

Every trial is written to trials.jsonl.gz in the output folder; report.md and plots/ are rendered from that alone.
"""

import argparse
import dataclasses
import datetime
import json
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
from typing import Any

from benchmarks.ground import BACKED_BYTES, BLOCK_SIZE_BYTES, MEDIA, medium_free_bytes
from benchmarks.isolation import Surroundings, run_isolated
from benchmarks.jobs import SCALES, Group, Scale
from benchmarks.machine import Watch, describe
from benchmarks.method import Record, Run, Trial, read_trials, tried_already
from benchmarks.peers import PEERS
from benchmarks.peers.base import Peer, PeerFailed, first_line
from benchmarks.plan import groups_of
from benchmarks.report import META_NAME, TRIALS_NAME, join, merge, render

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = pathlib.Path(__file__).parent / "results"
SPACE_RESERVE_BYTES = 1 << 30


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    scale = parser.add_mutually_exclusive_group()
    scale.add_argument("--quick", dest="scale", action="store_const", const="quick", help="in five minutes (default)")
    scale.add_argument("--full", dest="scale", action="store_const", const="full", help="everything, in hours")
    scale.add_argument("--medium", dest="scale", action="store_const", const="medium", help="everything, smaller, "
                       "the slow groups once, in at most 60 minutes")  # fmt: skip
    scale.add_argument("--smoke", dest="scale", action="store_const", const="smoke",
                       help="everything, so small that the figures mean nothing")  # fmt: skip
    parser.add_argument("--peers", help=f"names, separated by commas, of: {', '.join(PEERS)}")
    parser.add_argument(
        "--jobs", default="", metavar="PATTERN", help="a regular expression for names of jobs or groups"
    )
    parser.add_argument("--media", help=f"of: {', '.join(MEDIA)} (full: both; others: memory)")
    parser.add_argument("--minutes", type=float, help="nothing is begun that would probably end later")
    parser.add_argument("--repetitions", type=int, help="how often each job is measured, the slow ones too")
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--output", type=pathlib.Path, metavar="FOLDER", help="where the results go (full and "
                       "medium: benchmarks/results/DATE, others: build/benchmarks/SCALE)")  # fmt: skip
    place.add_argument("--continue", dest="begun", type=pathlib.Path, metavar="FOLDER", help="go on with the run in "
                       "FOLDER: measure only what is asked for and lacks there, of each repetition")  # fmt: skip
    parser.add_argument("--seed", type=int, default=1, help="of everything that is random here (1)")
    parser.add_argument("--merge", type=pathlib.Path, nargs=2, metavar=("FOLDER", "EXTRA"), help="only add the results "
                        "EXTRA of another run to those in FOLDER, replacing what it measured again; of another "
                        "machine whole groups")  # fmt: skip
    parser.add_argument("--render", type=pathlib.Path, metavar="FOLDER", help="only render the report of a run again")
    parser.add_argument("--list", action="store_true", help="only list jobs and peers")
    parser.set_defaults(scale="quick")
    return parser.parse_args(words)


def names_from(text: str | None, known: list[str], default: list[str], what: str) -> list[str]:
    names = text.split(",") if text else default
    if unknown := [name for name in names if name not in known]:
        raise SystemExit(f"benchmarks: no such {what}: {', '.join(unknown)}; there are {', '.join(known)}")
    return names


def revision() -> str:
    try:
        return first_line("git", "-C", str(ROOT), "-c", f"safe.directory={ROOT}", "describe", "--always", "--dirty")
    except (OSError, PeerFailed):
        return "unknown"


def command_line(words: list[str]) -> str:
    """What was asked for, without saying where on this machine the results are."""
    said = " ".join(["python", "-m", "benchmarks", *words])
    return re.sub(r"(--output|--continue)[ =]\S+", r"\1 FOLDER", said)


def describe_run(
    options: argparse.Namespace, scale: Scale, groups: tuple[Group, ...], media: list[str]
) -> dict[str, Any]:
    peers = {}
    for name, kind in PEERS.items():
        peer = kind()
        absent = peer.absent()
        peers[name] = {
            "title": peer.title,
            "abilities": sorted(peer.abilities),
            "absent": absent,
            "version": None if absent else peer.version(),
            "options": None if absent else peer.options(),
        }
    return {
        "scale": scale.name,
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "revision": revision(),
        "commands": [command_line(sys.argv[1:])],
        "seed": options.seed,
        "machine": describe(),
        "programs": {"fio": first_line("fio", "--version")},
        "device": {"size_bytes": scale.disk_bytes, "block_size_bytes": BLOCK_SIZE_BYTES, "kind": "loop, direct-io"},
        "sizes": {"file_bytes": scale.file_bytes, "seconds": scale.seconds, "file_count": scale.file_count},
        "backed_bytes": BACKED_BYTES,
        "media": media,
        "peers": peers,
        "jobs": [
            {
                "name": job.name,
                "title": job.title,
                "figure": job.figure,
                "unit": job.unit,
                "lower_is_better": job.lower_is_better,
                "group": group.name,
                "group_title": group.title,
            }
            for group in groups
            for job in group.jobs
        ],
    }


def output_folder(options: argparse.Namespace) -> pathlib.Path:
    if options.begun:
        if not (options.begun / META_NAME).exists():
            raise SystemExit(f"benchmarks: {options.begun} has no {META_NAME}, there is no run to go on with")
        return pathlib.Path(options.begun)
    if options.output:
        folder: pathlib.Path = options.output
    elif options.scale in ("medium", "full"):
        folder = RESULTS / f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}"
    else:
        folder = ROOT / "build" / "benchmarks" / options.scale
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def check_media(media: list[str], scale: Scale) -> None:
    for medium in media:
        free = medium_free_bytes(medium)
        if free < scale.disk_bytes + SPACE_RESERVE_BYTES:
            raise SystemExit(f"benchmarks: {MEDIA[medium]} has {free >> 20} MiB free, too little for {medium}")


def measure(options: argparse.Namespace, folder: pathlib.Path, media: list[str], surroundings: Surroundings) -> int:
    scale = SCALES[options.scale]
    if options.repetitions:
        scale = dataclasses.replace(scale, slow_repetitions=options.repetitions)
    groups = groups_of(scale, options.jobs)
    if not groups:
        raise SystemExit(f"benchmarks: no job is called anything like {options.jobs}")
    wanted = names_from(options.peers, [*PEERS], [*PEERS], "peer")
    meta = describe_run(options, scale, groups, media)
    for name, peer in meta["peers"].items():
        if name not in wanted:
            peer["absent"] = peer["absent"] or "not asked for"
        if peer["absent"]:
            print(f"absent: {peer['title']}: {peer['absent']}")
    peers: list[Peer] = [PEERS[name]() for name in PEERS if not meta["peers"][name]["absent"]]
    if not peers:
        raise SystemExit("benchmarks: no peer can run here")
    known: list[Trial] = []
    if options.begun:
        begun = json.loads((folder / META_NAME).read_text())
        try:
            join(begun, meta)
        except ValueError as error:
            raise SystemExit(f"benchmarks: cannot go on with {folder}: {error}") from None
        meta, known = begun, read_trials(folder / TRIALS_NAME)
    record = Record(folder / TRIALS_NAME, known)
    repetitions = options.repetitions or scale.repetitions
    run = Run(scale, peers, groups, media, repetitions, surroundings.folder, Watch(surroundings.outer_proc), record,
              options.seed, options.minutes * 60 if options.minutes else scale.time_limit_seconds,
              tried_already(known))  # fmt: skip
    (folder / META_NAME).write_text(json.dumps(meta, indent=2) + "\n")
    try:
        run.measure()
    finally:
        record.close()
        meta["finished"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        (folder / META_NAME).write_text(json.dumps(meta, indent=2) + "\n")
    return 0


def show_list(scale: Scale) -> int:
    for group in groups_of(scale):
        print(f"{group.name}: {group.title}")
        for job in group.jobs:
            print(f"    {job.name:<36} {job.title} [{job.unit}]")
    for name, kind in PEERS.items():
        print(f"{name:<16} {kind().absent() or 'can run'}")
    return 0


def as_root() -> None:
    """Starts the same again through sudo when the user is not root."""
    if os.geteuid() == 0:
        return
    if shutil.which("sudo") is None:
        raise SystemExit("benchmarks: need root for loop devices and mounts, and there is no sudo")
    words = ["sudo", "--", sys.executable, "-m", "benchmarks", *sys.argv[1:]]
    raise SystemExit(subprocess.run(words, check=False, cwd=ROOT).returncode)


def main() -> int:
    options = parse_arguments()
    if options.merge:
        try:
            merge(*options.merge)
        except (OSError, ValueError) as error:
            raise SystemExit(f"benchmarks: cannot merge {options.merge[1]}: {error}") from None
        print(render(options.merge[0]))
        return 0
    if options.render:
        print(render(options.render))
        return 0
    if options.list:
        return show_list(SCALES[options.scale])
    as_root()
    media = names_from(options.media, [*MEDIA], [*MEDIA] if options.scale == "full" else ["memory"], "medium")
    check_media(media, SCALES[options.scale])
    random.seed(options.seed)
    folder = output_folder(options)
    code = run_isolated(lambda surroundings: measure(options, folder, media, surroundings), [*MEDIA.values()])
    # What was measured before an interruption is worth a report too.
    if (folder / META_NAME).exists():
        print(f"report: {render(folder)}")
    return code


if __name__ == "__main__":
    sys.exit(main())
