"""What a start finds: directories without records, records without directories, layers without snapshots.

The local part runs before the first call is answered and needs neither network nor loader. The loader's
part runs in the background, whenever the loader is there.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from apparate.errors import FailedPrecondition
from apparate.oci.digest import Digest
from apparate.snapshot.directories import SnapshotDirectories
from apparate.snapshot.metastore import METADATA_NAME, Metastore
from apparate.snapshot.model import Kind, Origin
from apparate.snapshot.remote import LayerState, Loader
from apparate.telemetry.logging import get_logger

_log = get_logger("snapshot.reconcile")

LOST_NAME = "snapshots.lost"
"""Below a root: its metadata were lost once, and what they named may be in use still."""
_LOST_TEXT = b"""\
The metadata of snapshots were missing although there were snapshots. Containers may be running on them, so nothing is removed as
long as this file is here. Pull every image anew, then delete this file and restart (docs/snapshots.md, 'When the metadata are lost').
"""


def metadata_lost(root: Path) -> bool:
    """Return whether the records in *root* are known not to be all; to be asked before the store is opened, which makes it.

    That is remembered in a file until somebody deletes it, because the next start finds a store like any other.

    Raises:
        FailedPrecondition: it cannot be remembered.
    """
    mark, store, snapshots = root / LOST_NAME, root / METADATA_NAME, root / "snapshots"
    try:
        is_empty = not store.exists() or store.stat().st_size == 0
        if is_empty and not mark.exists() and snapshots.is_dir() and any(snapshots.iterdir()):
            _write_durably(mark, _LOST_TEXT)
        is_lost = mark.exists()
    except OSError as error:
        raise FailedPrecondition(f"root {root} cannot be examined: {error}") from error
    if is_lost:
        _log.error(
            "metadata of snapshots were lost, nothing is removed",
            path=str(mark),
            repair="pull every image anew, then delete this file and restart (docs/snapshots.md, 'When the metadata are lost')",
        )
    return is_lost


def _write_durably(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    parent = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)


def reconcile_directories(store: Metastore, directories: SnapshotDirectories, *, lost: bool = False) -> None:
    """Make the directories agree with the records. If records were *lost*, none is discarded, and no id used again.

    A crash between the two leaves a directory without a record: nobody has been told of it, it goes. After a
    power failure the directory of a new active snapshot may be missing: it was empty, so it is made again. A
    committed one that is missing has lost data: it is reported, and mounting it fails.
    """
    if lost:
        store.skip_ids(directories.highest_id())
    discarded = 0 if lost else directories.discard_unknown(store.ids())
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
