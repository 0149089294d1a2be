"""The table of values in chart/README.md, made from the comments in chart/values.yaml as helm-docs reads them.

python -m tests.support.chart_readme      # writes the table anew
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).resolve().parents[2] / "chart"
README = CHART / "README.md"
_HEADING = "## Values\n"
_KEY = re.compile(r"^(?P<indent> *)(?P<name>[A-Za-z]+):")
_COMMENT = re.compile(r"^ *# (?P<text>.*)$")
_NESTED = (
    "imagePullSecretsCrs",
    "image",
    "global",
    "networkPolicy",
    "podMonitor",
    "serviceMonitor",
    "prometheusRule",
    "dashboard",
    "tests",
)
"""Values whose parts have comments of their own; any other map is one value."""


@dataclass(frozen=True, slots=True)
class Value:
    """One value of the chart: its dotted name, its default, what its comment says."""

    name: str
    default: object
    text: str


def readme() -> str:
    """Return the text of chart/README.md with the table of today."""
    before, heading, _ = README.read_text().partition(_HEADING)
    rows = [f"| `{value.name}` | {_default(value.default)} | {_cell(value.text)} |" for value in values()]
    return "\n".join([f"{before}{heading}", "| value | default | what |", "|---|---|---|", *rows, ""])


def defaults() -> dict[str, Any]:
    """Return the chart's values.yaml."""
    loaded: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
    return loaded


def values() -> Iterator[Value]:
    """Yield every documented value in the order of values.yaml."""
    comments = _comments()
    for name, default in _leaves(defaults()):
        if comments.get(name) or name not in _NESTED:
            shown = "" if name in _NESTED else default
            yield Value(name, shown, comments.get(name, ""))


def _leaves(tree: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    for name, value in tree.items():
        yield name, value
        if name in _NESTED:
            yield from ((f"{name}.{inner}", below) for inner, below in value.items())


def _comments() -> dict[str, str]:
    """Return the comment above each key of the first two levels; `# --` begins one."""
    found: dict[str, str] = {}
    parent, lines = "", list[str]()
    for line in (CHART / "values.yaml").read_text().splitlines():
        comment, key = _COMMENT.match(line), _KEY.match(line)
        if comment:
            lines.append(comment["text"])
            continue
        if key and len(key["indent"]) <= 2:
            name = f"{parent}.{key['name']}" if key["indent"] else key["name"]
            parent = parent if key["indent"] else key["name"]
            if lines and lines[0].startswith("-- "):
                found[name] = " ".join(lines).removeprefix("-- ")
        lines = []
    return found


def _default(value: object) -> str:
    return "" if value == "" else f"`{json.dumps(value)}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    README.write_text(readme())
