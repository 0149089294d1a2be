"""The loader as another process sees it: `snapshot.remote.Loader` over a unix socket."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import grpc
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from apparate.errors import ApparateError, NotFound, Unavailable
from apparate.grpcapi._gen import loader_pb2 as pb
from apparate.grpcapi.loader import SERVICE
from apparate.grpcapi.rpc import Stub, channel_to
from apparate.grpcapi.status import error_of, is_transport_failure
from apparate.oci.digest import Digest
from apparate.snapshot import remote

_PHASES = {
    pb.LAYER_PHASE_LAZY: remote.LayerPhase.LAZY,
    pb.LAYER_PHASE_COMPLETE: remote.LayerPhase.COMPLETE,
}
_RECONNECT_PAUSE_S = 0.05
_NO_LAYER = Digest.of(b"")
"""A digest that no layer has, for a question whose answer does not matter."""


@dataclass(frozen=True, slots=True)
class LoaderDeadlines:
    """How long each kind of call may take, in seconds. containerd sets no deadline for a pull, so we must."""

    query_s: float = 10.0
    """usage, status, unmount, forget: answered from memory or the local disk."""
    resolve_s: float = 60.0
    """resolve: a few requests to a registry."""
    manifest_s: float = 5.0
    """layers: one request, also for images that turn out to be ordinary, so its failure must not cost much."""
    mount_s: float = 30.0
    idle_s: float = 120.0
    """complete, fetch, profile: the longest silence between two items of the stream."""
    outage_s: float = 10.0
    """How long an unreachable loader is waited for, counted once from the start of its absence, so that
    a restart is a pause for the callers and a long outage is an error at once."""


class LoaderClient:
    """A `Loader` in another process. Thread-safe; close it when done.

    Calls that never reached a server are repeated until the loader has been away for `outage_s`: every
    call of the protocol may be repeated.
    """

    def __init__(self, socket_path: str, deadlines: LoaderDeadlines | None = None) -> None:
        self._deadlines = deadlines or LoaderDeadlines()
        self._channel = channel_to(socket_path)
        self._stub = Stub(self._channel, SERVICE)
        self._peer = f"the loader at {socket_path}"
        self._closed = threading.Event()
        self._away_since: float | None = None
        self._away_lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancel what is under way and drop the connection."""
        self._closed.set()
        self._channel.close()

    def is_reachable(self, timeout_s: float) -> bool:
        """Say whether the loader answers a small question within *timeout_s*."""
        try:
            self._unary("Usage", _layer(_NO_LAYER), timeout_s, is_patient=False)
        except NotFound:
            return True
        except ApparateError:
            return False
        return True

    def layers(self, reference: str, manifest_digest: Digest) -> Sequence[remote.ManifestLayer]:
        request = pb.LayersRequest(reference=reference, manifest_digest=str(manifest_digest))
        response = self._unary("Layers", request, self._deadlines.manifest_s, is_patient=False)
        return [
            remote.ManifestLayer(Digest.parse(layer.digest), layer.media_type, layer.size, dict(layer.annotations))
            for layer in response.layers
        ]

    def resolve(self, request: remote.ResolveRequest) -> remote.Resolved:
        message = pb.ResolveRequest(
            reference=request.reference, layer_digest=str(request.layer_digest), annotations=dict(request.annotations)
        )
        response = self._unary("Resolve", message, self._deadlines.resolve_s)
        return remote.Resolved(Digest.parse(response.layer_digest), response.blob_size, response.image_size)

    def mount(self, layer_digest: Digest) -> remote.MountedLayer:
        response = self._unary("Mount", _layer(layer_digest), self._deadlines.mount_s)
        return remote.MountedLayer(Digest.parse(response.layer_digest), response.path, response.driver)

    def unmount(self, layer_digest: Digest) -> None:
        self._unary("Unmount", _layer(layer_digest), self._deadlines.query_s)

    def forget(self, layer_digest: Digest) -> None:
        self._unary("Forget", _layer(layer_digest), self._deadlines.query_s)

    def usage(self, layer_digest: Digest) -> remote.Usage:
        response = self._unary("Usage", _layer(layer_digest), self._deadlines.query_s)
        return remote.Usage(response.size, response.inodes)

    def status(self) -> Sequence[remote.LayerState]:
        return [_state(message) for message in self._stream("Status", Empty())]

    def complete(self, layer_digest: Digest) -> Iterator[remote.Progress]:
        for message in self._stream("Complete", _layer(layer_digest)):
            yield remote.Progress(message.present_bytes, message.total_bytes)

    def profile(self, layer_digest: Digest) -> Sequence[remote.Touch]:
        return [
            remote.Touch(touch.path, touch.offset, touch.length)
            for part in self._stream("Profile", _layer(layer_digest))
            for touch in part.touches
        ]

    def fetch(self, reference: str, layer_digest: Digest) -> Iterator[bytes]:
        request = pb.FetchRequest(reference=reference, layer_digest=str(layer_digest))
        for message in self._stream("Fetch", request):
            yield message.data

    def _unary(self, method: str, request: Message, timeout_s: float, *, is_patient: bool = True) -> Any:
        while True:
            try:
                response = self._call(method, request, timeout_s)
            except grpc.RpcError as error:
                if not is_patient or not self._wait_for_return(error):
                    raise error_of(error, self._peer) from error
            else:
                self._answered()
                return response

    def _call(self, method: str, request: Message, timeout_s: float | None) -> Any:
        try:
            return self._stub(method, request, timeout_s=timeout_s)
        except ValueError as error:  # what grpc says of a channel that was closed
            raise Unavailable(f"the connection to {self._peer} is closed") from error

    def _stream(self, method: str, request: Message) -> Iterator[Any]:
        received = False
        while True:
            call = self._call(method, request, None)
            try:
                with _Watchdog(call, self._deadlines.idle_s) as watchdog:
                    for message in call:
                        received = True
                        with watchdog.paused():
                            yield message
            except grpc.RpcError as error:
                if received or not self._wait_for_return(error):
                    raise error_of(error, self._peer) from error
            else:
                self._answered()
                return
            finally:
                call.cancel()

    def _answered(self) -> None:
        self._away_since = None

    def _wait_for_return(self, error: grpc.RpcError) -> bool:
        """Return whether the failed call is to be repeated, after a short pause."""
        if not is_transport_failure(error):
            if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                self._answered()
            return False
        with self._away_lock:
            now = time.monotonic()
            if self._away_since is None:
                self._away_since = now
            away_s = now - self._away_since
        return away_s < self._deadlines.outage_s and not self._closed.wait(_RECONNECT_PAUSE_S)


