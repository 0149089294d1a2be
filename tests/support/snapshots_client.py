"""containerd's side of the snapshots service: what its proxy client sends, without containerd."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
from tests.support.processes import run

from apparate.grpcapi._gen import snapshots_pb2 as pb
from apparate.grpcapi.rpc import Stub, channel_to
from apparate.grpcapi.snapshots import SERVICE

TIMEOUT_S = 60.0


class SnapshotsClient:
    """A connection to a snapshotter's socket. A context manager."""

    def __init__(self, socket: Path) -> None:
        self._channel = channel_to(str(socket))
        self._stub = Stub(self._channel, SERVICE)

    def __enter__(self) -> Self:
        grpc.channel_ready_future(self._channel).result(TIMEOUT_S)
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        self._channel.close()

    def call(self, method: str, request: Any) -> Any:
        """Call *method* and return its answer; a failure is a grpc.RpcError."""
        return self._stub(method, request, timeout_s=TIMEOUT_S)

    def prepare(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> list[Any]:
        request = pb.PrepareSnapshotRequest(key=key, parent=parent, labels=labels or {})
        return list(self.call("Prepare", request).mounts)

    def view(self, key: str, parent: str = "") -> list[Any]:
        return list(self.call("View", pb.ViewSnapshotRequest(key=key, parent=parent)).mounts)

    def mounts(self, key: str) -> list[Any]:
        return list(self.call("Mounts", pb.MountsRequest(key=key)).mounts)

    def commit(self, name: str, key: str, labels: Mapping[str, str] | None = None) -> None:
        self.call("Commit", pb.CommitSnapshotRequest(name=name, key=key, labels=labels or {}))

    def remove(self, key: str) -> None:
        self.call("Remove", pb.RemoveSnapshotRequest(key=key))

    def stat(self, key: str) -> Any:
        return self.call("Stat", pb.StatSnapshotRequest(key=key)).info

    def usage(self, key: str) -> Any:
        return self.call("Usage", pb.UsageRequest(key=key))

    def cleanup(self) -> None:
        self.call("Cleanup", pb.CleanupRequest())

    def list(self, *filters: str) -> dict[str, Any]:
        """Snapshots by name."""
        parts = self.call("List", pb.ListSnapshotsRequest(filters=filters))
        return {info.name: info for part in parts for info in part.info}


def mount_all(mounts: Sequence[Any], target: Path) -> None:
    """Perform *mounts* on *target*, as containerd's shim does."""
    for mount in mounts:
        options = ",".join(mount.options)
        run(["mount", "-i", "-t", mount.type if mount.type != "bind" else "none", "-o", options, mount.source, target])
