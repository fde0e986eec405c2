"""Properties of volumes: named settings that belong to a volume and not to its content, so that they outlive remounts
and rollbacks, and a clone begins with a copy.

Known names are in PROPERTIES, each with what checks its values. Names with a colon, such as `user:owner`, are the
users' own: cowfs keeps them and gives them no meaning. Who acts on a property watches it: a watcher is called for what
is set already and after each change.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from btree import Store
from cowfs.compression import check_compression
from cowfs.errors import CowfsError
from cowfs.retention import DEFAULT_RULE, check_every, check_rule

NAME_LENGTH_MAX_BYTES = 64
VALUE_LENGTH_MAX_BYTES = 512


class Property(NamedTuple):
    """One that cowfs acts on."""

    summary: str
    default: str
    """What holds while it is not set."""
    check: Callable[[str], str]
    """The value in the form that is kept; CowfsError for what cannot be one."""


PROPERTIES: dict[str, Property] = {
    "snapshot-every": Property("how often the daemon takes a snapshot of what has changed", "off", check_every),
    "snapshot-keep": Property("which of these snapshots are kept for how long", DEFAULT_RULE, check_rule),
    "compression": Property("how what is written from now on is compressed: off, lz4, zstd:1 to zstd:19", "off",
                            check_compression),
}

Watcher = Callable[[int, str | None], None]
"""Volume id, and the value; None: not set."""


def check_property_name(name: str) -> str:
    if name in PROPERTIES:
        return name
    if ":" not in name:
        known = ", ".join(sorted(PROPERTIES)) or "none yet"
        raise CowfsError("name", f"there is no property '{name}'",
                         f"known: {known}; names of your own have a colon, such as user:{name or 'NAME'}")
    if not name.isprintable() or "=" in name or "/" in name or not name.strip(":") or \
            len(name.encode("utf-8", "replace")) > NAME_LENGTH_MAX_BYTES:
        raise CowfsError("name", f"{name!r} cannot name a property",
                         "use at most 64 bytes of printable characters without '=' and '/'")
    return name


def check_property(name: str, value: str) -> str:
    """The value in the form that is kept; CowfsError when name or value cannot be."""
    check_property_name(name)
    if name in PROPERTIES:
        value = PROPERTIES[name].check(value)
    try:
        length_bytes = len(value.encode())
    except UnicodeEncodeError:
        raise CowfsError("name", f"the value of '{name}' must be UTF-8", "choose another value") from None
    if not 0 < length_bytes <= VALUE_LENGTH_MAX_BYTES:
        raise CowfsError("name", f"a value of {length_bytes} bytes cannot be kept", "use 1 to 512 bytes")
    return value


class VolumeProperties:
    """The properties of all volumes of an open pool, and who watches them."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._watchers: dict[str, list[Watcher]] = {}

    def watch(self, name: str, watcher: Watcher) -> None:
        """Calls the watcher for each volume that has this property, and from now on after each change of it, in the
        thread that made the change."""
        self._watchers.setdefault(name, []).append(watcher)
        for volume in self._store.volumes():
            if (value := self.get(volume.id, name)) is not None:
                watcher(volume.id, value)

    def get(self, volume_id: int, name: str) -> str | None:
        value = self._store.property_get(volume_id, name)
        return None if value is None else value.decode("utf-8", "replace")

    def all(self, volume_id: int) -> dict[str, str]:
        return {name: value.decode("utf-8", "replace") for name, value in self._store.properties(volume_id).items()}

    def change(self, volume_id: int, changes: Mapping[str, str | None]) -> None:
        """Sets properties, or with None unsets them; waits until that is durable. Nothing changes when one of them
        cannot be."""
        checked = {check_property_name(name): None if value is None else check_property(name, value)
                   for name, value in changes.items()}
        for name, value in checked.items():
            self._store.property_set(volume_id, name, b"" if value is None else value.encode())
        self._store.commit()
        for name, value in checked.items():
            self._tell(volume_id, name, value)

    def announce(self, volume_id: int) -> None:
        """Tells the watchers of a volume that came to be with properties, as a clone does."""
        for name, value in self.all(volume_id).items():
            self._tell(volume_id, name, value)

    def announce_end(self, volume_id: int) -> None:
        """Tells the watchers that a volume is gone."""
        for name in self._watchers:
            self._tell(volume_id, name, None)

    def _tell(self, volume_id: int, name: str, value: str | None) -> None:
        for watcher in self._watchers.get(name, ()):
            watcher(volume_id, value)
