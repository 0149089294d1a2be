"""The seam between the configuration of a node and the containerd that is configured.

`Containerd` is implemented over gRPC by `grpcapi.containerd_client`; tests have a fake. A namespace is containerd's: the images and
containers of Kubernetes are in `K8S`.

Errors common to all methods: `Unavailable` when containerd does not answer, else the class of containerd's own answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Final, Protocol

from apparate.oci.digest import Digest
from apparate.oci.manifest import Descriptor

K8S: Final = "k8s.io"
"""The namespace of everything that came through CRI."""
SNAPSHOT_REFERENCE: Final = "containerd.io/gc.ref.snapshot."
"""With a snapshotter's name: label of an image's configuration that keeps the image's top snapshot there."""


@dataclass(frozen=True, slots=True)
class Image:
    """One name in the image store; several names may have one target."""

    name: str
    target: Descriptor


@dataclass(frozen=True, slots=True)
class Container:
    """A record of a container, running or not; a pod's sandbox is one too."""

    id: str
    image: str
    snapshotter: str
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Mount:
    """One mount(2) that gives a part of a snapshot."""

    type: str
    source: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """What a snapshot occupies by itself."""

    size: int
    inodes: int


class Snapshots(Protocol):
    """One snapshotter in one namespace, through containerd's metadata."""

    def exists(self, name: str) -> bool:
        """Say whether there is a committed snapshot *name*."""

    def names(self) -> Sequence[str]:
        """Return the names and keys of all snapshots."""

    def usage(self, name: str) -> Usage:
        """Return what snapshot *name* occupies. Raises NotFound."""

    def prepare(self, key: str, parent: str) -> Sequence[Mount]:
        """Make the active snapshot *key*. Raises NotFound (the parent), AlreadyExists."""

    def view(self, key: str, parent: str) -> Sequence[Mount]:
        """Make the read-only view *key* of the committed snapshot *parent*."""

    def commit(self, name: str, key: str) -> None:
        """Make the committed snapshot *name* of *key*. Raises AlreadyExists."""

    def remove(self, key: str) -> None:
        """Remove a snapshot. Raises NotFound, FailedPrecondition (it has children)."""


class Containerd(Protocol):
    """A running containerd."""

    def version(self) -> str:
        """Return the version that runs, as `1.6.20`, which may differ from the program on disk."""

    def snapshotters(self) -> Sequence[str]:
        """Return the names of the snapshotters that are loaded, proxies among them."""

    def namespaces(self) -> Sequence[str]:
        """Return all namespaces."""

    def images(self, namespace: str) -> Sequence[Image]:
        """Return all images."""

    def delete_image(self, namespace: str, name: str) -> None:
        """Remove an image's name; what it alone held is collected before this returns. A missing one is no error."""

    def containers(self, namespace: str) -> Sequence[Container]:
        """Return all containers."""

    def has_content(self, namespace: str, digest: Digest) -> bool:
        """Say whether the blob is in the content store."""

    def read_content(self, namespace: str, digest: Digest, bytes_max: int) -> bytes:
        """Return a blob, verified. Raises NotFound, FormatError (larger than *bytes_max*), IntegrityError."""

    def label_content(self, namespace: str, digest: Digest, label: str, value: str) -> None:
        """Set a label of a blob; an empty *value* removes it. Raises NotFound."""

    def apply(self, namespace: str, layer: Descriptor, mounts: Sequence[Mount]) -> Digest:
        """Unpack a layer of the content store into a snapshot; return its diff id. Raises NotFound (the blob)."""

    def lease(self, namespace: str) -> AbstractContextManager[None]:
        """Keep what this thread makes in *namespace* meanwhile from being collected."""

    def collect(self, namespace: str) -> None:
        """Have what nothing refers to removed before this returns."""

    def on(self, namespace: str, snapshotter: str) -> Snapshots:
        """Return the snapshots of one snapshotter."""


class Cri(Protocol):
    """What kubelet sees of the same daemon."""

    def version(self) -> str:
        """Return the runtime's version as CRI gives it; it answers when the plugin has recovered."""

    def run_sandbox(self, name: str, cgroup_parent: str, labels: Mapping[str, str], timeout_s: float) -> str:
        """Start a pod without containers in the host's network, under the default runtime, within *timeout_s*; return its id."""

    def sandboxes(self, labels: Mapping[str, str]) -> Sequence[str]:
        """Return the ids of pods that have all *labels*."""

    def remove_sandbox(self, sandbox_id: str) -> None:
        """Stop and remove a pod; a missing one is no error."""


def container_name(container: Container) -> str:
    """Return how people call *container*: `namespace/pod/container` of Kubernetes, else its id."""
    labels = container.labels
    pod = labels.get("io.kubernetes.pod.name")
    if not pod:
        return container.id
    parts = (
        labels.get("io.kubernetes.pod.namespace", ""),
        pod,
        labels.get("io.kubernetes.container.name", "(sandbox)"),
    )
    return "/".join(part for part in parts if part)


def each_container(daemon: Containerd, snapshotter: str) -> Iterator[tuple[str, Container]]:
    """Yield namespace and record of every container that stands on *snapshotter*."""
    for namespace in daemon.namespaces():
        for container in daemon.containers(namespace):
            if container.snapshotter == snapshotter:
                yield namespace, container
