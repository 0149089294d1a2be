"""containerd and its CRI plugin over their socket: `containerd.client.Containerd` and `Cri`."""

from __future__ import annotations

import datetime as dt
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import grpc
from google.protobuf.empty_pb2 import Empty
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from apparate.containerd.client import Container, Containerd, Cri, Image, Mount, Usage
from apparate.errors import FormatError, InvalidArgument, NotFound, Unsupported
from apparate.grpcapi._gen import containerd_pb2 as pb
from apparate.grpcapi._gen import cri_pb2, snapshots_pb2
from apparate.grpcapi._gen.mount_pb2 import Mount as MountMessage
from apparate.grpcapi.rpc import channel_to
from apparate.grpcapi.status import error_of
from apparate.oci.digest import Digest, Verifier
from apparate.oci.manifest import Descriptor

CALL_TIMEOUT_S: Final = 30.0
"""Answered from containerd's database."""
WORK_TIMEOUT_S: Final = 1800.0
"""Unpacking a layer, collecting what many images held."""
SANDBOX_TIMEOUT_S: Final = 30.0
"""Stopping or removing a pod that has no containers."""
LEASE_HOURS: Final = 24
"""What an interrupted run has half done is collected after that, as with containerd's own clients."""

_SERVICES: Final = "/containerd.services."
_CRI_VERSIONS: Final = ("v1", "v1alpha2")
"""The second alone is spoken by containerd 1.4 and 1.5, the first alone by 2.x."""
_SNAPSHOTTER_PLUGIN: Final = "io.containerd.snapshotter.v1"

_Kind = Callable[[bytes], Any]


@contextmanager
def connect(socket_path: Path) -> Iterator[tuple[Containerd, Cri]]:
    """Yield the daemon at *socket_path*. Nothing is asked yet; whoever asks learns whether it is there."""
    channel = channel_to(str(socket_path))
    try:
        calls = _Calls(channel, f"containerd at {socket_path}")
        yield ContainerdClient(calls), CriClient(calls)
    finally:
        channel.close()


class _Calls:
    """Calls by path of the method; each with the namespace and the lease that its thread is in."""

    def __init__(self, channel: grpc.Channel, peer: str) -> None:
        self._channel = channel
        self._peer = peer
        self._local = threading.local()

    def unary(
        self, method: str, request: Message, answer: _Kind, namespace: str = "", timeout_s: float = CALL_TIMEOUT_S
    ) -> Any:
        """Return the answer of *method*, a path. Raises what its status means."""
        call = self._channel.unary_unary(
            method, request_serializer=type(request).SerializeToString, response_deserializer=answer
        )
        try:
            return call(request, timeout=timeout_s, metadata=self._headers(namespace))
        except grpc.RpcError as error:
            raise error_of(error, self._peer) from error

    def stream(self, method: str, request: Message, answer: _Kind, namespace: str) -> Iterator[Any]:
        """Yield the answers of a streaming *method*. Raises what its status means."""
        call = self._channel.unary_stream(
            method, request_serializer=type(request).SerializeToString, response_deserializer=answer
        )
        try:
            yield from call(request, timeout=CALL_TIMEOUT_S, metadata=self._headers(namespace))
        except grpc.RpcError as error:
            raise error_of(error, self._peer) from error

    @contextmanager
    def leased(self, lease: str) -> Iterator[None]:
        """Send *lease* with every call of this thread."""
        before, self._local.lease = getattr(self._local, "lease", ""), lease
        try:
            yield
        finally:
            self._local.lease = before

    def _headers(self, namespace: str) -> list[tuple[str, str]]:
        lease = getattr(self._local, "lease", "")
        headers = [("containerd-namespace", namespace)] if namespace else []
        return [*headers, ("containerd-lease", lease)] if lease and namespace else headers


