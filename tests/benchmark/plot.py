"""Plots of benchmark results."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

MEGABYTE = 1e6
_COLUMNS = 3
_COLOURS = ("tab:gray", "tab:orange", "tab:blue", "tab:green")


@dataclass(frozen=True, slots=True)
class Curve:
    """Bytes over time of one run, the moment of the first line, and other moments worth a mark."""

    label: str
    samples: Sequence[tuple[float, int]]
    ready_s: float
    marks: Sequence[float] = field(default=())


def timeline(path: Path, title: str, curves: Sequence[Curve]) -> None:
    """Draw what crossed the link over time; a dot, and the time in the legend, where the application said its first line."""
    import matplotlib as mpl  # slow to import, needed once

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(10, 5), layout="constrained")
    for curve in curves:
        times = [seconds for seconds, _ in curve.samples]
        label = f"{curve.label}, {curve.ready_s:.1f} s" if curve.ready_s else curve.label
        (line,) = axes.plot(times, [count / MEGABYTE for _, count in curve.samples], label=label)
        if curve.ready_s:
            height = max((count for seconds, count in curve.samples if seconds <= curve.ready_s), default=0) / MEGABYTE
            axes.plot([curve.ready_s], [height], "o", color=line.get_color())
        for mark in curve.marks:
            axes.axvline(mark, color=line.get_color(), linestyle=":", linewidth=1)
    axes.set_xlabel("seconds since the pull began")
    axes.set_ylabel("MB received")
    axes.set_title(title)
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def bars(path: Path, title: str, label: str, panels: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """Draw one panel for each condition, the first three on top: medians of the contenders, every sample as a dot."""
    import matplotlib as mpl  # as above

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    columns = min(_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(4.4 * columns, 0.6 + 2.1 * rows), layout="constrained", sharey=True, squeeze=False
    )
    for axes, (heading, values) in zip(grid.flat, panels.items(), strict=False):
        names = list(values)
        medians = [statistics.median(values[name]) for name in names]
        axes.barh(names, medians, color=[_COLOURS[number % len(_COLOURS)] for number in range(len(names))], alpha=0.6)
        for name, median in zip(names, medians, strict=True):
            axes.plot(values[name], [name] * len(values[name]), "o", color="black", markersize=3)
            axes.annotate(f"{median:.2f}", (max(values[name]), name), xytext=(5, -4), textcoords="offset points")
        axes.set_xlim(0, 1.18 * max(max(samples) for samples in values.values()))
        axes.set_title(heading, fontsize=10)
        axes.grid(visible=True, axis="x", alpha=0.3)
    grid.flat[0].invert_yaxis()
    for axes in [*grid.flat][len(panels) :]:
        axes.set_visible(False)
    figure.supxlabel(label, fontsize=10)
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
    plt.close(figure)
