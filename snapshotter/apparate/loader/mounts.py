"""The mounts of layers: which there are, from what, and how they are made. The truth is the kernel's mount table.

Beside each mount lies a small record of what it was made from; a mount without one, or of a FUSE session that is gone, is
made again. Whoever uses the old one (an overlay holds its lower layers by itself) keeps it.
"""

from __future__ import annotations

import errno
import json
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal

from apparate.errors import FailedPrecondition, FormatError, Unavailable
from apparate.loader import kernel, nodes
from apparate.loader.courier_client import Courier
from apparate.loader.erofs_mount import Driver
from apparate.loader.images import Image
from apparate.loader.settings import RECORDING_READ_AHEAD_KB, LoaderSettings
from apparate.oci.digest import Digest
from apparate.telemetry.logging import get_logger

_log = get_logger("loader.mounts")

LAYER_MOUNTED = "layer mounted"
LAYER_UNMOUNTED = "layer unmounted"

_RECORD_SUFFIX: Final = ".json"
_REFUSED: Final = frozenset({errno.EINVAL, errno.EBADMSG, errno.EOPNOTSUPP, errno.EUCLEAN})
"""What EROFS says of an image that it does not understand."""
_NO_BACKING_FILE: Final = frozenset({errno.ENOTBLK, errno.EINVAL, errno.ENODEV, errno.EOPNOTSUPP})
"""What file-backed EROFS says of a file on a file system that it cannot use (overlayfs, tmpfs)."""


@dataclass(frozen=True, slots=True)
class Mounted:
    """Where a layer is mounted, whether the kernel reads its local file itself, and whether it was mounted just now."""

    path: str
    is_local: bool
    is_new: bool


@dataclass(frozen=True, slots=True)
class Record:
    """What a mount was made from."""

    driver: str
    source: Literal["fuse", "local"]
    session: str  # device of the FUSE mount below it
    bdi: str = ""  # backing device whose read-ahead belongs to the mount; "" if unknown


