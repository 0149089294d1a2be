"""What can be said of the chart's files without helm."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from jsonschema import Draft7Validator
from tests.support.chart_readme import CHART, README, defaults, readme, values

ROOT = CHART.parent
SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())
FEATURES = sorted(path.name for path in (CHART / "ci").iterdir())
FREE = {"imagePullSecretsCrs", "image", "global", "imagePullSecrets"}
"""Values of more than one form; the templates or other charts say what may be in them."""


def test_readme_has_the_table_of_today() -> None:
    """`python -m tests.support.chart_readme` writes it."""
    assert README.read_text() == readme()


def test_every_value_says_what_it_is_for() -> None:
    assert [value.name for value in values() if not value.text.endswith(".")] == []


def test_versions_are_those_of_the_package() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (chart["name"], chart["version"]) == ("apparate", "1.0.0")
    assert chart["appVersion"] == project["version"]


def test_schema_is_one_and_takes_the_defaults() -> None:
    Draft7Validator.check_schema(SCHEMA)
    assert list(Draft7Validator(SCHEMA).iter_errors(defaults())) == []


@pytest.mark.parametrize("name", FEATURES)
def test_schema_takes_every_feature(name: str) -> None:
    given = {**defaults(), **yaml.safe_load((CHART / "ci" / name).read_text())}
    assert list(Draft7Validator(SCHEMA).iter_errors(given)) == []


def test_schema_and_defaults_have_the_same_values() -> None:
    assert set(SCHEMA["properties"]) == set(defaults())
    for name, default in defaults().items():
        below = SCHEMA["properties"][name].get("properties")
        if isinstance(default, dict) and below is not None and name not in FREE:
            assert set(below) == set(default)


def _objects(schema: object, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(schema, dict):
        if "properties" in schema and "type" in schema:
            yield path, schema
        for key, value in schema.items():
            yield from _objects(value, f"{path}/{key}")


def test_unknown_values_are_refused_everywhere_but_in_what_charts_share() -> None:
    assert [path for path, each in _objects(SCHEMA) if each.get("additionalProperties") is not False] == [
        "/properties/global"
    ]


def _metrics(text: str) -> set[str]:
    names = re.findall(r"\bapparate_[a-z_]+", text)
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in names}


@pytest.mark.parametrize("path", ["files/dashboard.json", "templates/prometheusrule.yaml"])
def test_dashboard_and_alerts_use_metrics_that_exist(path: str) -> None:
    documented = set(re.findall(r"`(apparate_[a-z_]+)`", (ROOT / "snapshotter/docs/metrics.md").read_text()))
    used = _metrics((CHART / path).read_text())
    assert used
    assert used - documented == set()


def test_dashboard_asks_what_prometheus_understands() -> None:
    panels = json.loads((CHART / "files/dashboard.json").read_text())["panels"]
    for panel in panels:
        for target in panel["targets"]:
            promql_parser.parse(target["expr"].replace("$__rate_interval", "5m").replace("$node", "node"))


def test_dashboard_says_of_each_panel_what_it_means() -> None:
    dashboard = json.loads((CHART / "files/dashboard.json").read_text())
    panels = dashboard["panels"]
    assert [panel["title"] for panel in panels if len(panel["description"]) < 20] == []
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    assert len(set(places)) == len(places)


@pytest.mark.parametrize("path", sorted((CHART / "templates").glob("*.yaml")), ids=lambda path: path.name)
def test_every_right_and_every_folder_has_its_reason(path: Path) -> None:
    """A comment stands before each hostPath volume, each RBAC rule and each set of rights of a container."""
    lines = path.read_text().splitlines()
    bare = []
    for number, line in enumerate(lines):
        begins_rule = re.match(r" +- apiGroups:", line)
        begins_folder = re.match(r" +- name:", line) and "hostPath:" in "".join(lines[number + 1 : number + 2])
        if begins_rule or begins_folder:
            above = [each.strip() for each in lines[:number] if not each.strip().startswith("{{-")]
            if not above[-1].startswith("#"):
                bare.append(f"{path.name}:{number + 1}: {line.strip()}")
    assert bare == []
