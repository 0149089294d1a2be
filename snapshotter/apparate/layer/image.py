"""A layer as a range of bytes: what is here at once, what is not after it was fetched, nothing that was not verified."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from apparate.errors import ApparateError, FormatError, Unavailable
from apparate.layer.fetch import Announcer, Fetcher
from apparate.registry.deadline import Deadline
from apparate.telemetry.logging import get_logger

if TYPE_CHECKING:
    from pathlib import Path

    from apparate.format.index import LayerIndex
    from apparate.layer.model import LayerId, LayerListener
    from apparate.layer.pace import Pace
    from apparate.layer.settings import LayerSettings
    from apparate.layer.source import BlobSource
    from apparate.layer.store import LayerStore
    from apparate.oci.digest import Digest

_RETRY_FIRST_S: Final = 0.05
_RETRY_MOST_S: Final = 2.0
_REFUSAL_GRACE_S: Final = 5.0
"""How long a read goes on asking a registry that says no: a restarting one, or one whose token is being renewed, does so."""

log = get_logger("layer.image")


class LayerImage(Announcer):
    """One attached layer. Thread-safe. Made by `LayerManager.attach`, one for each layer."""

    def __init__(
        self,
        digest: Digest,
        layer_id: LayerId,
        index: LayerIndex,
        store: LayerStore,
        source: BlobSource,
        pace: Pace,
        settings: LayerSettings,
        listener: LayerListener,
        closing: threading.Event,
    ) -> None:
        self.digest = digest
        self.layer_id = layer_id
        self.index = index
        self.store = store
        self.fetcher = Fetcher(index, store, source, pace, self)
        self.last_error = ""
        self.last_error_wall_s = 0.0
        self.fetched_bytes = 0
        self.used_wall_s = time.time()
        self._settings = settings
        self._listener = listener
        self._closing = closing
        self._count_lock = threading.Lock()  # fetched_bytes

    @property
    def image_size(self) -> int:
        """Bytes of the image: the size of the file that is served."""
        return self.index.image_size

    @property
    def path(self) -> Path:
        """The sparse file that holds the image; a whole EROFS image once `is_complete`."""
        return self.store.path

    @property
    def is_complete(self) -> bool:
        """Whether every byte is in the file at `path`, verified and durable."""
        return self.store.is_durable

    # --- reading ---

    def read_cached(self, address: int, length: int) -> bytes | None:
        """Return the bytes [address, address + length) if they can be had without waiting for network or disk, else None.

        Fewer only at the end of the image.
        """
        length = self._clip(address, length)
        data = self.store.read(address, length, self.index.members_in(address, length), nowait=True)
        if data is not None:
            self.used_wall_s = time.time()
        return data

    def read(self, address: int, length: int) -> bytes:
        """Return the bytes [address, address + length), fewer only at the end of the image.

        What is missing is fetched in this thread, verified, stored and announced. Concurrent readers of one member share one
        request. Waits for a registry that does not answer up to `read_deadline_s`.

        Raises:
            Unavailable: the registry gave up within `read_deadline_s`; nothing of it was cached, call again.
            IntegrityError, FormatError: it went on giving bytes that do not match the index.
            NotFound, RegistryError: it refused.
        """
        length = self._clip(address, length)
        members = self.index.members_in(address, length)
        self.used_wall_s = time.time()
        data = self.store.read(address, length, members)
        if data is not None:
            return data
        deadline = Deadline.after(self._settings.read_deadline_s)
        patience = _Patience(deadline, self._closing)
        while True:
            try:
                held = self.fetcher.obtain(self.store.missing(members), deadline, self._settings.attempt_timeout_s)
            except ApparateError as error:
                self.note_error(error)
                patience.wait(error)
                continue
            data = self._assemble(address, length, members, held)
            if data is not None:  # else something was dropped again to make room
                return data

    def _clip(self, address: int, length: int) -> int:
        return max(0, min(length, self.image_size - address))

    def _assemble(self, address: int, length: int, members: range, held: Mapping[int, bytes]) -> bytes | None:
        """Return the range from the file, with the members that found no room there from *held*."""
        data = self.store.read(address, length, members)
        if data is not None:
            return data
        loose = {member: raw for member, raw in held.items() if member in members}
        data = self.store.read(address, length, [member for member in members if member not in loose])
        if data is None:
            return None
        result = bytearray(data)
        for member, raw in loose.items():
            for piece in self.index.pieces(member):
                start, end = max(address, piece.address), min(address + length, piece.address + piece.length)
                if start < end:
                    inner = piece.inner_offset - piece.address
                    result[start - address : end - address] = raw[inner + start : inner + end]
        return bytes(result)

    # --- what happens ---

    def landed(self, member: int, raw: bytes, compressed_bytes: int) -> None:
        """Count and announce a member that has arrived."""
        with self._count_lock:
            self.fetched_bytes += compressed_bytes
        view = memoryview(raw)
        for piece in self.index.pieces(member):
            self._listener.filled(self, piece.address, view[piece.inner_offset : piece.inner_offset + piece.length])

    def note_error(self, error: ApparateError) -> None:
        """Keep the last error for those who ask what is wrong."""
        self.last_error, self.last_error_wall_s = str(error), time.time()
        log.warning("layer data could not be fetched", layer=str(self.digest), error=str(error))

    def prefetch(self) -> None:
        """Begin to load what the layer's profile names; returns at once."""

    def close(self) -> None:
        """Make durable what is present and close the files."""
        self.store.close()


class _Patience:
    """Waits between attempts, longer each time, until there is no point in another."""

    def __init__(self, deadline: Deadline, closing: threading.Event) -> None:
        self._deadline = deadline
        self._closing = closing
        self._begun = time.monotonic()
        self._pause_s = _RETRY_FIRST_S

    def wait(self, error: ApparateError) -> None:
        """Return when it is time for another attempt; raise *error*, or what it means by now, if none is left."""
        can_pass = error.temporary or isinstance(error, FormatError)
        left = self._deadline.remaining()
        if not can_pass:
            left = min(left, self._begun + _REFUSAL_GRACE_S - time.monotonic())
        pause = max(self._pause_s, getattr(error, "retry_after_s", None) or 0.0)
        if left <= pause:
            raise error
        self._pause_s = min(self._pause_s * 2, _RETRY_MOST_S)
        if self._closing.wait(pause):
            raise Unavailable("the loader is stopping") from error