class LayerMounts:
    """Mounts and unmounts layers. Thread-safe; one change at a time."""

    def __init__(self, settings: LoaderSettings, driver: Driver, courier: Courier, session_device: str) -> None:
        self.driver = driver
        self._settings = settings
        self._courier = courier
        self._session = session_device
        self._lock = threading.Lock()
        self._local_works = not settings.record_profiles
        self._on_fuse: set[Digest] = set()
        settings.layers_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        for target, record in self._records():
            self._note(nodes.digest_of(target.name.encode()), record)

    def _note(self, digest: Digest | None, record: Record | None) -> None:
        if digest is not None:
            on_fuse = record is not None and record.source == "fuse" and record.session == self._session
            (self._on_fuse.add if on_fuse else self._on_fuse.discard)(digest)

    def is_on_fuse(self, digest: Digest) -> bool:
        """Return whether a layer is mounted through the FUSE session. Asks nobody."""
        return digest in self._on_fuse

    @property
    def local_works(self) -> bool:
        """Whether the kernel can mount the local files of complete layers, for all that is known."""
        return self._local_works and self.driver is not Driver.TREE

    def mount(self, image: Image, *, local: bool) -> Mounted:
        """Return the directory where the layer is mounted; mount it if needed.

        With *local* from its local file, if that works: the caller knows it to be complete and to stay so.

        Raises:
            FormatError: the kernel refuses the image.
            Unavailable: a call failed for another reason.
        """
        target = self._target(image.digest)
        with self._lock:
            record = self._read_record(target)
            if record is not None and self._serves(record, target, local=local):
                return self._mounted(record, image.digest, is_new=False)
            if self.driver is Driver.TREE:
                record = Record(self.driver.value, "fuse", self._session)
            else:
                if record is not None and self._is_dead(record):
                    self._detach(target)
                record = self._mount(image, target, local=local)
            self._write_record(target, record)
            self._note(image.digest, record)
        _log.info(LAYER_MOUNTED, layer=str(image.digest), driver=record.driver, source=record.source)
        return self._mounted(record, image.digest, is_new=True)

    def _serves(self, record: Record, target: Path, *, local: bool) -> bool:
        """Return whether what is mounted is what would be mounted now."""
        if self._is_dead(record):
            return False
        if record.driver != self.driver.value:
            return False
        if self.driver is Driver.TREE:
            return True
        if self._local_works and local != (record.source == "local"):
            return False
        return kernel.mount_at(str(target)) is not None

    def _is_dead(self, record: Record) -> bool:
        return record.source == "fuse" and record.session != self._session

    def _detach(self, target: Path) -> None:
        try:
            self._courier.unmount(str(target), detach=True)
        except OSError as error:
            raise Unavailable(f"unmounting {target}: {error.strerror}") from error

    def _mount(self, image: Image, target: Path, *, local: bool) -> Record:
        if local and self._local_works:
            try:
                bdi = self._call_mount(str(image.path), target, self._settings.complete_read_ahead_kb)
            except OSError as error:
                if error.errno not in _NO_BACKING_FILE:
                    raise Unavailable(f"mounting layer {image.digest}: {error.strerror}") from error
                self._local_works = False
                _log.warning("complete layers stay on FUSE: their files cannot be mounted", error=str(error))
            else:
                return Record(self.driver.value, "local", "", bdi)
        flat = self._settings.fuse_dir / nodes.name_of(image.digest)
        try:
            bdi = self._call_mount(str(flat), target, self._read_ahead_kb(image))
        except OSError as error:
            if error.errno in _REFUSED:
                raise FormatError("erofs", "image", f"of layer {image.digest} is refused: {error.strerror}") from error
            raise Unavailable(f"mounting layer {image.digest}: {error.strerror}") from error
        return Record(self.driver.value, "fuse", self._session, bdi)

    def _call_mount(self, source: str, target: Path, read_ahead_kb: int) -> str:
        return self._courier.mount(self.driver, source, str(target), read_ahead_kb)

    def _read_ahead_kb(self, image: Image) -> int:
        if self._settings.record_profiles:
            return RECORDING_READ_AHEAD_KB
        if image.is_complete:
            return self._settings.complete_read_ahead_kb
        return self._settings.profiled_read_ahead_kb if image.index.prefetch else self._settings.lazy_read_ahead_kb

    def completed(self, image: Image) -> None:
        """Let the readers of a layer that has become complete read far ahead; new mounts are of the local file."""
        record = self._read_record(self._target(image.digest))
        if record is not None and record.bdi and not self._settings.record_profiles:
            kernel.set_read_ahead(record.bdi, self._settings.complete_read_ahead_kb)

    def unmount(self, digest: Digest) -> None:
        """Undo `mount`; a layer that is not mounted is success.

        Raises:
            FailedPrecondition: a process has a file or its working directory in the mount.
        """
        target = self._target(digest)
        with self._lock:
            try:
                gone = self._courier.unmount(str(target), detach=False)
            except OSError as error:
                if error.errno == errno.EBUSY:
                    raise FailedPrecondition(f"layer {digest} is in use at {target}") from error
                raise Unavailable(f"unmounting layer {digest}: {error.strerror}") from error
            record = self._record_path(target)
            gone = gone or record.exists()
            record.unlink(missing_ok=True)
            self._note(digest, None)
            if target.exists():
                target.rmdir()
        if gone:
            _log.info(LAYER_UNMOUNTED, layer=str(digest))

    def mounted(self) -> dict[Digest, str]:
        """Return the mounted layers and their drivers. No file system is touched."""
        present = {mount.target for mount in kernel.mounts()}
        found: dict[Digest, str] = {}
        for target, record in self._records():
            digest = nodes.digest_of(target.name.encode())
            tree = record.driver == Driver.TREE.value and record.session == self._session
            if digest is not None and (tree or str(target) in present):
                found[digest] = record.driver
        return found

    def drop_dead(self) -> None:
        """Detach every mount that lies on a FUSE session other than this one: it only gives errors."""
        with self._lock:
            for target, record in list(self._records()):
                if self._is_dead(record):
                    self._detach(target)
                    self._record_path(target).unlink(missing_ok=True)
                    _log.warning("mount of a dead session is taken away", mountpoint=str(target))

    def _records(self) -> Iterator[tuple[Path, Record]]:
        for path in sorted(self._settings.layers_dir.glob(f"*{_RECORD_SUFFIX}")):
            target = path.with_suffix("")
            record = self._read_record(target)
            if record is not None:
                yield target, record

    def _target(self, digest: Digest) -> Path:
        return self._settings.layers_dir / nodes.name_of(digest)

    def _mounted(self, record: Record, digest: Digest, *, is_new: bool) -> Mounted:
        if record.driver == Driver.TREE.value:
            path = self._settings.fuse_dir / nodes.TREES_NAME.decode() / nodes.name_of(digest)
        else:
            path = self._target(digest)
        return Mounted(str(path), record.source == "local", is_new)

    @staticmethod
    def _record_path(target: Path) -> Path:
        return target.with_name(target.name + _RECORD_SUFFIX)

    def _read_record(self, target: Path) -> Record | None:
        path = self._record_path(target)
        try:
            return Record(**json.loads(path.read_text()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            _log.warning(
                "record of a mount cannot be read, the layer is mounted again", path=str(path), error=str(error)
            )
            return None

    def _write_record(self, target: Path, record: Record) -> None:
        path = self._record_path(target)
        partial = path.with_suffix(".new")
        partial.write_text(json.dumps(asdict(record)))
        partial.replace(path)
