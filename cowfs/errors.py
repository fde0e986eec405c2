"""What goes wrong, in the words that people and programs see, and the exit codes of every `cowfs` command.

One exception carries all of it: a code for programs, a cause, the next step, and the exit code that follows from
the code. It travels over the control socket as JSON, so the daemon's errors reach the user unchanged.
"""

import errno
from collections.abc import Mapping
from enum import IntEnum


class ExitCode(IntEnum):
    """The one place where exit codes are defined. The mount, umount and fsck helpers use those of mount(8), fsck(8)."""

    OK = 0
    ERROR = 1
    USAGE = 2
    NOT_FOUND = 3
    EXISTS = 4
    BUSY = 5
    NO_SPACE = 6
    NOT_COWFS = 7
    PERMISSION = 8
    DAMAGED = 9
    DEAD = 10


EXIT_CODE_HELP = """\
exit codes:
  0  done                             6  no space left in the pool
  1  another error                    7  not a cowfs mount, not a pool
  2  wrong usage, a name not allowed  8  not permitted, or read-only
  3  no such snapshot, volume, path   9  I/O error or damage
  4  exists already                  10  the mount's daemon is gone or does not answer
  5  in use, or held
"""

EXIT_CODE_OF: Mapping[str, ExitCode] = {
    "error": ExitCode.ERROR,
    "usage": ExitCode.USAGE,
    "name": ExitCode.USAGE,
    "not_found": ExitCode.NOT_FOUND,
    "exists": ExitCode.EXISTS,
    "busy": ExitCode.BUSY,
    "held": ExitCode.BUSY,
    "no_space": ExitCode.NO_SPACE,
    "not_cowfs": ExitCode.NOT_COWFS,
    "permission": ExitCode.PERMISSION,
    "read_only": ExitCode.PERMISSION,
    "damaged": ExitCode.DAMAGED,
    "dead": ExitCode.DEAD,
}

_CODE_OF_ERRNO: Mapping[int, str] = {
    errno.ENOENT: "not_found",
    errno.ENOTDIR: "not_found",
    errno.EEXIST: "exists",
    errno.EBUSY: "busy",
    errno.ENOSPC: "no_space",
    errno.EDQUOT: "no_space",
    errno.EPERM: "permission",
    errno.EACCES: "permission",
    errno.EROFS: "read_only",
    errno.EIO: "damaged",
    errno.EUCLEAN: "damaged",
    errno.EINVAL: "name",
    errno.ENAMETOOLONG: "name",
    errno.ENOTCONN: "dead",
    errno.ECONNABORTED: "dead",
}

# The next step when whoever raised the error knew none of its own.
_HINT_OF_CODE: Mapping[str, str] = {
    "error": "if it goes on, the log of the mount's daemon says more ('cowfs status DIR' names it)",
    "usage": "pass --help to the command to see what it takes",
    "name": "check the names and values that were given",
    "not_found": "check the path and the name ('cowfs list DIR' lists snapshots, 'cowfs status DIR' volumes)",
    "exists": "choose another name, or remove what is there first",
    "busy": "close what uses it, then try again ('cowfs status' lists the mounts)",
    "held": "release its holds first: 'cowfs release TAG DIR@SNAPSHOT' ('cowfs list DIR' shows the tags)",
    "not_cowfs": "'cowfs status' lists the mounts, and mkfs.cowfs makes a pool",
    "no_space": "delete files or destroy snapshots to make room ('cowfs df DIR' shows what is used)",
    "permission": "run the command as root or as the user who mounted the pool",
    "read_only": "unmount and mount again without '-o ro'; 'cowfs status DIR' says whether an error made it read-only",
    "damaged": "see the daemon's log ('cowfs status DIR' names it), then unmount and run fsck.cowfs",
    "dead": "unmount with 'cowfs umount DIR', then mount the pool again: it recovers by itself",
}


class CowfsError(Exception):
    """An error with a cause for people, a next step, a code for programs and an exit code."""

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code = code if code in EXIT_CODE_OF else "error"
        self.message = message
        self.hint = hint or _HINT_OF_CODE[self.code]

    @property
    def exit_code(self) -> int:
        return int(EXIT_CODE_OF[self.code])

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}"

    def to_json(self) -> dict[str, object]:
        return {"code": self.code, "message": self.message, "hint": self.hint, "exit_code": self.exit_code}

    @classmethod
    def from_json(cls, fields: object) -> "CowfsError":
        """The reverse of to_json(); what is missing or of the wrong type becomes a plain error."""
        if not isinstance(fields, dict):
            return cls("error", "the daemon answered with an error that says nothing")
        return cls(str(fields.get("code", "error")), str(fields.get("message", "unknown error")),
                   str(fields.get("hint", "")))

    @classmethod
    def from_os_error(cls, error: OSError, doing: str, hint: str = "") -> "CowfsError":
        """`doing` completes "cannot …". The text of a StoreError already names cause and next step: it is kept."""
        code = _CODE_OF_ERRNO.get(error.errno or 0, "error")
        cause, _, next_step = (error.strerror or str(error)).partition("; ")
        return cls(code, f"cannot {doing}: {cause}", next_step or hint)
