"""The product on one machine: a real image, a slow link, and the same pod started the ordinary way and ours.

    make demo          (as root)

A registry stands behind a link of 100 Mbit/s in a network namespace of its own. A Debian image with Python and pandas
is pushed, converted, and started cold through CRI: first by a plain containerd, then by one with our snapshotter.
While a container then reads every file, the loader is killed with SIGKILL several times. The exit status is 0 only if
every layer was loaded on demand and nothing failed. Results: build/demo/result.json and build/demo/timeline.png.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from tests.benchmark.measure import Meter, Start, cold_start
from tests.benchmark.plot import Curve, timeline
from tests.benchmark.workloads import PYTHON, layout, load
from tests.support.content import stored
from tests.support.cri import Container
from tests.support.distribution import Registry
from tests.support.images import push
from tests.support.leftovers import clean_folder
from tests.support.link import MEGABIT, Link, link
from tests.support.node import Node, node
from tests.support.processes import wait_until
from tests.support.services import REPOSITORY, command, environment
from tests.support.trees import drop_caches

RATE_MEGABIT = 100
KILLS = 5
CONTAINERD = "2.4.2"
PORT = 5000
READ_TIMEOUT_S = 600.0
RESULTS = REPOSITORY / "build" / "demo"
# Every byte of the image in a fixed order; what the runtime binds into each container is left out.
READ_ALL = (
    "find / -xdev -type f ! -path '/etc/host*' ! -path /etc/resolv.conf -print0"
    " | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum && echo everything was read"
)
READ_DONE = "everything was read"

_say = Console(stderr=True, highlight=False, soft_wrap=True)


@dataclass(frozen=True, slots=True)
class KillRun:
    """What a container saw that read the whole image while the loader was killed."""

    errors: Sequence[str]
    kills_s: Sequence[float]
    samples: Sequence[tuple[float, int]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """All that the demo found out. Sizes in bytes, those of images compressed; layers by digest."""

    image_bytes: int
    accelerated_bytes: int
    plain: Start
    lazy: Start
    layers: Sequence[str]
    lazy_layers: Sequence[str]
    killed: KillRun

    @property
    def is_good(self) -> bool:
        return bool(self.layers) and set(self.layers) == set(self.lazy_layers) and not self.killed.errors

    def to_json(self) -> dict[str, object]:
        return {
            "image_bytes": self.image_bytes,
            "accelerated_image_bytes": self.accelerated_bytes,
            "plain_start_s": round(self.plain.start_s, 3),
            "plain_fetched_bytes": self.plain.fetched_bytes,
            "lazy_start_s": round(self.lazy.start_s, 3),
            "lazy_fetched_bytes": self.lazy.fetched_bytes,
            "layers_total": len(self.layers),
            "layers_lazy": len(set(self.layers) & set(self.lazy_layers)),
            "kills": len(self.killed.kills_s),
            "kill_errors": len(self.killed.errors),
        }


def main() -> int:
    if os.geteuid() != 0:
        print("make demo needs root: it makes mounts and network namespaces", file=sys.stderr)
        return 1
    RESULTS.mkdir(parents=True, exist_ok=True)
    _say.print("[bold]image[/]  Debian, Python, pandas; built from package registries the first time (some minutes)")
    image = load(layout(PYTHON))
    with (
        clean_folder("demo") as folder,
        link() as wire,
        Registry(folder / "registry", listen=wire.far, port=PORT, netns=wire.namespace) as registry,
    ):
        source = push(registry, "demo/python", image, tag="v1")
        target = f"{source}-apparate"
        _say.print(f"[bold]convert[/]  {source} -> {target}")
        subprocess.run(command("convert", "--plain-http", source, target), env=environment(), check=True)
        wire.shape(RATE_MEGABIT * MEGABIT)
        outcome = _compare(folder, wire, source, target)
    return _report(outcome)


def _compare(folder: Path, wire: Link, source: str, target: str) -> Outcome:
    registries = [f"{wire.far}:{PORT}"]
    _say.print(f"[bold]plain[/]  containerd {CONTAINERD}, {RATE_MEGABIT} Mbit/s")
    with node(folder / "plain", CONTAINERD, snapshotter="overlayfs", plain_http=registries) as ordinary:
        plain = cold_start(ordinary.containerd, wire, source, PYTHON)
        _say.print(f"  first line after {plain.start_s:.1f} s")
        expected = _finished(_read_everything(ordinary, source))
    _say.print("[bold]accelerated[/]  the same with our snapshotter")
    with node(folder / "lazy", CONTAINERD, plain_http=registries) as ours:
        lazy = cold_start(ours.containerd, wire, target, PYTHON)
        _say.print(f"  first line after {lazy.start_s:.1f} s")
        killed = _read_under_fire(ours, wire, target, expected)
        image = stored(target)
        lazy_layers = ours.remote_layers()
        ours.containerd.remove_all()
        ours.assert_empty()
    return Outcome(stored(source).size, image.size, plain, lazy, image.digests, lazy_layers, killed)


def _read_everything(running: Node, reference: str) -> Container:
    cri = running.containerd.cri
    return cri.start(cri.run_pod("reader"), reference, ["sh", "-c", READ_ALL])


def _finished(reader: Container) -> str:
    return reader.wait_output(READ_DONE, READ_TIMEOUT_S)


def _read_under_fire(running: Node, wire: Link, reference: str, expected: str) -> KillRun:
    """Read the whole image while the loader is killed at even shares of the bytes that are still to come."""
    _say.print(f"[bold]kill -9[/]  the loader, {KILLS} times, while a container reads every file")
    remaining = stored(reference).size * 3 // 4
    drop_caches()
    kills: list[float] = []
    with Meter(wire) as meter:
        reader = _read_everything(running, reference)
        for number in range(1, KILLS + 1):
            goal = remaining * number // (KILLS + 2)
            _wait_for_bytes(meter, goal)
            victim = running.ours.kill_loader()
            kills.append(meter.now()[0])
            _say.print(f"  killed process {victim} after {kills[-1]:.1f} s")
        errors = _errors(reader, expected)
    return KillRun(errors, kills, meter.samples)


def _wait_for_bytes(meter: Meter, goal: int) -> None:
    wait_until(lambda: meter.now()[1] >= goal, f"{goal} bytes have arrived", READ_TIMEOUT_S)


def _errors(reader: Container, expected: str) -> list[str]:
    status = reader.wait(READ_TIMEOUT_S)
    lines = reader.output().splitlines()
    errors = [line for line in lines if line not in expected.splitlines()]
    if status:
        errors.append(f"the reader ended with {status}")
    elif reader.output() != expected and not errors:
        errors.append(f"the reader printed {lines}, not {expected.splitlines()}")
    return errors


def _report(outcome: Outcome) -> int:
    result = outcome.to_json()
    (RESULTS / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    curves = [
        Curve("plain containerd", outcome.plain.samples, outcome.plain.start_s),
        Curve("apparate", outcome.lazy.samples, outcome.lazy.start_s),
        Curve("apparate: everything read, loader killed", outcome.killed.samples, 0, outcome.killed.kills_s),
    ]
    timeline(RESULTS / "timeline.png", f"Python + pandas over {RATE_MEGABIT} Mbit/s", curves)
    table = Table(title=f"{outcome.image_bytes / 1e6:.0f} MB image over {RATE_MEGABIT} Mbit/s")
    for heading in ("", "first line", "fetched", "of the image"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, start in (("plain containerd", outcome.plain), ("apparate", outcome.lazy)):
        share = 100 * start.fetched_bytes / outcome.image_bytes
        table.add_row(name, f"{start.start_s:.1f} s", f"{start.fetched_bytes / 1e6:.1f} MB", f"{share:.0f} %")
    out = Console()
    out.print(table)
    out.print(f"layers loaded on demand: {result['layers_lazy']} of {result['layers_total']}")
    out.print(f"kill -9 in mid-read: {result['kills']} times, {result['kill_errors']} errors seen by the container")
    for error in outcome.killed.errors:
        out.print(f"  {error}", markup=False)
    out.print(f"results: {RESULTS.relative_to(REPOSITORY)}/result.json, timeline.png")
    return 0 if outcome.is_good else 1


if __name__ == "__main__":
    sys.exit(main())
