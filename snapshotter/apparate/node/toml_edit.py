"""Settings in a TOML file that belongs to somebody else: set some, take them out again, leave everything else as it is.

What a person wrote stays: comments, order, indentation. Text goes through tomlkit, and what comes out is compared, value by value, with
what was meant, so a defect of the editor cannot reach the file.
"""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Iterable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import tomlkit
from tomlkit.exceptions import TOMLKitError

from apparate.errors import FormatError, InvalidArgument

CONFIG_BYTES_MAX: Final = 4 << 20
"""containerd's own default file has 10 KB; a larger one than this is something else."""

Value = str | bool | int
Path = tuple[str, ...]
_ABSENT: Final = object()
_UNFIT: Final = "our settings cannot be added without changing others: write dotted keys of plugins and proxy_plugins as tables, then repeat"


@dataclass(frozen=True, slots=True)
class Edit:
    """One setting of ours. *before* is what was there, None if nothing was; *created* are the tables made to hold it."""

    path: Path
    value: Value | tuple[str, ...]
    before: object = None
    created: tuple[Path, ...] = ()


def parse(text: str, where: str) -> dict[str, Any]:
    """Return the values in *text*. Raises InvalidArgument: it is no TOML."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidArgument(f"{where} is no TOML: {error}; mend the file first") from error


def decode(body: bytes, where: str) -> str:
    """Return *body* as text. Raises InvalidArgument: too large, or no UTF-8."""
    if len(body) > CONFIG_BYTES_MAX:
        raise InvalidArgument(f"{where} is larger than {CONFIG_BYTES_MAX} bytes, so it is no configuration")
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"{where} is not UTF-8: mend the file first") from error


def apply(
    text: str, wanted: Sequence[tuple[Path, Value | tuple[str, ...]]], where: str
) -> tuple[str, tuple[Edit, ...]]:
    """Return *text* with every setting of *wanted*, and what was changed for it; nothing where it said so already.

    Raises:
        InvalidArgument: *text* is no TOML, or has something else where one of our tables belongs.
        FormatError: the editor did not do what was asked; nothing may be written.
    """
    document, expected = _open(text, where), parse(text, where)
    edits = []
    for path, value in wanted:
        before = _get(expected, path)
        if before == _plain(value):
            continue
        edits.append(_set(document, path, value, before, where))
        _put(expected, path, _plain(value))
    return _close(document, expected, where), tuple(edits)


def revert(text: str, edits: Iterable[Edit], where: str) -> tuple[str, tuple[Edit, ...]]:
    """Return *text* without *edits*, and those that stay because somebody has set something else since.

    Raises:
        InvalidArgument: *text* is no TOML.
        FormatError: as `apply`.
    """
    document, expected = _open(text, where), parse(text, where)
    left = []
    for edit in reversed(tuple(edits)):
        now = _get(expected, edit.path)
        if now in (_ABSENT, edit.before):
            continue
        if now != _plain(edit.value):
            left.append(edit)
            continue
        for tree in (document, expected):
            _take_back(tree, edit)
    return _close(document, expected, where), tuple(left)


def _open(text: str, where: str) -> tomlkit.TOMLDocument:
    try:
        return tomlkit.parse(text)
    except TOMLKitError as error:
        raise InvalidArgument(f"{where} is no TOML: {error}; mend the file first") from error


def _close(document: tomlkit.TOMLDocument, expected: dict[str, Any], where: str) -> str:
    out = tomlkit.dumps(document)
    try:
        got = tomllib.loads(out)
    except tomllib.TOMLDecodeError as error:
        raise FormatError("toml", where, f"{_UNFIT} ({error})") from error
    if got != expected:
        raise FormatError("toml", where, _UNFIT)
    return out


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _get(tree: object, path: Path) -> object:
    for key in path:
        if not isinstance(tree, MutableMapping) or key not in tree:
            return _ABSENT
        tree = tree[key]
    return tree


def _set(
    document: tomlkit.TOMLDocument, path: Path, value: Value | tuple[str, ...], before: object, where: str
) -> Edit:
    table: Any = document
    created = []
    for depth, key in enumerate(path[:-1], start=1):
        if key not in table:
            table[key] = tomlkit.table(is_super_table=depth < len(path) - 1)
            created.append(path[:depth])
        table = table[key]
        if not isinstance(table, MutableMapping):
            raise InvalidArgument(f"{where}: {'.'.join(path[:depth])} is no table; mend the file first")
    table[path[-1]] = _plain(value)
    return Edit(path, value, None if before is _ABSENT else copy.deepcopy(before), tuple(created))


def _put(tree: dict[str, Any], path: Path, value: object) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = value


def _take_back(tree: Any, edit: Edit) -> None:
    """Undo *edit* in *tree*, a tomlkit document or plain values: the key, then the tables made for it that are empty now."""
    holder = _get(tree, edit.path[:-1])
    assert isinstance(holder, MutableMapping), "the setting was found there"
    if edit.before is None:
        del holder[edit.path[-1]]
    else:
        holder[edit.path[-1]] = copy.deepcopy(edit.before)
    for path in reversed(edit.created):
        if _get(tree, path) == {}:
            parent: Any = _get(tree, path[:-1])
            del parent[path[-1]]
