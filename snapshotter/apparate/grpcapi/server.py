"""A gRPC server on a unix socket of the host."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc

from apparate.errors import FailedPrecondition
from apparate.grpcapi.rpc import SERVER_OPTIONS

STOP_GRACE_S = 5.0
"""How long calls under way may go on after a stop was asked for; their callers repeat them."""
_PROBE_TIMEOUT_S = 2.0


@contextmanager
def serving(
    socket_path: Path, handlers: Sequence[grpc.GenericRpcHandler], workers: int, *, grace_s: float = STOP_GRACE_S
) -> Iterator[None]:
    """Serve *handlers* on *socket_path* inside the block; only the owner may connect.

    At its end calls under way have *grace_s* more. A socket that a dead process left is removed; afterwards ours is.

    Raises:
        FailedPrecondition: somebody serves there already, or the socket cannot be made.
    """
    server = grpc.server(
        ThreadPoolExecutor(workers, thread_name_prefix="grpc"),
        options=(*SERVER_OPTIONS, ("grpc.so_reuseport", 0)),
    )
    server.add_generic_rpc_handlers(tuple(handlers))
    try:
        _remove_stale(socket_path)
        socket_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        mask = os.umask(0o177)
        try:
            server.add_insecure_port(f"unix:{socket_path}")
        finally:
            os.umask(mask)
    except (OSError, RuntimeError) as error:
        raise FailedPrecondition(f"cannot listen on {socket_path}: {error}") from error
    identity = _identity(socket_path)
    server.start()
    try:
        yield
    finally:
        server.stop(grace_s).wait()
        if identity is not None and _identity(socket_path) == identity:  # not that of a successor
            socket_path.unlink(missing_ok=True)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _remove_stale(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise FailedPrecondition(f"{path} exists and is no socket; remove it, or set another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_TIMEOUT_S)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
        except OSError as error:
            raise FailedPrecondition(f"{path}: {error.strerror}; is another process serving there?") from error
    raise FailedPrecondition(f"another process serves on {path}; stop it, or set another path")
