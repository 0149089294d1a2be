"""What tests say about apparate on a node: by bytes that the registry has served, and by the node's own account."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final

from tests.support.cluster.api import ApiError
from tests.support.cluster.images import LAZY_SHARE_MAX, App
from tests.support.cluster.machine import Machine
from tests.support.cluster.pods import Namespace

APPARATE: Final = "/opt/apparate/current/bin/apparate"
READ_ALL: Final = ("sh", "-c", "cat /data/* | sha256sum")
READ_ROUNDS: Final = 3
READ_TIMEOUT_S: Final = 120.0
LAZY_MODES: Final = {"lazy", "complete"}


@dataclass(frozen=True, slots=True)
class Start:
    """A pod that has started: how many bytes of its image the registry served, and how its layers are on the node."""

    served: int
    modes: tuple[str, ...]


def start(namespace: Namespace, name: str, app: App, *, node: str, lazy: bool = True) -> Start:
    """Start a pod of *app* (accelerated with *lazy*) on *node*, read one file of it, and say what that took."""
    site, ip = namespace.cluster.site, namespace.cluster.ip_of(node)
    before = site.registry.served_bytes(ip, app.repository)
    reference = app.lazy if lazy else app.plain
    namespace.start_pod(name, reference, node=node)
    digest = namespace.exec(name, "sha256sum", app.last_file).split()[0]
    if digest != app.last_digest:
        raise AssertionError(f"{node}: {app.last_file} of {reference} has digest {digest}")
    served = site.registry.served_bytes(ip, app.repository) - before
    return Start(served, modes(namespace.cluster.machines[node], reference))


def assert_lazy(started: Start, app: App) -> None:
    """The pod was started on demand."""
    assert started.served <= LAZY_SHARE_MAX * app.data_bytes, f"not lazy: {started} of {app.data_bytes} bytes"
    assert started.modes, "the node does not know the image"
    assert set(started.modes) <= LAZY_MODES, f"not lazy: {started}"


def assert_full(started: Start, app: App) -> None:
    """The whole image was pulled before the pod started."""
    assert started.served >= app.data_bytes, f"not pulled in full: {started} of {app.data_bytes} bytes"
    assert not set(started.modes) & {"lazy"}, f"lazy all the same: {started}"


def modes(machine: Machine, reference: str) -> tuple[str, ...]:
    """How each layer of *reference* is on the node, by its own account; nothing where apparate is not installed."""
    if machine.status_of("test", "-x", APPARATE)[0]:
        return ()
    for image in json.loads(machine.run(APPARATE, "images", "--json"))["images"]:
        if image["reference"] == reference:
            return tuple(str(layer["mode"]) for layer in image["layers"])
    return ()


@dataclass(frozen=True, slots=True)
class Reader:
    """A pod that reads its whole image again and again, and says what it has seen."""

    namespace: Namespace
    pod: str
    container: str

    @classmethod
    def start(cls, namespace: Namespace, pod: str, app: App, node: str) -> Reader:
        """Start it from the accelerated image of *app* on *node*."""
        check = f'[ "$(cat /data/* | sha256sum)" = "{app.all_digest}  -" ] || echo FAILED'
        loop = f"while :; do {check}; n=$((n+1)); echo round $n; sleep 0.2; done"
        namespace.start_pod(pod, app.lazy, ("sh", "-c", f"n=0; {loop}"), node=node)
        return cls(namespace, pod, namespace.status(pod)["containerID"])

    def goes_on(self) -> None:
        """Wait for some more rounds."""
        before = self.namespace.cluster.wait(self._rounds, f"{self.pod} has begun", READ_TIMEOUT_S)
        self.namespace.cluster.wait(
            lambda: self._rounds() >= before + READ_ROUNDS, f"{self.pod} reads on", READ_TIMEOUT_S
        )

    def assert_unharmed(self) -> None:
        """It is the container from before, and no round has failed."""
        status = self.namespace.status(self.pod)
        assert (status["containerID"], status["restartCount"]) == (self.container, 0)
        said = self.namespace.logs(self.pod)
        assert "FAILED" not in said, said
        assert "rror" not in said, said

    def _rounds(self) -> int:
        try:
            return self.namespace.logs(self.pod).count("round ")
        except ApiError:  # kubelet or containerd starts anew
            return 0
