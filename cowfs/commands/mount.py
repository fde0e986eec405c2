"""Mounts a pool, a file or block device, at DIR.

options (-o, separated by commas):
  ro, rw              read-only: nothing at all is written to the pool
  volume=NAME         the volume to mount, instead of 'main'
  commit=SECONDS      how long what was written may take to be durable without fsync (1)
  compress=HOW        off, lz4, zstd or zstd:1 to zstd:19, in place of the volumes' property 'compression'
  cache_mib=N         memory for the pool's own structure (96)
  pump, nopump        answer requests by the loop in C where it can (the default), or all of them in Python
  uring=auto          requests come over io_uring where the kernel has it switched on ('cowfs uring status');
                      uring=on: not mounted without; uring=off: over /dev/fuse
  awake=auto          on virtual machines idle CPUs poll instead of halting while requests follow one another
                      closely; awake=on: everywhere; awake=off: never
  cache=through       every write reaches the daemon before it returns, and is in the next snapshot; cache=back: writes
                      may wait in the kernel's cache, which gathers small ones: quicker; each snapshot fetches them
                      first
  suid, dev, exec     honour setuid bits (off), devices (off), programs (on)
  noatime, sync, …    as in mount(8); fusermount3, which mounts for users, knows ro, noexec, sync, dirsync and noatime
  allow_other         let other users in, when mounted by a user; root's mounts always do
  defaults, auto, user, nofail, _netdev, x-… are for others and ignored here
"""

import argparse
import getopt
import os
import sys
from collections.abc import Sequence

from cowfs.commands.output import add_json, print_result
from cowfs.commands.version import version
from cowfs.daemon import MountRequest, serve_in_foreground, start
from cowfs.errors import CowfsError, ExitCode
from cowfs.mount_options import parse_options
from cowfs.mounting import check_mountpoint
from cowfs.pools import check_pool_path

HELPER_USAGE = "usage: mount.cowfs POOL DIR [-sfnvV] [-o OPTIONS]   ('cowfs mount --help' lists the options)"
# mount(8), "EXIT STATUS"
HELPER_USAGE_ERROR = 1
HELPER_SYSTEM_ERROR = 2
HELPER_INTERRUPTED = 8
HELPER_MOUNT_FAILURE = 32


def prepare(pool: str, directory: str, options: Sequence[str], *, sloppy: bool = False) -> MountRequest:
    """Everything that can be checked before there is a daemon."""
    parsed = parse_options(list(options), sloppy=sloppy)
    check_pool_path(pool)
    return MountRequest(os.path.realpath(pool), check_mountpoint(directory), parsed)


# ---- cowfs mount


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pool", metavar="POOL", help="the pool: a file or block device")
    parser.add_argument("directory", metavar="DIR", help="where to mount it")
    parser.add_argument("-o", dest="options", metavar="OPTIONS", action="append", default=[], help="see above")
    parser.add_argument("--foreground", action="store_true",
                        help="serve in this process and log to the standard error; Ctrl-C unmounts")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    request = prepare(arguments.pool, arguments.directory, arguments.options)
    result = {"pool": request.pool_path, "mountpoint": request.mountpoint, "volume": request.options.volume}
    if arguments.foreground:
        def ready() -> None:
            print_result(arguments, result, f"mounted {request.pool_path} at {request.mountpoint}")
            sys.stdout.flush()

        return serve_in_foreground(request, ready)
    start(request)
    print_result(arguments, result, "")
    return ExitCode.OK


# ---- mount.cowfs: the helper that mount(8) calls


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes of mount(8)."""
    try:
        return _mount_as_helper(list(sys.argv[1:] if arguments is None else arguments))
    except getopt.GetoptError as error:
        print(f"mount.cowfs: {error}; {HELPER_USAGE}", file=sys.stderr)
        return HELPER_USAGE_ERROR
    except CowfsError as error:
        print(f"mount.cowfs: {error}", file=sys.stderr)
        return HELPER_USAGE_ERROR if error.code == "usage" else HELPER_MOUNT_FAILURE
    except OSError as error:
        print(f"mount.cowfs: {CowfsError.from_os_error(error, 'mount')}", file=sys.stderr)
        return HELPER_SYSTEM_ERROR
    except KeyboardInterrupt:
        print("mount.cowfs: interrupted; check with 'cowfs status' whether it is mounted", file=sys.stderr)
        return HELPER_INTERRUPTED


def _mount_as_helper(words: list[str]) -> int:
    options, places = getopt.gnu_getopt(words, "sfnvVhN:o:t:", ["help", "version"])
    flags = {name for name, _value in options}
    if flags & {"-h", "--help"}:
        print(HELPER_USAGE)
        return 0
    if flags & {"-V", "--version"}:
        print("mount.cowfs", version())
        return 0
    if len(places) != 2:
        raise getopt.GetoptError("one POOL and one DIR are needed")
    request = prepare(places[0], places[1], [value for name, value in options if name == "-o"], sloppy="-s" in flags)
    if "-f" not in flags:
        start(request)
    if "-v" in flags:
        print(f"{request.pool_path} mounted on {request.mountpoint}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
