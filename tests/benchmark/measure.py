"""One cold start, measured: from the pull until the application's first line, and what crossed the link for it."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Self

from tests.benchmark.workloads import Workload
from tests.support.containerd import Containerd
from tests.support.cri import Container, Pod
from tests.support.link import Link
from tests.support.trees import drop_caches

SAMPLE_S = 0.05
START_TIMEOUT_S = 600.0


class Meter:
    """Samples what a link has received while the context is open; times count from its beginning."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="meter", daemon=True)
        self._zero = link.received_bytes()
        self.began = time.monotonic()
        self.began_wall_ns = time.time_ns()
        self.samples: list[tuple[float, int]] = [(0.0, 0)]

    def now(self) -> tuple[float, int]:
        """Seconds and bytes since the beginning."""
        return time.monotonic() - self.began, self._link.received_bytes() - self._zero

    def until(self, seconds: float) -> list[tuple[float, int]]:
        """The samples of the first *seconds*."""
        return [sample for sample in self.samples if sample[0] <= seconds]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.samples.append(self.now())

    def _sample(self) -> None:
        while not self._stop.wait(SAMPLE_S):
            self.samples.append(self.now())


@dataclass(frozen=True, slots=True)
class Start:
    """A measured start.

    Attributes:
        start_s: from the request to pull until containerd logged the application's line.
        pull_s: how long the pull alone took.
        fetched_bytes: what the link had brought when that line was seen.
        samples: seconds and bytes over the start.
    """

    start_s: float
    pull_s: float
    fetched_bytes: int
    samples: list[tuple[float, int]] = field(repr=False)
    pod: Pod = field(repr=False)
    container: Container = field(repr=False)


def cold_start(daemon: Containerd, link: Link, reference: str, workload: Workload) -> Start:
    """Pull *reference* on a node that has never seen it and start *workload* from it."""
    cri = daemon.cri
    pod = cri.run_pod(workload.name)
    drop_caches()
    with Meter(link) as meter:
        cri.pull(reference)
        pulled, _ = meter.now()
        container = cri.start(pod, reference, workload.command)
        container.wait_output(workload.ready, START_TIMEOUT_S)
        _, fetched = meter.now()
        line = container.first_line_wall_ns()
    assert line is not None
    start_s = (line - meter.began_wall_ns) / 1e9
    return Start(start_s, pulled, fetched, meter.samples, pod, container)
