"""cowfs: a copy-on-write file system for FUSE whose snapshots cost nothing.

Programs use connect(); everything heavier is imported by whoever needs it, so that `import cowfs` stays cheap.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cowfs.client import Client as Client
    from cowfs.client import connect as connect
    from cowfs.errors import CowfsError as CowfsError

__all__ = ["Client", "CowfsError", "connect"]


def __getattr__(name: str) -> object:
    if name in ("Client", "connect"):
        from cowfs import client

        return getattr(client, name)
    if name == "CowfsError":
        from cowfs.errors import CowfsError

        return CowfsError
    raise AttributeError(f"module 'cowfs' has no attribute {name!r}")
