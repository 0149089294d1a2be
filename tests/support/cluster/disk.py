"""A node's own disk: how full it is, and making it full."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from tests.support.cluster.cluster import Cluster
from tests.support.cluster.machine import Machine
from tests.support.cluster.settings import EVICTION_FREE_PERCENT

PLACE: Final = "/var/lib/node/disk"
_FILLER: Final = f"{PLACE}/filler"
SHORT_BY: Final = 8 << 20
"""How much less than kubelet wants is left free: less than one unused image of the tests gives back."""


@dataclass(frozen=True, slots=True)
class Disk:
    """The disk below containerd and kubelet of *machine*."""

    machine: Machine

    def sizes(self) -> tuple[int, int]:
        """Size, and bytes that are free for everybody."""
        block, total, free = self.machine.run("stat", "--file-system", "--format=%S %b %a", PLACE).split()
        return int(block) * int(total), int(block) * int(free)

    @contextlib.contextmanager
    def short_of_room(self) -> Iterator[None]:
        """The disk is a little fuller than kubelet's eviction threshold allows. The blocks are reserved, not written."""
        size, free = self.sizes()
        length = free - size * EVICTION_FREE_PERCENT // 100 + SHORT_BY
        self.machine.run("fallocate", "--length", str(length), _FILLER)
        try:
            yield
        finally:
            self.machine.run("rm", "--force", _FILLER)


def images_on(cluster: Cluster, node: str) -> set[str]:
    """Names of the images that *node* has, by its containerd."""
    listed = cluster.machines[node].run("ctr", "--namespace=k8s.io", "images", "list", "--quiet")
    return {line for line in listed.splitlines() if not line.startswith("sha256:")}
