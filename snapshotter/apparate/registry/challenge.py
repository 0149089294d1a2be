"""WWW-Authenticate (RFC 9110, section 11.6.1)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

CHALLENGE_CHARS_MAX = 16 * 1024
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_TOKEN68 = re.compile(r"[0-9A-Za-z._~+/-]+=*")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_BLANK = re.compile(r"[ \t]*")
_EQUALS = re.compile(r"[ \t]*=[ \t]*")
_BETWEEN = re.compile(r"[ \t,]*")
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way to authenticate; *scheme* and the names of *parameters* in lower case."""

    scheme: str
    parameters: Mapping[str, str]


def parse_challenges(text: str) -> tuple[Challenge, ...]:
    """Return the challenges in a header's value, several headers joined by commas; what does not parse ends the list."""
    text = text[:CHALLENGE_CHARS_MAX]
    found: list[Challenge] = []
    parameters: dict[str, str] = {}
    at = _skip(_BETWEEN, text, 0)
    while at < len(text):
        name = _TOKEN.match(text, at)
        if name is None:
            break
        equals = _EQUALS.match(text, name.end())
        if equals is not None and found:
            value, at = _value(text, equals.end())
            parameters.setdefault(name[0].lower(), value)
        else:
            parameters = {}
            found.append(Challenge(name[0].lower(), parameters))
            at = _after_scheme(text, name.end())
        at = _skip(_BETWEEN, text, at)
    return tuple(found)


def _skip(pattern: re.Pattern[str], text: str, at: int) -> int:
    match = pattern.match(text, at)
    return match.end() if match else at


def _after_scheme(text: str, at: int) -> int:
    """Return where the parameters after a scheme begin: a token68, as `Negotiate` may carry, is passed over."""
    begin = _skip(_BLANK, text, at)
    blob = _TOKEN68.match(text, begin)
    if blob is not None and (blob.end() == len(text) or text[blob.end()] == ","):
        follower = _TOKEN.match(text, begin)
        if follower is None or follower.end() != blob.end():
            return blob.end()
    return begin


def _value(text: str, at: int) -> tuple[str, int]:
    quoted = _QUOTED.match(text, at)
    if quoted is not None:
        return _ESCAPED.sub(r"\1", quoted[1]), quoted.end()
    token = re.compile(r"[^ \t,]*").match(text, at)
    return (token[0], token.end()) if token else ("", at)
