"""Helm 3 and 4 as a user runs them, on our chart and without a cluster."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.chart_readme import CHART
from tests.support.peers import peer
from tests.support.scope import matrix_only

HELMS = (pytest.param("helm-3", marks=matrix_only), "helm-4")
"""For `parametrize`. The older one takes its turn in the long run: two minutes to build it would not fit into `make test`."""
MONITORING = "monitoring.coreos.com/v1"
TIMEOUT_S = 120.0

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a run of helm left: its exit code and all that it said."""

    code: int
    output: str
    errors: str


def helm(program: str, *arguments: str | Path, folder: Path | None = None) -> Answer:
    """Run *program*, `helm-3` or `helm-4`, and return what it answered."""
    command = [str(_program(program)), *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    return Answer(done.returncode, done.stdout, done.stderr)


@functools.cache
def _program(name: str) -> Path:
    return peer(name) / "helm"


def template(
    values: Iterable[Path] = (),
    settings: Iterable[str] = (),
    *,
    kube: str = "1.37.2",
    program: str = "helm-4",
    namespace: str = "node-system",
    apis: Iterable[str] = (),
    release: str = "apparate",
) -> Answer:
    """Render the chart with files of *values* and with *settings* as of `--set`, for a cluster of version *kube* that also has *apis*."""
    options: list[str | Path] = ["--namespace", namespace, "--kube-version", kube]
    for path in values:
        options += ["--values", path]
    for setting in settings:
        options += ["--set", setting]
    for api in apis:
        options += ["--api-versions", api]
    return helm(program, "template", release, CHART, *options)


def documents(answer: Answer) -> list[Document]:
    """Return the objects of a successful rendering."""
    assert answer.code == 0, answer.errors
    return [found for found in yaml.safe_load_all(answer.output) if found]


def pod_specs(objects: Iterable[Document]) -> list[tuple[str, Document]]:
    """Return every pod specification with the name of the object it is in."""
    found = []
    for each in objects:
        if each["kind"] == "Pod":
            found.append((each["metadata"]["name"], each["spec"]))
        elif "template" in each.get("spec", {}):
            found.append((each["metadata"]["name"], each["spec"]["template"]["spec"]))
    return found


def containers(spec: Mapping[str, Any]) -> list[Document]:
    """Return the containers of a pod, those that prepare it first."""
    return [*spec.get("initContainers", []), *spec["containers"]]
