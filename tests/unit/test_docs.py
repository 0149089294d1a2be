"""What a user can meet is in the documentation."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from apparate.cli.main import COMMANDS
from apparate.telemetry.metrics import AGENT, REGISTRY

ROOT = Path(__file__).parents[2]


def _metric_names() -> list[str]:
    kinds = {"counter": "_total"}
    return [family.name + kinds.get(family.type, "") for registry in (REGISTRY, AGENT) for family in registry.collect()]


@pytest.mark.parametrize("name", _metric_names())
def test_every_metric_is_documented(name: str) -> None:
    assert f"`{name}`" in (ROOT / "snapshotter/docs/metrics.md").read_text()


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_subcommand_is_in_the_readme(name: str) -> None:
    assert f"apparate {name}" in (ROOT / "README.md").read_text()


def _events() -> Iterator[str]:
    """Yield the sentence of every log call at level info or above."""
    for path in sorted((ROOT / "snapshotter/apparate").rglob("*.py")):
        tree = ast.parse(path.read_text())
        constants = dict(_constants(tree))
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and _is_loud(node.func):
                said = node.args[0]
                if isinstance(said, ast.Constant):
                    yield str(said.value)
                elif isinstance(said, ast.Name) and said.id in constants:
                    yield constants[said.id]


def _constants(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in tree.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        value = getattr(node, "value", None)
        if isinstance(target, ast.Name) and isinstance(value, ast.Constant) and isinstance(value.value, str):
            yield target.id, value.value


def _is_loud(function: ast.Attribute) -> bool:
    is_logger = isinstance(function.value, ast.Name) and function.value.id in {"log", "_log"}
    return is_logger and function.attr in {"info", "warning", "error", "exception"}


def test_every_event_of_the_log_is_documented() -> None:
    documented = (ROOT / "snapshotter/docs/debug.md").read_text()
    events = set(_events())
    assert len(events) > 40
    assert [event for event in sorted(events) if f"`{event}`" not in documented] == []
