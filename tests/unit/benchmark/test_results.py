"""Results of benchmarks: kept between runs, summed up, and turned into the page that users read."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tests.benchmark.bench import PARTS
from tests.benchmark.cells import CURVE_POINTS, Cell, Results, Round, summary, thin
from tests.benchmark.report import PAGE, page
from tests.benchmark.starts import in_turn
from tests.benchmark.targets import fastest_peer, limit_s, losses, targets

CELL = Cell("start", "python", 100)
SECONDS = {"containerd": 20.0, "stargz": 6.0, "apparate": 6.5, "apparate_profile": 2.0}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results.json"


def started(seconds: dict[str, float], megabytes: float = 10) -> Round:
    return Round(
        {
            name: {"start_s": value, "pull_s": value / 2, "fetched_bytes": megabytes * 1e6}
            for name, value in seconds.items()
        },
        {name: [(0.0, 0), (value, 100)] for name, value in seconds.items()},
    )


def limits(compressed: float, warm_s: float) -> Round:
    sample = {"touched_bytes": 3 * compressed, "compressed_bytes": compressed, "cold_s": 2 * warm_s, "warm_s": warm_s}
    return Round({"containerd": sample}, {})


def test_another_run_goes_on_where_the_first_one_ended(path: Path) -> None:
    Results(path).add(CELL, started(SECONDS))
    again = Results(path)
    assert again.rounds(CELL) == 1
    again.add(CELL, started({name: value + 1 for name, value in SECONDS.items()}))
    assert Results(path).values(CELL, "stargz", "start_s") == [6.0, 7.0]
    assert Results(path).median(CELL, "stargz", "start_s") == 6.5


def test_a_forgotten_cell_begins_anew(path: Path) -> None:
    results = Results(path)
    results.add(CELL, started(SECONDS))
    results.forget(CELL)
    assert results.rounds(CELL) == 0


def test_results_of_another_machine_are_not_mixed(path: Path) -> None:
    Results(path).add(CELL, started(SECONDS))
    document = json.loads(path.read_text())
    document["machine"]["cores"] += 1
    path.write_text(json.dumps(document))
    with pytest.raises(AssertionError, match="another machine"):
        Results(path).add(CELL, started(SECONDS))


def test_rounds_on_a_busy_machine_are_told(path: Path) -> None:
    results = Results(path)
    results.add(CELL, started(SECONDS))
    assert results.disturbed() == (0, 1)
    assert "other work" not in page(results)
    results.add(CELL, replace(started(SECONDS), busy_share=0.5))
    assert results.disturbed() == (1, 2)
    assert "**1 of 2 rounds began while other work used the machine" in page(results)


def test_percentile_of_few_samples_is_the_greatest() -> None:
    assert summary([3.0, 1.0, 2.0]) == {"median": 2.0, "p95": 3.0}
    assert summary([float(number) for number in range(1, 101)]) == {"median": 50.5, "p95": 95.0}


def test_a_thinned_curve_keeps_its_end() -> None:
    curve = [(float(number), number) for number in range(1000)]
    kept = thin(curve)
    assert len(kept) <= CURVE_POINTS + 10
    assert kept[0] == (0.0, 0)
    assert kept[-1] == (999.0, 999)
    assert thin(curve[:1])[-1] == (0.0, 0)


def test_every_contender_begins_once() -> None:
    numbers = range(4)
    orders = [in_turn(numbers, number) for number in numbers]  # type: ignore[arg-type]  # any sequence will do
    assert sorted(order[0] for order in orders) == [*numbers]  # type: ignore[type-var]  # as above
    assert all(sorted(order) == [*numbers] for order in orders)  # type: ignore[type-var]  # as above


def test_the_limit_is_touched_bytes_over_the_rate_and_a_warm_start(path: Path) -> None:
    results = Results(path)
    assert limit_s(results, CELL) is None
    results.add(Cell("limit", "python"), limits(12.5e6, 0.5))
    assert limit_s(results, CELL) == pytest.approx(1.5)
    assert limit_s(results, replace(CELL, rate_mbit=1000)) == pytest.approx(0.6)
    assert limit_s(results, replace(CELL, rate_mbit=0)) == pytest.approx(0.5)


def test_a_cell_in_which_a_peer_is_faster_is_a_loss(path: Path) -> None:
    results = Results(path)
    results.add(CELL, started(SECONDS))
    assert fastest_peer(results, CELL) == ("stargz", 6.0)
    assert [(loss.ours, loss.peer, loss.peer_s) for loss in losses(results)] == [("apparate", "stargz", 6.0)]
    assert "| 100 Mbit/s, 0 ms | apparate | 6.50 s | stargz | 6.00 s |" in page(results)


def test_aims_are_judged_by_the_medians(path: Path) -> None:
    results = Results(path)
    results.add(CELL, started(SECONDS, megabytes=25))
    results.add(Cell("limit", "python"), limits(12.5e6, 0.5))
    judged = {target.what: target.is_met for target in targets(results)}
    assert judged == {
        "Python, 100 Mbit/s: fetched with a profile": False,
        "Python, 100 Mbit/s: fetched without": True,
        "Python, 100 Mbit/s: stargz over ours with a profile": True,
        "Python, 100 Mbit/s: start over its limit": False,
    }


def test_every_part_has_cells_of_its_own() -> None:
    cells = [cell for part in PARTS.values() for cell in part.cells]
    assert len({cell.name for cell in cells}) == len(cells)
    assert {cell.part for cell in cells} == set(PARTS)
    assert len(PARTS["start"].cells) == 4 * 3 * 2


def test_the_page_is_made_from_the_results() -> None:
    assert PAGE.read_text() == page(Results())
