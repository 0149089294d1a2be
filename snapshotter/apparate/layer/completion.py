"""Fetching the rest of a layer, and waiting for it."""

from __future__ import annotations

import threading
import time
import weakref
from typing import TYPE_CHECKING, Final

from apparate.errors import Unavailable
from apparate.layer.model import Priority
from apparate.layer.prefetch import completion_campaign

if TYPE_CHECKING:
    from apparate.errors import ApparateError
    from apparate.layer.image import LayerImage, Surroundings

_LOOK_AGAIN_S: Final = 2.0
"""A completion ends when nothing is left to claim; if what others were fetching failed, another is begun after this."""


class Completion:
    """The completion of one image. Thread-safe."""

    def __init__(self, image: weakref.ref[LayerImage], around: Surroundings) -> None:
        """Belongs to *image* and does not keep it; each campaign does, as long as it lasts."""
        self._weak_image = image
        self._around = around
        self._changed = threading.Condition()  # _running, _given_up
        self._running: set[Priority] = set()
        self._given_up: ApparateError | None = None

    @property
    def _image(self) -> LayerImage:
        image = self._weak_image()
        if image is None:
            raise Unavailable("the layer was removed")
        return image

    def start(self, priority: Priority) -> None:
        """Begin to fetch what is missing, unless that is under way with this priority; returns at once."""
        image = self._image
        with self._changed:
            if priority in self._running or image.store.is_full:
                return
            self._running.add(priority)
            self._given_up = None
        crew = self._around.background_crew if priority is Priority.BACKGROUND else self._around.crew
        crew.add(completion_campaign(image, priority, crew.size, lambda error: self._ended(priority, error)))

    def _ended(self, priority: Priority, error: ApparateError | None) -> None:
        with self._changed:
            self._running.discard(priority)
            if error is not None:
                self._given_up = error.anew()
                self._changed.notify_all()
        if error is not None:
            self._image.note_error(error)

    def changed(self) -> None:
        """The image may have become complete."""
        with self._changed:
            self._changed.notify_all()

    def wait(self, timeout_s: float) -> bool:
        """Fetch what is missing; return whether the image is complete, after *timeout_s* at the latest.

        Raises:
            ApparateError: fetching was given up.
        """
        image = self._image
        end_s = time.monotonic() + timeout_s
        while not image.is_complete:
            self.start(Priority.COMPLETION)
            left_s = end_s - time.monotonic()
            if left_s <= 0 or self._around.closing.is_set():
                return False
            with self._changed:
                if not image.is_complete and self._given_up is None:
                    self._changed.wait(min(left_s, _LOOK_AGAIN_S))
                if self._given_up is not None and not image.is_complete:
                    raise self._given_up.anew()
        return True
