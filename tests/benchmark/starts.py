"""Cold starts, full reads, walks through all metadata, and what the daemons need in memory meanwhile: one round of each."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from tests.benchmark.cells import Cell, Round, Sample
from tests.benchmark.contenders import Contender, daemons_of
from tests.benchmark.measure import START_TIMEOUT_S, Start, cold_start
from tests.benchmark.stage import Stage
from tests.support.containerd import Containerd
from tests.support.processes import resident_of
from tests.support.trees import drop_caches

PSS_SAMPLE_S = 0.1
_FILES = "find / -xdev -type f ! -path '/etc/host*' ! -path /etc/resolv.conf -print0"
READ_DONE = "everything was read"
READ_ALL = f"{_FILES} | xargs -0 cat | wc -c && echo {READ_DONE}"
_STAT = "find / -xdev -printf '%s %m %U %T@\\n' >/dev/null"
_MARKS = ("walk begins", "walked cold", "walked warm")
# find itself is loaded before the clock runs
WALK = f"find /bin/sh >/dev/null; echo {_MARKS[0]}; {_STAT}; echo {_MARKS[1]}; {_STAT}; echo {_MARKS[2]}"


def start_round(stage: Stage, cell: Cell, number: int) -> Round:
    """From the pull until the application's first line."""
    samples: dict[str, Sample] = {}
    curves = {}
    for contender in in_turn(stage.contenders(), number):
        with _node(stage, contender) as (daemon, _):
            start = cold_start(
                daemon, stage.wire, contender.reference, stage.workload, stage.served(contender.reference)
            )
            daemon.remove_all()
        samples[contender.name], curves[contender.name] = _sample(start), start.samples
    return Round(_in_order(stage, samples), curves)


def read_round(stage: Stage, cell: Cell, number: int) -> Round:
    """From the pull until a container has read every byte of its image."""
    reading = replace(stage.workload, command=["sh", "-c", READ_ALL], ready=READ_DONE)
    samples: dict[str, Sample] = {}
    for contender in in_turn(_some(stage, "containerd", "apparate"), number):
        with _node(stage, contender) as (daemon, _):
            start = cold_start(daemon, stage.wire, contender.reference, reading, stage.served(contender.reference))
            daemon.remove_all()
        samples[contender.name] = _sample(start)
    return Round(_in_order(stage, samples), {})


def walk_round(stage: Stage, cell: Cell, number: int) -> Round:
    """How long `find` needs to look at every entry: after caches were dropped, and again."""
    samples: dict[str, Sample] = {}
    for contender in in_turn(_some(stage, "containerd", "apparate"), number):
        with _node(stage, contender) as (daemon, _):
            daemon.cri.pull(contender.reference)
            pod = daemon.cri.run_pod(stage.workload.name)
            drop_caches()
            container = daemon.cri.start(pod, contender.reference, ["sh", "-c", WALK])
            container.wait_output(_MARKS[-1], START_TIMEOUT_S)
            begin, cold, warm = (container.line_wall_ns(mark) for mark in _MARKS)
            daemon.remove_all()
        samples[contender.name] = {"cold_s": (cold - begin) / 1e9, "warm_s": (warm - cold) / 1e9}
    return Round(_in_order(stage, samples), {})


def memory_round(stage: Stage, cell: Cell, number: int) -> Round:
    """Proportional set size of the lazy snapshotters' processes: the greatest during a start, and right after it."""
    samples: dict[str, Sample] = {}
    for contender in in_turn(_some(stage, "stargz", "apparate", "apparate_profile"), number):
        with _node(stage, contender) as (daemon, place):
            with _peak(lambda place=place: _resident(place)) as sizes:  # type: ignore[misc]  # binds this place
                cold_start(daemon, stage.wire, contender.reference, stage.workload)
            after = _resident(place)
            daemon.remove_all()
        samples[contender.name] = {"before_bytes": sizes[0], "peak_bytes": max(sizes), "after_bytes": after}
    return Round(_in_order(stage, samples), {})


def in_turn(candidates: Sequence[Contender], number: int) -> list[Contender]:
    """Another contender begins each round."""
    first = number % len(candidates)
    return [*candidates[first:], *candidates[:first]]


def _some(stage: Stage, *names: str) -> list[Contender]:
    return [contender for contender in stage.contenders() if contender.name in names]


def _in_order(stage: Stage, samples: dict[str, Sample]) -> dict[str, Sample]:
    return {each.name: samples[each.name] for each in stage.contenders() if each.name in samples}


@contextlib.contextmanager
def _node(stage: Stage, contender: Contender) -> Iterator[tuple[Containerd, Path]]:
    place = stage.place(contender.name)
    with contender.node(place) as daemon:
        yield daemon, place


def _sample(start: Start) -> Sample:
    return {
        "start_s": round(start.start_s, 3),
        "pull_s": round(start.pull_s, 3),
        "fetched_bytes": start.fetched_bytes,
    }


def _resident(place: Path) -> int:
    total = 0
    for pid in daemons_of(place):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            total += resident_of(pid)
    return total


@contextlib.contextmanager
def _peak(size: Callable[[], int]) -> Iterator[list[int]]:
    """Sample *size* while the context is open; the first sample is from its beginning."""
    sizes, stop = [size()], threading.Event()

    def sample() -> None:
        while not stop.wait(PSS_SAMPLE_S):
            sizes.append(size())

    thread = threading.Thread(target=sample, name="memory", daemon=True)
    thread.start()
    try:
        yield sizes
    finally:
        stop.set()
        thread.join()
