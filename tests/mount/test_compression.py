"""Compressed volumes on a mount: what is read is what was written, less space is taken, and nothing is left behind.

The pool fixture has fsck.cowfs --data look at the pool of each test at its end."""

import errno
import os
import pathlib
import random
from collections.abc import Callable

import pytest

from cowfs.errors import ExitCode
from tools.scratch import Mount, Pool, run, run_json, wait_until

KIB = 1 << 10
MIB = 1 << 20
BLOCK = 4096


def text(length: int, seed: int = 1) -> bytes:
    """Compresses to about a third."""
    generator = random.Random(seed)
    words = [bytes(generator.choices(b"abcdefghijklmnopqrstuvwxyz", k=generator.randint(2, 9))) for _ in range(300)]
    made = b" ".join(generator.choices(words, k=length // 3))
    return made[:length]


def noise(length: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(length)


def stored_bytes(path: pathlib.Path) -> int:
    return path.stat().st_blocks * 512


@pytest.fixture(params=["lz4", "zstd:3"])
def compressed(pool: Pool, request: pytest.FixtureRequest) -> Mount:
    mount = pool.mount()
    run("cowfs", "set", f"compression={request.param}", mount.directory)
    return mount


def test_what_compresses_takes_less_and_is_read_back(compressed: Mount) -> None:
    root = compressed.directory
    content = {"text": text(3 * MIB + 12345), "noise": noise(2 * MIB + 5), "zeros": bytes(MIB), "small": text(20000)}
    for name, data in content.items():
        (root / name).write_bytes(data)
    mixed = b"".join(part(64 * KIB, at) for at in range(10) for part in (text, noise))
    (root / "mixed").write_bytes(mixed)
    content["mixed"] = mixed
    for unmounted in (False, True):
        for name, data in content.items():
            assert (root / name).read_bytes() == data
        assert stored_bytes(root / "text") < len(content["text"]) * 6 // 10
        assert stored_bytes(root / "zeros") <= MIB // 16
        assert stored_bytes(root / "small") < 20000
        assert stored_bytes(root / "noise") <= len(content["noise"]) + BLOCK
        if not unmounted:
            compressed.unmount()
            root = compressed.pool.mount().directory


def test_pieces_are_changed_cut_and_shared(compressed: Mount, transport: str) -> None:
    root = compressed.directory
    generator = random.Random(5)
    expected = bytearray(text(2 * MIB))
    path = root / "file"
    path.write_bytes(expected)
    run("cowfs", "snapshot", root, "before")
    run("cowfs", "clone", f"{root}@before", "clone")
    run("cp", "--reflink=auto", path, root / "copy")
    with open(path, "r+b", buffering=0) as file:
        for turn in range(60):
            offset, length = generator.randrange(2 * MIB), generator.choice([10, 4096, 20000, 200000])
            length = min(length, len(expected) - offset)
            if turn % 5 == 4 and length and transport != "nopump":  # which has no fallocate
                run("fallocate", "--punch-hole", "--offset", offset, "--length", length, path)
                expected[offset : offset + length] = bytes(length)
                continue
            data = text(length, turn)
            os.pwrite(file.fileno(), data, offset)
            expected[offset : offset + length] = data
    assert path.read_bytes() == expected
    for length in (1_900_001, 1_500_000, 1_048_576, 700_123):
        os.truncate(path, length)
        del expected[length:]
        assert path.read_bytes() == expected
    os.truncate(path, 900_000)
    assert path.read_bytes() == expected + bytes(900_000 - len(expected))
    original = text(2 * MIB)
    assert (root / "copy").read_bytes() == original
    assert (root / ".cowfs" / "snapshot" / "before" / "file").read_bytes() == original
    assert (root / ".cowfs" / "volume" / "clone" / "file").read_bytes() == original
    run("cowfs", "rollback", f"{root}@before")
    assert path.read_bytes() == original
    assert stored_bytes(path) < len(original) * 6 // 10


def test_what_was_durable_outlives_the_daemon(compressed: Mount) -> None:
    path = compressed.directory / "file"
    data = text(MIB + 777)
    with open(path, "wb") as file:
        file.write(data)
        os.fsync(file.fileno())
        file.seek(300_000)
        file.write(b"changed" * 1000)
        file.flush()
        os.fsync(file.fileno())
    compressed.kill_daemon()
    path = compressed.pool.mount().directory / "file"
    assert path.read_bytes() == data[:300_000] + b"changed" * 1000 + data[307_000:]


def test_small_writes_are_compressed_afterwards(compressed: Mount) -> None:
    data = text(MIB)
    paths = [compressed.directory / name for name in ("gathered", "last")]
    for path in paths:
        with open(path, "wb", buffering=0) as file:
            for offset in range(0, MIB, 4 * KIB):
                file.write(data[offset : offset + 4 * KIB])
        if path == paths[0]:
            wait_until(lambda: stored_bytes(paths[0]) < MIB * 6 // 10, "the file takes less")
    assert paths[0].read_bytes() == data
    compressed.unmount()
    root = compressed.pool.mount().directory
    for path in paths:
        assert stored_bytes(root / path.name) < MIB * 6 // 10
        assert (root / path.name).read_bytes() == data


def test_reads_of_small_parts(compressed: Mount) -> None:
    path = compressed.directory / "file"
    data = text(MIB)
    path.write_bytes(data)
    with open(path, "rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        generator = random.Random(3)
        for _ in range(300):
            offset, length = generator.randrange(MIB), generator.choice([1, 512, 4096, 10000, 131072])
            assert os.pread(file.fileno(), length, offset) == data[offset : offset + length]


def test_a_flipped_bit_is_an_error(new_pool: Callable[..., Pool]) -> None:
    pool = new_pool(size_bytes=64 * MIB).make()
    pool.is_sound = False
    root = pool.mount("-o", "compress=lz4").directory
    marker = noise(4096, 99)
    (root / "file").write_bytes(marker + bytes(124 * KIB) + text(MIB))
    (root / "other").write_bytes(text(MIB, 2))
    pool.mounts[-1].unmount()
    with open(pool.path, "r+b") as medium:
        content = medium.read()
        at = content.index(marker[:1000]) + 500
        medium.seek(at)
        medium.write(bytes([content[at] ^ 4]))
    mount = pool.mount()
    with pytest.raises(OSError) as failure:
        (mount.directory / "file").read_bytes()
    assert failure.value.errno == errno.EIO
    with open(mount.directory / "file", "rb") as file:
        file.seek(128 * KIB)
        assert file.read() == text(MIB)
    assert (mount.directory / "other").read_bytes() == text(MIB, 2)
    mount.unmount()
    assert run("fsck.cowfs", "--data", pool.path, check=False).returncode == 4
    root = pool.mount().directory
    (root / "file").unlink()


def test_the_setting(pool: Pool) -> None:
    root = pool.mount().directory
    data = text(200 * KIB)

    def takes_less(directory: pathlib.Path) -> bool:
        path = directory / "probe"
        path.write_bytes(data)
        return stored_bytes(path) < len(data)

    assert run("cowfs", "get", "compression", root).stdout == "off\n"
    assert not takes_less(root)
    for value, shown in (("zstd", "zstd:3"), ("zstd:19", "zstd:19"), ("lz4", "lz4")):
        run("cowfs", "set", f"compression={value}", root)
        assert run("cowfs", "get", "compression", root).stdout == f"{shown}\n"
        assert takes_less(root)
    for value in ("zstd:0", "zstd:20", "gzip", "lz4:3", "zstd:"):
        assert run("cowfs", "set", f"compression={value}", root, check=False).returncode == ExitCode.USAGE
    run("cowfs", "snapshot", root, "now")
    run("cowfs", "clone", f"{root}@now", "clone")
    clone = root / ".cowfs" / "volume" / "clone"
    assert takes_less(clone)
    run("cowfs", "set", "compression=off", root)
    assert not takes_less(root)
    assert takes_less(clone)
    pool.mounts[-1].unmount()
    root = pool.mount("-o", "compress=zstd:1").directory
    assert takes_less(root)
    found = run_json("cowfs", "status", root)["compression"]
    assert found["setting"] == "zstd:1"
    assert 0 < found["stored_bytes"] < found["content_bytes"] <= len(data)
    assert "zstd:1; " in run("cowfs", "status", root).stdout
    pool.mounts[-1].unmount()
    root = pool.mount("-o", "volume=clone").directory
    assert takes_less(root)
    pool.mounts[-1].unmount()
    root = pool.mount("-o", "volume=clone,compress=off").directory
    assert not takes_less(root)


def test_mkfs_sets_it(new_pool: Callable[..., Pool]) -> None:
    pool = new_pool()
    pool.make("--compression", "zstd:7")
    root = pool.mount().directory
    assert run("cowfs", "get", "compression", root).stdout == "zstd:7\n"
    assert run("mkfs.cowfs", "--compression", "best", pool.path, check=False).returncode == ExitCode.USAGE
