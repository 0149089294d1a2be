"""Clusters for tests: made once for a run, with a namespace for each test."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.cluster.by_hand import prepare
from tests.support.cluster.cluster import Cluster
from tests.support.cluster.layout import MIXED, OLD
from tests.support.cluster.pods import Namespace
from tests.support.cluster.site import Site
from tests.support.cluster.site import site as make_site
from tests.support.cluster.workers import Workers
from tests.support.services import REPOSITORY

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def packages() -> Path:
    """What `make package` has built."""
    return Path(os.environ.get("CLUSTER_PACKAGES", REPOSITORY / "dist"))


@pytest.fixture(scope="session")
def next_packages() -> Path:
    """The same of another version, to upgrade to."""
    return Path(os.environ.get("CLUSTER_PACKAGES_NEXT", REPOSITORY / "build" / "next"))


@pytest.fixture(scope="session")
def site(packages: Path, next_packages: Path) -> Iterator[Site]:
    """Network and private registry of this run."""
    with make_site([packages, next_packages]) as made:
        yield made


@pytest.fixture(scope="session")
def mixed(site: Site) -> Cluster:
    """A new API server, old and new nodes; the node that is labelled later has no label."""
    made = Cluster(site, MIXED)
    made.start()
    return made


@pytest.fixture(scope="session")
def old(site: Site) -> Cluster:
    """Kubernetes 1.24 throughout, one node with containerd 1.4.3."""
    made = Cluster(site, OLD)
    made.start()
    return made


@pytest.fixture(scope="session")
def workers(mixed: Cluster) -> Workers:
    """The nodes of the mixed cluster, nothing of ours on them yet."""
    return Workers(mixed)


@pytest.fixture(scope="module")
def by_hand(mixed: Cluster, workers: Workers, packages: Path) -> None:
    """The labelled nodes are prepared by hand."""

    def prepared(name: str) -> None:
        prepare(mixed.machines[name], packages, mixed.site.registry.docker_config())

    workers.want("by hand", prepared, MIXED.labelled)


@pytest.fixture
def namespace(mixed: Cluster) -> Iterator[Namespace]:
    """A namespace of the mixed cluster for one test."""
    made = Namespace(mixed, f"test-{next(_numbers)}")
    made.create()
    yield made
    made.remove()
