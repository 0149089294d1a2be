"""The page of figures and its plots, made from the results alone.

python -m tests.benchmark.report
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.benchmark.cells import RESULTS, Cell, Results
from tests.benchmark.plot import Curve, bars, timeline
from tests.benchmark.targets import OURS, PEERS, fastest_peer, limit_s, losses, targets
from tests.support.services import REPOSITORY

PAGE = REPOSITORY / "snapshotter" / "docs" / "benchmarks.md"
_PLOTS = "../../tests/benchmark/results"
_NAMES = {"containerd": "containerd", "stargz": "stargz", "apparate": "apparate", "apparate_profile": "with a profile"}
_TITLES = {
    "python": "Python + pandas",
    "java": "JRE, hello world",
    "layers": "40 layers, a file of each is read",
    "node": "Node.js, 30,000 small files",
}
_HEAD = """\
# Benchmarks

Made by `make bench` from `tests/benchmark/results/results.json`, which holds every sample; do not edit. All contenders run in one
run, on one machine, through one link. Medians; time and bytes are of a cold start: from the request to pull until containerd logged
the application's first line. Bytes are what the link brought by then, headers included.
"""
_METHOD = """\
## How it is measured

| contender | what it is | its image |
|---|---|---|
| containerd | containerd 2.4.2 with overlayfs | plain, gzip |
| stargz | stargz-snapshotter 0.19.1 with its defaults: prefetch and background fetch | eStargz by its own converter, the files of the profile first |
| apparate | our two services with their defaults | `apparate convert` |
| with a profile | the same | `apparate convert --prefetch`, the list of `apparate profile` after one start with `record_profiles` |

