"""umount.fuse.cowfs: what umount(8) calls for a cowfs mount, so that it returns only when everything is on disk."""

import getopt
import sys
from collections.abc import Sequence

from cowfs.commands.umount import unmount_and_wait
from cowfs.commands.version import version
from cowfs.errors import CowfsError

USAGE = "usage: umount.fuse.cowfs DIR [-flnrvV] [-N namespace] [-t type.subtype]"
USAGE_ERROR = 1
FAILURE = 32


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes of umount(8). -r (read-only instead, when busy) has no meaning here: a busy mount is an error."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        options, places = getopt.gnu_getopt(words, "flnrvVhN:t:", ["help", "version"])
        flags = {name for name, _value in options}
        if flags & {"-h", "--help"}:
            print(USAGE)
            return 0
        if flags & {"-V", "--version"}:
            print("umount.fuse.cowfs", version())
            return 0
        if len(places) != 1:
            raise getopt.GetoptError("one DIR is needed")
        note = unmount_and_wait(places[0], lazy="-l" in flags, force="-f" in flags)
    except getopt.GetoptError as error:
        print(f"umount.fuse.cowfs: {error}; {USAGE}", file=sys.stderr)
        return USAGE_ERROR
    except CowfsError as error:
        print(f"umount.fuse.cowfs: {error}", file=sys.stderr)
        return FAILURE
    except OSError as error:
        print(f"umount.fuse.cowfs: {CowfsError.from_os_error(error, 'unmount')}", file=sys.stderr)
        return FAILURE
    if note:
        print(f"umount.fuse.cowfs: {note}", file=sys.stderr)
    if "-v" in flags:
        print(f"{places[0]} unmounted")
    return 0


if __name__ == "__main__":
    sys.exit(main())
