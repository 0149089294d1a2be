"""What happens on a node that its people should hear of: images that are not loaded on demand, reads that failed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from prometheus_client import Metric

from apparate.errors import ApparateError
from apparate.node.agent import events
from apparate.node.agent.events import Events
from apparate.node.agent.services import LOADER, Services
from apparate.snapshot.inventory import Image
from apparate.snapshot.settings import REASON_ORDINARY
from apparate.telemetry import metrics

IMAGES_SHOWN: Final = 3
READ_ERRORS_NAME: Final = "apparate_loader_read_errors_total"
STATES: Final = ("lazy", "ordinary", "fallback")


class Survey:
    """Looks now and then, and tells what is new."""

    def __init__(self, services: Services, news: Events) -> None:
        self._services = services
        self._news = news
        self._known: frozenset[tuple[str, str]] = frozenset()
        self._read_errors: float | None = None

    def look(self) -> None:
        """Look once. What does not answer is left for the next time: readiness says that it does not."""
        try:
            found = self._services.images()
        except ApparateError:
            return
        fallbacks = frozenset((image.reference, reason) for image in found for reason in fallback_reasons(image))
        _count(found, {reference for reference, _ in fallbacks})
        new = fallbacks - self._known
        self._known = fallbacks
        if new:
            self._news.emit(events.IMAGE_FALLBACK, _sentence(sorted(new)))
        self._look_at_reads()

    def _look_at_reads(self) -> None:
        for service, families in self._services.families():
            now = _value(families, READ_ERRORS_NAME)
            if service != LOADER or now is None:
                continue
            before, self._read_errors = self._read_errors, now
            # A loader that was started again counts from 0.
            more = now - before if before is not None and now >= before else 0 if before is None else now
            if more > 0:
                self._news.emit(
                    events.READS_FAILED,
                    f"{more:.0f} reads of containers ended with an error: their data could not be fetched in time (apparate "
                    "images names the layers, journalctl -u apparate-loader the cause)",
                )


def fallback_reasons(image: Image) -> list[str]:
    """Return why layers of an accelerated image are not loaded on demand; nobody wonders on a node of the mode ordinary."""
    reasons = [layer.reason for layer in image.layers if image.is_fallback(layer) and layer.reason != REASON_ORDINARY]
    return sorted({reason for reason in reasons if reason})


def _count(found: Iterable[Image], fallbacks: set[str]) -> None:
    counts = dict.fromkeys(STATES, 0)
    for image in found:
        counts["fallback" if image.reference in fallbacks else "lazy" if image.is_lazy else "ordinary"] += 1
    for state, count in counts.items():
        metrics.AGENT_IMAGES.labels(state).set(count)


def _sentence(new: Sequence[tuple[str, str]]) -> str:
    shown = "; ".join(f"{reference or '(no name)'}: {reason}" for reference, reason in new[:IMAGES_SHOWN])
    more = f"; and {len(new) - IMAGES_SHOWN} more" if len(new) > IMAGES_SHOWN else ""
    return f"not loaded on demand: {shown}{more} (apparate why IMAGE)"


def _value(families: Sequence[Metric], name: str) -> float | None:
    for family in families:
        for sample in family.samples:
            if sample.name == name:
                return float(sample.value)
    return None
