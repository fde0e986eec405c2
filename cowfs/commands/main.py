"""`cowfs VERB …`. Only the module of the verb that is asked for is imported, so that --help is quick."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from cowfs.commands.version import add_version
from cowfs.errors import EXIT_CODE_HELP, CowfsError, ExitCode

VERBS = {
    "snapshot": "take a snapshot of the volume at DIR",
    "list": "list snapshots",
    "diff": "show what changed between two snapshots, or since one",
    "versions": "list the versions of a file",
    "restore": "bring a file or directory back as it was",
    "rollback": "make a volume's content a snapshot's again",
    "undo": "take the last rollback back",
    "redo": "take the last undo back",
    "log": "list a volume's rollbacks and clones",
    "clone": "make a writable volume of a snapshot",
    "promote": "give a clone the snapshots that it descends from",
    "destroy": "delete a snapshot or a volume",
    "hold": "keep a snapshot from being destroyed",
    "release": "end a hold",
    "set": "set properties of the volume at DIR",
    "unset": "unset properties",
    "get": "show properties",
    "df": "show what takes the space of a pool",
    "status": "show mounts and their daemons",
    "scrub": "read and verify everything, in the background",
    "sync": "write everything to the medium",
    "mount": "mount a pool",
    "umount": "unmount, and wait until everything is on disk",
    "uring": "show or switch the kernel's FUSE over io_uring",
    "bench": "compare with other file systems, from a checkout of the source",
}

DESCRIPTION = """\
cowfs: a copy-on-write file system whose snapshots cost nothing.

DIR is any path on a cowfs mount; below .cowfs/volume/NAME/ it means that volume.
Snapshots are also directories: DIR/.cowfs/snapshot/NAME/ (mkdir takes one, rmdir deletes one).
"""


def _epilog() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {summary}" for verb, summary in VERBS.items()]
    return "\n".join(["verbs:", *lines, "", "See also: mkfs.cowfs, mount.cowfs, fsck.cowfs.", "", EXIT_CODE_HELP])


def _fail(error: CowfsError, *, as_json: bool) -> int:
    """Says what went wrong, for programs that asked for JSON also on the standard output. Returns the exit code."""
    print(f"cowfs: {error}", file=sys.stderr)
    if as_json:
        from cowfs.commands.output import print_json

        print_json(error.to_json())
    return error.exit_code


def split_command(words: list[str]) -> tuple[list[str], list[str] | None]:
    """What comes before the first `--` and the command after it; None without one."""
    if "--" not in words:
        return words, None
    position = words.index("--")
    return words[:position], words[position + 1 :]


def main(arguments: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(prog="cowfs", usage="cowfs VERB [options] …", description=DESCRIPTION,
                                     epilog=_epilog(), formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=VERBS, metavar="VERB", help="what to do; 'cowfs VERB --help' tells more")
    add_version(parser)
    if not words:
        parser.print_help(sys.stderr)
        return ExitCode.USAGE
    verb = parser.parse_args(words[:1]).verb
    module = importlib.import_module(f"cowfs.commands.{verb}")
    verb_parser = argparse.ArgumentParser(prog=f"cowfs {verb}", description=module.__doc__, epilog=EXIT_CODE_HELP,
                                          formatter_class=argparse.RawDescriptionHelpFormatter)
    module.add_arguments(verb_parser)
    words, command = split_command(words[1:]) if getattr(module, "TAKES_COMMAND", False) else (words[1:], None)
    options = verb_parser.parse_args(words)
    options.command = command
    try:
        result: int = module.run(options)
        sys.stdout.flush()
    except CowfsError as error:
        return _fail(error, as_json=options.json)
    except BrokenPipeError:
        # Whoever read the output has seen enough; what is buffered must not fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return ExitCode.OK
    except OSError as error:
        failure = CowfsError.from_os_error(error, f"{verb}{f' ({error.filename})' if error.filename else ''}")
        return _fail(failure, as_json=options.json)
    except KeyboardInterrupt:
        print(f"cowfs: {verb} was interrupted; what it asked the daemon for may still happen", file=sys.stderr)
        return ExitCode.ERROR
    return result


if __name__ == "__main__":
    sys.exit(main())
