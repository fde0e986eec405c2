"""Makes a cowfs pool of a file or block device, with one empty volume called 'main'."""

import argparse
import os
import stat
import sys
from collections.abc import Sequence

from cowfs.commands.output import format_size
from cowfs.commands.version import add_version
from cowfs.compression import OFF, Compression, parse_compression
from cowfs.errors import EXIT_CODE_HELP, CowfsError, ExitCode
from cowfs.mount_options import DEFAULT_VOLUME
from cowfs.mounting import mount_entries
from cowfs.pools import describe_content, open_storage, open_store, parse_size

POOL_SIZE_MIN_BYTES = 16 << 20
LABEL_LENGTH_MAX_BYTES = 63
NODE_SIZES = (4096, 8192, 16384)
METADATA_COPIES = {"single": 1, "dup": 2}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mkfs.cowfs", usage="%(prog)s [options] POOL", description=__doc__,
                                     epilog=EXIT_CODE_HELP, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pool", metavar="POOL", help="the file or block device")
    parser.add_argument("-L", "--label", default="", help="a name for the pool, up to 63 bytes")
    parser.add_argument("-f", "--force", action="store_true", help="overwrite whatever the target holds")
    parser.add_argument("--size", metavar="N[K|M|G|T]", help="size of the file; made when missing, sparse")
    parser.add_argument("--node-size", metavar="BYTES", help="4K, 8K or 16K: larger nodes make fewer, larger writes")
    parser.add_argument("--metadata", choices=METADATA_COPIES, default="dup",
                        help="copies of the pool's structure: two, far apart (default), or one")
    parser.add_argument("--compression", metavar="HOW", default="off",
                        help="how what is written is compressed: off (default), lz4, or zstd:1 to zstd:19")
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing when all went well")
    add_version(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    options = build_parser().parse_args(arguments)
    try:
        made = make_pool(options)
    except CowfsError as error:
        print(f"mkfs.cowfs: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        failure = CowfsError.from_os_error(error, f"make a pool of {options.pool}")
        print(f"mkfs.cowfs: {failure}", file=sys.stderr)
        return failure.exit_code
    if not options.quiet:
        print(made)
    return ExitCode.OK


def make_pool(options: argparse.Namespace) -> str:
    """Returns what to tell the user."""
    size_bytes = parse_size(options.size) if options.size else None
    node_size_bytes = parse_size(options.node_size) if options.node_size else 0
    if node_size_bytes and node_size_bytes not in NODE_SIZES:
        raise CowfsError("usage", f"a node size of {options.node_size} is not possible", "use 4K, 8K or 16K")
    if len(options.label.encode("utf-8", "replace")) > LABEL_LENGTH_MAX_BYTES or not options.label.isprintable():
        raise CowfsError("usage", f"the label {options.label!r} is not possible",
                         f"use up to {LABEL_LENGTH_MAX_BYTES} bytes of printable characters")
    compression = parse_compression(options.compression)
    path: str = options.pool
    if size_bytes is not None and size_bytes < POOL_SIZE_MIN_BYTES:
        raise CowfsError("usage", f"{options.size} is too small for a pool", "give at least 16M")
    created = _check_target(path, size_bytes, force=options.force)
    try:
        _format(path, options.label, node_size_bytes, METADATA_COPIES[options.metadata], compression)
    except BaseException:
        if created:
            os.unlink(path)
        raise
    total_bytes = _target_length(path)
    return (f"{path}: a pool of {format_size(total_bytes)} with the volume '{DEFAULT_VOLUME}'\n"
            f"mount it with: mount.cowfs {path} DIR")


def _target_length(path: str) -> int:
    with open(path, "rb") as target:
        return target.seek(0, os.SEEK_END)


def _check_target(path: str, size_bytes: int | None, *, force: bool) -> bool:
    """Refuses what must not be overwritten, makes or grows the file. True when the file is new."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        if size_bytes is None:
            raise CowfsError("not_found", f"{path} does not exist",
                             "pass --size to make a file, or check the path") from None
        _make_file(path, size_bytes)
        return True
    if stat.S_ISBLK(found.st_mode):
        if size_bytes is not None:
            raise CowfsError("usage", f"{path} is a block device, which has its size", "leave --size out")
        real_path = os.path.realpath(path)
        for entry in mount_entries():
            if os.path.realpath(entry.source) == real_path:
                raise CowfsError("busy", f"{path} is mounted at {entry.mountpoint}", "unmount it first")
    elif not stat.S_ISREG(found.st_mode):
        raise CowfsError("usage", f"{path} is neither a file nor a block device", "name a file or block device")
    # Whoever has it open as a pool holds its lock: not even -f goes past that.
    open_storage(path, read_only=False).close()
    if not force:
        content = describe_content(path)
        if content is not None:
            raise CowfsError("exists", f"{path} holds {content}", "pass -f to overwrite it, or choose another target")
    if size_bytes is not None and size_bytes != found.st_size:
        os.truncate(path, size_bytes)
    elif stat.S_ISREG(found.st_mode) and found.st_size < POOL_SIZE_MIN_BYTES:
        raise CowfsError("usage", f"{path} has {format_size(found.st_size)}, too small for a pool",
                         "pass --size of at least 16M")
    return False


def _make_file(path: str, size_bytes: int) -> None:
    """A sparse file, as durable as its directory entry."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(descriptor, size_bytes)
        os.fsync(descriptor)
    except OSError:
        os.unlink(path)
        raise
    finally:
        os.close(descriptor)
    directory = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _format(path: str, label: str, node_size_bytes: int, metadata_copies: int, compression: Compression) -> None:
    from btree import Store
    from cowfs._native import FileSystem

    storage = open_storage(path, read_only=False)
    try:
        Store.format(storage, node_size_bytes=node_size_bytes, metadata_copies=metadata_copies, label=label)
    except OSError as error:
        raise CowfsError.from_os_error(error, f"format {path}") from None
    finally:
        storage.close()
    with open_store(path, read_only=False) as store:
        volume_id = store.volume_create(DEFAULT_VOLUME)
        if compression != OFF:
            store.property_set(volume_id, "compression", str(compression).encode())
        FileSystem.initialize(store, volume_id, uid=os.getuid(), gid=os.getgid())


if __name__ == "__main__":
    sys.exit(main())