- A registry (Debian's, plain HTTP) stands in a network namespace behind a token bucket in both directions. A round trip is made longer
  by holding back everything that enters the namespace; `tests/integration/test_link.py` proves rate, round trip and counts.
- Each sample has a node of its own that has never seen the image. It is up, with a pod, when the clock starts: no start of a daemon is counted
  for anyone. Then all caches of the machine are dropped, and what the registry will send is read into them again.
- Contenders take turns within a round, and another one begins each round, so that what disturbs the machine disturbs all of them.
- Both lazy contenders are given the same recorded start.
- *Touched* are the pages of the layers that a start brings into memory from a disk without read-ahead (mincore), compressed as one gzip stream.
  The *limit* of a link is these bytes over its rate plus the start of the image when it is on the node and in memory. No loader can be faster.
- Conversion counts CPU seconds: ours with reading from the registry, verifying and the upload, the foreign one without pull and push.

## Run it

```sh
make bench QUICK=1     # the Python image at 100 Mbit/s, three rounds, some minutes: build/bench/result.json
make bench             # everything, five rounds, about an hour and a half
```

Results are written after each round and a run goes on where the last one ended, so it can be cut in slices and cells can be chosen:

```sh
.venv/bin/python -m tests.benchmark.bench --part start --image python --rate 100 --rtt 20 --repetitions 3 --minutes 5
.venv/bin/python -m tests.benchmark.bench --list       # all cells; --again forgets what there is of the chosen ones
```
"""


def write(results: Results) -> None:
    """Write the page and the plots."""
    PAGE.write_text(page(results))
    for image in _images(results):
        draw(results, image, RESULTS)


def page(results: Results) -> str:
    """The page; parts that were not measured are left out."""
    sections = [_HEAD + _machine(results), _verdict(results), _losses(results)]
    sections += [_starts(results, image) for image in _images(results)]
    sections += [part(results) for part in (_limits, _reads, _walks, _attach, _conversion, _memory)]
    return "\n".join(section for section in [*sections, _METHOD] if section)


def draw(results: Results, image: str, folder: Path) -> None:
    """One plot of all starts of *image*, one of the bytes over time on the slowest link."""
    cells = [cell for cell in _start_cells(results) if cell.image == image]
    panels = {
        cell.link: {_NAMES[name]: results.values(cell, name, "start_s") for name in results.contenders(cell)}
        for cell in cells
    }
    bars(folder / f"start-{image}.png", _TITLES[image], "seconds from the pull to the first line", panels)
    cell = cells[0]
    curves = [
        Curve(_NAMES[name], samples, results.values(cell, name, "start_s")[-1])
        for name, samples in results.curves(cell).items()
    ]
    timeline(folder / f"bytes-{image}.png", f"{_TITLES[image]}: {cell.link}", curves)


def _machine(results: Results) -> str:
    rounds = sorted({results.rounds(cell) for cell in _start_cells(results)})
    if not rounds:
        return ""
    count = f"{rounds[0]} to {rounds[-1]}" if len(rounds) > 1 else str(rounds[0])
    where = f"{results.machine['cores']} cores ({results.machine['architecture']}), Linux {results.machine['kernel']}"
    disturbed, total = results.disturbed()
    others = (
        f"**{disturbed} of {total} rounds began while other work used the machine: their times are no figures of a quiet one.**\n"
        if disturbed
        else ""
    )
    return f"\n{where}; rounds of each cell: {count}; commits {', '.join(results.commits())}.\n{others}"


def _verdict(results: Results) -> str:
    rows = [[each.what, each.wanted, each.measured, "yes" if each.is_met else "**no**"] for each in targets(results)]
    return "## Aims\n\n" + _table(["aim", "wanted", "measured", "met"], rows) if rows else ""


def _losses(results: Results) -> str:
    cells = len(list(_start_cells(results)))
    rows = [
        [
            _TITLES[loss.cell.image],
            loss.cell.link,
            _NAMES[loss.ours],
            f"{loss.ours_s:.2f} s",
            _NAMES[loss.peer],
            f"{loss.peer_s:.2f} s",
        ]
        for loss in sorted(losses(results), key=lambda loss: _order(loss.cell))
    ]
    lost = _table(["image", "link", "ours", "", "faster", ""], rows) if rows else "None.\n"
    return f"## Losses\n\nStarts in which a peer was faster, of {cells} images and links:\n\n{lost}" if cells else ""


def _starts(results: Results, image: str) -> str:
    cells = [cell for cell in _start_cells(results) if cell.image == image]
    rows = []
    for cell in cells:
        row = [cell.link]
        for name in (*PEERS, *OURS):
            fetched = results.median(cell, name, "fetched_bytes") / 1e6
            row.append(f"{results.median(cell, name, 'start_s'):.2f} s, {fetched:.1f} MB")
        profiled = results.median(cell, OURS[-1], "start_s")
        row.append(f"{fastest_peer(results, cell)[1] / profiled:.2f}")
        limit = limit_s(results, cell)
        row.append(f"{limit:.2f} s, {profiled / limit:.2f}" if limit else "")
        rows.append(row)
    headings = ["link", *(_NAMES[name] for name in (*PEERS, *OURS)), "best peer / profile", "limit, profile / limit"]
    plots = f"![starts]({_PLOTS}/start-{image}.png)\n![bytes over time]({_PLOTS}/bytes-{image}.png)\n"
    return f"## {_TITLES[image]}\n\n{_table(headings, rows)}\n{plots}"


def _limits(results: Results) -> str:
    rows = []
    for cell in results.cells("limit"):
        touched, compressed, cold, warm = (
            results.median(cell, "containerd", field)
            for field in ("touched_bytes", "compressed_bytes", "cold_s", "warm_s")
        )
        sizes = [f"{touched / 1e6:.1f} MB", f"{compressed / 1e6:.1f} MB"]
        rows.append([_TITLES[cell.image], *sizes, f"{cold:.2f} s", f"{warm:.2f} s"])
    headings = ["image", "touched", "compressed", "start from the node's disk", "from its memory"]
    return "## What a start needs at least\n\n" + _table(headings, rows) if rows else ""


def _reads(results: Results) -> str:
    rows = [
        [_TITLES[cell.image], cell.link, *_pair(results, cell, "start_s")]
        for cell in sorted(results.cells("read"), key=_order)
    ]
    headings = ["image", "link", "containerd", "apparate", "ratio"]
    return "## Pull and read every byte\n\n" + _table(headings, rows) if rows else ""


def _walks(results: Results) -> str:
    rows = [
        [_TITLES[cell.image], caches, *_pair(results, cell, field)]
        for cell in sorted(results.cells("walk"), key=_order)
        for caches, field in (("cold", "cold_s"), ("warm", "warm_s"))
    ]
    headings = ["image", "caches", "overlayfs on ext4", "apparate", "ratio"]
    return (
        "## Walk through all metadata\n\n`find / -xdev -printf` of size, mode, owner and time.\n\n"
        + _table(headings, rows)
        if rows
        else ""
    )


def _attach(results: Results) -> str:
    rows = [
        [what, f"{results.median(cell, name, 'attach_s') * 1000:.0f} ms"]
        for cell in results.cells("attach")
        for name, what in (("embedded", "embedded"), ("from_toc", "built from the TOC of an eStargz layer"))
    ]
    return "## Make a layer of 60,000 entries known\n\n" + _table(["index", ""], rows) if rows else ""


def _conversion(results: Results) -> str:
    rows = []
    for cell in sorted(results.cells("convert"), key=_order):
        plain = results.median(cell, "apparate", "plain_bytes")
        for name, what in (("apparate", "apparate convert"), ("stargz", "estargz converter")):
            cpu, wall, size = (results.median(cell, name, field) for field in ("cpu_s", "wall_s", "bytes"))
            image = f"{size / 1e6:.1f} MB, {size / plain:.3f} of the plain one"
            rows.append([_TITLES[cell.image], what, f"{cpu:.1f} s", f"{wall:.1f} s", image])
    return "## Conversion\n\n" + _table(["image", "", "CPU", "took", "result"], rows) if rows else ""


def _memory(results: Results) -> str:
    rows = []
    for cell in results.cells("memory"):
        for name in results.contenders(cell):
            sizes = [results.median(cell, name, field) for field in ("before_bytes", "peak_bytes", "after_bytes")]
            rows.append([_NAMES[name], *(f"{size / 1e6:.0f} MB" for size in sizes)])
    text = "## Memory of the daemons\n\nProportional set size of all their processes, Python image, 100 Mbit/s.\n\n"
    return text + _table(["", "before", "greatest during the start", "after the first line"], rows) if rows else ""


def _pair(results: Results, cell: Cell, field: str) -> list[str]:
    plain, ours = (results.median(cell, name, field) for name in ("containerd", "apparate"))
    return [f"{plain:.2f} s", f"{ours:.2f} s", f"{ours / plain:.2f}"]


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _images(results: Results) -> list[str]:
    measured = {cell.image for cell in results.cells("start")}
    return [image for image in _TITLES if image in measured]


def _start_cells(results: Results) -> Iterator[Cell]:
    return iter(sorted(results.cells("start"), key=_order))


def _order(cell: Cell) -> tuple[int, int, float]:
    """Images as they are titled, links from slow to fast, short round trips first."""
    return list(_TITLES).index(cell.image), cell.rtt_ms, cell.rate_mbit or float("inf")


def main() -> int:
    write(Results())
    return 0


if __name__ == "__main__":
    sys.exit(main())
