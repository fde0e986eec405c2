"""Makes the golden image of the present format version: `python -m tests.format.make_image PATH`.

An image is made once for each version of the format and never again: later programs must go on reading it.
"""

import pathlib
import sys

import zstandard

from btree import Storage, Store
from cowfs._native import FileSystem

SIZE_BYTES = 16 << 20
CONTENT = bytes(range(256)) * 64
SNAPSHOT = "first"


def populate(store: Store) -> None:
    """A little of everything: inline and extent data, links, xattrs, a snapshot, a clone, a rollback."""
    volume = store.volume_create("main")
    FileSystem.initialize(store, volume, uid=0, gid=0)
    system = FileSystem(store, volume)
    directory = system.create(1, b"directory", 0o040755, 1, 2)[0]
    small = system.create(directory, b"small", 0o100644, 1, 2)[0]
    system.write(small, 0, b"inline")
    large = system.create(1, b"large", 0o100600, 3, 4)[0]
    system.write(large, 4096, CONTENT)
    system.link(large, directory, b"link")
    system.create(1, b"symlink", 0o120777, 0, 0, target=b"directory/small")
    system.setxattr(small, b"user.colour", b"green" * 300)
    first = store.snapshot(volume, SNAPSHOT)
    store.clone(first.id, "clone")
    system.write(large, 0, b"changed")
    system.unlink(directory, b"small")
    system.release_all()
    store.rollback(volume, first.id, "guard")


def image(path: pathlib.Path) -> bytes:
    """A closed pool at `path`, as bytes."""
    path.write_bytes(b"")
    with path.open("r+b") as file:
        file.truncate(SIZE_BYTES)
    storage = Storage.open_file(str(path))
    Store.format(storage, label="golden")
    with Store(storage, background=False) as store:
        populate(store)
    return path.read_bytes()


if __name__ == "__main__":
    target = pathlib.Path(sys.argv[1])
    target.with_suffix(".zst").write_bytes(zstandard.ZstdCompressor(level=19).compress(image(target)))
    target.unlink()
