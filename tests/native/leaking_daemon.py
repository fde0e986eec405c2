"""tools/sanitized_daemon.py, which leaks."""

import ctypes
import runpy

LEAKED_BYTES = 4321

if __name__ == "__main__":
    # The address comes back cut to 32 bits, and is dropped.
    ctypes.CDLL(None).malloc(LEAKED_BYTES)
    runpy.run_module("tools.sanitized_daemon", run_name="__main__")
