"""`cowfs mount --foreground -o uring=on POOL DIRECTORY`, in which no thread of the pump can make its ring."""

import os
import resource
import sys
import time
from typing import Any

from cowfs import serving
from cowfs._native import Pump
from cowfs.commands.main import main


class FailingPump:
    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        self._pump = Pump(*arguments, **keywords)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pump, name)

    def start(self) -> None:
        """A ring takes a descriptor."""
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))), limits[1]))
        self._pump.start()
        time.sleep(0.3)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


if __name__ == "__main__":
    serving.Pump = FailingPump  # type: ignore[misc, assignment]
    sys.exit(main(["mount", "--foreground", "-o", "uring=on", *sys.argv[1:]]))
