"""The one table between our errors and gRPC's status codes, in both directions.

The code is for everyone. For our own processes the trailing metadata also carry the class and its
fields, so that an error that crosses a socket is the same error on the other side.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

import grpc

from apparate.errors import (
    AlreadyExists,
    ApparateError,
    FailedPrecondition,
    FormatError,
    IntegrityError,
    InvalidArgument,
    NotFound,
    RegistryError,
    Unavailable,
    Unsupported,
)
from apparate.telemetry.logging import get_logger

log = get_logger(__name__)

_DETAIL_KEY = "apparate-error-bin"
_MAX_DETAIL_BYTES = 4096
"""Metadata of one call may take 8 KiB on the wire; an error that does not fit goes without its fields."""

# Most special class first: the first row that an error is an instance of decides.
#   class, status code, constructor arguments that cross the socket
_TABLE: tuple[tuple[type[ApparateError], grpc.StatusCode, tuple[str, ...]], ...] = (
    (InvalidArgument, grpc.StatusCode.INVALID_ARGUMENT, ("message",)),
    (NotFound, grpc.StatusCode.NOT_FOUND, ("message",)),
    (AlreadyExists, grpc.StatusCode.ALREADY_EXISTS, ("message",)),
    (FailedPrecondition, grpc.StatusCode.FAILED_PRECONDITION, ("message",)),
    (Unsupported, grpc.StatusCode.UNIMPLEMENTED, ("message",)),
    (IntegrityError, grpc.StatusCode.DATA_LOSS, ("what", "expected", "actual")),
    (FormatError, grpc.StatusCode.DATA_LOSS, ("fmt", "field", "reason", "offset")),
    (RegistryError, grpc.StatusCode.UNKNOWN, ("method", "url", "status", "codes")),
    (Unavailable, grpc.StatusCode.UNAVAILABLE, ("message", "retry_after_s")),
    (ApparateError, grpc.StatusCode.UNKNOWN, ("message",)),
)

_REGISTRY_STATUS = {
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    429: grpc.StatusCode.UNAVAILABLE,
}
_TRANSPORT = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)


def code_of(error: ApparateError) -> grpc.StatusCode:
    """Return the status code of *error*."""
    if isinstance(error, RegistryError):
        by_default = grpc.StatusCode.UNAVAILABLE if error.status >= 500 else grpc.StatusCode.UNKNOWN
        return _REGISTRY_STATUS.get(error.status, by_default)
    return next(code for cls, code, _ in _TABLE if isinstance(error, cls))


def abort(context: grpc.ServicerContext, error: ApparateError) -> NoReturn:
    """End the call with the status of *error*."""
    cls, fields = next((cls, fields) for cls, _, fields in _TABLE if isinstance(error, cls))
    detail = {"class": cls.__name__, "args": [getattr(error, field) for field in fields], "message": str(error)}
    encoded = json.dumps(detail).encode()
    if len(encoded) <= _MAX_DETAIL_BYTES:
        context.set_trailing_metadata(((_DETAIL_KEY, encoded),))
    context.abort(code_of(error), str(error))
    raise AssertionError("abort() returned")


def abort_unexpected(context: grpc.ServicerContext, method: str, error: Exception) -> NoReturn:
    """End the call of an implementation that failed in a way we have no name for; the log has the traceback."""
    if context.code() is not None or not context.is_active():
        raise error  # the call has been ended already: this is how grpc leaves a handler
    log.error("call failed unexpectedly", method=method, error=repr(error), exc_info=error)
    context.abort(grpc.StatusCode.INTERNAL, f"{method} failed: {type(error).__name__}: {error}")
    raise AssertionError("abort() returned")


def error_of(error: grpc.RpcError, peer: str) -> ApparateError:
    """Return what a failed call to *peer* means: the error its server raised, else by the status code."""
    sent = _sent_error(error)
    if sent is not None:
        return sent
    code, details = error.code(), error.details() or "no details"
    if code in _TRANSPORT:
        return Unavailable(f"{peer} did not answer: {details}")
    for cls, table_code, fields in _TABLE:
        if table_code is code and fields == ("message",):
            return cls(details)
    if code is grpc.StatusCode.DATA_LOSS:
        return FormatError(peer, "answer", details)
    return ApparateError(f"{peer} failed: {details}")


def is_transport_failure(error: grpc.RpcError) -> bool:
    """Say whether no server has answered, so that repeating the call after a reconnect can help."""
    return error.code() is grpc.StatusCode.UNAVAILABLE and _detail(error) is None


def _detail(error: grpc.RpcError) -> bytes | None:
    for key, value in error.trailing_metadata() or ():
        if key == _DETAIL_KEY and isinstance(value, bytes):
            return value
    return None


def _sent_error(error: grpc.RpcError) -> ApparateError | None:
    encoded = _detail(error)
    if encoded is None:
        return None
    detail: dict[str, Any] = json.loads(encoded)
    cls: Any = next((cls for cls, _, _ in _TABLE if cls.__name__ == detail["class"]), ApparateError)
    arguments = [tuple(value) if isinstance(value, list) else value for value in detail["args"]]
    rebuilt: ApparateError = cls(*arguments)
    rebuilt.message = detail["message"]
    rebuilt.args = (detail["message"],)
    return rebuilt
