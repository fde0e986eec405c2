"""The two C extensions; everything else is in pyproject.toml.

`btree._store` is the store with its binding. `cowfs._native` holds the file system's verbs and links its own copy of
the store's core, so that a verb calls the store as plain C: a Store object of the one module is passed to the other
as a capsule, and both are built from the same sources with the same flags.
"""

import os
import pathlib

from setuptools import Extension, setup

ROOT = pathlib.Path(__file__).parent


def sources(folder: str, *, binding: bool) -> list[str]:
    """The C files of a folder, in one order on every machine. tests/unit/test_tidy.py holds them against the tree."""
    found = sorted((ROOT / folder).glob("*.c"))
    return [str(path.relative_to(ROOT)) for path in found if binding or not path.name.startswith("binding")]


def headers(*folders: str) -> list[str]:
    return [str(path.relative_to(ROOT)) for folder in folders for path in sorted((ROOT / folder).glob("*.h"))]


# Later flags win over those that the interpreter was built with.
COMPILE_FLAGS = [
    "-std=gnu11",
    "-O2",
    "-g",
    "-pthread",
    "-fvisibility=hidden",
    "-fno-strict-overflow",
    "-Wall",
    "-Wextra",
    "-Wconversion",
    "-Wshadow",
    "-Wstrict-prototypes",
]
if os.environ.get("COWFS_DEVELOPER") == "1":
    COMPILE_FLAGS.append("-Werror")


def extension(name: str, files: list[str], depends: list[str], libraries: list[str]) -> Extension:
    return Extension(
        name,
        sources=files,
        depends=depends,
        include_dirs=["."],
        libraries=libraries,
        extra_compile_args=COMPILE_FLAGS,
        extra_link_args=["-pthread"],
    )


EXTENSIONS = [
    extension("btree._store", sources("btree/native", binding=True), headers("btree/native"), ["xxhash"]),
    extension(
        "cowfs._native",
        sources("cowfs/native", binding=True) + sources("btree/native", binding=False),
        headers("cowfs/native", "btree/native"),
        ["xxhash", "uring", "lz4", "zstd"],
    ),
]

# tools/set_up.sh installs the commands before anything is compiled.
WITHOUT_EXTENSIONS = os.environ.get("COWFS_WITHOUT_EXTENSIONS") == "1"

if __name__ == "__main__":
    setup(ext_modules=[] if WITHOUT_EXTENSIONS else EXTENSIONS)
