"""Opens the local files of a known layer: index, image file, bitmap, profile. Needs no network."""

from __future__ import annotations

import mmap
import os
import threading
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Final

from apparate.errors import FormatError
from apparate.format.index import LayerIndex
from apparate.layer.bitmap import load
from apparate.layer.image import LayerImage
from apparate.layer.pace import Pace
from apparate.layer.profile import PROFILE_NAME
from apparate.layer.resolving import INDEX_NAME, identity_of
from apparate.layer.store import IMAGE_NAME, PRESENT_NAME, LayerStore
from apparate.layer.whole import SPOOL_NAME, SpooledBlob

if TYPE_CHECKING:
    from pathlib import Path

    from apparate.layer.catalogue import Catalogue
    from apparate.layer.disk import Disk
    from apparate.layer.image import Surroundings
    from apparate.layer.model import LayerInfo
    from apparate.layer.source import BlobSource, Body, SourceFactory
    from apparate.layer.store import Room
    from apparate.registry.deadline import Deadline

_PACES_MAX: Final = 256


class Opener:
    """Makes images. Thread-safe for different layers; the caller keeps one layer to itself."""

    def __init__(
        self, around: Surroundings, catalogue: Catalogue, disk: Disk, room: Room, sources: SourceFactory
    ) -> None:
        self._around = around
        self._catalogue = catalogue
        self._disk = disk
        self._room = room
        self._sources = sources
        self._lock = threading.Lock()  # _paces
        self._paces: dict[str, Pace] = {}

    def open(self, info: LayerInfo, directory: Path, *, fresh: bool) -> LayerImage:
        """Return the image of a layer. *fresh*: its index was written a moment ago, by this process, and need not be checked.

        Raises:
            FormatError: its index is missing or damaged.
            Unavailable: the disk has no room for its metadata, or does not work.
        """
        digest = info.digest
        mapped = _map(directory / INDEX_NAME)
        index, identity = _read_index(mapped, trusted=fresh)
        remote = self._sources(lambda: self._catalogue.references(digest), digest)
        source = _LocalFirst(directory / SPOOL_NAME, remote)
        store = LayerStore(directory, index, identity, self._disk, self._room)
        mapped.madvise(mmap.MADV_DONTNEED)  # checks have touched every page; few are needed again
        fetched_bytes = self._catalogue.fetched_bytes(digest)
        image = LayerImage(
            digest, info.layer_id, index, store, source, self._pace(remote), self._around, fetched_bytes, info.blob_size
        )
        try:
            image.profile.load((directory / PROFILE_NAME).read_bytes())
        except OSError:
            return image  # nothing was recorded, or it is lost: a profile is a hint
        return image

    def _pace(self, source: BlobSource) -> Pace:
        host = source.host
        with self._lock:
            if len(self._paces) >= _PACES_MAX:
                self._paces.clear()
            return self._paces.setdefault(host, Pace(self._around.settings))


class _LocalFirst:
    """A blob that is read from its spooled file as long as there is one."""

    def __init__(self, spool_path: Path, remote: BlobSource) -> None:
        self._spool_path = spool_path
        self._remote = remote

    def _now(self) -> BlobSource:
        return SpooledBlob(self._spool_path) if self._spool_path.exists() else self._remote

    @property
    def host(self) -> str:
        return self._remote.host

    @property
    def proven(self) -> str:
        return self._remote.proven

    def range(self, offset: int, length: int, *, deadline: Deadline) -> AbstractContextManager[Body]:
        return self._now().range(offset, length, deadline=deadline)

    def tail(self, length: int, *, deadline: Deadline) -> AbstractContextManager[Body]:
        return self._now().tail(length, deadline=deadline)

    def whole(self, *, deadline: Deadline) -> AbstractContextManager[Body]:
        return self._now().whole(deadline=deadline)


def open_index(directory: Path) -> tuple[LayerIndex, bytes]:
    """Return the mapped index of the layer in *directory*, checked in full, and what identifies it.

    Raises:
        FormatError: it is missing or damaged.
    """
    return _read_index(_map(directory / INDEX_NAME), trusted=False)


def glance(directory: Path) -> float:
    """Return which share of a layer's members is here and durable, 0 to 1, without opening it: damage in its tables is not seen.

    Raises:
        FormatError: its index is missing, or its header damaged.
    """
    index, identity = _read_index(_map(directory / INDEX_NAME), trusted=True)
    try:
        inode = (directory / IMAGE_NAME).stat().st_ino
        present = load((directory / PRESENT_NAME).read_bytes(), index.member_count, inode, identity)
    except OSError:
        present = None
    if not index.member_count:
        return 1.0
    return present.count / index.member_count if present is not None else 0.0


def _map(path: Path) -> mmap.mmap:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return mmap.mmap(fd, 0, access=mmap.ACCESS_READ)
        finally:
            os.close(fd)
    except (OSError, ValueError) as error:
        raise FormatError("index", "file", f"{path} cannot be mapped: {error}") from error


def _read_index(mapped: mmap.mmap, *, trusted: bool) -> tuple[LayerIndex, bytes]:
    return LayerIndex(mapped, trusted=trusted), identity_of(mapped)
