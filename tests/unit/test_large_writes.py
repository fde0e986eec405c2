"""Large writes to compressed volumes, whose pieces several threads compress: what is stored is what one thread alone
would have stored, whatever the lengths, whoever writes beside, and whatever fails."""

import concurrent.futures
import errno
import itertools
import os
import pathlib
import random
import time
from collections.abc import Iterator

import pytest

from cowfs.compression import Compression
from tests.unit.filesystem_pool import BLOCK, Pool, fails, pool, random_bytes

__all__ = ["pool"]

KIB = 1 << 10
MIB = 1 << 20
UNIT = 128 * KIB
WAYS = [Compression(1), Compression(2, 1), Compression(2, 3), Compression(2, 9)]
NAMES_OF_WAYS = ["lz4", "zstd:1", "zstd:3", "zstd:9"]
THREAD_NAME = "cowfs-compress"
TIMEOUT_S = 60


def text(length: int, seed: int = 1) -> bytes:
    """Compresses to about a third."""
    generator = random.Random(seed)
    words = [bytes(generator.choices(b"abcdefghijklmnopqrstuvwxyz", k=generator.randint(2, 9))) for _ in range(300)]
    return b" ".join(generator.choices(words, k=length // 3 + 1))[:length]


def extents(pool: Pool, node: int) -> list[tuple[bytes, bytes]]:
    """The items: where each is, how long on the medium and in the file, how compressed, checksums."""
    prefix = node.to_bytes(8, "big") + b"\x07"
    return list(pool.store.scan(pool.volume_id, prefix, prefix + b"\xff" * 9))


def algorithms(pool: Pool, node: int) -> set[int]:
    return {value[20] for _key, value in extents(pool, node)}


@pytest.fixture
def alone(pool: Pool) -> Iterator[Pool]:
    """The same pool, where whoever writes compresses alone: it has but one CPU."""
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cpus)})
    try:
        other = Pool()
    finally:
        os.sched_setaffinity(0, cpus)
    try:
        yield other
        assert other.used_blocks() == pool.used_blocks()
    finally:
        other.store.close()


def compressing_ticks() -> list[int]:
    """Of each thread that compresses: what it has taken of the CPUs so far."""
    ticks = []
    for folder in pathlib.Path("/proc/self/task").iterdir():
        name, _, rest = folder.joinpath("stat").read_text().partition("(")[2].rpartition(")")
        if name == THREAD_NAME:
            ticks.append(int(rest.split()[11]))
    return ticks


@pytest.mark.parametrize("how", WAYS, ids=NAMES_OF_WAYS)
def test_as_one_thread_stores_it(pool: Pool, alone: Pool, how: Compression) -> None:
    source = text(2 * MIB)
    lengths = [UNIT + 1, UNIT + BLOCK, UNIT + 5 * BLOCK, 2 * UNIT - 1, 2 * UNIT, 3 * UNIT + 77, 5 * UNIT, MIB - BLOCK,
               MIB, MIB + UNIT + 5000]
    for each in (pool, alone):
        each.file_system.set_compression(each.volume_id, *how)
    for number, (length, offset) in enumerate(itertools.product(lengths, [0, 8 * BLOCK, 3 * UNIT - 1, 5000])):
        name, data = b"%d" % number, source[number * 31 :][:length]
        node, other = (each.create(name) for each in (pool, alone))
        for each in (pool, alone):
            assert each.file_system.write(node, offset, data) == length
            assert each.content(node) == bytes(offset) + data
        assert node == other
        assert extents(pool, node) == extents(alone, node)
        assert how.algorithm in algorithms(pool, node)
        for each in (pool, alone):
            each.file_system.unlink(1, name)
            each.file_system.forget(node, 1)


@pytest.mark.parametrize("how", WAYS, ids=NAMES_OF_WAYS)
def test_what_saves_nothing_among_the_rest(pool: Pool, alone: Pool, how: Compression) -> None:
    generator = random.Random(7)
    for each in (pool, alone):
        each.file_system.set_compression(each.volume_id, *how)
    node, _ = (each.create(b"file") for each in (pool, alone))
    expected = b""
    for write in range(16):
        data = b"".join(random_bytes(UNIT) if generator.random() < 0.3 else text(UNIT, generator.randrange(9))
                        for _ in range(8))
        for each in (pool, alone):
            each.file_system.write(node, write * MIB, data)
        expected += data
    assert algorithms(pool, node) == {0, how.algorithm}
    assert extents(pool, node) == extents(alone, node)
    assert pool.content(node) == expected


