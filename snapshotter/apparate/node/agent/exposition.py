"""One page of metrics for a node: the agent's own and those of both services, told apart by the label `service`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from apparate.telemetry.metrics import AGENT, Page

LABEL = "service"

Families = Callable[[], Iterable[tuple[str, Sequence[Metric]]]]


class _Joined(Collector):
    """Metrics of several services. Each family is told once: a scraper refuses one that comes twice."""

    def __init__(self, families: Families) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        joined: dict[str, Metric] = {}
        for service, families in self._families():
            for family in families:
                into = joined.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    into.add_sample(sample.name, {**sample.labels, LABEL: service}, sample.value, sample.timestamp)
        yield from joined.values()


def page(families: Families) -> Page:
    """Return the agent's metrics and those that *families* gives."""
    registry = CollectorRegistry()
    registry.register(_Joined(families))
    return Page(200, CONTENT_TYPE_LATEST, generate_latest(AGENT) + generate_latest(registry))
