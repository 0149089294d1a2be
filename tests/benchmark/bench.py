"""Cold starts compared in one run: plain containerd, stargz-snapshotter, ours with and without a recorded profile.

    make bench QUICK=1      the Python image at 100 Mbit/s, three times: build/bench/result.json
    make bench              all images, links and round trips, five times: tests/benchmark/results/

Every start is on a node that has never seen the image, with cold caches; contenders take turns, so that whatever
disturbs the machine disturbs all of them. Reported are medians, and all samples.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from tests.benchmark.contenders import Contender, Images, contenders, convert_for_stargz, record_profile
from tests.benchmark.measure import cold_start
from tests.benchmark.plot import bars
from tests.benchmark.workloads import WORKLOADS, Workload, layout, load
from tests.support.distribution import Registry
from tests.support.images import push
from tests.support.leftovers import clean_folder
from tests.support.link import MEGABIT, Link, link
from tests.support.node import Node
from tests.support.services import REPOSITORY, apparate

PORT = 5000
QUICK_REPETITIONS = 3
REPETITIONS = 5
QUICK_RESULT = REPOSITORY / "build" / "bench" / "result.json"
RESULTS = REPOSITORY / "tests" / "benchmark" / "results"
_say = Console(stderr=True, highlight=False, soft_wrap=True)


@dataclass(frozen=True, slots=True)
class Cell:
    """One condition: an image behind a link. `rate_mbit` 0: not shaped."""

    image: str
    rate_mbit: int


@dataclass(frozen=True, slots=True)
class Sample:
    """One start."""

    start_s: float
    fetched_bytes: int


FULL = [Cell(image, rate) for image in WORKLOADS for rate in (100, 1000, 0)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one image, one link, three repetitions")
    parser.add_argument("--image", action="append", choices=list(WORKLOADS), help="only this image; may be repeated")
    quick = (arguments := parser.parse_args()).quick
    if os.geteuid() != 0:
        print("make bench needs root: it makes mounts and network namespaces", file=sys.stderr)
        return 1
    if quick:
        found = measure([Cell("python", 100)], QUICK_REPETITIONS)
        QUICK_RESULT.parent.mkdir(parents=True, exist_ok=True)
        (samples,) = found.values()
        QUICK_RESULT.write_text(json.dumps(medians(samples), indent=2) + "\n")
        print(QUICK_RESULT.read_text(), end="")
        return 0
    cells = [cell for cell in FULL if not arguments.image or cell.image in arguments.image]
    write_results(measure(cells, REPETITIONS))
    return 0


def measure(cells: Sequence[Cell], repetitions: int) -> dict[Cell, dict[str, list[Sample]]]:
    """Measure every contender in every cell."""
    found: dict[Cell, dict[str, list[Sample]]] = {}
    for image in dict.fromkeys(cell.image for cell in cells):
        workload = WORKLOADS[image]
        with _prepared(workload) as (folder, wire, candidates):
            for cell in (cell for cell in cells if cell.image == image):
                wire.shape(cell.rate_mbit * MEGABIT or None)
                found[cell] = _measure_cell(folder, wire, workload, candidates, cell, repetitions)
    return found


def medians(samples: dict[str, list[Sample]]) -> dict[str, dict[str, float]]:
    """The medians of each contender."""
    return {
        name: {
            "start_s": round(statistics.median(sample.start_s for sample in taken), 3),
            "fetched_bytes": int(statistics.median(sample.fetched_bytes for sample in taken)),
        }
        for name, taken in samples.items()
    }


@contextmanager
def _prepared(workload: Workload) -> Iterator[tuple[Path, Link, list[Contender]]]:
    """A registry behind a link that holds the image in every form; the link is not shaped yet."""
    image = load(layout(workload))
    with (
        clean_folder("bench") as folder,
        link() as wire,
        Registry(folder / "registry", listen=wire.far, port=PORT, netns=wire.namespace) as registry,
    ):
        source = push(registry, f"bench/{workload.name}", image, tag="v1")
        images = Images(source, f"{source}-stargz", f"{source}-apparate", f"{source}-profiled")
        _say.print(f"[bold]{workload.name}[/]  converting and recording")
        apparate("convert", "--plain-http", source, images.accelerated, timeout_s=1800)
        profile = folder / "profile"

        def start(node: Node) -> None:
            cold_start(node.containerd, wire, images.accelerated, workload)

        record_profile(_fresh(folder, "recorder"), registry.address, images.accelerated, start, profile)
        profiled = ["--prefetch", str(profile), source, images.profiled]
        apparate("convert", "--plain-http", *profiled, timeout_s=1800)
        convert_for_stargz(_fresh(folder, "stargz"), registry.address, source, images.stargz, profile)
        yield folder, wire, contenders(images, registry.address)


def _measure_cell(
    folder: Path, wire: Link, workload: Workload, candidates: Sequence[Contender], cell: Cell, repetitions: int
) -> dict[str, list[Sample]]:
    samples: dict[str, list[Sample]] = {contender.name: [] for contender in candidates}
    for number in range(repetitions):
        for contender in candidates:
            place = _fresh(folder, f"{contender.name}-{cell.rate_mbit}-{number}")
            with contender.node(place) as daemon:
                start = cold_start(daemon, wire, contender.reference, workload)
                daemon.remove_all()
            samples[contender.name].append(Sample(round(start.start_s, 3), start.fetched_bytes))
            fetched = f"{start.fetched_bytes / 1e6:7.1f} MB"
            _say.print(
                f"{cell.image} {cell.rate_mbit or 'unshaped'}  {contender.name:17} {start.start_s:6.2f} s {fetched}"
            )
    return samples


def _fresh(folder: Path, name: str) -> Path:
    place = folder / name
    place.mkdir()
    return place


def write_results(found: dict[Cell, dict[str, list[Sample]]]) -> None:
    """Write all samples with what they were taken on, and a plot for each cell."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    document = {
        "commit": subprocess.run(
            ["git", "-C", str(REPOSITORY), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        ).stdout.strip(),
        "machine": {"cores": os.cpu_count(), "kernel": platform.release(), "architecture": platform.machine()},
        "taken": time.strftime("%Y-%m-%d", time.gmtime()),
        "cells": [
            {
                **asdict(cell),
                "medians": medians(samples),
                "samples": {name: [asdict(sample) for sample in taken] for name, taken in samples.items()},
            }
            for cell, samples in found.items()
        ],
    }
    (RESULTS / "starts.json").write_text(json.dumps(document, indent=1) + "\n")
    for cell, samples in found.items():
        values = {name: [sample.start_s for sample in taken] for name, taken in samples.items()}
        rate = f"{cell.rate_mbit} Mbit/s" if cell.rate_mbit else "unshaped"
        bars(RESULTS / f"start-{cell.image}-{cell.rate_mbit or 'unshaped'}.png", f"{cell.image}, {rate}", values)


if __name__ == "__main__":
    sys.exit(main())