class ContainerdClient:
    """`containerd.client.Containerd`; the contract is there."""

    def __init__(self, calls: _Calls) -> None:
        self._calls = calls

    def version(self) -> str:
        answer = self._calls.unary(f"{_SERVICES}version.v1.Version/Version", Empty(), pb.VersionResponse.FromString)
        return str(answer.version).lstrip("v")

    def snapshotters(self) -> Sequence[str]:
        request = pb.PluginsRequest(filters=[f"type=={_SNAPSHOTTER_PLUGIN}"])
        path = f"{_SERVICES}introspection.v1.Introspection/Plugins"
        return [plugin.id for plugin in self._calls.unary(path, request, pb.PluginsResponse.FromString).plugins]

    def namespaces(self) -> Sequence[str]:
        path = f"{_SERVICES}namespaces.v1.Namespaces/List"
        answer = self._calls.unary(path, pb.ListNamespacesRequest(), pb.ListNamespacesResponse.FromString)
        return [namespace.name for namespace in answer.namespaces]

    def images(self, namespace: str) -> Sequence[Image]:
        path = f"{_SERVICES}images.v1.Images/List"
        answer = self._calls.unary(path, pb.ListImagesRequest(), pb.ListImagesResponse.FromString, namespace)
        return [Image(image.name, _descriptor(image.target)) for image in answer.images]

    def delete_image(self, namespace: str, name: str) -> None:
        request = pb.DeleteImageRequest(name=name, sync=True)
        try:
            self._calls.unary(
                f"{_SERVICES}images.v1.Images/Delete", request, Empty.FromString, namespace, WORK_TIMEOUT_S
            )
        except NotFound:
            return

    def containers(self, namespace: str) -> Sequence[Container]:
        path = f"{_SERVICES}containers.v1.Containers/List"
        answer = self._calls.unary(path, pb.ListContainersRequest(), pb.ListContainersResponse.FromString, namespace)
        return [Container(one.id, one.image, one.snapshotter, dict(one.labels)) for one in answer.containers]

    def has_content(self, namespace: str, digest: Digest) -> bool:
        try:
            self._info(namespace, digest)
        except NotFound:
            return False
        return True

    def read_content(self, namespace: str, digest: Digest, bytes_max: int) -> bytes:
        size = self._info(namespace, digest).size
        if size > bytes_max:
            raise FormatError("content store", str(digest), f"{size} bytes, at most {bytes_max} are read")
        verifier = Verifier(digest)
        parts = []
        path = f"{_SERVICES}content.v1.Content/Read"
        request = pb.ReadContentRequest(digest=str(digest))
        for part in self._calls.stream(path, request, pb.ReadContentResponse.FromString, namespace):
            verifier.update(part.data)
            parts.append(part.data)
        verifier.finish()
        return b"".join(parts)

    def label_content(self, namespace: str, digest: Digest, label: str, value: str) -> None:
        request = pb.UpdateContentRequest(
            info=pb.ContentInfo(digest=str(digest), labels={label: value}),
            update_mask=FieldMask(paths=[f"labels.{label}"]),
        )
        self._calls.unary(
            f"{_SERVICES}content.v1.Content/Update", request, pb.ContentInfoResponse.FromString, namespace
        )

    def apply(self, namespace: str, layer: Descriptor, mounts: Sequence[Mount]) -> Digest:
        request = pb.ApplyRequest(
            diff=pb.Descriptor(media_type=layer.media_type, digest=str(layer.digest), size=layer.size),
            mounts=[
                MountMessage(type=mount.type, source=mount.source, options=list(mount.options)) for mount in mounts
            ],
        )
        path = f"{_SERVICES}diff.v1.Diff/Apply"
        answer = self._calls.unary(path, request, pb.ApplyResponse.FromString, namespace, WORK_TIMEOUT_S)
        return Digest.parse(answer.applied.digest)

    @contextmanager
    def lease(self, namespace: str) -> Iterator[None]:
        lease = self._create_lease(namespace)
        try:
            with self._calls.leased(lease):
                yield
        finally:
            self._delete_lease(namespace, lease, sync=False)

    def collect(self, namespace: str) -> None:
        # A removal with `sync` is the one call that runs containerd's collector and waits for it.
        self._delete_lease(namespace, self._create_lease(namespace), sync=True)

    def on(self, namespace: str, snapshotter: str) -> SnapshotsOf:
        return SnapshotsOf(self._calls, namespace, snapshotter)

    def _info(self, namespace: str, digest: Digest) -> Any:
        request = pb.ContentInfoRequest(digest=str(digest))
        path = f"{_SERVICES}content.v1.Content/Info"
        return self._calls.unary(path, request, pb.ContentInfoResponse.FromString, namespace).info

    def _create_lease(self, namespace: str) -> str:
        expiry = dt.datetime.now(dt.UTC) + dt.timedelta(hours=LEASE_HOURS)
        request = pb.CreateLeaseRequest(
            id=f"apparate-{uuid.uuid4()}",
            labels={"containerd.io/gc.expire": expiry.strftime("%Y-%m-%dT%H:%M:%SZ")},
        )
        path = f"{_SERVICES}leases.v1.Leases/Create"
        return str(self._calls.unary(path, request, pb.CreateLeaseResponse.FromString, namespace).lease.id)

    def _delete_lease(self, namespace: str, lease: str, *, sync: bool) -> None:
        request = pb.DeleteLeaseRequest(id=lease, sync=sync)
        path = f"{_SERVICES}leases.v1.Leases/Delete"
        self._calls.unary(path, request, Empty.FromString, namespace, WORK_TIMEOUT_S)


