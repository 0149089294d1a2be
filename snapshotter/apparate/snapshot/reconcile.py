"""What a start finds: directories without records, records without directories, layers without snapshots.

The local part runs before the first call is answered and needs neither network nor loader. The loader's
part runs in the background, whenever the loader is there.
"""

from __future__ import annotations

from collections.abc import Callable

from apparate.oci.digest import Digest
from apparate.snapshot.directories import SnapshotDirectories
from apparate.snapshot.metastore import Metastore
from apparate.snapshot.model import Kind, Origin
from apparate.snapshot.remote import LayerState, Loader
from apparate.telemetry.logging import get_logger

_log = get_logger("snapshot.reconcile")


def reconcile_directories(store: Metastore, directories: SnapshotDirectories) -> None:
    """Make the directories agree with the records.

    A crash between the two leaves a directory without a record: nobody has been told of it, it goes. After a
    power failure the directory of a new active snapshot may be missing: it was empty, so it is made again. A
    committed one that is missing has lost data: it is reported, and mounting it fails.
    """
    discarded = directories.discard_unknown(store.ids())
    if discarded:
        _log.info("directories of no snapshot removed", count=discarded)
    for record in store.records():
        if record.origin is Origin.LAZY or directories.content(record.id).is_dir():
            continue
        if record.info.kind is Kind.COMMITTED:
            _log.error("content of a snapshot is missing", key=record.info.name, snapshot_id=record.id)
        else:
            _log.warning("empty directory of a snapshot made again", key=record.info.name, snapshot_id=record.id)
            directories.discard(record.id)
            directories.create(record.id, None, with_work=record.info.kind is Kind.ACTIVE)


def reconcile_layers(
    loader: Loader, store: Metastore, wanted: Callable[[], set[Digest]], on_unused: Callable[[LayerState], None]
) -> None:
    """Call *on_unused* for each layer of the loader that no active snapshot uses and no pull wants.

    The loader is asked first: a layer that becomes used in between is seen as used, never the other way round.

    Raises:
        Unavailable: the loader is not there.
    """
    known = loader.status()
    needed = store.layers_in_use() | wanted()
    for state in known:
        if state.layer_digest not in needed:
            on_unused(state)
