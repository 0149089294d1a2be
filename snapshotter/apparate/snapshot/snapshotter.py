"""containerd's snapshotter over overlayfs, whose layers may be lazy.

The contract of each call is containerd's (core/snapshots/snapshotter.go); what differs is written at the
method. Nothing here knows gRPC; containerd's metadata layer is the only caller.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from apparate.errors import AlreadyExists, ApparateError, FailedPrecondition, InvalidArgument
from apparate.oci.digest import Digest
from apparate.snapshot.content import ContentStore
from apparate.snapshot.directories import SnapshotDirectories
from apparate.snapshot.filters import compile_filters
from apparate.snapshot.flights import KeyedLocks
from apparate.snapshot.janitor import Janitor
from apparate.snapshot.labels import target_of
from apparate.snapshot.lazy_layers import LazyLayers
from apparate.snapshot.metastore import METADATA_NAME, Metastore
from apparate.snapshot.model import Info, Kind, Mount, Origin, Record, SnapshotId
from apparate.snapshot.mounts import mounts_of, without_repeated_layers
from apparate.snapshot.overlay import Overlay, detect
from apparate.snapshot.reconcile import metadata_lost, reconcile_directories
from apparate.snapshot.remote import Loader, Usage
from apparate.snapshot.resolver import Decision, LayerResolver, Verdict
from apparate.snapshot.root import RootLock
from apparate.snapshot.settings import REASON_ORDINARY, SnapshotterSettings, mode_of
from apparate.snapshot.unpack import Applier, Unpacker
from apparate.telemetry.logging import get_logger
from apparate.telemetry.metrics import PREPARES

log = get_logger("snapshot")

REMOTE_PREPARED = "remote snapshot prepared"
LAYER_UNPACKED = "layer unpacked in place"
NOT_LAZY = "layer is not loaded lazily"

_CLEANUP_TIMEOUT_S = 30.0
"""Cleanup runs while kubelet waits for the removal of an image, with a deadline of two minutes for all of it."""
_LABELS_PREFIX = "labels."


@dataclass(frozen=True, slots=True)
class Parts:
    """What a snapshotter is made of."""

    settings: SnapshotterSettings
    store: Metastore
    directories: SnapshotDirectories
    overlay: Overlay
    loader: Loader
    applier: Applier
    metadata_lost: bool = False


@contextmanager
def open_snapshotter(settings: SnapshotterSettings, loader: Loader, applier: Applier) -> Iterator[Snapshotter]:
    """Take the root of *settings* and serve it inside the block. Needs neither network nor loader.

    Raises:
        FailedPrecondition: the root cannot be used; one line that says why and what to do.
    """
    root = settings.root
    with RootLock(root):
        overlay = detect(root)
        lost = metadata_lost(root)
        store = Metastore(root / METADATA_NAME)
        directories = SnapshotDirectories(root)
        reconcile_directories(store, directories, lost=lost)
        snapshotter = Snapshotter(Parts(settings, store, directories, overlay, loader, applier, lost))
        snapshotter.start()
        log.info("snapshots ready", root=str(root), snapshots=len(store.ids()), overlay=",".join(overlay.options))
        try:
            yield snapshotter
        finally:
            snapshotter.close()


class Snapshotter:
    """Serves one root. Thread-safe; `close` when done."""

    def __init__(self, parts: Parts, clock: Callable[[], int] = time.time_ns) -> None:
        self._settings = parts.settings
        self._store = parts.store
        self._directories = parts.directories
        self._overlay = parts.overlay
        self._now_ns = clock
        self._resolver = LayerResolver(
            parts.loader,
            parts.settings.resolve_threads,
            registries=parts.settings.lazy_registries,
            content=ContentStore(parts.settings.root),
        )
        self._unpacker = Unpacker(parts.loader, parts.directories, parts.applier, parts.settings.unpack_threads)
        self._flights = KeyedLocks()
        self._janitor = Janitor()
        self._layers = LazyLayers(
            parts.loader,
            parts.store,
            parts.directories,
            self._resolver,
            self._janitor,
            parts.settings.unmount_idle_s,
            metadata_lost=parts.metadata_lost,
        )

    def start(self) -> None:
        """Begin with the work in the background: leftovers of the last run go first."""
        self._janitor.start()
        self._janitor.submit("purge", self._purge)
        self._janitor.submit("reconcile layers", self._layers.reconcile)

    def close(self) -> None:
        """Stop the threads and close the store. Mounts stay: containers use them."""
        self._janitor.close()
        self._resolver.close()
        self._layers.close()
        self._store.close()

    # Reading

    def stat(self, key: str) -> Info:
        """Return the snapshot *key*; from memory."""
        return self._store.get(key).info

    def walk(self, filters: Sequence[str] = ()) -> Iterator[Info]:
        """Yield every snapshot that one of *filters* selects; all without filters.

        Raises:
            InvalidArgument: a filter is malformed; before the first item.
        """
        selects = compile_filters(filters)
        return (record.info for record in self._store.records() if selects(record.info))

    def records(self) -> list[Record]:
        """Return all snapshots with what only we know of them."""
        return self._store.records()

    def usage(self, key: str) -> Usage:
        """Return what the snapshot occupies on disk, without its ancestors."""
        record = self._store.get(key)
        if record.origin is Origin.LAZY:
            return self._layers.usage(record)
        if record.info.kind is not Kind.COMMITTED:
            return self._directories.measure(record.id)
        return record.usage or self._measure(record)

    def mounts(self, key: str) -> tuple[Mount, ...]:
        """Return the mounts of an active snapshot or view; lazy layers below it are mounted when this returns."""
        record = self._store.get(key)
        if record.info.kind is Kind.COMMITTED:
            raise FailedPrecondition(f"snapshot {key!r} is committed, it has no mounts")
        ancestors = self._store.chain(record)[1:]
        with self._layers.mounted(ancestors):
            return self._mounts_of(record, ancestors)

    # Making

    def prepare(self, key: str, parent: str, labels: Mapping[str, str]) -> tuple[Mount, ...]:
        """Make an active snapshot and return its mounts.

        Raises:
            AlreadyExists: with a target in *labels*, success of another kind: a committed snapshot with that
                label and this parent is here, and containerd has nothing to download. Otherwise *key* is in use.
            Unavailable: the loader must mount a layer below and does not answer.
        """
        target = target_of(key, labels)
        if not target:
            return self._make(Kind.ACTIVE, key, parent, labels)
        with self._flights.hold((target, parent)):
            return self._extract(key, parent, labels, target)

    def view(self, key: str, parent: str, labels: Mapping[str, str]) -> tuple[Mount, ...]:
        """Make a read-only snapshot and return its mounts."""
        return self._make(Kind.VIEW, key, parent, labels)

    def commit(self, name: str, key: str, labels: Mapping[str, str], parent: str = "") -> None:
        """Turn the active snapshot *key* into the committed *name*.

        Answers at once, for containerd holds a transaction open: the content is measured afterwards, once.
        """
        record = self._store.commit(key, name, labels, parent, self._now_ns())
        self._janitor.submit(("measure", record.id), lambda: self._measure_if_there(record))
        self._layers.release_later(self._store.chain(record)[1:])
        log.debug("snapshot committed", key=key, snapshot_id=record.id)

    def remove(self, key: str) -> None:
        """Remove a snapshot from the list; its directory and its layer go in the background."""
        ancestors = self._store.chain(self._store.get(key))[1:]
        record = self._store.remove(key)
        self._janitor.submit(("directory", record.id), lambda: self._delete_directory(record))
        if record.layer is not None:
            self._layers.drop_soon(record.layer)
        self._layers.release_later(ancestors)
        log.debug("snapshot removed", key=key, snapshot_id=record.id)

    def update(self, info: Info, paths: Sequence[str]) -> Info:
        """Change labels: all of them without *paths* or by `labels`, one by `labels.KEY`; return the result.

        Raises:
            InvalidArgument: a path names anything else, which cannot be changed.
        """
        for path in paths:
            if path != "labels" and not path.startswith(_LABELS_PREFIX):
                raise InvalidArgument(f"cannot update {path!r} of snapshot {info.name!r}: only labels can be changed")

        def change(present: Mapping[str, str]) -> dict[str, str]:
            changed = dict(present)
            for path in paths or ("labels",):
                if path == "labels":
                    changed = dict(info.labels)
                else:
                    label = path.removeprefix(_LABELS_PREFIX)
                    changed[label] = info.labels.get(label, "")  # an empty value is dropped by the store
            return changed

        return self._store.update_labels(info.name, change, self._now_ns()).info

    def cleanup(self) -> None:
        """Free the disk of what was removed; waits a bounded time, the rest goes on in the background."""
        self._janitor.submit("reconcile layers", self._layers.reconcile)
        if not self._janitor.drain(_CLEANUP_TIMEOUT_S):
            log.info("cleanup goes on in the background")

    # An image layer

    def _extract(self, key: str, parent: str, labels: Mapping[str, str], target: str) -> tuple[Mount, ...]:
        if self._store.find_target(target, parent) is not None:
            raise AlreadyExists(f"layer {target} is here already")
        self._check_new(key, parent)
        started_s = time.monotonic()
        with self._deciding(parent, labels) as decision:
            if decision.verdict is not Verdict.LAZY or decision.layer is None:
                return self._refused(key, parent, labels, target, decision)
            self._commit_lazy(key, parent, labels, decision.layer.layer_digest)
        PREPARES.labels("remote").inc()
        log.info(
            REMOTE_PREPARED,
            key=key,
            ref=decision.layer.reference,
            layer=str(decision.layer.layer_digest),
            chain_id=target,
            duration_s=round(time.monotonic() - started_s, 3),
        )
        raise AlreadyExists(f"layer {target} is loaded on demand")

    @contextmanager
    def _deciding(self, parent: str, labels: Mapping[str, str]) -> Iterator[Decision]:
        if self._mode() == "ordinary":
            yield Decision(Verdict.ORDINARY, None, REASON_ORDINARY)
            return
        below = self._store.find(parent) if parent else None
        parent_is_lazy = below is not None and below.origin is Origin.LAZY
        with self._resolver.deciding(labels, parent_is_lazy=parent_is_lazy) as decision:
            yield decision

    def _mode(self) -> str:
        try:
            return mode_of(self._settings)
        except FailedPrecondition as error:
            log.warning("mode file cannot be read", path=str(self._settings.mode_file), error=str(error))
            return self._settings.mode

    def _commit_lazy(self, key: str, parent: str, labels: Mapping[str, str], layer: Digest) -> None:
        """Commit a lazy layer under *key*: containerd finds it by label and parent, and the key is its own.

        Under the bare chain id it would collide with the same layer of another containerd namespace.
        """
        now_ns = self._now_ns()
        info = Info(key, parent, Kind.COMMITTED, now_ns, now_ns, labels)
        self._store.create(Record(self._store.reserve_id(), info, origin=Origin.LAZY, layer=layer))

    def _refused(
        self, key: str, parent: str, labels: Mapping[str, str], target: str, decision: Decision
    ) -> tuple[Mount, ...]:
        reason = decision.reason
        ref, layer = (decision.layer.reference, decision.layer.layer_digest) if decision.layer else ("", "")
        note = log.warning if decision.promised else log.info
        note(NOT_LAZY, key=key, ref=ref, layer=str(layer), chain_id=target, reason=reason)
        if decision.verdict is Verdict.UNPACK and decision.layer is not None:
            try:
                self._unpack(key, parent, labels, target, decision)
            except ApparateError as error:
                log.warning(
                    "layer could not be unpacked in place", key=key, ref=ref, layer=str(layer), error=str(error)
                )
                reason = f"{reason}; unpacking it here failed: {error}"
            else:
                PREPARES.labels("unpacked").inc()
                log.info(LAYER_UNPACKED, key=key, ref=ref, layer=str(layer), chain_id=target)
                raise AlreadyExists(f"layer {target} was unpacked")
        PREPARES.labels("fallback" if decision.promised else "ordinary").inc()
        return self._make(Kind.ACTIVE, key, parent, labels, reason)

    def _unpack(self, key: str, parent: str, labels: Mapping[str, str], target: str, decision: Decision) -> None:
        if decision.layer is None:
            raise InvalidArgument("a layer without a name cannot be unpacked")
        chain = self._parent_chain(parent)
        with self._layers.mounted(chain), ExitStack() as undo:
            record_id = self._store.reserve_id()
            self._directories.create(record_id, chain[0].id if chain else None, with_work=False)
            undo.callback(self._delete_directory_of, record_id)
            usage = self._unpacker.unpack(decision.layer, target, record_id, chain)
            now_ns = self._now_ns()
            info = Info(key, parent, Kind.COMMITTED, now_ns, now_ns, labels)
            self._store.create(Record(record_id, info, origin=Origin.UNPACKED, reason=decision.reason, usage=usage))
            undo.pop_all()
        self._layers.release_later(chain)

    # Any snapshot

    def _check_new(self, key: str, parent: str) -> None:
        if self._store.find(key) is not None:
            raise AlreadyExists(f"snapshot {key!r} exists")
        self._store.require_parent(parent)

    def _parent_chain(self, parent: str) -> list[Record]:
        return self._store.chain(self._store.get(parent)) if parent else []

    def _make(
        self, kind: Kind, key: str, parent: str, labels: Mapping[str, str], reason: str = ""
    ) -> tuple[Mount, ...]:
        self._check_new(key, parent)
        chain = self._parent_chain(parent)
        with self._layers.mounted(chain), ExitStack() as undo:
            record_id = self._store.reserve_id()
            self._directories.create(record_id, chain[0].id if chain else None, with_work=kind is Kind.ACTIVE)
            undo.callback(self._delete_directory_of, record_id)
            now_ns = self._now_ns()
            info = Info(key, parent, kind, now_ns, now_ns, labels)
            record = self._store.create(Record(record_id, info, reason=reason))
            undo.pop_all()
            self._layers.keep(chain)
            return self._mounts_of(record, chain)

    def _mounts_of(self, record: Record, ancestors: Sequence[Record]) -> tuple[Mount, ...]:
        return mounts_of(
            record.info.kind,
            self._directories.content(record.id),
            self._directories.work(record.id),
            [self._directories.content(ancestor.id) for ancestor in without_repeated_layers(ancestors)],
            self._overlay,
        )

    # In the background

    def _measure(self, record: Record) -> Usage:
        with self._flights.hold(("measure", record.id)):
            present = self._store.find(record.info.name)
            if present is not None and present.usage is not None:
                return present.usage
            usage = self._directories.measure(record.id)
            self._store.set_usage(record.id, usage)
            return usage

    def _measure_if_there(self, record: Record) -> None:
        if self._store.find(record.info.name) is not None:
            self._measure(record)

    def _delete_directory(self, record: Record) -> None:
        self._delete_directory_of(record.id)
        self._janitor.submit("purge", self._purge)

    def _delete_directory_of(self, snapshot_id: SnapshotId) -> None:
        self._directories.discard(snapshot_id)

    def _purge(self) -> None:
        for failure in self._directories.purge():
            log.warning("directory of a removed snapshot cannot be deleted", error=str(failure))
