"""The nodes of a cluster that tests share, and what they are prepared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from tests.support.cluster.cluster import Cluster


class Workers:
    """What the nodes of the mixed cluster are prepared with; a module that wants something else gets new ones."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._state = ""

    def want(self, state: str, prepare: Callable[[str], None], names: Sequence[str]) -> None:
        """Have the nodes in *state*: new ones with *prepare* called for each of *names*, side by side."""
        if self._state == state:
            return
        with ThreadPoolExecutor(len(self._cluster.nodes)) as pool:
            if self._state:
                list(pool.map(lambda machine: self._cluster.renew(machine.name), self._cluster.nodes))
            list(pool.map(prepare, names))
        self._state = state
