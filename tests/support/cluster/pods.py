"""Pods of one namespace, as tests make and watch them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tests.support.cluster.api import Document
from tests.support.cluster.cluster import Cluster, condition_of

START_TIMEOUT_S: Final = 120.0
END_TIMEOUT_S: Final = 120.0
PULL_SECRET: Final = "site-registry"
SLEEP: Final = ("sh", "-c", "echo started; sleep 2000000000")
CONTAINER: Final = "main"


@dataclass(frozen=True, slots=True)
class Namespace:
    """A namespace with a pull Secret for the private registry."""

    cluster: Cluster
    name: str

    def create(self) -> None:
        """Make it, and wait until pods can be made in it."""
        config = self.cluster.site.registry.docker_config()
        self.cluster.kubectl.apply(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.name}},
            secret(PULL_SECRET, self.name, config),
        )
        account = f"/api/v1/namespaces/{self.name}/serviceaccounts/default"
        self.cluster.wait(lambda: self.cluster.api.find(account), f"{self.name} has its service account")

    def remove(self) -> None:
        """Delete its pods, wait until they are gone, and leave the rest to Kubernetes."""
        self.cluster.kubectl("delete", "pods", f"--namespace={self.name}", "--all", "--wait=true", "--timeout=120s")
        self.cluster.kubectl("delete", "namespace", self.name, "--wait=false")

    def create_pod(
        self,
        name: str,
        image: str,
        command: Sequence[str] = SLEEP,
        *,
        node: str = "",
        pull_secret: str = PULL_SECRET,
        container: Mapping[str, Any] | None = None,
        spec: Mapping[str, Any] | None = None,
    ) -> None:
        """Make a pod of one container on *node* (or where the scheduler likes); *container* and *spec* are more fields of these."""
        main = {"name": CONTAINER, "image": image, "command": list(command), **(container or {})}
        body: dict[str, Any] = {"containers": [main], "terminationGracePeriodSeconds": 1, **(spec or {})}
        if node:
            body["nodeName"] = node
        if pull_secret:
            body["imagePullSecrets"] = [{"name": pull_secret}]
        metadata = {"name": name, "namespace": self.name, "labels": {"app": name}}
        self.cluster.kubectl.apply({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": body})

    def start_pod(
        self, name: str, image: str, command: Sequence[str] = SLEEP, *, node: str = "", **more: Any
    ) -> Document:
        """Make a pod and wait until it is ready."""
        self.create_pod(name, image, command, node=node, **more)
        return self.wait_ready(name)

    def wait_ready(self, name: str, timeout_s: float = START_TIMEOUT_S) -> Document:
        """Wait until the pod is ready; return it.

        Raises:
            AssertionError: it is not, in time; the message has its status and events.
        """
        try:
            self.cluster.wait(lambda: condition_of(self.pod(name), "Ready") == "True", f"{name} is ready", timeout_s)
        except TimeoutError as error:
            status = json.dumps(self.pod(name)["status"], indent=1)
            raise AssertionError(f"{error}\n{status}\n" + "\n".join(self.events(name))) from error
        return self.pod(name)

    def wait_restarted(self, name: str) -> None:
        """Wait until the pod's container runs again after its node was switched off; kubelet may not have noticed yet."""

        def is_back() -> bool:
            if not self.cluster.api.is_ready():
                return False
            status = self.status(name)
            return status.get("restartCount", 0) > 0 and bool(status["ready"])

        self.cluster.wait(is_back, f"{name} is back", START_TIMEOUT_S)

    def wait_ended(self, name: str) -> str:
        """Wait until the pod has ended, and return its phase."""
        ended = {"Succeeded", "Failed"}
        self.cluster.wait(lambda: self.pod(name)["status"]["phase"] in ended, f"{name} ends", END_TIMEOUT_S)
        return str(self.pod(name)["status"]["phase"])

    def delete_pod(self, name: str) -> None:
        """Delete the pod and wait until it is gone."""
        self.cluster.kubectl("delete", "pod", f"--namespace={self.name}", name, "--wait=true", "--timeout=60s")

    def pod(self, name: str) -> Document:
        found = self.cluster.api.pod(self.name, name)
        if found is None:
            raise AssertionError(f"there is no pod {name} in {self.name}")
        return found

    def status(self, name: str) -> Document:
        """Status of the pod's container: `containerID`, `restartCount`, `state`."""
        statuses = self.pod(name)["status"].get("containerStatuses")
        return dict(statuses[0]) if statuses else {}

    def events(self, name: str) -> list[str]:
        return self.cluster.api.events(self.name, name)

    def wait_event(self, name: str, part: str) -> str:
        """Wait until an event about the pod says *part*, in whatever case; return it."""

        def said() -> str | None:
            return next((event for event in self.events(name) if part.lower() in event.lower()), None)

        return self.cluster.wait(said, f"an event about {name} says {part!r}", START_TIMEOUT_S)

    def logs(self, name: str) -> str:
        return self.cluster.api.text(f"/api/v1/namespaces/{self.name}/pods/{name}/log")

    def exec(self, name: str, *command: str) -> str:
        return self.cluster.kubectl.exec(self.name, name, *command)


def secret(name: str, namespace: str, docker_config: str) -> Document:
    """A Secret with the credentials of registries."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": namespace},
        "type": "kubernetes.io/dockerconfigjson",
        "stringData": {".dockerconfigjson": docker_config},
    }
