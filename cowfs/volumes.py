"""What one daemon serves: a pool, the volume that is mounted, and everything that commands do to it.

Plain functions without trio. Those that say "waits" may wait for the medium and are called from worker threads; the
others do memory work and are called on the event loop, where no handler runs meanwhile.
"""

import errno
import logging
import os
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from btree import SnapshotInfo, Store, VolumeInfo
from cowfs._native import FileSystem
from cowfs.compression import OFF, Compression, parse_compression
from cowfs.damage import DamageLog
from cowfs.errors import CowfsError
from cowfs.latencies import HandlerLatencies
from cowfs.mounting import Notifier
from cowfs.properties import PROPERTIES, VolumeProperties
from cowfs.snapshots import NameSource, check_name, describe_annotation, hold_tags, with_fields, with_hold_tags

log = logging.getLogger("cowfs")

LIST_LIMIT = 1000
_READDIR_LIMIT = 256
# Differences that are looked at to say what a snapshot brought; finding so many takes about ten milliseconds.
_WRITTEN_ITEMS_MAX = 20_000


def describe_snapshot(snapshot: SnapshotInfo) -> dict[str, Any]:
    return {"name": snapshot.name, "id": snapshot.id, "created_ns": snapshot.created_ns, "epoch": snapshot.epoch,
            "clone_count": snapshot.clone_count, "hold_count": snapshot.hold_count,
            "holds": hold_tags(snapshot.annotation) if snapshot.hold_count else [],
            **(describe_annotation(snapshot.annotation) if snapshot.annotation else {})}


class Transport(Protocol):
    """How the mount's requests arrive."""

    @property
    def open_files(self) -> int: ...
    def describe(self) -> dict[str, Any]: ...
    def latencies(self) -> list[dict[str, Any]]:
        """One for each kind of request that came."""


class Scrub(Protocol):
    """What commands ask of the scrub (cowfs.scrub)."""

    def start(self, rate_bytes: int | None) -> dict[str, Any]: ...
    def stop(self, *, cancel: bool) -> dict[str, Any]: ...
    def describe(self) -> dict[str, Any]: ...


