"""The documents, the C headers and old images agree on every byte."""

import pathlib
import re
import subprocess

import pytest
import zstandard

from btree import Storage, Store
from cowfs._native import FileSystem
from tests.format.make_image import CONTENT, SIZE_BYTES, SNAPSHOT

ROOT = pathlib.Path(__file__).parents[2]
IMAGES = sorted((pathlib.Path(__file__).parent / "images").glob("*.zst"))
DOCUMENT = (ROOT / "docs" / "FORMAT.md").read_text()


def c_constants(names: list[str], tmp_path: pathlib.Path) -> dict[str, int]:
    """Values that the C header gives to these names."""
    lines = "".join(f'    printf("%llu\\n", (unsigned long long)({name}));\n' for name in names)
    source = tmp_path / "constants.c"
    source.write_text(f'#include <stdio.h>\n#include "internal.h"\nint main(void)\n{{\n{lines}    return 0;\n}}\n')
    program = tmp_path / "constants"
    subprocess.run(["gcc", "-std=gnu11", f"-I{ROOT}/btree/native", "-o", program, source], check=True, timeout=60)
    output = subprocess.run([program], check=True, timeout=10, capture_output=True, text=True).stdout
    return dict(zip(names, map(int, output.split()), strict=True))


def table_offsets(heading: str) -> list[tuple[int, str]]:
    """(offset, description) of each row of the first offset table after a heading."""
    text = DOCUMENT[DOCUMENT.index(heading) :]
    rows = re.findall(r"^\| ([\d,]+) \| ([^|]*) \| (.*) \|$", text[: text.find("\n\n", text.index("|---"))], re.M)
    return [(int(offset.replace(",", "")), description) for offset, _, description in rows]


TABLES = {
    "## Superblock": [
        "SUPERBLOCK_MAGIC_AT", "SUPERBLOCK_VERSION", "SUPERBLOCK_FLAGS", "SUPERBLOCK_UUID", "SUPERBLOCK_LABEL",
        "SUPERBLOCK_SEQUENCE", "SUPERBLOCK_EPOCH", "SUPERBLOCK_SIZE_BLOCKS", "SUPERBLOCK_NODE_SIZE",
        "SUPERBLOCK_COPIES", "SUPERBLOCK_JOURNAL_START", "SUPERBLOCK_JOURNAL_BLOCKS", "SUPERBLOCK_BITMAP_START",
        "SUPERBLOCK_BITMAP_PAGES", "SUPERBLOCK_JOURNAL_POSITION", "SUPERBLOCK_JOURNAL_SEQUENCE",
        "SUPERBLOCK_NEXT_OBJECT_ID", "SUPERBLOCK_NEXT_QUEUE_ID", "SUPERBLOCK_ROOT", "SUPERBLOCK_BITMAP_DIGEST",
        "SUPERBLOCK_BITMAP_DIGEST + 8", "SUPERBLOCK_CHECKSUM",
    ],
    "## Pointers": ["POINTER_ADDRESS", "POINTER_COPY", "POINTER_CHECKSUM", "POINTER_BIRTH"],
    "## Nodes": [
        "NODE_MAGIC_AT", "NODE_LEVEL", "NODE_LEVEL + 1", "NODE_COUNT", "NODE_PREFIX_OFFSET", "NODE_PREFIX_LENGTH",
        "NODE_HEAP_START", "NODE_GARBAGE", "NODE_BIRTH", "NODE_SLOTS",
    ],
    "## Extents": [
        "EXTENT_ADDRESS", "EXTENT_BIRTH", "EXTENT_BLOCKS", "EXTENT_LOGICAL_BLOCKS", "EXTENT_COMPRESSION",
        "EXTENT_FLAGS", "EXTENT_RESERVED", "EXTENT_CHECKSUMS",
    ],
    "## Bitmap pages": [
        "BITMAP_MAGIC_AT", "BITMAP_PAGE_NUMBER", "BITMAP_SEQUENCE", "BITMAP_CHECKSUM", "BITMAP_USED",
        "BITMAP_USED + 4", "BITMAP_BITS",
    ],
    "## Journal": [
        "JOURNAL_MAGIC_AT", "JOURNAL_PAYLOAD_LENGTH", "JOURNAL_SEQUENCE", "JOURNAL_FLUSHED_SEQUENCE",
        "JOURNAL_POOL_TAG", "JOURNAL_CHECKSUM", "JOURNAL_EPOCH", "JOURNAL_EPOCH + 8", "JOURNAL_PAYLOAD",
    ],
}  # fmt: skip


@pytest.mark.parametrize("heading", TABLES)
def test_document_has_the_offsets_of_the_header(heading: str, tmp_path: pathlib.Path) -> None:
    expected = list(c_constants(TABLES[heading], tmp_path).values())
    assert [offset for offset, _ in table_offsets(heading)] == expected


def test_document_has_the_sizes_of_the_header(tmp_path: pathlib.Path) -> None:
    values = c_constants(
        ["FORMAT_VERSION", "SUPERBLOCK_RING_SLOTS", "BITMAP_BLOCKS_PER_PAGE", "STORE_KEY_LENGTH_MAX", "ROOT_LENGTH"],
        tmp_path,
    )
    assert values["SUPERBLOCK_RING_SLOTS"] == 16
    assert f"{values['BITMAP_BLOCKS_PER_PAGE']:,}" in DOCUMENT
    assert f"at most {values['STORE_KEY_LENGTH_MAX']} bytes" in DOCUMENT
    assert f"| {values['ROOT_LENGTH']} | root of the system tree |" in DOCUMENT
    assert f"version {values['FORMAT_VERSION']}\n" in DOCUMENT


@pytest.mark.parametrize("image", IMAGES, ids=lambda image: image.stem)
def test_golden_images_open_with_their_content(image: pathlib.Path, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "pool"
    path.write_bytes(zstandard.ZstdDecompressor().decompress(image.read_bytes(), max_output_size=SIZE_BYTES))
    with Store(Storage.open_file(str(path)), background=False) as store:
        assert store.statistics()["label"] == "golden"
        assert store.check(read_data=True) == []
        main, clone = store.volume_find("main"), store.volume_find("clone")
        assert main.generation == 1
        assert [snapshot.name for snapshot in store.snapshots(main.id)] == [SNAPSHOT, "guard"]
        for volume in (main, clone):
            system = FileSystem(store, volume.id)
            assert system.check(volume.id) == []
            directory = system.lookup(1, b"directory")[0]
            small = system.lookup(directory, b"small")[0]
            assert system.read(small, 0, 100) == b"inline"
            assert system.getxattr(small, b"user.colour") == b"green" * 300
            large = system.lookup(directory, b"link")
            assert large[0] == system.lookup(1, b"large")[0]
            assert (large[2], large[3], large[4]) == (2, 3, 4)
            assert system.read(large[0], 0, 1 << 20) == bytes(4096) + CONTENT
            assert system.readlink(system.lookup(1, b"symlink")[0]) == b"directory/small"
            system.release_all()
        system = FileSystem(store, main.id)
        guard = system.view_of_snapshot(store.snapshot_find(main.id, "guard").id)
        assert system.read(system.lookup(guard, b"large")[0], 0, 7) == b"changed"
        assert system.readdir(system.lookup(guard, b"directory")[0], 0, 10, False)[0][0] == b"link"


def test_there_is_an_image_of_the_present_version(tmp_path: pathlib.Path) -> None:
    version = c_constants(["FORMAT_VERSION"], tmp_path)["FORMAT_VERSION"]
    assert f"version-{version}" in [image.stem for image in IMAGES]
