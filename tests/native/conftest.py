"""Builds the C drivers, the store's core, the verbs and the pump with sanitizers, once per sanitizer and run."""

import concurrent.futures
import functools
import os
import pathlib
import subprocess
from collections.abc import Callable

import pytest

from tests.fuzz.sources import LINK_FLAGS, TARGETS, sources_of

ROOT = pathlib.Path(__file__).parents[2]
FLAGS = ["-std=gnu11", "-O1", "-g", "-fno-omit-frame-pointer", "-pthread", "-D_FORTIFY_SOURCE=0"]
SANITIZERS = {
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-fsanitize=thread"],
}
ENVIRONMENT = {
    "ASAN_OPTIONS": "detect_leaks=1:abort_on_error=0:exitcode=99",
    "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    "TSAN_OPTIONS": "halt_on_error=1:exitcode=99:second_deadlock_stack=1",
}
LIBRARIES = ["-lxxhash", "-luring", "-llz4", "-lzstd"]
DRIVERS = {
    "store_driver": ["btree/native"],
    "deletion_driver": ["btree/native"],
    "filesystem_driver": ["btree/native", "cowfs/native"],
    "pump_driver": ["btree/native", "cowfs/native"],
    "allocation_driver": ["btree/native", "cowfs/native"],
    "pump_allocation_driver": ["btree/native", "cowfs/native"],
}
ALLOCATIONS = ["malloc", "calloc", "realloc", "reallocarray", "aligned_alloc", "strdup"]
# What else takes memory of the kernel's, and the kernel that the driver pretends to be.
RESOURCES = ["mmap", "munmap", "pthread_create", "fork", "fopen", "eventfd", "pipe2", "socketpair", "epoll_create1",
             "io_uring_queue_init_params", "io_uring_submit", "io_uring_submit_and_wait"]  # fmt: skip
WRAPPED = {
    "allocation_driver": [f"-Wl,--wrap={name}" for name in ALLOCATIONS],
    "pump_allocation_driver": [f"-Wl,--wrap={name}" for name in ALLOCATIONS + RESOURCES],
}

FUZZERS = {f"{name}_random": [*sources_of(name), ROOT / "tests/fuzz/random_main.c"] for name in TARGETS}

Build = Callable[[str], dict[str, list[str]]]


def compile_all(sanitizer: str, folder: pathlib.Path) -> dict[pathlib.Path, pathlib.Path]:
    """The object file of every source file that a driver needs."""
    sources = [
        path
        for part in ("btree/native", "cowfs/native")
        for path in sorted((ROOT / part).glob("*.c"))
        if not path.name.startswith("binding")
    ]
    sources += [ROOT / "tests/native" / f"{name}.c" for name in DRIVERS]
    sources += sorted({source for parts in FUZZERS.values() for source in parts} - set(sources))
    objects = {source: folder / f"{source.parent.parent.name}_{source.stem}.o" for source in sources}

    def compile_one(source: pathlib.Path) -> None:
        command = ["gcc", *FLAGS, *SANITIZERS[sanitizer], f"-I{ROOT}", "-c", str(source), "-o", str(objects[source])]
        subprocess.run(command, check=True, timeout=110)

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_one, sources))
    return objects


def link_all(sanitizer: str, folder: pathlib.Path, objects: dict[pathlib.Path, pathlib.Path]) -> None:
    for name, parts in DRIVERS.items():
        linked = [
            target
            for source, target in objects.items()
            if source.stem == name or str(source.parent.relative_to(ROOT)) in parts
        ]
        command = ["gcc", *SANITIZERS[sanitizer], "-pthread", *map(str, linked), *LIBRARIES, *WRAPPED.get(name, [])]
        subprocess.run([*command, "-o", str(folder / name)], check=True, timeout=110)
    for name, used in FUZZERS.items():
        command = ["gcc", *SANITIZERS[sanitizer], *(str(objects[source]) for source in used), *LINK_FLAGS]
        subprocess.run([*command, "-o", str(folder / name)], check=True, timeout=110)


@pytest.fixture(scope="session")
def drivers_of(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Call it with a sanitizer for the command that each driver begins with."""
    # ThreadSanitizer cannot place its shadow when the kernel scatters mappings widely.
    fixed = subprocess.run(["setarch", "-R", "true"], check=False).returncode == 0

    @functools.cache
    def build(sanitizer: str) -> dict[str, list[str]]:
        folder = tmp_path_factory.mktemp(sanitizer)
        link_all(sanitizer, folder, compile_all(sanitizer, folder))
        return {name: [*(["setarch", "-R"] if fixed else []), str(folder / name)] for name in [*DRIVERS, *FUZZERS]}

    return build
