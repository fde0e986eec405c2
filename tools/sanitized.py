"""Mounts whose daemon has its C code watched by AddressSanitizer, UndefinedBehaviorSanitizer and, when it ends,
LeakSanitizer. Used by tests/native/test_daemon_sanitizers.py and by `python -m tools.soak --sanitized`.

Whether a daemon that is killed has leaked is not known: only one that unmounts looks.
"""

import os
import pathlib
import subprocess
import sys
from collections.abc import Sequence

from tools.scratch import Mount, Pool, is_mounted, wait_until

ROOT = pathlib.Path(__file__).parents[1]
SUPPRESSIONS = pathlib.Path(__file__).with_name("leaks.suppressions")
FLAGS = "-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer"
BUILD_TIMEOUT_S = 600
DAEMON = "tools.sanitized_daemon"
MOUNT_TIMEOUT_S = 60
END_TIMEOUT_S = 120
# ASan's own exit code, which no command of the project uses.
EXIT_CODE_REPORT = 99


def build(folder: pathlib.Path, compile_flags: str = "") -> None:
    """Compiles both extensions into the folder. CalledProcessError when that fails."""
    environment = {**os.environ, "CFLAGS": f"-O1 {FLAGS} {compile_flags}", "LDFLAGS": FLAGS}
    words: list[str | pathlib.Path] = [
        sys.executable, "setup.py", "--quiet", "build_ext", "-j2",
        "--build-lib", folder, "--build-temp", folder / "objects",
    ]  # fmt: skip
    subprocess.run(words, cwd=ROOT, env=environment, check=True, timeout=BUILD_TIMEOUT_S)


def environment(reports: pathlib.Path) -> dict[str, str]:
    """What a process with the sanitized extensions needs; each writes what it finds to `reports`.PID."""
    library = subprocess.run(
        ["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True, timeout=10
    ).stdout.strip()
    asan = {
        "detect_leaks": "1",
        "exitcode": str(EXIT_CODE_REPORT),
        "log_path": str(reports),
        # Each extension has a copy of the store's core of its own.
        "detect_odr_violation": "0",
        # Of a Python object that is missing its last reference the caller matters, not the whole interpreter above it.
        "malloc_context_size": "12",
    }
    return {
        **os.environ,
        "LD_PRELOAD": library,
        # CPython's own arenas are not searched for pointers: what only Python objects refer to would pass for leaked.
        "PYTHONMALLOC": "malloc",
        "ASAN_OPTIONS": ":".join(f"{name}={value}" for name, value in asan.items()),
        "LSAN_OPTIONS": f"suppressions={SUPPRESSIONS}:print_suppressions=0",
        "UBSAN_OPTIONS": f"print_stacktrace=1:log_path={reports}",
    }


class SanitizedMount(Mount):
    """A mount by a sanitized daemon, which is a child of this process."""

    def __init__(
        self,
        pool: Pool,
        directory: pathlib.Path,
        extensions: pathlib.Path,
        options: Sequence[str] = (),
        module: str = DAEMON,
    ) -> None:
        super().__init__(pool, directory)
        self.reports = pool.folder / "sanitizer-report"  # in it no blank and no colon, which end an option
        words: list[str | pathlib.Path] = [sys.executable, "-m", module, extensions, "mount", "--foreground", *options]
        self.log = pool.folder / "sanitized daemon"
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [*words, pool.path, directory],
                cwd=ROOT, env=environment(self.reports), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        pool.mounts.append(self)
        wait_until(lambda: is_mounted(directory) or self.process.poll() is not None, "mounted", MOUNT_TIMEOUT_S)
        assert self.process.poll() is None, self.log.read_text() + self.found()

    def found(self) -> str:
        """What the sanitizers have said so far."""
        reports = self.reports.parent.glob(f"{self.reports.name}.*")
        return "\n".join(path.read_text(errors="replace") for path in reports)

    def unmount(self) -> None:
        """Fails with whatever the sanitizers found."""
        super().unmount()
        self.process.wait(END_TIMEOUT_S)
        assert self.process.returncode == 0 and not self.found(), f"exited {self.process.returncode}\n{self.found()}"

    def kill_daemon(self) -> None:
        super().kill_daemon()
        self.process.wait(END_TIMEOUT_S)
        assert not self.found(), self.found()

    def end(self) -> None:
        """Leaves neither a mount nor a process, whatever happened."""
        if is_mounted(self.directory):
            self.detach()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(END_TIMEOUT_S)
