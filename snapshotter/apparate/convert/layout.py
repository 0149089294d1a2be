"""OCI image layouts as source and target (OCI image specification, image-layout.md).

A layout is a directory: `oci-layout` (its version), `index.json` (the names), `blobs/<algorithm>/<hex>`. A blob gets its name
only when it is whole and on disk; `index.json` is replaced in one step, under a lock, so several writers may share a layout.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import tempfile
from typing import TYPE_CHECKING, Final

from apparate.convert.stores import OpenStream, StoredManifest
from apparate.errors import FailedPrecondition, FormatError, InvalidArgument, NotFound
from apparate.oci import names
from apparate.oci.digest import Digest, Verifier
from apparate.oci.manifest import MANIFEST_BYTES_MAX, Descriptor, Index, parse_manifest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

VERSION: Final = "1.0.0"
REF_NAME: Final = "org.opencontainers.image.ref.name"
"""The annotation that names an entry of index.json (image-layout.md, "index.json file")."""
READ_BYTES: Final = 1024 * 1024
_LAYOUT_BYTES_MAX: Final = 4096


class LayoutSource:
    """One image of a layout, to be read."""

    def __init__(self, directory: Path, tag: str | None) -> None:
        self._directory = directory
        self._tag = tag
        self.name = f"{directory}:{tag}" if tag else str(directory)
        self.recorded_name = tag or ""

    def root(self) -> StoredManifest:
        """Return what the tag stands for; without a tag, the only image there is.

        Raises:
            NotFound: no layout, no such tag.
            InvalidArgument: no tag was given and there are several images.
        """
        _check_version(self._directory)
        entries = _read_index(self._directory).manifests
        known = [entry.annotations.get(REF_NAME, "") for entry in entries]
        if self._tag is None:
            if len(entries) != 1:
                listed = ", ".join(sorted(filter(None, known))) or "none has a name"
                raise InvalidArgument(
                    f"layout {self._directory} has {len(entries)} images ({listed}): write {self._directory}:TAG"
                )
            return self.manifest(entries[0])
        for entry, name in zip(entries, known, strict=True):
            if name == self._tag:
                return self.manifest(entry)
        raise NotFound(
            f"layout {self._directory} has no tag {self._tag!r}; it has {', '.join(sorted(filter(None, known))) or 'none'}"
        )

    def manifest(self, descriptor: Descriptor) -> StoredManifest:
        """Return a manifest, verified.

        Raises:
            NotFound, FormatError, IntegrityError: it is not there, too large, or not what its digest says.
        """
        body = _read_limited(_blob_path(self._directory, descriptor.digest), MANIFEST_BYTES_MAX)
        verifier = Verifier(descriptor.digest, f"manifest {descriptor.digest}")
        verifier.update(body)
        verifier.finish()
        return StoredManifest(dataclasses.replace(descriptor, size=len(body)), body)

    def blob(self, descriptor: Descriptor) -> AbstractContextManager[Iterator[bytes]]:
        """Open a blob for one pass, not verified."""
        return _pieces(_blob_path(self._directory, descriptor.digest))


class LayoutTarget:
    """A tag of a layout, to be written; the layout is made when it is not there."""

    def __init__(self, directory: Path, tag: str | None) -> None:
        self._directory = directory
        self._tag = tag or "latest"
        self.name = f"{directory}:{self._tag}"

    def current(self) -> StoredManifest | None:
        """Return what the tag stands for now."""
        if not (self._directory / "index.json").exists():
            return None
        try:
            return LayoutSource(self._directory, self._tag).root()
        except NotFound:
            return None

    def has(self, descriptor: Descriptor) -> bool:
        """Whether the blob is there, in its full size."""
        try:
            return _blob_path(self._directory, descriptor.digest).stat().st_size == descriptor.size
        except FileNotFoundError:
            return False

    def put(self, descriptor: Descriptor, open_stream: OpenStream) -> None:
        """Store a blob under its digest, once it is verified and on disk."""
        path = _blob_path(self._directory, descriptor.digest)
        verifier = Verifier(descriptor.digest, f"blob {descriptor.digest}")
        with _replacing(path) as fd:
            for piece in open_stream():
                verifier.update(piece)
                _write_all(fd, piece)
            verifier.finish()

    def put_manifest(self, body: bytes, media_type: str) -> None:
        """Store a manifest under its digest alone."""
        descriptor = Descriptor.of(body, media_type)
        if not self.has(descriptor):
            with _replacing(_blob_path(self._directory, descriptor.digest)) as fd:
                _write_all(fd, body)

    def publish(self, body: bytes, media_type: str) -> None:
        """Store a manifest and let the tag stand for it."""
        self.put_manifest(body, media_type)
        descriptor = dataclasses.replace(Descriptor.of(body, media_type), annotations={REF_NAME: self._tag})
        with _locked(self._directory):
            if not (self._directory / "oci-layout").exists():
                with _replacing(self._directory / "oci-layout") as fd:
                    _write_all(fd, json.dumps({"imageLayoutVersion": VERSION}).encode())
            exists = (self._directory / "index.json").exists()
            old = _read_index(self._directory).manifests if exists else ()
            kept = tuple(entry for entry in old if entry.annotations.get(REF_NAME) != self._tag)
            with _replacing(self._directory / "index.json") as fd:
                _write_all(fd, Index((*kept, descriptor)).to_json())


def _check_version(directory: Path) -> None:
    try:
        body = _read_limited(directory / "oci-layout", _LAYOUT_BYTES_MAX)
        version = json.loads(body).get("imageLayoutVersion")
    except NotFound as error:
        raise NotFound(f"{directory} is no OCI image layout: it has no file oci-layout") from error
    except (ValueError, AttributeError) as error:
        raise FormatError("OCI layout", "oci-layout", f"is not the JSON object it should be: {error}") from error
    if not str(version).startswith("1."):
        raise FormatError("OCI layout", "imageLayoutVersion", f"is {version!r}, 1.x is read")


def _read_index(directory: Path) -> Index:
    body = _read_limited(directory / "index.json", MANIFEST_BYTES_MAX)
    index = parse_manifest(body, names.OCI_INDEX)
    if not isinstance(index, Index):
        raise FormatError("OCI layout", "index.json", "is no image index")
    return index


def _blob_path(directory: Path, digest: Digest) -> Path:
    return directory / "blobs" / digest.algorithm / digest.hex


def _read_limited(path: Path, size_max: int) -> bytes:
    try:
        with path.open("rb") as file:
            body = file.read(size_max + 1)
    except FileNotFoundError as error:
        raise NotFound(f"{path} does not exist") from error
    except OSError as error:
        raise FailedPrecondition(f"{path}: {error.strerror}") from error
    if len(body) > size_max:
        raise FormatError("OCI layout", path.name, f"is larger than {size_max} bytes")
    return body


@contextlib.contextmanager
def _pieces(path: Path) -> Iterator[Iterator[bytes]]:
    try:
        file = path.open("rb", buffering=0)
    except FileNotFoundError as error:
        raise NotFound(f"blob {path} does not exist") from error
    except OSError as error:
        raise FailedPrecondition(f"blob {path}: {error.strerror}") from error
    with file:
        yield iter(lambda: file.read(READ_BYTES), b"")


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[int]:
    """Give the descriptor of a new file that takes the name *path*, synced, when the block ends without an error."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    except OSError as error:
        raise FailedPrecondition(f"{path.parent}: {error.strerror}") from error
    try:
        yield fd
        os.fchmod(fd, 0o644)
        os.fsync(fd)
        os.rename(temporary, path)
        _sync_directory(path.parent)
    except OSError as error:
        raise FailedPrecondition(f"{path}: {error.strerror}") from error
    finally:
        os.close(fd)
        with contextlib.suppress(FileNotFoundError):  # it has its name
            os.unlink(temporary)


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold the layout against other writers of its index.json. The lock goes with the process."""
    directory.mkdir(parents=True, exist_ok=True)
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