class MountedPool:
    """The pool of one mount. `volume` in a method's arguments is a name; None means the mounted one."""

    def __init__(self, store: Store, filesystem: FileSystem, volume: VolumeInfo, *, pool_path: str, mountpoint: str,
                 read_only: bool, log_path: str, compression: Compression | None = None) -> None:
        self.store = store
        self.filesystem = filesystem
        self.volume_id = volume.id
        self.volume_name = volume.name
        self.pool_path = pool_path
        self.mountpoint = mountpoint
        self.read_only = read_only
        self.log_path = log_path
        self.socket_path = ""
        self.started_ns = time.time_ns()
        self.names = NameSource()
        self.properties = VolumeProperties(store)
        self.note_expiry: Callable[[int, int], None] | None = None
        """Told of a snapshot's id and when its time is over."""
        self.compression = compression
        """Of this mount, in place of what the properties say."""
        if compression is None:
            self.properties.watch("compression", self._compression_changed)
        else:
            filesystem.set_compression(0, *compression)
        self.notifier: Notifier | None = None
        self.volumes_node = 0
        self.snapshots_node = 0
        self.history_changed_ns = self.started_ns
        self.open_files = 0
        self.handler_latencies = HandlerLatencies()
        self.transport: Transport | None = None
        self.cache_flush: Callable[[], None] | None = None
        """With cache=back: waits until the kernel has given up what programs have written. It waits for requests on
        this very mount, and so never on the event loop."""
        self.damage = DamageLog(store, filesystem)
        self.scrubber: Scrub | None = None
        self.forget_view_later: Callable[[int, int], None] | None = None
        """forget_held_nodes() from a cursor on, in the background, while the control socket is served."""
        self.events: dict[str, int] = {"unexpected": 0, "io_error": 0}

    def _compression_changed(self, volume_id: int, value: str | None) -> None:
        try:
            compression = OFF if value is None else parse_compression(value)
        except CowfsError:
            log.warning("volume %d is to be compressed with %r, which this version does not know: it is not", volume_id,
                        value)
            compression = OFF
        self.filesystem.set_compression(volume_id, *compression)

    # ---- finding

    def find_volume(self, volume: str | None) -> int:
        if volume is None or volume == self.volume_name:
            return self.volume_id
        try:
            return self.store.volume_find(volume).id
        except FileNotFoundError:
            raise CowfsError("not_found", f"there is no volume '{volume}' in this pool",
                             "'cowfs status DIR' lists the volumes") from None

    def find_snapshot(self, volume_id: int, name: str) -> SnapshotInfo:
        try:
            return self.store.snapshot_find(volume_id, name)
        except (FileNotFoundError, UnicodeEncodeError):
            raise CowfsError("not_found", f"there is no snapshot '{name}'",
                             "'cowfs list DIR' lists the snapshots") from None

    def check_writable(self) -> None:
        if self.read_only:
            raise CowfsError("read_only", "the pool is mounted read-only", "mount it without '-o ro'")

    # ---- snapshots

    def flush_cache(self) -> None:
        """Waits with cache=back: what programs wrote before has come from the kernel then."""
        if self.cache_flush is None:
            return
        try:
            self.cache_flush()
        except OSError as error:
            if error.errno == errno.ENXIO:
                raise CowfsError("busy", f"{self.mountpoint} does not lead to the mount any more, and what the kernel "
                                 "keeps of its files cannot be fetched", "close the files that are open for writing") \
                    from None
            raise CowfsError.from_os_error(error, "fetch what programs have written from the kernel's cache",
                                           "what a file could not take is lost; the program that wrote it learns of it "
                                           "from fsync") from None

    def take_snapshot(self, volume: str | None, name: str | None, *, sync: bool,
                      details: Mapping[str, object] | None = None) -> dict[str, Any]:
        """`details`: message, tags, expires. Waits when `sync`, until the snapshot is durable; with cache=back always,
        for what the kernel keeps."""
        self.check_writable()
        volume_id = self.find_volume(volume)
        if name is not None:
            check_name(name, "snapshot")
        annotation = with_fields(b"", "a message and tags of this length", "use at most 512 bytes in all",
                                 **(details or {}))
        self.flush_cache()
        while True:
            try:
                snapshot = self.store.snapshot(volume_id, name or self.names.next_name(), sync=sync and not annotation)
                break
            except FileExistsError:
                if name is not None:
                    raise CowfsError("exists", f"there is a snapshot '{name}' already",
                                     "choose another name, or destroy that one first") from None
        self.history_changed_ns = snapshot.created_ns
        if annotation:
            # The records of both lie in one group of the journal, unless it is cut off just between them.
            self.store.snapshot_annotate(snapshot.id, 0, annotation)
            snapshot = self.store.snapshot_get(snapshot.id)
            if sync:
                self.store.commit()
        if details and self.note_expiry is not None and isinstance(expires_ns := details.get("expires"), int):
            self.note_expiry(snapshot.id, expires_ns)
        return describe_snapshot(snapshot)

    def take_automatic_snapshot(self, volume_id: int, prefix: str) -> bool:
        """Waits with cache=back. Passes over a volume that has not changed since its newest snapshot; whether it
        has. Not durable before the next commit."""
        if volume_id == self.volume_id:
            self.flush_cache()
        if not self.store.volume_changed(volume_id):
            return False
        snapshot = self.store.snapshot(volume_id, self.names.next_automatic_name(prefix), sync=False)
        self.history_changed_ns = snapshot.created_ns
        return True

    def delete_quietly(self, snapshot: SnapshotInfo) -> bool:
        """Waits for the kernel to forget the name. Not durable before the next commit. False: somebody else destroyed
        it, or holds it now."""
        try:
            self.store.snapshot_delete(snapshot.id)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EBUSY):
                return False
            raise
        self.filesystem.forget_snapshot(snapshot.id)
        self.history_changed_ns = time.time_ns()
        if snapshot.volume_id == self.volume_id:
            self.forget_entry(self.snapshots_node, snapshot.name)
        return True

    def list_snapshots(self, volume: str | None, after_id: int, before_id: int, limit: int, *,
                       sizes: bool) -> list[dict[str, Any]]:
        """Waits. `before_id`: newest first, those before it. `sizes`: what each brought, and what destroying it alone
        would free; None for what is not known, or would take long to find out."""
        volume_id = self.find_volume(volume)
        found = self.store.snapshots(volume_id, after_id=after_id, before_id=before_id,
                                     limit=min(limit or LIST_LIMIT, LIST_LIMIT))
        described = [describe_snapshot(snapshot) for snapshot in found]
        if sizes:
            unique = self.store.snapshots_unique([snapshot.id for snapshot in found])
            for snapshot, blocks in zip(described, unique, strict=True):
                snapshot["unique_bytes"] = None if blocks is None else blocks * 4096
                snapshot["written_bytes"] = self._written_bytes(snapshot["id"])
        return described

    def _written_bytes(self, snapshot_id: int) -> int | None:
        try:
            blocks = self.store.snapshot_written(snapshot_id, _WRITTEN_ITEMS_MAX)
        except FileNotFoundError:
            return None  # destroyed meanwhile
        return None if blocks is None else blocks * 4096

    def delete_snapshot(self, volume: str | None, name: str) -> None:
        """Waits until the deletion is durable. The space comes back in the background."""
        self.check_writable()
        volume_id = self.find_volume(volume)
        snapshot = self.find_snapshot(volume_id, name)
        if snapshot.hold_count:
            tags = ", ".join(hold_tags(snapshot.annotation)) or "unnamed"
            raise CowfsError("held", f"the snapshot '{name}' is held ({tags})",
                             "release its holds first: 'cowfs release'")
        try:
            self.store.snapshot_delete(snapshot.id)
        except OSError as error:
            raise CowfsError.from_os_error(error, f"destroy the snapshot '{name}'") from None
        self.filesystem.forget_snapshot(snapshot.id)
        self.history_changed_ns = time.time_ns()
        self.store.commit()

    def forget_entry(self, parent: int, name: str) -> None:
        """Waits. The kernel forgets a name under `.cowfs`; not from a handler that changes that very directory."""
        if self.notifier is not None and parent:
            self.notifier.invalidate_entry(parent, name.encode())

    def change_hold(self, volume: str | None, name: str, tag: str, *, add: bool) -> dict[str, Any]:
        """Adds or removes a hold. Durable after the next commit."""
        self.check_writable()
        check_name(tag, "hold")
        snapshot = self.find_snapshot(self.find_volume(volume), name)
        tags = hold_tags(snapshot.annotation)
        if add and tag in tags:
            raise CowfsError("exists", f"the snapshot '{name}' has a hold '{tag}' already", "choose another tag")
        if not add and tag not in tags:
            raise CowfsError("not_found", f"the snapshot '{name}' has no hold '{tag}'",
                             f"it has: {', '.join(tags) or 'none'}")
        tags = [*tags, tag] if add else [other for other in tags if other != tag]
        self.store.snapshot_annotate(snapshot.id, len(tags), with_hold_tags(snapshot.annotation, tags))
        return describe_snapshot(self.store.snapshot_get(snapshot.id))

    # ---- rollback

    def roll_back(self, volume: str | None, name: str,
                  kind: str = "rollback") -> tuple[dict[str, Any], list[int], int]:
        """The volume's content becomes the snapshot's, after flush_cache(). Returns the guard snapshot, the open nodes
        of the old tree, of which the kernel has to be told with announce_rollback(), and the old view's number, for
        forget_held_nodes().

        On the event loop, and without a pause between the two steps: a handler that ran between them would write
        through a node id of the old tree into the new one."""
        self.check_writable()
        volume_id = self.find_volume(volume)
        snapshot = self.find_snapshot(volume_id, name)
        while True:
            try:
                guard = self.store.rollback(volume_id, snapshot.id, self.names.next_guard_name(name, kind))
                break
            except FileExistsError:
                continue
        nodes, view = self.filesystem.rolled_back(volume_id)
        self.history_changed_ns = guard.created_ns
        log.info("rolled back volume %d to %s; guard %s; %d stale nodes open", volume_id, name, guard.name, len(nodes))
        return {"snapshot": name, "guard": describe_snapshot(guard)}, nodes, view

    def announce_rollback(self, guard_id: int, nodes: list[int]) -> None:
        """Waits until no path leads to the old tree any more, and the kernel keeps nothing of these nodes."""
        if self.notifier is None:
            return
        if not self.notifier.increase_epoch():
            self._invalidate_root_names(guard_id)
        self.notifier.invalidate_inode(1)
        self.forget_nodes(nodes)

    def forget_held_nodes(self, view: int, cursor: int) -> tuple[int, int]:
        """One step of forget_nodes() for all of a view that is left: how many, and the cursor for the next step, 0 at
        the end."""
        nodes, cursor = self.filesystem.held_nodes(view, cursor)
        self.forget_nodes(nodes)
        return len(nodes), cursor

    def forget_nodes(self, nodes: list[int]) -> None:
        """Waits until the kernel has dropped attributes and pages of nodes."""
        for node in nodes:
            if self.notifier is None:
                return
            self.notifier.invalidate_inode(node)

    def _invalidate_root_names(self, guard_id: int) -> None:
        """For kernels before 6.16. Dropping a name drops what is cached below it, and what a name of the old root
        led to answers ESTALE, at which the kernel looks every name on the way up again."""
        assert self.notifier is not None
        for root in (1, self.filesystem.view_of_snapshot(guard_id)):
            cookie = 0
            while entries := self.filesystem.readdir(root, cookie, _READDIR_LIMIT, False):
                for name, _cookie, _attributes in entries:
                    self.notifier.invalidate_entry(1, name)
                cookie = entries[-1][1]
        for volume in self.store.volumes():
            self.forget_entry(self.volumes_node, volume.name)

    # ---- volumes

    def clone(self, volume: str | None, name: str, clone: str) -> dict[str, Any]:
        """Waits until the new volume is durable."""
        self.check_writable()
        check_name(clone, "volume")
        snapshot = self.find_snapshot(self.find_volume(volume), name)
        try:
            volume_id = self.store.clone(snapshot.id, clone)
        except FileExistsError:
            raise CowfsError("exists", f"there is a volume '{clone}' already", "choose another name") from None
        self.store.commit()
        self.properties.announce(volume_id)
        return {"volume": clone, "id": volume_id, "snapshot": name}

    def promote(self, volume: str | None) -> dict[str, Any]:
        """Waits until it is durable. Gives a clone the snapshots up to the one it was made of."""
        self.check_writable()
        volume_id = self.find_volume(volume)
        had = {snapshot.id for snapshot in self.store.snapshots(volume_id)}
        try:
            self.store.promote(volume_id)
        except FileExistsError:
            raise CowfsError("exists", "the clone has a snapshot of the same name as one that it would be given",
                             "destroy one of the two first") from None
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            raise CowfsError("usage", "this volume is not a clone of another volume's snapshot, so there is nothing to "
                             "promote", "'cowfs log DIR' shows what it was made of") from None
        given = [snapshot.name for snapshot in self.store.snapshots(volume_id) if snapshot.id not in had]
        self.history_changed_ns = time.time_ns()
        if volume_id != self.volume_id:
            for name in given:
                self.forget_entry(self.snapshots_node, name)
        self.store.commit()
        return {"volume": self.store.volume_get(volume_id).name, "snapshots": given}

    def destroy_volume(self, name: str) -> None:
        """Waits. The volume and all its snapshots."""
        self.check_writable()
        volume_id = self.find_volume(name)
        if volume_id == self.volume_id:
            raise CowfsError("busy", f"the volume '{name}' is the one that is mounted",
                             "mount another volume of the pool and destroy it from there")
        snapshots = self.store.snapshots(volume_id)
        try:
            self.store.volume_destroy(volume_id)
        except OSError as error:
            raise CowfsError.from_os_error(error, f"destroy the volume '{name}'",
                                           "release the holds on its snapshots first") from None
        for snapshot in snapshots:
            self.filesystem.forget_snapshot(snapshot.id)
        self.store.commit()
        self.properties.announce_end(volume_id)

    def list_volumes(self) -> list[dict[str, Any]]:
        return [{"name": volume.name, "id": volume.id, "created_ns": volume.created_ns,
                 "origin_snapshot_id": volume.origin_snapshot_id, "snapshot_count": volume.snapshot_count,
                 "mounted": volume.id == self.volume_id} for volume in self.store.volumes()]

    # ---- properties

    def change_properties(self, volume: str | None, changes: dict[str, Any]) -> dict[str, Any]:
        """Waits until the change is durable. None as a value unsets."""
        self.check_writable()
        if not all(isinstance(value, str | None) for value in changes.values()):
            raise CowfsError("usage", "a property's value is text", "send text, or null to unset")
        volume_id = self.find_volume(volume)
        self.properties.change(volume_id, changes)
        return self.properties.all(volume_id)

    def list_properties(self, volume: str | None) -> list[dict[str, Any]]:
        """What is set, and of what is not set but known what holds without it."""
        values = self.properties.all(self.find_volume(volume))
        return [{"name": name, "value": values.get(name, PROPERTIES[name].default if name in PROPERTIES else ""),
                 "set": name in values, "summary": PROPERTIES[name].summary if name in PROPERTIES else ""}
                for name in sorted({*values, *PROPERTIES})]

    # ---- figures

    def usage(self) -> dict[str, Any]:
        """Bytes in the pool. `dead`: only snapshots refer to them. `pending`: free after the next checkpoint."""
        blocks = self.store.statistics()
        fields = ("size", "used", "free", "available", "reserved", "dead", "pending")
        sizes = {f"{field}_bytes": blocks[f"{field}_blocks"] * 4096 for field in fields}
        return {"pool": self.pool_path, "mountpoint": self.mountpoint, "volume": self.volume_name, **sizes}

    def status(self) -> dict[str, Any]:
        statistics = self.store.statistics()
        uuid = statistics.pop("uuid")
        failed_errno = statistics.pop("failed_errno")
        transport = self.transport
        return {"pool": self.pool_path, "label": statistics.pop("label"), "uuid": uuid.hex(),
                "mountpoint": self.mountpoint, "volume": self.volume_name,
                "read_only": self.read_only or statistics.pop("read_only"),
                "failure": os.strerror(abs(failed_errno)) if failed_errno else None, "pid": os.getpid(),
                "started_ns": self.started_ns, "log": self.log_path, "socket": self.socket_path,
                "damage": self.damage.to_json(),
                "open_files": transport.open_files if transport else 0, "events": dict(self.events),
                "transport": transport.describe() if transport else {},
                "requests": transport.latencies() if transport else [],
                "volumes": self.list_volumes(), "compression": self.describe_compression(),
                "stalls": self.store.stalls(), "statistics": statistics}

    def describe_compression(self) -> dict[str, Any]:
        """What the mounted volume has, and what came of it since the mount."""
        content_bytes, stored_bytes = self.filesystem.compression()
        setting = self.compression or self.properties.get(self.volume_id, "compression") or OFF
        return {"setting": str(setting), "content_bytes": content_bytes, "stored_bytes": stored_bytes}
