"""One cold start, measured: from the pull until the application's first line, and what crossed the link for it."""

from __future__ import annotations

import bisect
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from tests.benchmark.workloads import Workload
from tests.support.containerd import Containerd
from tests.support.cri import Container, Pod
from tests.support.link import Link
from tests.support.trees import drop_caches

SAMPLE_S = 0.01
_BLOCK = 1 << 20
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

    def at(self, seconds: float) -> int:
        """Bytes that had arrived *seconds* after the beginning, between two samples in proportion."""
        place = bisect.bisect(self.samples, (seconds, -1))
        if place == len(self.samples):
            return self.samples[-1][1]
        (before_s, before), (after_s, after) = self.samples[max(0, place - 1)], self.samples[place]
        share = (seconds - before_s) / (after_s - before_s) if after_s > before_s else 0.0
        return before + int(share * (after - before))

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
        fetched_bytes: what the link had brought at that time, headers included.
        samples: seconds and bytes over the start.
    """

    start_s: float
    pull_s: float
    fetched_bytes: int
    samples: list[tuple[float, int]] = field(repr=False)
    pod: Pod = field(repr=False)
    container: Container = field(repr=False)


def cold_start(
    daemon: Containerd, link: Link, reference: str, workload: Workload, served: Sequence[Path] = ()
) -> Start:
    """Pull *reference* on a node that has never seen it and start *workload* from it.

    The node is up and has a pod; the machine's caches are cold, but for the files *served*, which the registry sends.
    """
    cri = daemon.cri
    pod = cri.run_pod(workload.name)
    drop_caches()
    for path in served:
        _read(path)
    with Meter(link) as meter:
        cri.pull(reference)
        pulled, _ = meter.now()
        container = cri.start(pod, reference, workload.command)
        container.wait_output(workload.ready, START_TIMEOUT_S)
    start_s = (container.line_wall_ns(workload.ready) - meter.began_wall_ns) / 1e9
    return Start(start_s, pulled, meter.at(start_s), meter.samples, pod, container)


def busy_share(during_s: float = 1.0) -> float:
    """How much of all processors is in use, 0 to 1, within the next *during_s* seconds."""
    before = _processor_ticks()
    threading.Event().wait(during_s)
    busy, total = (now - then for now, then in zip(_processor_ticks(), before, strict=True))
    return round(busy / max(1, total), 3)


def _processor_ticks() -> tuple[int, int]:
    """Ticks in use, and all of them, since boot: the first line of /proc/stat (proc_stat(5)); idle and iowait are free."""
    ticks = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)


def _read(path: Path) -> None:
    with path.open("rb", buffering=0) as file:
        while file.read(_BLOCK):
            pass
