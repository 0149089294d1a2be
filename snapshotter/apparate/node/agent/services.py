"""What the agent asks the two services of the host, over their telemetry sockets; no gRPC: a page is enough."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Final

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from apparate.errors import Unavailable
from apparate.snapshot.inventory import Image, images
from apparate.snapshot.rows import RECORDS_PAGE, from_json
from apparate.telemetry.client import ask, get_page

LOADER: Final = "loader"
SNAPSHOTTER: Final = "snapshotter"
REASON_CHARS_MAX: Final = 300


@dataclass(frozen=True, slots=True)
class Services:
    """Where the services answer, by name."""

    sockets: Mapping[str, Path]

    def problems(self) -> dict[str, str]:
        """Return what is wrong with each service that is not ready, in its own words."""
        found = {name: self._problem(path) for name, path in self.sockets.items()}
        return {name: text for name, text in found.items() if text}

    def families(self) -> Iterator[tuple[str, Sequence[Metric]]]:
        """Yield the metrics of each service that answers, with its name."""
        for name, path in self.sockets.items():
            try:
                text = get_page(path, "/metrics").decode()
            except Unavailable:
                continue  # `apparate_agent_service_up` says so
            yield name, list(text_string_to_metric_families(text))

    def images(self) -> list[Image]:
        """Return the images of this node. Raises ApparateError: the snapshotter does not tell."""
        return images(from_json(get_page(self.sockets[SNAPSHOTTER], RECORDS_PAGE)))

    def _problem(self, path: Path) -> str:
        try:
            status, body = ask(path, "/readyz")
        except Unavailable as error:
            return str(error)
        return "" if status == HTTPStatus.OK else _reasons(body) or f"{path} answers with {status}"


def _reasons(body: bytes) -> str:
    try:
        value = json.loads(body)
    except ValueError:
        return ""
    return "; ".join(map(str, value.values()))[:REASON_CHARS_MAX] if isinstance(value, dict) else ""
