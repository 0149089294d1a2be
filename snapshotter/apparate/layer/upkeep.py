"""What has to be done now and then for all layers: sync, finish, write down use, make room, complete in quiet times.

One thread. It sleeps until something has changed, and then lets `sync_interval_s` pass so that many changes cost one sync.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Protocol

from apparate.errors import ApparateError
from apparate.layer.budget import Budget, free_bytes
from apparate.layer.eviction import Eviction
from apparate.layer.model import Priority
from apparate.layer.profile import PROFILE_NAME
from apparate.layer.store import disk_usage
from apparate.layer.whole import SPOOL_NAME
from apparate.telemetry import metrics
from apparate.telemetry.logging import get_logger

if TYPE_CHECKING:
    from apparate.layer.catalogue import Catalogue
    from apparate.layer.disk import Disk
    from apparate.layer.image import LayerImage, Surroundings

_LOOK_ROUND_S: Final = 30.0
"""How often one looks although nothing has changed: for layers to complete in the background, for room lost to others."""
_DETACH_AFTER_S: Final = 60.0
_NO_ROOM_PAUSE_FIRST_S: Final = 1.0
_NO_ROOM_PAUSE_MOST_S: Final = 60.0
"""When nothing could be given back, nobody is hurried for this long, doubled each time: a full disk may be somebody else's doing."""

log = get_logger("layer.upkeep")


class Attached(Protocol):
    """The images of a manager, as upkeep sees them."""

    def images(self) -> list[LayerImage]:
        """Return those that are open."""
        ...

    def detach(self, image: LayerImage) -> None:
        """Close one unless it is pinned."""
        ...


