"""Plots of benchmark results."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

MEGABYTE = 1e6


@dataclass(frozen=True, slots=True)
class Curve:
    """Bytes over time of one run, the moment of the first line, and other moments worth a mark."""

    label: str
    samples: Sequence[tuple[float, int]]
    ready_s: float
    marks: Sequence[float] = field(default=())


def timeline(path: Path, title: str, curves: Sequence[Curve]) -> None:
    """Draw what crossed the link over time; a dot where the application said its first line."""
    import matplotlib as mpl  # slow to import, needed once

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(10, 5), layout="constrained")
    for curve in curves:
        times = [seconds for seconds, _ in curve.samples]
        (line,) = axes.plot(times, [count / MEGABYTE for _, count in curve.samples], label=curve.label)
        if curve.ready_s:
            height = max((count for seconds, count in curve.samples if seconds <= curve.ready_s), default=0) / MEGABYTE
            axes.plot([curve.ready_s], [height], "o", color=line.get_color())
            axes.annotate(
                f"{curve.ready_s:.1f} s", (curve.ready_s, height), xytext=(6, -12), textcoords="offset points"
            )
        for mark in curve.marks:
            axes.axvline(mark, color=line.get_color(), linestyle=":", linewidth=1)
    axes.set_xlabel("seconds since the pull began")
    axes.set_ylabel("MB received")
    axes.set_title(title)
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def bars(path: Path, title: str, values: Mapping[str, Sequence[float]]) -> None:
    """Draw the median of each contender's seconds, with every sample as a dot."""
    import matplotlib as mpl  # as above

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 3.5), layout="constrained")
    names = list(values)
    axes.barh(names, [statistics.median(values[name]) for name in names], color="tab:blue", alpha=0.5)
    for name in names:
        axes.plot(values[name], [name] * len(values[name]), "o", color="black", markersize=3)
    axes.invert_yaxis()
    axes.set_xlabel("seconds from the pull to the first line")
    axes.set_title(title)
    figure.savefig(path, dpi=120)
    plt.close(figure)
