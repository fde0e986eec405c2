"""The store's core in a C driver, under AddressSanitizer and UndefinedBehaviorSanitizer, and under ThreadSanitizer.

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


def build(sanitizer: str, folder: pathlib.Path) -> pathlib.Path:
    core = [path for path in sorted((ROOT / "btree/native").glob("*.c")) if not path.name.startswith("binding")]
    sources = [*core, ROOT / "tests/native/store_driver.c"]
    objects = [folder / f"{source.stem}.o" for source in sources]

    def compile_one(source: pathlib.Path, target: pathlib.Path) -> None:
        command = ["gcc", *FLAGS, *SANITIZERS[sanitizer], f"-I{ROOT}", "-c", str(source), "-o", str(target)]
        subprocess.run(command, check=True, timeout=110)

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_one, sources, objects))
    driver = folder / "store_driver"
    command = ["gcc", *SANITIZERS[sanitizer], "-pthread", *map(str, objects), "-lxxhash", "-o", str(driver)]
    subprocess.run(command, check=True, timeout=110)
    return driver


@pytest.fixture(scope="module", params=list(SANITIZERS))
def driver(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return build(request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("threads", [1, 4])
def test_no_report(driver: pathlib.Path, threads: int) -> None:
    command = [str(driver), str(RUN_SECONDS), str(threads), str(secrets.randbits(32))]
    # ThreadSanitizer cannot place its shadow when the kernel scatters mappings widely.
    if subprocess.run(["setarch", "-R", "true"], check=False).returncode == 0:
        command = ["setarch", "-R", *command]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=110, check=False, env={**os.environ, **ENVIRONMENT}
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-1000:]}\n{done.stderr[-8000:]}"
    assert "rounds" in done.stdout
