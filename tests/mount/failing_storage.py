"""`cowfs mount --foreground -o OPTIONS POOL DIRECTORY`, on a storage that fails as told: each line of standard input is
"KINDS INDEX ERRNO once|forever" for Storage.fail(), acknowledged by a line of standard output."""

import sys
import threading

from btree import Storage
from cowfs import pools
from cowfs.commands.main import main

open_storage = pools.open_storage
recorders: list[Storage] = []


def open_failing_storage(path: str, *, read_only: bool) -> Storage:
    recorders.append(Storage.open_recorder(open_storage(path, read_only=read_only), record=False))
    return recorders[-1]


def obey() -> None:
    for line in sys.stdin:
        kinds, index, error, how_often = line.split()
        recorders[-1].fail(kinds, int(index), int(error), forever=how_often == "forever")
        print("done", flush=True)


if __name__ == "__main__":
    pools.open_storage = open_failing_storage
    threading.Thread(target=obey, daemon=True).start()
    sys.exit(main(["mount", "--foreground", *sys.argv[1:]]))
