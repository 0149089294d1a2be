"""Gives disk space back: whole layers that nobody has mounted first, then what mounted ones have not read for long."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Final, Protocol

from apparate.errors import ApparateError
from apparate.telemetry.logging import get_logger

if TYPE_CHECKING:
    from pathlib import Path

    from apparate.layer.budget import Budget
    from apparate.layer.catalogue import Catalogue
    from apparate.layer.image import LayerImage
    from apparate.layer.model import LayerInfo
    from apparate.oci.digest import Digest

_STAT_BLOCK_BYTES: Final = 512

log = get_logger("layer.eviction")


class Layers(Protocol):
    """The layers of a manager, as eviction sees them."""

    def exclusively(self, digest: Digest) -> AbstractContextManager[object]:
        """Keep everyone else from attaching, pinning and removing a layer."""
        ...

    def attach(self, digest: Digest) -> LayerImage:
        """Return an open image."""
        ...

    def image_path(self, digest: Digest) -> Path:
        """Return where a layer's image file is."""
        ...


_Drop = Callable[["LayerInfo", int, "list[LayerImage]"], int]


class Eviction:
    """Chooses and drops members. Used by one thread."""

    def __init__(self, catalogue: Catalogue, budget: Budget, layers: Layers) -> None:
        self._catalogue = catalogue
        self._budget = budget
        self._layers = layers

    def free(self, wanted: int) -> tuple[int, list[LayerImage]]:
        """Give back about *wanted* bytes; return how many it were, and the images that have lost something.

        A layer whose file the kernel reads itself is never touched; a mounted one loses first what was not read since the last
        time and is not in its profile. Metadata stay, so every layer can still be mounted without a registry.
        """
        changed: list[LayerImage] = []
        freed = 0
        for info, drop in self._candidates():
            if freed >= wanted:
                break
            try:
                with self._layers.exclusively(info.digest):
                    count = drop(info, wanted - freed, changed)
            except (ApparateError, OSError) as error:
                log.warning("layer data could not be dropped", layer=str(info.digest), error=str(error))
                continue
            freed += count
            self._budget.released(count)
        if freed:
            log.info("disk space given back", wanted_bytes=wanted, freed_bytes=freed, layers=len(changed))
        return freed, changed

    def _candidates(self) -> Iterator[tuple[LayerInfo, _Drop]]:
        pinned = self._catalogue.pinned()
        used = self._catalogue.used()
        infos = sorted(self._catalogue.all(), key=lambda info: used[info.digest][1] if info.digest in used else 0.0)
        loose = [info for info in infos if info.digest not in pinned]
        for info in sorted(loose, key=lambda info: not info.complete):  # stable: least recently used first among equals
            yield info, self._drop_loose
        held = [info for info in infos if pinned.get(info.digest) is False]
        for info in held:
            yield info, self._drop_cold
        for info in held:
            yield info, self._drop_any

    def _drop_loose(self, info: LayerInfo, _wanted: int, changed: list[LayerImage]) -> int:
        """Drop everything of a layer that nobody has mounted."""
        allocated = self._layers.image_path(info.digest).stat().st_blocks * _STAT_BLOCK_BYTES
        if self._catalogue.pins(info.digest) or not allocated:
            return 0
        image = self._layers.attach(info.digest)
        return self._drop(
            image, [member for member in range(image.index.member_count) if member in image.store], changed
        )

    def _drop_cold(self, info: LayerInfo, wanted: int, changed: list[LayerImage]) -> int:
        """Drop what was not read since the last time, and is not in the profile."""
        image = self._layers.attach(info.digest)
        spared = {
            member for address, length in image.index.prefetch for member in image.index.members_in(address, length)
        }
        return self._drop_members(info, image, wanted, spared, changed)

    def _drop_any(self, info: LayerInfo, wanted: int, changed: list[LayerImage]) -> int:
        return self._drop_members(info, self._layers.attach(info.digest), wanted, set(), changed)

    def _drop_members(
        self, info: LayerInfo, image: LayerImage, wanted: int, spared: Set[int], changed: list[LayerImage]
    ) -> int:
        if any(pin.direct for pin in self._catalogue.pins(info.digest)):
            return 0
        return self._drop(image, _cold(image, wanted, spared), changed)

    def _drop(self, image: LayerImage, members: Sequence[int], changed: list[LayerImage]) -> int:
        if not members:
            return 0
        if image.store.is_full:
            self._catalogue.set_complete(image.digest, complete=False)
        changed.append(image)
        return image.store.punch(members)


def _cold(image: LayerImage, wanted: int, spared: Set[int]) -> list[int]:
    """Choose members of about *wanted* bytes; one that was read since it was last looked at is passed over once."""
    chosen: list[int] = []
    size, count = 0, image.index.member_count
    for step in range(count):
        member = (image.hand + step) % count
        if member not in image.store or member in spared:
            continue
        if image.hot[member]:
            image.hot[member] = 0
            continue
        chosen.append(member)
        size += image.index.member(member).need_bytes
        if size >= wanted:
            image.hand = member + 1
            break
    return chosen
