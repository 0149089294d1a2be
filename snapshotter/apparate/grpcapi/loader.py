"""The loader's service over a unix socket: a server for any `Loader`, and a client that is one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import grpc
from google.protobuf.empty_pb2 import Empty

from apparate.grpcapi._gen import loader_pb2 as pb
from apparate.grpcapi.rpc import service_handler
from apparate.oci.digest import Digest
from apparate.snapshot import remote

SERVICE = pb.DESCRIPTOR.services_by_name["Loader"]

FETCH_PART_BYTES = 1 << 20
"""Size of one message of a blob stream: large enough that the cost per message vanishes."""
REGISTRY_THREADS = 48
"""Calls that may wait for a registry, served at the same time: all that a snapshotter makes at once, and streams beside them."""
_REGISTRY_CALLS = frozenset({"Layers", "Resolve", "Complete", "Fetch"})
_TOUCHES_PER_PART = 1000

_PHASES = {
    remote.LayerPhase.LAZY: pb.LAYER_PHASE_LAZY,
    remote.LayerPhase.COMPLETE: pb.LAYER_PHASE_COMPLETE,
    remote.LayerPhase.FAILED: pb.LAYER_PHASE_FAILED,
}
_Item = TypeVar("_Item")


def loader_handler(loader: remote.Loader, registry_threads: int = REGISTRY_THREADS) -> grpc.GenericRpcHandler:
    """Return the handler that serves *loader*; add it to a server.

    Calls that may wait for a registry have *registry_threads* of their own, so that none of them keeps a layer that is here from
    being mounted.
    """
    pool = ThreadPoolExecutor(registry_threads, thread_name_prefix="grpc-registry")
    return service_handler(SERVICE, _LoaderServicer(loader), slow=_REGISTRY_CALLS, slow_pool=pool)


class _LoaderServicer:
    """One method per call of loader.proto; parses, calls, packs."""

    def __init__(self, loader: remote.Loader) -> None:
        self._loader = loader

    def Layers(self, request: pb.LayersRequest, _context: grpc.ServicerContext) -> pb.LayersResponse:  # noqa: N802 - proto
        layers = self._loader.layers(request.reference, Digest.parse(request.manifest_digest))
        return pb.LayersResponse(
            layers=[
                pb.ManifestLayer(
                    digest=str(layer.digest),
                    media_type=layer.media_type,
                    size=layer.size,
                    annotations=dict(layer.annotations),
                )
                for layer in layers
            ]
        )

    def Resolve(self, request: pb.ResolveRequest, _context: grpc.ServicerContext) -> pb.ResolveResponse:  # noqa: N802 - proto
        resolved = self._loader.resolve(
            remote.ResolveRequest(request.reference, Digest.parse(request.layer_digest), dict(request.annotations))
        )
        return pb.ResolveResponse(
            layer_digest=str(resolved.layer_digest), blob_size=resolved.blob_size, image_size=resolved.image_size
        )

    def Mount(self, request: pb.LayerRequest, _context: grpc.ServicerContext) -> pb.MountResponse:  # noqa: N802 - proto
        mounted = self._loader.mount(Digest.parse(request.layer_digest))
        return pb.MountResponse(layer_digest=str(mounted.layer_digest), path=mounted.path, driver=mounted.driver)

    def Unmount(self, request: pb.LayerRequest, _context: grpc.ServicerContext) -> Empty:  # noqa: N802 - proto
        self._loader.unmount(Digest.parse(request.layer_digest))
        return Empty()

    def Forget(self, request: pb.LayerRequest, _context: grpc.ServicerContext) -> Empty:  # noqa: N802 - proto
        self._loader.forget(Digest.parse(request.layer_digest))
        return Empty()

    def Usage(self, request: pb.LayerRequest, _context: grpc.ServicerContext) -> pb.UsageResponse:  # noqa: N802 - proto
        usage = self._loader.usage(Digest.parse(request.layer_digest))
        return pb.UsageResponse(size=usage.size, inodes=usage.inodes)

    def Status(self, _request: Empty, _context: grpc.ServicerContext) -> Iterator[pb.LayerState]:  # noqa: N802 - proto
        for state in self._loader.status():
            yield pb.LayerState(
                layer_digest=str(state.layer_digest),
                reference=state.reference,
                phase=_PHASES[state.phase],
                image_size=state.image_size,
                present_bytes=state.present_bytes,
                fetched_bytes=state.fetched_bytes,
                mounted=state.mounted,
                driver=state.driver,
                last_error=state.last_error,
                last_error_wall_s=state.last_error_wall_s,
            )

    def Complete(self, request: pb.LayerRequest, context: grpc.ServicerContext) -> Iterator[pb.Progress]:  # noqa: N802 - proto
        for progress in _while_active(context, self._loader.complete(Digest.parse(request.layer_digest))):
            yield pb.Progress(present_bytes=progress.present_bytes, total_bytes=progress.total_bytes)

    def Profile(self, request: pb.LayerRequest, _context: grpc.ServicerContext) -> Iterator[pb.ProfilePart]:  # noqa: N802 - proto
        touches = self._loader.profile(Digest.parse(request.layer_digest))
        for part in _batches(touches, _TOUCHES_PER_PART):
            yield pb.ProfilePart(touches=[pb.Touch(path=t.path, offset=t.offset, length=t.length) for t in part])

    def Fetch(self, request: pb.FetchRequest, context: grpc.ServicerContext) -> Iterator[pb.FetchPart]:  # noqa: N802 - proto
        blob = self._loader.fetch(request.reference, Digest.parse(request.layer_digest))
        for data in _while_active(context, blob):
            for start in range(0, len(data), FETCH_PART_BYTES):
                yield pb.FetchPart(data=data[start : start + FETCH_PART_BYTES])


def _while_active(context: grpc.ServicerContext, items: Iterable[_Item]) -> Iterator[_Item]:
    """Yield *items* until the caller has gone, then close their source so that it stops working."""
    iterator = iter(items)
    try:
        for item in iterator:
            if not context.is_active():
                return
            yield item
    finally:
        close = getattr(iterator, "close", None)
        if close is not None:
            close()


def _batches(items: Sequence[_Item], size: int) -> Iterator[Sequence[_Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