class SnapshotsOf:
    """`containerd.client.Snapshots`; the contract is there."""

    def __init__(self, calls: _Calls, namespace: str, snapshotter: str) -> None:
        self._calls = calls
        self._namespace = namespace
        self._name = snapshotter

    def exists(self, name: str) -> bool:
        try:
            info = self._call("Stat", snapshots_pb2.StatSnapshotRequest(snapshotter=self._name, key=name)).info
        except NotFound:
            return False
        return bool(info.kind == snapshots_pb2.COMMITTED)

    def names(self) -> Sequence[str]:
        request = snapshots_pb2.ListSnapshotsRequest(snapshotter=self._name)
        answer = snapshots_pb2.ListSnapshotsResponse.FromString
        parts = self._calls.stream(f"{_SERVICES}snapshots.v1.Snapshots/List", request, answer, self._namespace)
        return [info.name for part in parts for info in part.info]

    def usage(self, name: str) -> Usage:
        answer = self._call("Usage", snapshots_pb2.UsageRequest(snapshotter=self._name, key=name))
        return Usage(answer.size, answer.inodes)

    def prepare(self, key: str, parent: str) -> Sequence[Mount]:
        request = snapshots_pb2.PrepareSnapshotRequest(snapshotter=self._name, key=key, parent=parent)
        return _mounts(self._call("Prepare", request).mounts)

    def view(self, key: str, parent: str) -> Sequence[Mount]:
        request = snapshots_pb2.ViewSnapshotRequest(snapshotter=self._name, key=key, parent=parent)
        return _mounts(self._call("View", request).mounts)

    def commit(self, name: str, key: str) -> None:
        self._call("Commit", snapshots_pb2.CommitSnapshotRequest(snapshotter=self._name, name=name, key=key))

    def remove(self, key: str) -> None:
        self._call("Remove", snapshots_pb2.RemoveSnapshotRequest(snapshotter=self._name, key=key))

    def _call(self, method: str, request: Message) -> Any:
        answers: dict[str, _Kind] = {
            "Stat": snapshots_pb2.StatSnapshotResponse.FromString,
            "Usage": snapshots_pb2.UsageResponse.FromString,
            "Prepare": snapshots_pb2.PrepareSnapshotResponse.FromString,
            "View": snapshots_pb2.ViewSnapshotResponse.FromString,
        }
        answer = answers.get(method, Empty.FromString)
        return self._calls.unary(f"{_SERVICES}snapshots.v1.Snapshots/{method}", request, answer, self._namespace)


class CriClient:
    """`containerd.client.Cri`; the contract is there. The version of CRI is found with the first call."""

    def __init__(self, calls: _Calls) -> None:
        self._calls = calls
        self._spoken = ""

    def version(self) -> str:
        answer = self._call("Version", cri_pb2.VersionRequest(), cri_pb2.VersionResponse.FromString)
        return str(answer.runtime_version).lstrip("v")

    def run_sandbox(self, name: str, cgroup_parent: str, labels: Mapping[str, str], timeout_s: float) -> str:
        config = cri_pb2.PodSandboxConfig(
            metadata=cri_pb2.PodSandboxMetadata(name=name, uid=str(uuid.uuid4()), namespace="apparate"),
            labels=dict(labels),
            linux=cri_pb2.LinuxPodSandboxConfig(
                cgroup_parent=cgroup_parent,
                security_context=cri_pb2.LinuxSandboxSecurityContext(
                    namespace_options=cri_pb2.NamespaceOption(network=cri_pb2.NODE)
                ),
            ),
        )
        request = cri_pb2.RunPodSandboxRequest(config=config)
        answer = self._call("RunPodSandbox", request, cri_pb2.RunPodSandboxResponse.FromString, timeout_s)
        return str(answer.pod_sandbox_id)

    def sandboxes(self, labels: Mapping[str, str]) -> Sequence[str]:
        request = cri_pb2.ListPodSandboxRequest(filter=cri_pb2.PodSandboxFilter(label_selector=dict(labels)))
        answer = self._call("ListPodSandbox", request, cri_pb2.ListPodSandboxResponse.FromString)
        return [item.id for item in answer.items]

    def remove_sandbox(self, sandbox_id: str) -> None:
        request = cri_pb2.PodSandboxRequest(pod_sandbox_id=sandbox_id)
        try:
            self._call("StopPodSandbox", request, Empty.FromString, SANDBOX_TIMEOUT_S)
            self._call("RemovePodSandbox", request, Empty.FromString, SANDBOX_TIMEOUT_S)
        except NotFound:
            return

    def _call(self, method: str, request: Message, answer: _Kind, timeout_s: float = CALL_TIMEOUT_S) -> Any:
        for version in (self._spoken,) if self._spoken else _CRI_VERSIONS:
            try:
                done = self._calls.unary(
                    f"/runtime.{version}.RuntimeService/{method}", request, answer, timeout_s=timeout_s
                )
            except Unsupported:
                continue
            self._spoken = version
            return done
        raise Unsupported(f"containerd does not answer CRI's {method}: its CRI plugin is disabled or did not load")


def _descriptor(message: pb.Descriptor) -> Descriptor:
    try:
        return Descriptor(message.media_type, Digest.parse(message.digest), message.size)
    except InvalidArgument as error:
        raise FormatError("containerd", "image target", str(error)) from error


def _mounts(messages: Sequence[MountMessage]) -> Sequence[Mount]:
    return [Mount(mount.type, mount.source, tuple(mount.options)) for mount in messages]
