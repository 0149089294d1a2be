"""The installed chart as people see it: its pods, what it says of nodes, its events and logs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tests.support.cluster.api import ApiError, Document
from tests.support.cluster.cluster import Cluster, condition_of
from tests.support.cluster.helm import NAMESPACE, RELEASE, Chart

READY: Final = "ApparateReady"
ANNOTATION: Final = "apparate.cloud.tencent.com/"
AGENT_TIMEOUT_S: Final = 180.0
PORT: Final = 9464
_SELECTOR: Final = f"app.kubernetes.io/instance={RELEASE},app.kubernetes.io/component=agent"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the agent says of its node: the condition `ApparateReady`."""

    status: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Release:
    """The chart on *cluster*."""

    cluster: Cluster
    chart: Chart

    def agents(self) -> dict[str, Document]:
        """The agent's pods that have a node and are not on their way out, by node."""
        found = [pod for pod in self.cluster.api.pods(NAMESPACE, _SELECTOR) if pod["spec"].get("nodeName")]
        return {pod["spec"]["nodeName"]: pod for pod in found if not pod["metadata"].get("deletionTimestamp")}

    def agent(self, node: str) -> str:
        """Name of the agent's pod on *node*."""
        return str(self.agents()[node]["metadata"]["name"])

    def verdict(self, node: str) -> Verdict:
        for condition in self.cluster.api.node(node)["status"]["conditions"]:
            if condition["type"] == READY:
                return Verdict(condition["status"], condition.get("reason", ""), condition.get("message", ""))
        return Verdict("", "", "")

    def annotation(self, node: str, name: str) -> str:
        return str(self.cluster.api.node(node)["metadata"].get("annotations", {}).get(ANNOTATION + name, ""))

    def wait_ready(self, *nodes: str, timeout_s: float = AGENT_TIMEOUT_S) -> None:
        """Wait until exactly these nodes have the agent, each pod ready and of the release's present revision, each node well.

        Raises:
            AssertionError: not in time; the message has what is known about it.
        """
        try:
            self.cluster.wait(
                lambda: self._is_ready(set(nodes)), f"the agent is ready on {', '.join(nodes)}", timeout_s
            )
        except TimeoutError as error:
            raise AssertionError(f"{error}\n{self.report()}") from error

    def wait_verdict(self, node: str, status: str, reason: str, timeout_s: float = AGENT_TIMEOUT_S) -> Verdict:
        """Wait until the agent says *status* and *reason* of *node*; return all that it says."""

        def said() -> Verdict | None:
            now = self.verdict(node)
            return now if (now.status, now.reason) == (status, reason) else None

        try:
            return self.cluster.wait(said, f"{node} is {status}, {reason}", timeout_s)
        except TimeoutError as error:
            raise AssertionError(f"{error}\n{self.report()}") from error

    def events(self, node: str) -> list[str]:
        """What events about *node* say: `reason: message`."""
        return self.cluster.api.events("default", node)

    def wait_event(self, node: str, reason: str) -> str:
        """Wait for an event about *node* for this *reason*; return it."""

        def said() -> str | None:
            return next((event for event in self.events(node) if event.startswith(f"{reason}: ")), None)

        return self.cluster.wait(said, f"an event {reason} about {node}", AGENT_TIMEOUT_S)

    def logs(self, node: str) -> str:
        """What both containers of the agent's pod on *node* have logged since they were started last."""
        return self.cluster.kubectl("logs", f"--namespace={NAMESPACE}", self.agent(node), "--all-containers=true")

    def metrics(self, node: str) -> str:
        """The agent's page of metrics, also while `prepare` serves it."""
        return self.cluster.api.text(f"/api/v1/namespaces/{NAMESPACE}/pods/{self.agent(node)}:{PORT}/proxy/metrics")

    def restart(self, node: str) -> None:
        """Delete the agent's pod on *node*, so that the next one begins at once."""
        self.cluster.kubectl("delete", "pod", f"--namespace={NAMESPACE}", self.agent(node), "--wait=true")

    def report(self) -> str:
        """All that is known about the agents, for the message of a failure."""
        lines = []
        for node, pod in self.agents().items():
            lines += [f"--- {node}: {self.verdict(node)}", *self.events(node)]
            lines += self.cluster.api.events(NAMESPACE, pod["metadata"]["name"])
            words = ("logs", f"--namespace={NAMESPACE}", pod["metadata"]["name"], "--all-containers=true", "--tail=40")
            lines.append(self.cluster.kubectl.status_of(*words)[1])
        return "\n".join(lines)

    def _is_ready(self, nodes: set[str]) -> bool:
        try:
            daemon = self.cluster.api.get(f"/apis/apps/v1/namespaces/{NAMESPACE}/daemonsets/{RELEASE}")
            agents = self.agents()
        except ApiError:
            return False
        status = daemon["status"]
        settled = (
            status.get("observedGeneration") == daemon["metadata"]["generation"]
            and status["desiredNumberScheduled"] == status.get("updatedNumberScheduled") == len(nodes)
            and status.get("numberReady") == len(nodes)
        )
        return (
            settled
            and set(agents) == nodes
            and all(condition_of(pod, "Ready") == "True" for pod in agents.values())
            and all(self.verdict(node).status == "True" for node in nodes)
        )
