"""How a conversion tells what it is doing. Everything here may be called from any thread."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from apparate.convert.result import LayerResult
    from apparate.oci.digest import Digest


class Stage(enum.Enum):
    """What is being done to a layer; the value is the word shown."""

    READ = "read"
    COMPRESS = "compress"
    CHECK = "check"
    UPLOAD = "upload"


class Progress(Protocol):
    """Where a conversion reports to. Must not block and must not raise."""

    def layers(self, count: int) -> None:
        """Say how many distinct layers there are; once, before any of them."""

    def advance(self, layer: Digest, stage: Stage, done: int, total: int) -> None:
        """Say that *done* of *total* bytes of the source layer *layer* have passed *stage*."""

    def finished(self, layer: LayerResult) -> None:
        """Say that a layer is converted, proven and in the target."""

    def note(self, sentence: str) -> None:
        """Tell the reader something that is no error, as a platform left out and why."""


class Silent:
    """A Progress that says nothing."""

    def layers(self, count: int) -> None:
        """Say nothing."""

    def advance(self, layer: Digest, stage: Stage, done: int, total: int) -> None:
        """Say nothing."""

    def finished(self, layer: LayerResult) -> None:
        """Say nothing."""

    def note(self, sentence: str) -> None:
        """Say nothing."""