class _Watchdog:
    """Cancels a stream that stays silent for *idle_s*, which ends its iteration with CANCELLED."""

    def __init__(self, call: Any, idle_s: float) -> None:
        self._call = call
        self._idle_s = idle_s
        self._heard = threading.Condition()
        self._deadline = time.monotonic() + idle_s
        self._done = False

    def __enter__(self) -> Self:
        threading.Thread(target=self._watch, name="loader-stream-watchdog", daemon=True).start()
        return self

    def __exit__(self, *_exc: object) -> None:
        with self._heard:
            self._done = True
            self._heard.notify()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count the time the consumer takes for an item."""
        self._deadline = math.inf
        yield
        self._deadline = time.monotonic() + self._idle_s

    def _watch(self) -> None:
        with self._heard:
            while not self._done:
                remaining_s = self._deadline - time.monotonic()
                if remaining_s <= 0:
                    self._call.cancel()
                    return
                self._heard.wait(min(remaining_s, self._idle_s))


def _layer(layer_digest: Digest) -> pb.LayerRequest:
    return pb.LayerRequest(layer_digest=str(layer_digest))


def _state(message: pb.LayerState) -> remote.LayerState:
    return remote.LayerState(
        layer_digest=Digest.parse(message.layer_digest),
        reference=message.reference,
        phase=_PHASES.get(message.phase, remote.LayerPhase.FAILED),
        image_size=message.image_size,
        present_bytes=message.present_bytes,
        fetched_bytes=message.fetched_bytes,
        mounted=message.mounted,
        driver=message.driver,
        last_error=message.last_error,
        last_error_wall_s=message.last_error_wall_s,
    )
