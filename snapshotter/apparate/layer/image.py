"""A layer as a range of bytes: what is here at once, what is not after it was fetched, nothing that was not verified."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from apparate.errors import ApparateError, Unavailable
from apparate.layer.ahead import ReadAhead
from apparate.layer.completion import Completion
from apparate.layer.crew import Crew
from apparate.layer.fetch import Fetcher
from apparate.layer.hands import Hands
from apparate.layer.model import LayerListener, Priority
from apparate.layer.patience import Patience
from apparate.layer.prefetch import ahead_campaign, profile_campaign
from apparate.layer.profile import Profile
from apparate.layer.runs import BLOCK_BYTES, Run, runs_of
from apparate.registry.deadline import Deadline
from apparate.telemetry.logging import get_logger

if TYPE_CHECKING:
    from pathlib import Path

    from apparate.format.index import LayerIndex
    from apparate.layer.model import LayerId
    from apparate.layer.pace import Pace
    from apparate.layer.settings import LayerSettings
    from apparate.layer.source import BlobSource
    from apparate.layer.store import LayerStore
    from apparate.layer.whole import WholeDownload
    from apparate.oci.digest import Digest

_SEQUENTIAL_SHARE: Final = 4
"""When a quarter of a layer was read by sequential readers, somebody reads it all: the rest is fetched too."""
_BACK_MEMBERS: Final = 512
"""How far before a missing member its reader may have been last: 32 MiB, twice as far as anything is fetched ahead."""
_SAY_AGAIN_S: Final = 5.0
"""While a registry is away every reader meets the same error, again and again; one line in this time is enough."""

log = get_logger("layer.image")


@dataclass
class Surroundings:
    """What all images of a manager share."""

    settings: LayerSettings
    listener: LayerListener
    crew: Crew
    background_crew: Crew
    hands: Hands
    wake: Callable[[], None]
    """Something is to be synced; does not block."""
    hurry: Callable[[], None]
    """As `wake`, and somebody waits for it."""
    closing: threading.Event = field(default_factory=threading.Event)

    @classmethod
    def begun(
        cls, settings: LayerSettings, listener: LayerListener, wake: Callable[[], None], hurry: Callable[[], None]
    ) -> Surroundings:
        """Return them with threads of their own, as many as *settings* allow; whoever begins them closes them."""
        crew = Crew("layer-prefetch", settings.prefetch_connections)
        background_crew = Crew("layer-background", settings.background_connections)
        return cls(
            settings, listener, crew, background_crew, Hands("layer-read", settings.read_connections), wake, hurry
        )


class _Announcer:
    """Passes on what arrives to an image as long as somebody has it."""

    def __init__(self, image: weakref.ref[LayerImage]) -> None:
        self._image = image

    def arrived(self, runs: Sequence[Run], fetched_bytes: int) -> None:
        image = self._image()
        if image is not None:
            image.arrived(runs, fetched_bytes)


class LayerImage:
    """One attached layer. Thread-safe. Made by `LayerManager.attach`, one for each layer."""

    def __init__(
        self,
        digest: Digest,
        layer_id: LayerId,
        index: LayerIndex,
        store: LayerStore,
        source: BlobSource,
        pace: Pace,
        around: Surroundings,
        fetched_bytes: int = 0,
        blob_size: int = 0,
    ) -> None:
        """*fetched_bytes* were received for the layer before; *blob_size* is what a registry has said of its blob, 0 if none has."""
        settings = around.settings
        self.digest = digest
        self.layer_id = layer_id
        self.index = index
        self.store = store
        # What belongs to the image does not keep it: a removed layer's mapping goes when the last user lets go of the image.
        itself = weakref.ref(self)
        announcer = _Announcer(itself)
        self.fetcher = Fetcher(
            index, store, source, pace, announcer, around.hands, settings.attempt_timeout_s, blob_size
        )
        first_block = index.metadata_size // BLOCK_BYTES
        self.profile = Profile(first_block, index.image_size // BLOCK_BYTES - first_block, settings.profile_entries)
        self.hot = bytearray(index.member_count)
        """One byte a member: read since eviction last passed it."""
        self.hand = 0
        """Where eviction goes on looking."""
        self.used_wall_s = time.time()
        self.waited_s = time.monotonic()
        """When a reader last waited for data, monotonic."""
        self.last_error = ""
        self.last_error_wall_s = 0.0
        self._around = around
        self._ahead = ReadAhead(settings.sequential_bytes, settings.ahead_bytes)
        self._lock = threading.Lock()  # fetched_bytes, _noted_bytes
        self.fetched_bytes = fetched_bytes
        self._noted_bytes = fetched_bytes
        self.is_closed = False
        self.prefetch_begun = False
        self.completion = Completion(itself, around)

    # --- what it is ---

    @property
    def image_size(self) -> int:
        """Bytes of the image: the size of the file that is served."""
        return int(self.index.image_size)

    @property
    def metadata_size(self) -> int:
        """Bytes of EROFS metadata in front, always in the file at `path`."""
        return int(self.index.metadata_size)

    @property
    def has_profile(self) -> bool:
        """Whether the layer says what a start touches."""
        return bool(self.index.prefetch)

    @property
    def path(self) -> Path:
        """The sparse file that holds the image; a whole EROFS image once `is_complete`."""
        return self.store.path

    @property
    def is_complete(self) -> bool:
        """Whether every byte is in the file at `path`, verified and durable. It stays so while pinned as `direct`."""
        return self.store.is_durable

    @property
    def whole(self) -> WholeDownload:
        """The full download, for registries that know no ranges."""
        return self.fetcher.whole

    @property
    def present_bytes(self) -> int:
        """How many bytes of the image are here, without padding."""
        if self.store.is_full:
            return self.image_size
        return min(self.image_size, self.metadata_size + self.store.present_bytes)

    def take_fetched_bytes(self) -> int:
        """Return how many bytes of the blob were received since the last call."""
        with self._lock:
            count = self.fetched_bytes - self._noted_bytes
            self._noted_bytes = self.fetched_bytes
        return count

    # --- reading ---

    def read_cached(self, address: int, length: int, *, record: bool = True) -> bytes | None:
        """Return the bytes [address, address + length) if they can be had without waiting for network or disk, else None.

        Fewer only at the end of the image. Without *record* the read is not a container's: it leaves no trace.
        """
        length = self._clip(address, length)
        members = self.index.members_in(address, length)
        data = self.store.read(address, length, members, nowait=True)
        if data is not None and record:
            self._note(address, length, members)
        return data

    def is_here(self, address: int, length: int) -> bool:
        """Whether every byte of the range is in the file, in the page cache or not; does not wait."""
        return not self.store.missing(self.index.members_in(address, self._clip(address, length)))

    def read_stored(self, address: int, length: int) -> bytes | None:
        """Return the bytes [address, address + length) if they are in the file, else None; waits for the disk alone.

        Fewer only at the end of the image.
        """
        length = self._clip(address, length)
        members = self.index.members_in(address, length)
        data = self.store.read(address, length, members)
        if data is not None:
            self._note(address, length, members)
        return data

    def read(self, address: int, length: int) -> bytes:
        """Return the bytes [address, address + length), fewer only at the end of the image.

        What is missing is fetched in this thread, verified, stored and announced. Concurrent readers of one member share one
        request. Waits for a registry that does not answer up to `read_deadline_s`, longer while a full download progresses.

        Raises:
            Unavailable: the registry gave up within `read_deadline_s`; nothing of it was cached, call again.
            IntegrityError, FormatError: it went on giving bytes that do not match the index.
            NotFound, RegistryError: it refused.
        """
        length = self._clip(address, length)
        members = self.index.members_in(address, length)
        self._note(address, length, members, self._here_from(address, members))
        data = self.store.read(address, length, members)
        if data is None:
            self.waited_s = time.monotonic()
            data = self._read_missing(address, length, members)
            self.waited_s = time.monotonic()
        return data

    def _read_missing(self, address: int, length: int, members: range) -> bytes:
        patience = Patience(self._around.settings.read_deadline_s, self._around.closing)
        passed_bytes = self.whole.passed_bytes
        while True:
            try:
                held = self.fetcher.obtain(self.store.missing(members), patience.deadline)
            except ApparateError as error:
                self.note_error(error)
                if self.whole.is_running and self.whole.passed_bytes != passed_bytes:
                    passed_bytes = self.whole.passed_bytes
                    patience.renew()
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

    def _here_from(self, address: int, members: range) -> int | None:
        """Return where the present stretch right before *address* begins, `_BACK_MEMBERS` back at most.

        None if all of *members* are here.
        """
        missing = next((member for member in members if member not in self.store), None)
        if missing is None:
            return None
        first = missing
        while first > max(0, missing - _BACK_MEMBERS) and first - 1 in self.store:
            first -= 1
        return address if first == missing else min(address, self.index.pieces(first)[0].address)

    def _note(self, address: int, length: int, members: range, here_from: int | None = None) -> None:
        """Remember that a container read this, and fetch ahead of it if it reads on and on."""
        self.used_wall_s = time.time()
        self.profile.touch(address, length)
        if not members:
            return
        self.hot[members.start : members.stop] = b"\x01" * len(members)
        if self.store.is_full:
            return
        span = self._ahead.note(address, length, here_from)
        if span is None:
            return
        self._around.crew.add(ahead_campaign(self, *span, self._around.crew.size))
        if self._ahead.sequential_bytes_read * _SEQUENTIAL_SHARE >= self.image_size:
            self.completion.start(Priority.COMPLETION)

    # --- fetching what nobody waits for ---

    def prefetch(self) -> None:
        """Begin to load what the layer's profile names, and announce what of it is here already; returns at once."""
        self.prefetch_begun = True
        if self.has_profile and self._around.settings.prefetch:
            round_bytes, crew = self._around.settings.prefetch_round_bytes, self._around.crew
            crew.add(profile_campaign(self, round_bytes, crew.size, self._announce_present))

    def _announce_present(self, member: int) -> None:
        raw = self.store.inflated(member)
        if raw is not None:
            self.arrived(runs_of(self.index, member, raw), 0)

    def complete(self, deadline: Deadline) -> None:
        """Fetch what is missing and return when `is_complete`.

        Raises:
            Unavailable: not before the deadline, or the disk has no room; what has arrived stays.
            IntegrityError, FormatError, NotFound, RegistryError: the registry gave something else, or refused.
        """
        if not self.completion.wait(max(0.0, min(deadline.remaining(), threading.TIMEOUT_MAX))):
            why = f": {self.last_error}" if self.last_error else ""
            raise Unavailable(f"layer {self.digest} did not become complete in time{why}")

    # --- what happens ---

    def arrived(self, runs: Sequence[Run], fetched_bytes: int) -> None:
        """Count and announce a member that has arrived."""
        if fetched_bytes:
            with self._lock:
                self.fetched_bytes += fetched_bytes
        if self.store.is_full:
            self._around.hurry()
        else:
            self._around.wake()
        for run in runs:
            self._around.listener.filled(self, run.address, run.data)

    def note_error(self, error: ApparateError) -> None:
        """Keep the last error for those who ask what is wrong."""
        if self.is_closed:  # a layer that is being removed takes what fetches for it along
            log.debug("layer was closed while data for it were fetched", layer=str(self.digest), error=str(error))
            return
        now_s = time.time()
        if now_s - self.last_error_wall_s >= _SAY_AGAIN_S:
            log.warning("layer data could not be fetched", layer=str(self.digest), error=str(error))
        self.last_error, self.last_error_wall_s = str(error), now_s

    def close(self) -> None:
        """Make durable what is present and close the files.

        Raises:
            Unavailable: the disk failed; they are closed all the same.
        """
        self.is_closed = True  # nothing more is fetched ahead
        self.store.close()
