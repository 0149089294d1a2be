"""What an answer means: the error it stands for, the address it leads to, the time it asks to wait."""

from __future__ import annotations

import email.utils
import json
import time
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit, urlunsplit

from apparate.errors import ApparateError, NotFound, RegistryError, Unavailable
from apparate.registry.endpoint import origin_of
from apparate.registry.redact import redact_url

if TYPE_CHECKING:
    from apparate.registry.transport import Response

ERROR_BODY_BYTES_MAX = 64 * 1024
"""How much of an error's body is read for its codes."""
RETRY_AFTER_S_MAX = 3600.0
REDIRECTS = frozenset({301, 302, 303, 307, 308})
TEMPORARY = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses after which the same request may well succeed a little later."""
_CODES_MAX = 8


def redirected(url: str, location: str) -> str:
    """Return where *location*, found in the answer to *url*, leads.

    Raises:
        Unavailable: it leads from https to http, or to no web address at all.
    """
    try:
        target = urljoin(url, location)
        parts = urlsplit(target)
        origin_of(target)
    except ValueError as error:
        raise Unavailable(f"GET {redact_url(url)}: redirected to an address that does not parse") from error
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise Unavailable(f"GET {redact_url(url)}: redirected to {redact_url(target)}, which is no web address")
    before = urlsplit(url)
    if before.scheme == "https" and parts.scheme == "http":
        # A registry behind a proxy that ends TLS names itself with http; it is asked where it was found.
        if parts.hostname != before.hostname or parts.port not in {None, 80, before.port}:
            raise Unavailable(f"GET {redact_url(url)}: redirected to plain HTTP at {redact_url(target)}; refused")
        return urlunsplit(parts._replace(scheme="https", netloc=before.netloc))
    return target


def refusal(response: Response) -> ApparateError:
    """Return the error that *response* stands for; reads its body."""
    url, status = redact_url(response.url), response.status
    codes, message = _codes(response)
    if status == 404:
        return NotFound(f"{response.method} {url}: not found" + (f" ({', '.join(codes)})" if codes else ""))
    if status in TEMPORARY:
        said = f" ({', '.join(codes)})" if codes else ""
        return Unavailable(f"{response.method} {url}: HTTP status {status}{said}", retry_after_s(response))
    return RegistryError(response.method, url, status, codes, message)


def retry_after_s(response: Response) -> float | None:
    """Return the seconds that the Retry-After header asks to wait (RFC 9110, 10.2.3), at most an hour; None without."""
    text = response.header("retry-after").strip()
    if not text:
        return None
    if text.isascii() and text.isdigit():
        return min(float(text), RETRY_AFTER_S_MAX)
    try:
        when_s = email.utils.parsedate_to_datetime(text).timestamp()
    except (ValueError, OverflowError, OSError):  # the last two: a date that no clock of this machine can show
        return None
    return min(max(when_s - time.time(), 0.0), RETRY_AFTER_S_MAX)


def _codes(response: Response) -> tuple[tuple[str, ...], str]:
    """Return the error codes and the first message in the body (distribution specification, "Error Codes"), if any."""
    try:
        body = response.read_at_most(ERROR_BODY_BYTES_MAX)
    except Unavailable:
        return (), ""  # the status alone tells enough
    try:
        errors = json.loads(body[:ERROR_BODY_BYTES_MAX])["errors"][:_CODES_MAX]
        codes = tuple(str(error["code"])[:64] for error in errors if error.get("code"))
        message = str(errors[0].get("message") or "")[:200] if errors else ""
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return (), ""
    return codes, "".join(c if c.isprintable() else " " for c in message)
