"""What an API server answers when it does not do what it was asked, in our errors (API conventions, "HTTP Status codes")."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from apparate.errors import (
    AlreadyExists,
    ApparateError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
)

MESSAGE_CHARS_MAX: Final = 300


class Conflict(FailedPrecondition):
    """Somebody else has changed the object since it was read: read it again."""


class Expired(Unavailable):
    """410: the version to go on from is no longer kept; list again."""


class Denied(FailedPrecondition):
    """401 or 403: the account is unknown (any more), or may not do this."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def error_of(
    what: str, status: int, reason: str, message: str, retry_after_s: float | None, secrets: bool
) -> ApparateError:
    """Return the error for an answer.

    Args:
        what: method and path, as `GET /api/v1/nodes/a`.
        status: HTTP status.
        reason: `reason` of the Status object, if the body was one.
        message: its `message`.
        retry_after_s: the header Retry-After.
        secrets: the request carried, or asked for, a secret: the server's words are left out, they may quote it.
    """
    said = f": {' '.join(message.split())[:MESSAGE_CHARS_MAX]}" if message and not secrets else ""
    text = f"{what}: HTTP status {status}{f' ({reason})' if reason else ''}{said}"
    if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        return Denied(text, status)
    if status == HTTPStatus.CONFLICT:
        return AlreadyExists(text) if reason == "AlreadyExists" else Conflict(text)
    if status == HTTPStatus.GONE:
        return Expired(text)
    if status == HTTPStatus.TOO_MANY_REQUESTS or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return Unavailable(text, retry_after_s)
    by_status: dict[int, type[ApparateError]] = {
        HTTPStatus.NOT_FOUND: NotFound,
        HTTPStatus.BAD_REQUEST: InvalidArgument,
        HTTPStatus.UNPROCESSABLE_ENTITY: InvalidArgument,
    }
    return by_status.get(status, ApparateError)(text)
