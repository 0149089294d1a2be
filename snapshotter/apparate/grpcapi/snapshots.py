"""containerd's snapshots service for a `Snapshotter`: messages to values, values to messages."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import grpc
from google.protobuf.empty_pb2 import Empty
from google.protobuf.timestamp_pb2 import Timestamp

from apparate.grpcapi._gen import mount_pb2
from apparate.grpcapi._gen import snapshots_pb2 as pb
from apparate.grpcapi.rpc import service_handler
from apparate.snapshot.model import Info, Kind, Mount
from apparate.snapshot.snapshotter import Snapshotter
from apparate.telemetry.metrics import CALLS

SERVICE = pb.DESCRIPTOR.services_by_name["Snapshots"]

LIST_BATCH = 100
"""Infos in one message of List, as containerd's own server sends them."""
_NS = 1_000_000_000

_KINDS = {Kind.VIEW: pb.VIEW, Kind.ACTIVE: pb.ACTIVE, Kind.COMMITTED: pb.COMMITTED}


def snapshots_handler(snapshotter: Snapshotter) -> grpc.GenericRpcHandler:
    """Return the handler that serves *snapshotter*; add it to a server."""
    return service_handler(SERVICE, _SnapshotsServicer(snapshotter))


class _SnapshotsServicer:
    """One method per call of snapshots.proto.

    `request.snapshotter` is the name of the plugin in containerd's configuration and means nothing to us.
    """

    def __init__(self, snapshotter: Snapshotter) -> None:
        self._snapshotter = snapshotter

    def Prepare(  # noqa: N802 - proto
        self, request: pb.PrepareSnapshotRequest, _context: grpc.ServicerContext
    ) -> pb.PrepareSnapshotResponse:
        with CALLS.labels("prepare").time():
            mounts = self._snapshotter.prepare(request.key, request.parent, dict(request.labels))
        return pb.PrepareSnapshotResponse(mounts=_mounts(mounts))

    def View(self, request: pb.ViewSnapshotRequest, _context: grpc.ServicerContext) -> pb.ViewSnapshotResponse:  # noqa: N802 - proto
        with CALLS.labels("view").time():
            mounts = self._snapshotter.view(request.key, request.parent, dict(request.labels))
        return pb.ViewSnapshotResponse(mounts=_mounts(mounts))

    def Mounts(self, request: pb.MountsRequest, _context: grpc.ServicerContext) -> pb.MountsResponse:  # noqa: N802 - proto
        with CALLS.labels("mounts").time():
            return pb.MountsResponse(mounts=_mounts(self._snapshotter.mounts(request.key)))

    def Commit(self, request: pb.CommitSnapshotRequest, _context: grpc.ServicerContext) -> Empty:  # noqa: N802 - proto
        with CALLS.labels("commit").time():
            self._snapshotter.commit(request.name, request.key, dict(request.labels), request.parent)
        return Empty()

    def Remove(self, request: pb.RemoveSnapshotRequest, _context: grpc.ServicerContext) -> Empty:  # noqa: N802 - proto
        with CALLS.labels("remove").time():
            self._snapshotter.remove(request.key)
        return Empty()

    def Stat(self, request: pb.StatSnapshotRequest, _context: grpc.ServicerContext) -> pb.StatSnapshotResponse:  # noqa: N802 - proto
        with CALLS.labels("stat").time():
            return pb.StatSnapshotResponse(info=_info(self._snapshotter.stat(request.key)))

    def Update(  # noqa: N802 - proto
        self, request: pb.UpdateSnapshotRequest, _context: grpc.ServicerContext
    ) -> pb.UpdateSnapshotResponse:
        with CALLS.labels("update").time():
            wanted = Info(request.info.name, "", Kind.ACTIVE, 0, 0, dict(request.info.labels))
            updated = self._snapshotter.update(wanted, list(request.update_mask.paths))
        return pb.UpdateSnapshotResponse(info=_info(updated))

    def List(  # noqa: N802 - proto
        self, request: pb.ListSnapshotsRequest, _context: grpc.ServicerContext
    ) -> Iterator[pb.ListSnapshotsResponse]:
        with CALLS.labels("list").time():
            infos = iter(self._snapshotter.walk(list(request.filters)))
        while batch := list(itertools.islice(infos, LIST_BATCH)):
            yield pb.ListSnapshotsResponse(info=map(_info, batch))

    def Usage(self, request: pb.UsageRequest, _context: grpc.ServicerContext) -> pb.UsageResponse:  # noqa: N802 - proto
        with CALLS.labels("usage").time():
            usage = self._snapshotter.usage(request.key)
        return pb.UsageResponse(size=usage.size, inodes=usage.inodes)

    def Cleanup(self, _request: pb.CleanupRequest, _context: grpc.ServicerContext) -> Empty:  # noqa: N802 - proto
        with CALLS.labels("cleanup").time():
            self._snapshotter.cleanup()
        return Empty()


def _mounts(mounts: Iterable[Mount]) -> list[mount_pb2.Mount]:
    return [mount_pb2.Mount(type=mount.type, source=mount.source, options=mount.options) for mount in mounts]


def _info(info: Info) -> pb.Info:
    return pb.Info(
        name=info.name,
        parent=info.parent,
        kind=_KINDS[info.kind],
        created_at=_timestamp(info.created_ns),
        updated_at=_timestamp(info.updated_ns),
        labels=dict(info.labels),
    )


def _timestamp(time_ns: int) -> Timestamp:
    return Timestamp(seconds=time_ns // _NS, nanos=time_ns % _NS)
