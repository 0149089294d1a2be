"""What may be shown of a URL: never user information, and of the query only what cannot be a secret."""

from __future__ import annotations

from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

_SHOWN_PARAMETERS = frozenset({"digest", "from", "last", "mount", "n", "ns", "scope", "service", "tag"})
_HIDDEN = "REDACTED"
_SHOWN_LENGTH_MAX = 512


def redact_url(url: str) -> str:
    """Return *url* fit for a log line or an error message.

    User information is removed, query values are kept by allow-list (a signed URL carries its secret there), the
    fragment is dropped and the whole is cut to 512 characters.
    """
    try:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
    except ValueError:
        return "<unparsable URL>"
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    query = urlencode([(k, v if k in _SHOWN_PARAMETERS else _HIDDEN) for k, v in pairs], safe=":/,@")
    return urlunsplit((parts.scheme, host, parts.path, query, ""))[:_SHOWN_LENGTH_MAX]
