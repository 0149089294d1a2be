"""What the product aims at, held against results; and where it loses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tests.benchmark.cells import Cell, Results

PEERS = ("containerd", "stargz")
OURS = ("apparate", "apparate_profile")
PROFILED = "apparate_profile"
_MEGABYTE = 1e6


@dataclass(frozen=True, slots=True)
class Target:
    """One aim: what was wanted, what was measured."""

    what: str
    wanted: str
    measured: str
    is_met: bool


@dataclass(frozen=True, slots=True)
class Loss:
    """A cell in which *peer* starts sooner than *ours*."""

    cell: Cell
    ours: str
    ours_s: float
    peer: str
    peer_s: float


def fastest_peer(results: Results, cell: Cell) -> tuple[str, float]:
    """The peer with the smallest median in *cell*, and that median in seconds."""
    return min(((name, results.median(cell, name, "start_s")) for name in PEERS), key=lambda found: found[1])


def limit_s(results: Results, cell: Cell) -> float | None:
    """The least time that a start in *cell* can take: touched bytes over the rate, and the start itself."""
    limit = Cell("limit", cell.image)
    if not results.rounds(limit):
        return None
    sent_s = 0.0
    if cell.rate_mbit:
        sent_s = results.median(limit, "containerd", "compressed_bytes") * 8 / (cell.rate_mbit * 1e6)
    return sent_s + results.median(limit, "containerd", "warm_s")


def losses(results: Results) -> list[Loss]:
    """Every cell and form of ours in which a peer is faster."""
    found = []
    for cell in results.cells("start"):
        peer, peer_s = fastest_peer(results, cell)
        for ours in OURS:
            ours_s = results.median(cell, ours, "start_s")
            if ours_s > peer_s:
                found.append(Loss(cell, ours, ours_s, peer, peer_s))
    return found


def targets(results: Results) -> list[Target]:
    """Every aim of which the cells were measured."""
    return [*_python(results), *_java(results), *_reading(results), *_attaching(results), *_converting(results)]


def _python(results: Results) -> Iterator[Target]:
    cell, fast = Cell("start", "python", 100), Cell("start", "python", 1000)
    if results.rounds(cell):
        ours_s = results.median(cell, PROFILED, "start_s")
        yield _at_most("Python, 100 Mbit/s: fetched with a profile", 20, _megabytes(results, cell, PROFILED), " MB")
        yield _at_most("Python, 100 Mbit/s: fetched without", 32, _megabytes(results, cell, "apparate"), " MB")
        stargz_s = results.median(cell, "stargz", "start_s")
        yield _at_least("Python, 100 Mbit/s: stargz over ours with a profile", 2.5, stargz_s / ours_s)
        if (limit := limit_s(results, cell)) is not None:
            yield _at_most("Python, 100 Mbit/s: start over its limit", 1.3, ours_s / limit)
    if results.rounds(fast):
        times = fastest_peer(results, fast)[1] / results.median(fast, PROFILED, "start_s")
        yield _at_least("Python, 1 Gbit/s: best peer over ours with a profile", 1.8, times)


def _java(results: Results) -> Iterator[Target]:
    cell = Cell("start", "java", 100)
    if results.rounds(cell):
        yield _at_most("JRE, 100 Mbit/s: fetched with a profile", 12, _megabytes(results, cell, PROFILED), " MB")
        times = results.median(cell, "stargz", "start_s") / results.median(cell, PROFILED, "start_s")
        yield _at_least("JRE, 100 Mbit/s: stargz over ours with a profile", 4, times)


def _reading(results: Results) -> Iterator[Target]:
    for cell in results.cells("read"):
        times = _ratio(results, cell, "start_s")
        yield _at_most(f"{cell.image}, {cell.link}: full read over pull and read", 1.1, times)
    for cell in results.cells("walk"):
        for field in ("cold_s", "warm_s"):
            caches = field.removesuffix("_s")
            yield _at_most(f"{cell.image}: walk with {caches} caches over ext4", 1.1, _ratio(results, cell, field))


def _attaching(results: Results) -> Iterator[Target]:
    for cell in results.cells("attach"):
        for name, what, limit_ms in (("embedded", "embedded", 50), ("from_toc", "built from a TOC", 1000)):
            took_ms = 1000 * results.median(cell, name, "attach_s")
            yield _at_most(f"60,000 entries, index {what}: attach", limit_ms, took_ms, " ms")


def _converting(results: Results) -> Iterator[Target]:
    for cell in results.cells("convert"):
        ours, theirs = (results.median(cell, name, "cpu_s") for name in ("apparate", "stargz"))
        yield _at_least(f"{cell.image}: CPU of the estargz converter over ours", 5, theirs / ours)
        growth = results.median(cell, "apparate", "bytes") / results.median(cell, "apparate", "plain_bytes")
        yield _at_most(f"{cell.image}: size of the accelerated over the plain image", 1.05, growth)


def _megabytes(results: Results, cell: Cell, name: str) -> float:
    return results.median(cell, name, "fetched_bytes") / _MEGABYTE


def _ratio(results: Results, cell: Cell, field: str) -> float:
    return results.median(cell, "apparate", field) / results.median(cell, "containerd", field)


def _at_most(what: str, limit: float, value: float, unit: str = "") -> Target:
    return Target(what, f"<= {limit:g}{unit}", f"{_digits(value)}{unit}", value <= limit)


def _at_least(what: str, limit: float, value: float) -> Target:
    return Target(what, f">= {limit:g}", _digits(value), value >= limit)


def _digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
