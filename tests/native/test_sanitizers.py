"""The store's core and the verbs, each in a C driver, under AddressSanitizer and UndefinedBehaviorSanitizer, and under
ThreadSanitizer.

Any report fails. The driver prints what it did; its seed is in the command that a failure shows.
"""

import concurrent.futures
import os
import pathlib
import secrets
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[2]
FLAGS = ["-std=gnu11", "-O1", "-g", "-fno-omit-frame-pointer", "-pthread", "-D_FORTIFY_SOURCE=0"]
RUN_SECONDS = 6
SANITIZERS = {
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-fsanitize=thread"],
}
ENVIRONMENT = {
    "ASAN_OPTIONS": "detect_leaks=1:abort_on_error=0:exitcode=99",
    "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    "TSAN_OPTIONS": "halt_on_error=1:exitcode=99:second_deadlock_stack=1",
}


DRIVERS = {"store_driver": ["btree/native"], "filesystem_driver": ["btree/native", "cowfs/native"]}


def compile_all(sanitizer: str, folder: pathlib.Path) -> dict[pathlib.Path, pathlib.Path]:
    """The object file of every source file that a driver needs."""
    sources = [
        path
        for part in ("btree/native", "cowfs/native")
        for path in sorted((ROOT / part).glob("*.c"))
        if not path.name.startswith(("binding", "pump"))
    ]
    sources += [ROOT / "tests/native" / f"{name}.c" for name in DRIVERS]
    objects = {source: folder / f"{source.parent.parent.name}_{source.stem}.o" for source in sources}

    def compile_one(source: pathlib.Path) -> None:
        command = ["gcc", *FLAGS, *SANITIZERS[sanitizer], f"-I{ROOT}", "-c", str(source), "-o", str(objects[source])]
        subprocess.run(command, check=True, timeout=110)

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_one, sources))
    return objects


@pytest.fixture(scope="module", params=list(SANITIZERS))
def drivers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, pathlib.Path]:
    folder = tmp_path_factory.mktemp(request.param)
    objects = compile_all(request.param, folder)
    for name, parts in DRIVERS.items():
        linked = [
            target
            for source, target in objects.items()
            if source.stem == name or str(source.parent.relative_to(ROOT)) in parts
        ]
        command = ["gcc", *SANITIZERS[request.param], "-pthread", *map(str, linked), "-lxxhash", "-luring"]
        subprocess.run([*command, "-o", str(folder / name)], check=True, timeout=110)
    return {name: folder / name for name in DRIVERS}


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("name", list(DRIVERS))
def test_no_report(drivers: dict[str, pathlib.Path], name: str, threads: int) -> None:
    command = [str(drivers[name]), str(RUN_SECONDS), str(threads), str(secrets.randbits(32))]
    # ThreadSanitizer cannot place its shadow when the kernel scatters mappings widely.
    if subprocess.run(["setarch", "-R", "true"], check=False).returncode == 0:
        command = ["setarch", "-R", *command]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=110, check=False, env={**os.environ, **ENVIRONMENT}
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-1000:]}\n{done.stderr[-8000:]}"
    assert "rounds" in done.stdout
