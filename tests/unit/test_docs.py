"""What a user can meet is in the documentation."""

from pathlib import Path

import pytest

from apparate.cli.main import COMMANDS
from apparate.telemetry.metrics import REGISTRY

ROOT = Path(__file__).parents[2]


def _metric_names() -> list[str]:
    kinds = {"counter": "_total"}
    return [family.name + kinds.get(family.type, "") for family in REGISTRY.collect()]


@pytest.mark.parametrize("name", _metric_names())
def test_every_metric_is_documented(name: str) -> None:
    assert f"`{name}`" in (ROOT / "snapshotter/docs/metrics.md").read_text()


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_subcommand_is_in_the_readme(name: str) -> None:
    assert f"apparate {name}" in (ROOT / "README.md").read_text()
