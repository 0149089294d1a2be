"""A layer that cannot be loaded lazily, unpacked by us.

containerd downloads all layers above the first one it has to unpack itself. So a layer without a table of
contents below lazy ones is fetched and unpacked here, and the ones above stay lazy.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from apparate.errors import IntegrityError, InvalidArgument
from apparate.oci.digest import Digest
from apparate.oci.names import TARGET_SNAPSHOT
from apparate.snapshot.directories import SnapshotDirectories
from apparate.snapshot.labels import LayerLabels
from apparate.snapshot.model import Record, SnapshotId
from apparate.snapshot.remote import Loader, Usage


class Applier(Protocol):
    """Writes a layer into a directory, as containerd's applier writes it into an upper directory."""

    def __call__(self, blob: Iterator[bytes], directory: Path, lowers: Sequence[Path]) -> Digest:
        """Unpack the compressed layer *blob* into the empty *directory* and return the digest of its tar.

        *lowers* are the directories of the layers below, nearest first: a directory that the layer only implies
        gets its owner and mode from there. All of *blob* is consumed before this returns.

        Raises:
            FormatError: the bytes are no layer.
            Unavailable: the disk does not take it.
            ApparateError: what the iterator raises.
        """
        ...


class Unpacker:
    """Unpacks a bounded number of layers at the same time. Thread-safe."""

    def __init__(self, loader: Loader, directories: SnapshotDirectories, applier: Applier, threads: int) -> None:
        self._loader = loader
        self._directories = directories
        self._applier = applier
        self._slots = threading.BoundedSemaphore(threads)

    def unpack(self, layer: LayerLabels, target: str, snapshot_id: SnapshotId, chain: Sequence[Record]) -> Usage:
        """Fill the content of *snapshot_id* and return its usage; it is on disk and verified when this returns.

        The chain id that containerd wants, *target*, covers the uncompressed bytes, so it is checked too.

        Raises:
            ApparateError: it did not work; the directory holds rubbish and is the caller's to discard.
        """
        with self._slots:
            blob = self._loader.fetch(layer.reference, layer.layer_digest)
            lowers = [self._directories.content(record.id) for record in chain]
            diff_id = self._applier(blob, self._directories.content(snapshot_id), lowers)
        check_chain_id(target, chain[0].info.labels if chain else None, diff_id)
        self._directories.sync()
        return self._directories.measure(snapshot_id)


def check_chain_id(target: str, parent_labels: Mapping[str, str] | None, diff_id: Digest) -> None:
    """Check that *diff_id* on the parent gives the chain id *target* (OCI image specification, config.md, "ChainID").

    Without the parent's chain id nothing can be said: the digest of the blob has been verified already.

    Raises:
        IntegrityError: it gives another one.
    """
    if parent_labels is None:
        actual = diff_id
    else:
        try:
            parent = Digest.parse(parent_labels.get(TARGET_SNAPSHOT, ""))
        except InvalidArgument:
            return
        actual = Digest("sha256", hashlib.sha256(f"{parent} {diff_id}".encode()).hexdigest())
    if str(actual) != target:
        raise IntegrityError("chain id of the layer", target, str(actual))
