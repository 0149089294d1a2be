"""Every rendering that the tests look at: each chart/ci/*-values.yaml on each version of Kubernetes, made once."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

from tests.support.chart_readme import CHART
from tests.support.helm import MONITORING, Document, documents, template
from tests.support.openapi import SUMS

NAMESPACE = "node-system"
VERSIONS = tuple(SUMS)
NEWEST = VERSIONS[-1]
FEATURES = tuple(sorted(path.name.removesuffix("-values.yaml") for path in (CHART / "ci").glob("*-values.yaml")))
GOLDEN_VERSIONS = {"restricted-cluster": "1.20.15"}
"""Features whose golden rendering is not that for the newest Kubernetes."""
GOLDEN = Path(__file__).parent / "golden"


def values(feature: str) -> Path:
    """Return the file of values that shows *feature*."""
    return CHART / "ci" / f"{feature}-values.yaml"


@functools.cache
def rendered(feature: str, version: str = NEWEST) -> tuple[Document, ...]:
    """Return the objects of *feature* on Kubernetes *version*. They are shared: nobody changes them."""
    return tuple(documents(template([values(feature)], kube=version, namespace=NAMESPACE, apis=[MONITORING])))


def one(objects: tuple[Document, ...], kind: str, name: str = "") -> Document:
    """Return the only object of *kind*, and of *name* if given."""
    (found,) = (each for each in objects if each["kind"] == kind and name in ("", each["metadata"]["name"]))
    return found


def golden(feature: str, program: str = "helm-4") -> str:
    """Return what *program* renders for *feature*, but for the dashboard, which is a file of its own."""
    version = GOLDEN_VERSIONS.get(feature, NEWEST)
    answer = template([values(feature)], kube=version, namespace=NAMESPACE, apis=[MONITORING], program=program)
    assert answer.code == 0, answer.errors
    dashboard = (CHART / "files/dashboard.json").read_text().rstrip("\n")
    text = answer.output.replace("\n\n---\n", "\n---\n")  # the helms differ in blank lines alone
    text = text.rstrip("\n") + "\n"
    return text.replace("\n".join(f"    {line}" for line in dashboard.splitlines()), "    (files/dashboard.json)")


def write_golden() -> Iterator[Path]:
    """Write every golden rendering anew."""
    GOLDEN.mkdir(exist_ok=True)
    for feature in FEATURES:
        path = GOLDEN / f"{feature}.yaml"
        path.write_text(golden(feature))
        yield path


if __name__ == "__main__":
    print(*write_golden(), sep="\n")
