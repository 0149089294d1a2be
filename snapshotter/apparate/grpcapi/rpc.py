"""Services and stubs made from the descriptors of the generated messages.

What `grpc_python_plugin` would generate is a table of method names and message classes; the
descriptors hold the same table, and using them binds us to no version of the generator.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from apparate.errors import ApparateError
from apparate.grpcapi.status import abort, abort_unexpected

MAX_MESSAGE_BYTES = 16 << 20
"""containerd's own limit for both directions; the library's default for receiving is 4 MiB."""

_SIZE_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
)

SERVER_OPTIONS = _SIZE_OPTIONS
CHANNEL_OPTIONS = (
    *_SIZE_OPTIONS,
    # The other side is a process of this host that is back within a second of its death.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # A unix socket needs no proxy, whatever the environment says.
    ("grpc.enable_http_proxy", 0),
)


def service_handler(
    service: ServiceDescriptor,
    servicer: object,
    *,
    slow: Collection[str] = (),
    slow_pool: ThreadPoolExecutor | None = None,
) -> grpc.GenericRpcHandler:
    """Return a handler that serves *service* with the methods of *servicer* that have the same names.

    Those named in *slow* run in *slow_pool*, all others in the server's own threads.

    A method takes (request, context) and returns the response, or an iterator of responses if the
    method streams. `ApparateError` becomes the status of the table in `grpcapi.status`.
    """
    handlers = {}
    for method in service.methods:
        behaviour = getattr(servicer, method.name)
        make = grpc.unary_stream_rpc_method_handler if method.server_streaming else grpc.unary_unary_rpc_method_handler
        guarded = (_guard_stream if method.server_streaming else _guard_unary)(method, behaviour)
        if method.name in slow and slow_pool is not None:
            guarded.experimental_thread_pool = slow_pool  # type: ignore[attr-defined]  # the library looks for it there
        handlers[method.name] = make(
            guarded,
            request_deserializer=GetMessageClass(method.input_type).FromString,
            response_serializer=GetMessageClass(method.output_type).SerializeToString,
        )
    return grpc.method_handlers_generic_handler(service.full_name, handlers)


def _guard_unary(method: MethodDescriptor, behaviour: Callable[..., Any]) -> Callable[..., Any]:
    def call(request: Message, context: grpc.ServicerContext) -> Any:
        try:
            return behaviour(request, context)
        except ApparateError as error:
            abort(context, error)
        except Exception as error:  # noqa: BLE001 - a programming error must not pass as an answer of ours
            abort_unexpected(context, method.full_name, error)

    return call


def _guard_stream(method: MethodDescriptor, behaviour: Callable[..., Any]) -> Callable[..., Any]:
    def call(request: Message, context: grpc.ServicerContext) -> Iterator[Any]:
        try:
            yield from behaviour(request, context)
        except ApparateError as error:
            abort(context, error)
        except Exception as error:  # noqa: BLE001 - as above
            abort_unexpected(context, method.full_name, error)

    return call


class Stub:
    """The calls of one service on a channel, by method name."""

    def __init__(self, channel: grpc.Channel, service: ServiceDescriptor) -> None:
        self._calls: dict[str, Any] = {}
        for method in service.methods:
            make = channel.unary_stream if method.server_streaming else channel.unary_unary
            self._calls[method.name] = make(
                f"/{service.full_name}/{method.name}",
                request_serializer=GetMessageClass(method.input_type).SerializeToString,
                response_deserializer=GetMessageClass(method.output_type).FromString,
            )

    def __call__(self, method: str, request: Message, *, timeout_s: float | None = None) -> Any:
        """Call *method*: its response, or for a streaming method the call object, an iterator with `cancel()`."""
        return self._calls[method](request, timeout=timeout_s)


def channel_to(socket_path: str) -> grpc.Channel:
    """Return a channel to the unix socket *socket_path*. Nothing is connected yet; close it when done."""
    return grpc.insecure_channel(f"unix:{socket_path}", options=CHANNEL_OPTIONS)
