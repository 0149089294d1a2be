"""Settings: frozen dataclasses read from TOML, strictly.

A settings class is a frozen dataclass whose every field has a default. Nested dataclasses are tables. What a file says and no
class knows is refused, with the nearest known name, because a setting that is silently ignored is worse than an error.
"""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
import types
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, Union

from apparate.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Mapping

SETTINGS_BYTES_MAX = 1024 * 1024
"""A settings file is written by people; a larger one is something else."""

T = TypeVar("T")


def load(cls: type[T], path: Path) -> T:
    """Return the settings in the file at *path*.

    Raises:
        InvalidArgument: the file cannot be read, is no TOML, or has a key or value that *cls* does not take.
    """
    try:
        body = path.read_bytes()
    except OSError as error:
        raise InvalidArgument(f"settings file {path}: {error.strerror}") from error
    if len(body) > SETTINGS_BYTES_MAX:
        raise InvalidArgument(f"settings file {path}: larger than {SETTINGS_BYTES_MAX} bytes")
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"settings file {path}: is not UTF-8") from error
    return from_toml(cls, text, where=str(path))


def from_toml(cls: type[T], text: str, where: str = "settings") -> T:
    """Return the settings written in *text*; *where* names their origin in errors.

    Raises:
        InvalidArgument: as `load`.
    """
    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"{where}: is no TOML: {error}") from error
    return from_table(cls, table, where)


def from_table(cls: type[T], table: Mapping[str, object], where: str, prefix: str = "") -> T:
    """Return *cls* built from *table*; *prefix* is the dotted path of the table, for errors."""
    hints = typing.get_type_hints(cls)
    known = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]  # T is a dataclass by contract
    values: dict[str, object] = {}
    for key, value in table.items():
        path = f"{prefix}{key}"
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {prefix}{near[0]}?" if near else f"; known here: {', '.join(sorted(known))}"
            raise InvalidArgument(f"{where}: unknown setting {path}{hint}")
        values[key] = _value(hints[key], value, where, path)
    try:
        return cls(**values)
    except InvalidArgument as error:
        raise InvalidArgument(f"{where}: {error}") from error


def _value(hint: Any, value: object, where: str, path: str) -> object:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in {Union, types.UnionType}:  # X | None: TOML has no null, so absence means None
        inner = [argument for argument in arguments if argument is not type(None)]
        return _value(inner[0], value, where, path)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, dict):
            raise _wrong(where, path, "a table", value)
        return from_table(hint, value, where, f"{path}.")
    if origin is tuple:
        if not isinstance(value, list):
            raise _wrong(where, path, "a list", value)
        return tuple(_value(arguments[0], item, where, f"{path}[{number}]") for number, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise _wrong(where, path, "a table", value)
        return {key: _value(arguments[1], item, where, f"{path}.{key}") for key, item in value.items()}
    return _scalar(hint, value, where, path)


def _scalar(hint: Any, value: object, where: str, path: str) -> object:
    if hint is Path:
        if not isinstance(value, str) or not value.startswith("/"):
            raise _wrong(where, path, "an absolute path", value)
        return Path(value)
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if hint in {int, str, bool} and type(value) is hint:
        return value
    if typing.get_origin(hint) is typing.Literal:
        allowed = typing.get_args(hint)
        if value in allowed:
            return value
        raise _wrong(where, path, f"one of {', '.join(map(repr, allowed))}", value)
    raise _wrong(where, path, getattr(hint, "__name__", str(hint)), value)


def _wrong(where: str, path: str, expected: str, value: object) -> InvalidArgument:
    return InvalidArgument(f"{where}: setting {path}: expected {expected}, got {value!r}")
