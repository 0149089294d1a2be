"""What a full run measures, and where its results are kept: one file, written after every round, so that a run goes on
where another has ended."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.support.services import REPOSITORY

RESULTS = REPOSITORY / "tests" / "benchmark" / "results"
CURVE_POINTS = 60
QUIET_SHARE = 0.1  # what the kernel and idle services use at most
Sample = Mapping[str, float]
Curve = Sequence[tuple[float, int]]


@dataclass(frozen=True, slots=True)
class Cell:
    """One question under one condition. `rate_mbit` 0: not shaped; `rtt_ms` 0: as short as the machine makes it."""

    part: str
    image: str
    rate_mbit: int = 0
    rtt_ms: int = 0

    @property
    def name(self) -> str:
        return f"{self.part}/{self.image}/{self.rate_mbit}/{self.rtt_ms}"

    @property
    def link(self) -> str:
        """The condition in words."""
        rate = f"{self.rate_mbit} Mbit/s" if self.rate_mbit else "unshaped"
        return f"{rate}, {self.rtt_ms} ms"


@dataclass(frozen=True, slots=True)
class Round:
    """One sample of each contender, taken one after the other.

    Attributes:
        busy_share: how much of the processors others used before it began, 0 to 1.
    """

    samples: Mapping[str, Sample]
    curves: Mapping[str, Curve]
    busy_share: float = 0.0


class Results:
    """The results in one file."""

    def __init__(self, path: Path = RESULTS / "results.json") -> None:
        self._path = path
        self._cells: dict[str, dict[str, Any]] = {}
        self.machine = _machine()
        if path.exists():
            document = json.loads(path.read_text())
            self.machine = document["machine"]
            self._cells = {_cell(entry).name: entry for entry in document["cells"]}

    def rounds(self, cell: Cell) -> int:
        """How many rounds of *cell* there are."""
        return len(self._cells[cell.name]["rounds"]) if cell.name in self._cells else 0

    def cells(self, part: str) -> Iterator[Cell]:
        """The measured cells of *part*."""
        return (cell for cell in map(_cell, self._cells.values()) if cell.part == part)

    def values(self, cell: Cell, contender: str, field: str) -> list[float]:
        """The samples of one quantity, round by round."""
        return [float(each["samples"][contender][field]) for each in self._cells[cell.name]["rounds"]]

    def median(self, cell: Cell, contender: str, field: str) -> float:
        return statistics.median(self.values(cell, contender, field))

    def contenders(self, cell: Cell) -> list[str]:
        """Who took part, in the order of the first round."""
        return list(self._cells[cell.name]["rounds"][0]["samples"])

    def curves(self, cell: Cell) -> dict[str, Curve]:
        """Bytes over time, of the last round."""
        found = self._cells[cell.name].get("curves", {})
        return {name: [(seconds, int(count)) for seconds, count in points] for name, points in found.items()}

    def commits(self) -> list[str]:
        """The commits of which there are samples, oldest first."""
        rounds = [each for entry in self._cells.values() for each in entry["rounds"]]
        return list(dict.fromkeys(each["commit"] for each in sorted(rounds, key=lambda each: str(each["taken"]))))

    def disturbed(self) -> tuple[int, int]:
        """How many rounds began on a machine that others used, and how many there are."""
        shares = [each["busy_share"] for entry in self._cells.values() for each in entry["rounds"]]
        return sum(share > QUIET_SHARE for share in shares), len(shares)

    def forget(self, cell: Cell) -> None:
        """Begin *cell* anew."""
        self._cells.pop(cell.name, None)

    def add(self, cell: Cell, found: Round) -> None:
        """Add a round and write the file.

        Raises:
            AssertionError: the file has results of another machine or kernel; they do not belong together.
        """
        if self.machine != _machine():
            raise AssertionError(f"{self._path} is of another machine, {self.machine}: move it away first")
        entry = self._cells.setdefault(cell.name, {**asdict(cell), "rounds": []})
        taken = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        entry["rounds"].append(
            {"taken": taken, "commit": _commit(), "busy_share": found.busy_share, "samples": found.samples}
        )
        if found.curves:
            entry["curves"] = {name: thin(curve) for name, curve in found.curves.items()}
        names = self.contenders(cell)
        entry["summary"] = {
            name: {field: summary(self.values(cell, name, field)) for field in found.samples[name]} for name in names
        }
        self._write()

    def _write(self) -> None:
        """One cell a line: whoever looks at a change sees which cells it is about."""
        lines = ",\n".join(json.dumps(self._cells[name]) for name in sorted(self._cells))
        self._path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self._path.with_suffix(".new")
        fresh.write_text(f'{{"machine": {json.dumps(self.machine)},\n"cells": [\n{lines}\n]}}\n')
        fresh.rename(self._path)


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median and 95th percentile (nearest rank: of fewer than twenty samples the greatest)."""
    ordered = sorted(values)
    return {"median": statistics.median(ordered), "p95": ordered[math.ceil(0.95 * len(ordered)) - 1]}


def thin(curve: Curve) -> Curve:
    """At most about `CURVE_POINTS` points of *curve*, the last one among them."""
    step = max(1, len(curve) // CURVE_POINTS)
    kept = [*curve[::step], curve[-1]]
    return [(round(seconds, 3), count) for seconds, count in kept]


def _cell(entry: Mapping[str, Any]) -> Cell:
    return Cell(entry["part"], entry["image"], entry["rate_mbit"], entry["rtt_ms"])


def _machine() -> dict[str, Any]:
    return {"cores": os.cpu_count(), "kernel": platform.release(), "architecture": platform.machine()}


def _commit() -> str:
    command = ["git", "-C", str(REPOSITORY), "rev-parse", "--short=12", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