class Upkeep:
    """The thread and its tasks."""

    def __init__(
        self,
        around: Surroundings,
        catalogue: Catalogue,
        disk: Disk,
        budget: Budget,
        attached: Attached,
        eviction: Eviction,
    ) -> None:
        self._around = around
        self._settings = around.settings
        self._catalogue = catalogue
        self._disk = disk
        self._budget = budget
        self._attached = attached
        self._eviction = eviction
        self._changed = threading.Event()
        self._urgent = threading.Event()
        self._thread = threading.Thread(target=self._run, name="layer-upkeep", daemon=True)
        self._one_round = threading.Lock()
        self._lock = threading.Lock()  # _announced
        self._announced: set[LayerImage] = set()
        self._no_room_pause_s = _NO_ROOM_PAUSE_FIRST_S
        self._no_room_until_s = 0.0

    def start(self) -> None:
        """Begin."""
        _attempt(self._tidy, [])
        self._measure()
        self._thread.start()

    def wake(self) -> None:
        """Something has changed; never blocks."""
        if not self._changed.is_set():
            self._changed.set()

    def hurry(self) -> None:
        """As `wake`, and somebody waits for it."""
        self._urgent.set()
        self._changed.set()

    def want_room(self) -> None:
        """Somebody found no room: as `hurry`, unless a moment ago there was nothing to give back; then as `wake`."""
        if time.monotonic() >= self._no_room_until_s:
            self.hurry()
        else:
            self.wake()

    def stop(self) -> None:
        """End the thread; the caller has set `closing`."""
        self.hurry()
        self._thread.join()
        _attempt(self._note_use, self._attached.images())

    def _run(self) -> None:
        while not self._around.closing.is_set():
            self._changed.wait(_LOOK_ROUND_S)
            self._urgent.wait(self._settings.sync_interval_s)
            self._changed.clear()
            self._urgent.clear()
            if not self._around.closing.is_set():
                self.round()

    def round(self) -> None:
        """Do everything once. An error in one task does not keep the others from being done."""
        with self._one_round:
            self._round()

    def _round(self) -> None:
        images = self._attached.images()
        for task in (
            self._sync,
            self._note_use,
            self._make_room,
            self._tidy,
            self._complete_quiet,
            self._detach_idle,
            self._count,
        ):
            _attempt(task, images)

    # --- tasks ---

    def _sync(self, images: Sequence[LayerImage]) -> None:
        for image in images:
            try:
                image.store.sync()
                self.finish_if_complete(image)
            except ApparateError as error:
                image.note_error(error)

    def finish_if_complete(self, image: LayerImage) -> None:
        """Note and announce that an image has become complete, once until it loses something."""
        if not image.is_complete:
            return
        with self._lock:
            if image in self._announced:
                return
            self._announced.add(image)
        info = self._catalogue.get(image.digest)
        if info is not None and not info.complete:
            self._catalogue.set_complete(image.digest, complete=True)
            log.info("layer complete", layer=str(image.digest), fetched_bytes=image.fetched_bytes)
        self._disk.unlink(image.path.with_name(SPOOL_NAME))
        image.completion.changed()
        self._around.listener.completed(image)

    def forget(self, image: LayerImage) -> None:
        """The image is no longer complete, or no longer open."""
        with self._lock:
            self._announced.discard(image)

    def _note_use(self, images: Sequence[LayerImage]) -> None:
        """Write down what was fetched, by which reference, when layers were used, and what was touched."""
        rows = []
        for image in images:
            count = image.take_fetched_bytes()
            if count and image.fetcher.reference:
                self._catalogue.refer(image.digest, image.fetcher.reference)
            if count or image.profile.changed:
                rows.append((image.digest, count, image.used_wall_s))
            if image.profile.changed:
                self._write_profile(image)
        if rows:
            self._catalogue.note_use(rows)

    def _write_profile(self, image: LayerImage) -> None:
        try:
            self._disk.replace(image.path.with_name(PROFILE_NAME), image.profile.dump())
        except FileNotFoundError:
            if not image.is_closed:  # else the layer has been removed meanwhile
                raise

    def _make_room(self, _images: Sequence[LayerImage]) -> None:
        self._measure()
        surplus = self._budget.to_free()
        if not surplus:
            return
        freed_bytes, changed = self._eviction.free(surplus)
        for image in changed:
            self.forget(image)
        self._measure()
        if freed_bytes:
            self._no_room_pause_s, self._no_room_until_s = _NO_ROOM_PAUSE_FIRST_S, 0.0
        else:
            self._no_room_until_s = time.monotonic() + self._no_room_pause_s
            self._no_room_pause_s = min(2 * self._no_room_pause_s, _NO_ROOM_PAUSE_MOST_S)

    def _tidy(self, _images: Sequence[LayerImage]) -> None:
        self._catalogue.tidy()

    def _measure(self) -> None:
        """Tell the budget what is really on the disk."""
        root = self._settings.root / "layers"
        used = 0
        for directory in root.iterdir():
            with suppress(FileNotFoundError):  # a layer that was being removed
                used += disk_usage(directory).bytes
        self._budget.measured(used, free_bytes(root))

    def _complete_quiet(self, images: Sequence[LayerImage]) -> None:
        after_s = self._settings.background_after_s
        if not after_s:
            return
        pinned = self._catalogue.pinned()
        now_s = time.monotonic()
        for image in images:
            if image.digest in pinned and not image.store.is_full and now_s - image.waited_s >= after_s:
                missing = image.image_size - image.present_bytes
                if self._budget.has_room(missing):
                    image.completion.start(Priority.BACKGROUND)

    def _detach_idle(self, images: Sequence[LayerImage]) -> None:
        pinned = self._catalogue.pinned()
        idle = sorted((image for image in images if image.digest not in pinned), key=lambda image: image.used_wall_s)
        for image in idle[: max(0, len(idle) - self._settings.open_layers)]:
            if time.time() - image.used_wall_s > _DETACH_AFTER_S:
                self._attached.detach(image)
                self.forget(image)

    def _count(self, _images: Sequence[LayerImage]) -> None:
        states = Counter("complete" if info.complete else "lazy" for info in self._catalogue.all())
        for state in ("complete", "lazy"):
            metrics.LAYERS.labels(state).set(states[state])


def _attempt(task: Callable[[Sequence[LayerImage]], None], images: Sequence[LayerImage]) -> None:
    """Do *task*; an error in it must not keep the others from being done."""
    try:
        task(images)
    except (ApparateError, OSError) as error:
        log.warning("upkeep of layers failed", task=task.__name__.strip("_"), error=str(error))
    except Exception:
        log.exception("work on a layer failed unexpectedly", task=task.__name__.strip("_"))
