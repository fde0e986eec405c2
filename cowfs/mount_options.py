"""The options of `mount.cowfs -o …`: what they mean to mount(2), to the daemon, or to nobody here."""

from typing import NamedTuple

from cowfs.compression import Compression, parse_compression
from cowfs.errors import CowfsError

DEFAULT_VOLUME = "main"

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_SYNCHRONOUS = 0x10
MS_DIRSYNC = 0x80
MS_NOSYMFOLLOW = 0x100
MS_NOATIME = 0x400
MS_NODIRATIME = 0x800
MS_RELATIME = 0x200000
MS_STRICTATIME = 0x1000000
MS_LAZYTIME = 0x2000000

# (bits to set, bits to clear)
_FLAGS: dict[str, tuple[int, int]] = {
    "ro": (MS_RDONLY, 0), "rw": (0, MS_RDONLY),
    "nosuid": (MS_NOSUID, 0), "suid": (0, MS_NOSUID),
    "nodev": (MS_NODEV, 0), "dev": (0, MS_NODEV),
    "noexec": (MS_NOEXEC, 0), "exec": (0, MS_NOEXEC),
    "sync": (MS_SYNCHRONOUS, 0), "async": (0, MS_SYNCHRONOUS), "dirsync": (MS_DIRSYNC, 0),
    "nosymfollow": (MS_NOSYMFOLLOW, 0),
    "noatime": (MS_NOATIME, 0), "atime": (0, MS_NOATIME), "nodiratime": (MS_NODIRATIME, 0),
    "diratime": (0, MS_NODIRATIME), "relatime": (MS_RELATIME, 0), "norelatime": (0, MS_RELATIME),
    "strictatime": (MS_STRICTATIME, 0), "nostrictatime": (0, MS_STRICTATIME),
    "lazytime": (MS_LAZYTIME, 0), "nolazytime": (0, MS_LAZYTIME),
}  # fmt: skip

# Meant for mount(8), systemd and /etc/fstab, or true of every cowfs mount.
_IGNORED = frozenset((
    "", "defaults", "auto", "noauto", "nofail", "_netdev", "_rnetdev", "user", "nouser", "users", "owner", "group",
    "iversion", "noiversion", "mand", "nomand", "silent", "loud", "default_permissions",
))  # fmt: skip
_IGNORED_PREFIXES = ("x-", "X-", "comment=", "uhelper=", "helper=", "loop", "offset=", "sizelimit=")
_IMPLIED = {"user": ("noexec", "nosuid", "nodev"), "users": ("noexec", "nosuid", "nodev"),
            "owner": ("nosuid", "nodev"), "group": ("nosuid", "nodev")}

_URING = ("auto", "on", "off")
_CACHE = ("through", "back")
_AWAKE = ("auto", "on", "off")


class MountOptions(NamedTuple):
    """Whatever a mount was asked for. 0 means default. `pump`: requests are answered by the loop in C where it can;
    `uring`: whether they come over io_uring, "auto" where the kernel has it switched on; `awake`: whether CPUs poll
    instead of halting while requests follow one another closely, "auto" on virtual machines; `cache_back`: writes may
    wait in the kernel's cache, which takes the pump; `compression`: in place of what the volumes have as their
    property."""

    flags: int = MS_NOSUID | MS_NODEV
    volume: str = DEFAULT_VOLUME
    allow_other: bool = False
    commit_interval_ms: int = 0
    cache_bytes_max: int = 0
    pump: bool = True
    uring: str = "auto"
    awake: str = "auto"
    cache_back: bool = False
    compression: Compression | None = None

    @property
    def read_only(self) -> bool:
        return bool(self.flags & MS_RDONLY)

    @property
    def honours_setuid(self) -> bool:
        return not self.flags & MS_NOSUID


def _number(option: str, text: str, least: int, most: int) -> int:
    if not (text.isascii() and text.isdigit() and least <= int(text) <= most):
        raise CowfsError("usage", f"mount option '{option}={text}' is out of range",
                         f"give a whole number from {least} to {most}")
    return int(text)


def _choice(option: str, text: str, known: tuple[str, ...]) -> str:
    if text not in known:
        given = f"{option}={text}" if text else option
        raise CowfsError("usage", f"mount option '{given}' is not understood",
                         f"give one of {', '.join(f'{option}={word}' for word in known)}")
    return text


def parse_options(texts: list[str], *, sloppy: bool = False) -> MountOptions:
    """Later options win. Unknown ones are an error unless `sloppy` (mount -s)."""
    options = MountOptions()
    words = [word for text in texts for word in text.split(",")]
    words = [expanded for word in words for expanded in (*_IMPLIED.get(word, ()), word)]
    for word in words:
        name, separator, value = word.partition("=")
        if word in _FLAGS:
            to_set, to_clear = _FLAGS[word]
            options = options._replace(flags=(options.flags | to_set) & ~to_clear)
        elif name == "volume" and value:
            options = options._replace(volume=value)
        elif name == "commit" and separator:
            options = options._replace(commit_interval_ms=1000 * _number(name, value, 1, 300))
        elif name == "cache_mib" and separator:
            options = options._replace(cache_bytes_max=_number(name, value, 8, 1 << 20) << 20)
        elif word in ("pump", "nopump"):
            options = options._replace(pump=word == "pump")
        elif name == "awake":
            options = options._replace(awake=_choice(name, value, _AWAKE))
        elif name == "uring":
            options = options._replace(uring=_choice(name, value, _URING))
        elif name == "cache":
            options = options._replace(cache_back=_choice(name, value, _CACHE) == "back")
        elif name == "compress" and separator:
            options = options._replace(compression=parse_compression(value))
        elif word == "allow_other":
            options = options._replace(allow_other=True)
        elif word == "remount":
            raise CowfsError("usage", "a cowfs mount cannot be remounted",
                             "unmount it and mount it with the new options")
        elif not (sloppy or word in _IGNORED or word.startswith(_IGNORED_PREFIXES)):
            raise CowfsError("usage", f"unknown mount option '{word}'",
                             "see 'cowfs mount --help' for the options, or pass -s to ignore unknown ones")
    if options.cache_back and not options.pump:
        raise CowfsError("usage", "mount option 'cache=back' needs the pump", "leave out 'nopump' or 'cache=back'")
    return options
