"""Which machines a cluster has, what runs on them, and every address."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

LABEL: Final = "cloud.tencent.com/apparate"
REGISTRY_HOST: Final = "registry.k8s.test"
PAUSE: Final = "k8s.test/pause:1"
"""The sandbox image: on every node from its first boot, in no registry."""
DISK_BYTES: Final = 6 << 30
"""Of a node's own disk, a sparse file; `df` there and kubelet's accounting see this and nothing of the machine's."""
REGISTRY_IP: Final = 5
CONTROL_IP: Final = 10
CONTROL: Final = "control"
API_PORT: Final = 6443


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """A worker: its name in Kubernetes, and the versions it runs."""

    name: str
    kubernetes: str
    containerd: str

    @property
    def is_old(self) -> bool:
        """Whether its kubelet is from before CRI v1 and takes by flag what the newer ones take from a file."""
        return _minor(self.kubernetes) < 26


@dataclass(frozen=True, slots=True)
class ClusterSpec:
    """A control plane and its nodes.

    Attributes:
        index: tells clusters in one network apart; decides about addresses.
        kubernetes: version of the control plane.
        labelled: nodes that carry the label when the cluster is handed over.
    """

    name: str
    index: int
    kubernetes: str
    nodes: tuple[NodeSpec, ...]
    labelled: tuple[str, ...] = ()

    @property
    def services(self) -> str:
        return f"10.{96 + self.index}.0.0/16"

    @property
    def api_service(self) -> str:
        """The address at which pods find the API server."""
        return f"10.{96 + self.index}.0.1"

    @property
    def pods(self) -> str:
        """Every pod's address lies in it."""
        return f"10.{191 + self.index}.0.0/16"

    def pods_of(self, node: NodeSpec) -> str:
        return f"10.{191 + self.index}.{self.nodes.index(node) + 1}.0/24"

    def ip_of(self, name: str, network: int) -> str:
        """Address of the machine *name* in the podman network number *network*."""
        names = [CONTROL, *(node.name for node in self.nodes)]
        return f"10.91.{network}.{CONTROL_IP * (self.index + 1) + names.index(name)}"


def _minor(version: str) -> int:
    return int(version.split(".")[1])


OLD_NODE: Final = NodeSpec("node-old", "1.24.17", "1.4.3")
NEW_NODE: Final = NodeSpec("node-new", "1.34.4", "2.4.2")
LATE_NODE: Final = NodeSpec("node-late", "1.34.4", "2.4.2")
MIXED: Final = ClusterSpec(
    "mixed", 0, "1.34.4", (OLD_NODE, NEW_NODE, LATE_NODE), labelled=(OLD_NODE.name, NEW_NODE.name)
)
"""Old and new nodes below a new API server: far outside the supported skew, and the cheapest way to see both at work."""
OLD: Final = ClusterSpec("old", 1, "1.24.17", (OLD_NODE,), labelled=(OLD_NODE.name,))
"""What depends on an old API server."""
CLUSTERS: Final = {spec.name: spec for spec in (MIXED, OLD)}
