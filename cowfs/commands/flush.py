"""What `snapshot`, `rollback` and `sync` do first: bring the pages of shared mappings to the daemon."""

import sys

from cowfs.errors import CowfsError
from cowfs.mappings import flush_shared_mappings


def flush_mappings(mountpoint: str) -> None:
    """Flushes what processes have mapped shared and writable, as far as this user may see the mappings, and names on
    the standard error the files that could not be reached. CowfsError when one could not be written."""
    try:
        left_out = flush_shared_mappings(mountpoint)
    except OSError as error:
        raise CowfsError.from_os_error(error, "flush a shared mapping") from None
    for path in left_out:
        print(f"cowfs: note: what was written through a shared mapping of {path} could not be flushed, as "
              "/proc/PID/map_files needs CAP_CHECKPOINT_RESTORE; msync in the program that writes it does it",
              file=sys.stderr)