@pytest.mark.parametrize("how", WAYS[:2], ids=NAMES_OF_WAYS[:2])
def test_writers_beside_each_other(pool: Pool, how: Compression) -> None:
    """More of them than find a batch free. Half of what each writes lies in a file of its own, half in one that all
    write, of which each unit is what one of them wrote."""
    pool.file_system.set_compression(pool.volume_id, *how)
    writers, turns = 7, 12
    shared = pool.create(b"shared", bytes(MIB))
    own = [pool.create(b"own%d" % writer) for writer in range(writers)]
    contents = [text(MIB, writer) for writer in range(writers)]

    def write(writer: int) -> None:
        for turn in range(turns):
            assert pool.file_system.write(shared, 0, contents[writer]) == MIB
            assert pool.file_system.write(own[writer], turn * 99_999, contents[writer]) == MIB

    with concurrent.futures.ThreadPoolExecutor(writers) as threads:
        for done in [threads.submit(write, writer) for writer in range(writers)]:
            done.result(TIMEOUT_S)
    found = pool.content(shared)
    for at in range(0, MIB, UNIT):
        assert found[at : at + UNIT] in {content[at : at + UNIT] for content in contents}
    for writer, node in enumerate(own):
        expected = bytearray()
        for turn in range(turns):
            expected[turn * 99_999 :] = contents[writer]
        assert pool.content(node) == expected


@pytest.mark.parametrize("how", WAYS[:2], ids=NAMES_OF_WAYS[:2])
def test_a_full_pool(how: Compression) -> None:
    full = Pool(24 << 20)
    try:
        full.file_system.set_compression(full.volume_id, *how)
        empty = full.used_blocks()
        data = text(MIB)

        def fill(node: int) -> int:
            for offset in itertools.count(0, MIB):
                try:
                    full.file_system.write(node, offset, data)
                except OSError as error:
                    return error.errno or 0
            return 0

        nodes = [full.create(b"file%d" % number) for number in range(3)]
        with concurrent.futures.ThreadPoolExecutor(3) as threads:
            assert list(threads.map(fill, nodes, timeout=TIMEOUT_S)) == [errno.ENOSPC] * 3
        for node in nodes:
            content = full.content(node)
            assert len(content) > 2 * MIB
            assert content == (data * (len(content) // MIB + 1))[: len(content)]
        full.check()
        for number, node in enumerate(nodes):
            full.file_system.unlink(1, b"file%d" % number)
            full.file_system.forget(node, 1)
        assert full.used_blocks() <= empty + 8
        again = full.create(b"again", data)
        assert full.content(again) == data
        full.check()
    finally:
        full.store.close()


def test_what_may_not_be_written_leaves_nothing(pool: Pool) -> None:
    pool.file_system.set_compression(pool.volume_id, 2, 9)
    before = pool.used_blocks()
    for _ in range(20):
        with fails(errno.EISDIR):
            pool.file_system.write(1, 0, text(MIB))
    assert pool.used_blocks() == before


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one CPU: whoever writes compresses alone")
def test_threads_work_and_end() -> None:
    before = compressing_ticks()
    own = Pool()
    own.file_system.set_compression(own.volume_id, 2, 9)
    assert compressing_ticks() == before, "threads are not needed before the first large write"
    node = own.create(b"file", text(UNIT))
    assert compressing_ticks() == before
    data = text(MIB)
    deadline = time.monotonic() + TIMEOUT_S
    while sum(compressing_ticks()) <= sum(before) + 5:
        assert time.monotonic() < deadline, "no other thread compresses anything"
        own.file_system.write(node, 0, data)
    assert len(compressing_ticks()) < len(before) + len(os.sched_getaffinity(0))
    assert own.content(node) == data
    own.check()
    own.file_system.release_all()
    del own.file_system
    own.store.close()
    assert len(compressing_ticks()) == len(before)
