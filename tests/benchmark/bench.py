"""Cold starts compared in one run: plain containerd, stargz-snapshotter, ours with and without a recorded profile.

    make bench QUICK=1      the Python image at 100 Mbit/s, three times: build/bench/result.json
    make bench              everything: tests/benchmark/results/, snapshotter/docs/benchmarks.md

Every start is on a node that has never seen the image, with cold caches; contenders take turns, and another one begins
each round. Results are written after every round: a run that was ended, or that was given only some minutes, is continued by
the next one. All cells get their first round before one gets its second.

    python -m tests.benchmark.bench --part start --image python --rate 100 --rtt 20 --repetitions 5 --minutes 3
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from rich.console import Console
from tests.benchmark import conversion, report, starts, touched
from tests.benchmark.cells import QUIET_SHARE, Cell, Results, Round
from tests.benchmark.measure import busy_share
from tests.benchmark.stage import Stage, empty_stage, stage
from tests.benchmark.workloads import ENTRIES, WORKLOADS, Workload
from tests.support.link import MEGABIT
from tests.support.services import REPOSITORY

QUICK_REPETITIONS = 3
REPETITIONS = 5
QUICK_CELL = Cell("start", "python", 100)
QUICK_RESULT = REPOSITORY / "build" / "bench" / "result.json"
IMAGES = ("python", "java", "layers", "node")
RATES_MBIT = (100, 1000, 0)
RTTS_MS = (0, 20)
_say = Console(stderr=True, highlight=False, soft_wrap=True)


@dataclass(frozen=True, slots=True)
class Part:
    """One kind of cell: how a round of it is taken, and on what stage."""

    take: Callable[[Stage, Cell, int], Round]
    cells: Sequence[Cell]
    staged: Callable[[Workload], AbstractContextManager[Stage]] = stage


def _cells(part: str, images: Sequence[str], rates: Sequence[int] = (0,), rtts: Sequence[int] = (0,)) -> list[Cell]:
    return [Cell(part, image, rate, rtt) for image in images for rate in rates for rtt in rtts]


PARTS = {
    "start": Part(starts.start_round, _cells("start", IMAGES, RATES_MBIT, RTTS_MS)),
    "limit": Part(touched.limit_round, _cells("limit", IMAGES)),
    "read": Part(starts.read_round, _cells("read", ["python"], RATES_MBIT)),
    "walk": Part(starts.walk_round, _cells("walk", ["python", "node"])),
    "memory": Part(starts.memory_round, _cells("memory", ["python"], [100])),
    "attach": Part(conversion.attach_round, _cells("attach", [ENTRIES.name])),
    "convert": Part(conversion.convert_round, _cells("convert", ["python", "node"]), empty_stage),
}


def main() -> int:
    arguments = _parse()
    if os.geteuid() != 0:
        print("make bench needs root: it makes mounts and network namespaces", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # nodes are taken down, as on Ctrl-C
    if arguments.quick:
        return _quick()
    wanted = list(_wanted(arguments))
    if arguments.list:
        print(*(cell.name for cell in wanted), sep="\n")
        return 0
    results = Results()
    if arguments.again:
        for cell in wanted:
            results.forget(cell)
    until = time.monotonic() + 60 * arguments.minutes if arguments.minutes else float("inf")
    if arguments.prepare:
        for image in dict.fromkeys(cell.image for cell in wanted):
            with stage(_workload(image)):
                _say.print(f"{image} is prepared")
        return 0
    for number in range(arguments.repetitions):
        due = [cell for cell in wanted if results.rounds(cell) == number]
        if not _measure(due, results, number, until):
            break
    report.write(results)
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one image, one link, three repetitions")
    parser.add_argument(
        "--part", action="append", choices=list(PARTS), help="only this; may be repeated, as those below"
    )
    parser.add_argument("--image", action="append", choices=[*WORKLOADS, ENTRIES.name])
    parser.add_argument("--rate", action="append", type=int, help="Mbit/s; 0: not shaped")
    parser.add_argument("--rtt", action="append", type=int, help="round trip in milliseconds")
    parser.add_argument(
        "--repetitions", type=int, default=REPETITIONS, help="rounds that a cell has when it is finished"
    )
    parser.add_argument("--minutes", type=float, default=0, help="begin no round later than this")
    parser.add_argument("--again", action="store_true", help="forget the results of these cells first")
    parser.add_argument("--prepare", action="store_true", help="make the images, measure nothing")
    parser.add_argument("--list", action="store_true", help="say which cells are meant, measure nothing")
    return parser.parse_args()


def _wanted(arguments: argparse.Namespace) -> Iterator[Cell]:
    """The chosen cells. A link can be chosen only where a part has several."""
    for name, part in PARTS.items():
        rates, rtts = {cell.rate_mbit for cell in part.cells}, {cell.rtt_ms for cell in part.cells}
        for cell in part.cells:
            if (
                _fits(name, arguments.part)
                and _fits(cell.image, arguments.image)
                and (len(rates) == 1 or _fits(cell.rate_mbit, arguments.rate))
                and (len(rtts) == 1 or _fits(cell.rtt_ms, arguments.rtt))
            ):
                yield cell


def _fits(value: object, chosen: Sequence[object] | None) -> bool:
    return not chosen or value in chosen


def _measure(cells: Sequence[Cell], results: Results, number: int, until: float) -> bool:
    """Take one round of each of *cells*, image by image; False: the time is over."""
    for staged, image in dict.fromkeys((PARTS[cell.part].staged, cell.image) for cell in cells):
        mine = [cell for cell in cells if (PARTS[cell.part].staged, cell.image) == (staged, image)]
        if time.monotonic() >= until:
            return False
        with staged(_workload(image)) as made:
            for cell in mine:
                if time.monotonic() >= until:
                    return False
                results.add(cell, _round(made, cell, number))
    return True


def _round(made: Stage, cell: Cell, number: int) -> Round:
    made.wire.shape(cell.rate_mbit * MEGABIT or None)
    busy = busy_share()
    with made.wire.delayed(cell.rtt_ms / 1000):
        found = replace(PARTS[cell.part].take(made, cell, number), busy_share=busy)
    if busy > QUIET_SHARE:
        _say.print(f"[yellow]others used {busy:.0%} of the machine[/]")
    for name, sample in found.samples.items():
        _say.print(f"{cell.name:22} {name:17}", *(f"{field} {value:,}" for field, value in sample.items()))
    return found


def _workload(image: str) -> Workload:
    return ENTRIES if image == ENTRIES.name else WORKLOADS[image]


def _quick() -> int:
    QUICK_RESULT.parent.mkdir(parents=True, exist_ok=True)
    results = Results(QUICK_RESULT.with_name("samples.json"))
    results.forget(QUICK_CELL)
    with stage(_workload(QUICK_CELL.image)) as made:
        for number in range(QUICK_REPETITIONS):
            results.add(QUICK_CELL, _round(made, QUICK_CELL, number))
    medians = {
        name: {
            "start_s": round(results.median(QUICK_CELL, name, "start_s"), 3),
            "fetched_bytes": int(results.median(QUICK_CELL, name, "fetched_bytes")),
        }
        for name in results.contenders(QUICK_CELL)
    }
    QUICK_RESULT.write_text(json.dumps(medians, indent=2) + "\n")
    print(QUICK_RESULT.read_text(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
