"""How what is written to a volume is compressed: off, lz4, or zstd with a level."""

from typing import NamedTuple

from cowfs.errors import CowfsError

ZSTD_LEVEL_DEFAULT = 3
ZSTD_LEVEL_MAX = 19


class Compression(NamedTuple):
    """`algorithm` is the number that extents have."""

    algorithm: int
    level: int = 0

    def __str__(self) -> str:
        if self.algorithm == 0:
            return "off"
        return "lz4" if self.algorithm == 1 else f"zstd:{self.level}"


OFF = Compression(0)


def parse_compression(text: str) -> Compression:
    """Of `off`, `lz4`, `zstd` and `zstd:LEVEL`."""
    if text == "off":
        return OFF
    if text == "lz4":
        return Compression(1)
    name, separator, level = text.partition(":")
    if name == "zstd" and not separator:
        return Compression(2, ZSTD_LEVEL_DEFAULT)
    if name == "zstd" and level.isascii() and level.isdigit() and 1 <= int(level) <= ZSTD_LEVEL_MAX:
        return Compression(2, int(level))
    raise CowfsError("usage", f"'{text}' is no way to compress",
                     f"give off, lz4, zstd, or zstd:1 to zstd:{ZSTD_LEVEL_MAX}")


def check_compression(text: str) -> str:
    """The value in the form that is kept as a property."""
    return str(parse_compression(text))
