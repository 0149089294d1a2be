"""containerd's filter language for List (containerd, pkg/filters: scanner.go, parser.go).

    filter    = selector *("," selector)                 all must hold
    selector  = fieldpath [operator value]               without operator: the field is present
    fieldpath = field *("." field)                       field = [A-Za-z0-9_]+ or a quoted string
    operator  = "==" | "!=" | "~="
    value     = a quoted string, for ~= also in /…/ or |…|, or a run of graphic characters up to "," or a space

Several filters are alternatives. Quoted strings follow Go's syntax. `~=` searches with Python's
regular expressions, which agree with Go's for what people write in a filter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from apparate.errors import InvalidArgument
from apparate.snapshot.model import Info

MAX_FILTERS = 64
MAX_FILTER_LENGTH = 8192
_PATTERN_MAX = 512

Predicate = Callable[[Info], bool]

_SPACE = re.compile(r"\s*")
_FIELD = re.compile(r"[A-Za-z0-9_]+")
_OPERATOR = re.compile(r"[=!~]+")
_VALUE = re.compile(r"[^\s,]+")
_QUOTED = re.compile(r'"((?:[^"\\\n]|\\.)*)"')
_ALTERNATIVE_QUOTED = re.compile(r"([/|])((?:(?!\1)[^\\]|\\.)*)\1")
_ESCAPE = re.compile(
    r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-7]{3})|([abfnrtv\\'\"])|(.))", re.DOTALL
)
_SIMPLE_ESCAPES = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}


def compile_filters(filters: Sequence[str]) -> Predicate:
    """Return a predicate that holds for what any of *filters* selects; no filter selects everything.

    Raises:
        InvalidArgument: a filter does not follow the grammar.
    """
    if len(filters) > MAX_FILTERS:
        raise InvalidArgument(f"{len(filters)} filters; at most {MAX_FILTERS} are allowed")
    alternatives = [_Parser(text).parse() for text in filters]
    if not alternatives:
        return lambda _info: True
    return lambda info: any(all(selector(info) for selector in selectors) for selectors in alternatives)


@dataclass(slots=True)
class _Parser:
    text: str
    position: int = 0

    def parse(self) -> list[Predicate]:
        if len(self.text) > MAX_FILTER_LENGTH:
            raise InvalidArgument(f"a filter of {len(self.text)} characters; at most {MAX_FILTER_LENGTH} are allowed")
        selectors = [self._selector()]
        while self.position < len(self.text):
            if self.text[self.position] != ",":
                raise self._error("expected ',' or the end")
            self.position += 1
            selectors.append(self._selector())
        return selectors

    def _selector(self) -> Predicate:
        path = [self._field()]
        while self._next_is("."):
            self.position += 1
            path.append(self._field())
        if self.position == len(self.text) or self._next_is(","):
            return _selector(path, "", "")
        operator = self._take(_OPERATOR, "an operator")
        if operator not in {"==", "!=", "~="}:
            raise self._error(f"unknown operator {operator!r}")
        return _selector(path, operator, self._value(is_pattern=operator == "~="))

    def _next_is(self, character: str) -> bool:
        return self.text.startswith(character, self.position)

    def _take(self, pattern: re.Pattern[str], what: str) -> str:
        start = _SPACE.match(self.text, self.position).end()  # type: ignore[union-attr]  # matches nothing at least
        match = pattern.match(self.text, start)
        if match is None:
            raise self._error(f"expected {what}")
        self.position = match.end()
        return match.group()

    def _quote(self) -> str:
        start = _SPACE.match(self.text, self.position).end()  # type: ignore[union-attr]  # as above
        return self.text[start : start + 1]

    def _field(self) -> str:
        if self._quote() == '"':
            return _unquote(self._take(_QUOTED, "a quoted field")[1:-1], self.text)
        return self._take(_FIELD, "a field")

    def _value(self, *, is_pattern: bool) -> str:
        quote = self._quote()
        if quote == '"':
            return _unquote(self._take(_QUOTED, "a quoted value")[1:-1], self.text)
        if quote and quote in "/|":
            if not is_pattern:
                raise self._error(f"a value in {quote} needs the operator ~=")
            body = self._take(_ALTERNATIVE_QUOTED, "a quoted pattern")[1:-1]
            return body.replace(f"\\{quote}", quote)
        return self._take(_VALUE, "a value")

    def _error(self, reason: str) -> InvalidArgument:
        return InvalidArgument(f"filter {self.text!r}: {reason} at position {self.position}")


def _unquote(body: str, whole: str) -> str:
    def replace(match: re.Match[str]) -> str:
        hex2, hex4, hex8, octal, simple, unknown = match.groups()
        if unknown is not None:
            raise InvalidArgument(f"filter {whole!r}: unknown escape \\{unknown}")
        if simple is not None:
            return _SIMPLE_ESCAPES.get(simple, simple)
        code = int(octal, 8) if octal is not None else int(hex2 or hex4 or hex8, 16)
        if code > 0x10FFFF:
            raise InvalidArgument(f"filter {whole!r}: \\U{hex8} is no character")
        return chr(code)

    return _ESCAPE.sub(replace, body)


def _selector(path: Sequence[str], operator: str, value: str) -> Predicate:
    field = _field_reader(path)
    if operator == "":
        return lambda info: field(info) is not None
    if operator == "==":
        return lambda info: field(info) == value
    if operator == "!=":
        return lambda info: (field(info) or "") != value
    if len(value) > _PATTERN_MAX:
        raise InvalidArgument(f"a pattern of {len(value)} characters; at most {_PATTERN_MAX} are allowed")
    try:
        pattern = re.compile(value)
    except re.error as error:
        raise InvalidArgument(f"pattern {value!r}: {error}") from error
    return lambda info: pattern.search(field(info) or "") is not None


def _field_reader(path: Sequence[str]) -> Callable[[Info], str | None]:
    """Return a function that gives the field at *path*, None if the snapshot has no such field."""
    if path[0] == "labels" and len(path) > 1:
        key = ".".join(path[1:])
        return lambda info: info.labels.get(key)
    if path == ["name"]:
        return lambda info: info.name
    if path == ["parent"]:
        return lambda info: info.parent
    if path == ["kind"]:
        return lambda info: info.kind.value
    return lambda _info: None
