"""Measures cowfs beside other file systems, on volumes in temporary files, and writes a report with plots.

Needs root, and a checkout of the source: the benchmarks are not installed. `make setup-bench` there installs the file
systems that are compared; those that are missing are named in the report.
"""

import argparse
import os
import pathlib
import subprocess
import sys

from cowfs.commands.output import add_json, print_result
from cowfs.errors import CowfsError, ExitCode

ROOT = pathlib.Path(__file__).resolve().parents[2]
REPORT_MARK = "report: "


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--full", action="store_true", help="everything, in hours, instead of a choice in five minutes")
    parser.add_argument("--peers", metavar="NAME,…", help="only these file systems; --list shows the names")
    parser.add_argument("--jobs", metavar="PATTERN", help="only the jobs with such names, a regular expression")
    parser.add_argument("--media", metavar="NAME,…", help="memory, disk, or both")
    parser.add_argument("--repetitions", metavar="N", type=int, help="how often each job is measured")
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--output", metavar="FOLDER", help="where the results go")
    place.add_argument("--continue", dest="begun", metavar="FOLDER",
                       help="go on with the run in FOLDER: measure only what lacks there")
    parser.add_argument("--list", action="store_true", help="only list the jobs, and what the file systems lack")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    if not (ROOT / "benchmarks" / "__main__.py").exists():
        raise CowfsError("not_found", "the benchmarks are not part of an installation",
                         "get the source of cowfs, and run 'make bench' in it")
    words = [f"--{name}" for name in ("full", "list") if getattr(arguments, name)]
    for name in ("peers", "jobs", "media", "repetitions"):
        value = getattr(arguments, name)
        if value is not None:
            words += [f"--{name}", str(value)]
    for option, folder in (("--output", arguments.output), ("--continue", arguments.begun)):
        if folder is not None:
            words += [option, os.path.abspath(folder)]
    report = None
    command = [sys.executable, "-m", "benchmarks", *words]
    progress = sys.stderr if arguments.json else sys.stdout
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as measuring:
        assert measuring.stdout is not None
        for line in measuring.stdout:
            progress.write(line)
            progress.flush()
            if line.startswith(REPORT_MARK):
                report = line.removeprefix(REPORT_MARK).strip()
    if measuring.returncode != 0:
        raise CowfsError("error", f"the benchmarks ended with exit code {measuring.returncode}",
                         "what they printed says why")
    print_result(arguments, {"report": report}, "")
    return ExitCode.OK
