"""Log set-up. One event, one constant sentence, fields for the rest.

JSON lines on standard error where that is no terminal (journald keeps the fields), coloured text where it is. The names of
fields are listed in docs/debug.md; a secret never becomes one. Standard library only: a service that is started again has
readers waiting, and a logging package costs it a quarter of a second.
"""

from __future__ import annotations

import json
import sys
import traceback
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["auto", "json", "text"]

_RANKS: Final[Mapping[LogLevel, int]] = {"debug": 0, "info": 1, "warning": 2, "error": 3}
_COLOURS: Final[Mapping[LogLevel, str]] = {"debug": "2", "info": "32", "warning": "33", "error": "31"}  # SGR parameters
_PLAIN: Final = (str, int, float, bool, list, dict, tuple, type(None))


@dataclass(slots=True)
class _Output:
    """What `configure` has set. Until then a one-shot command says only what somebody should look at, as text."""

    rank: int = _RANKS["warning"]
    as_text: bool = True
    in_colour: bool = False


_output = _Output()


def configure(level: LogLevel = "info", fmt: LogFormat = "auto") -> None:
    """Set up logging for this process; everything goes to standard error."""
    is_terminal = sys.stderr.isatty()
    _output.rank = _RANKS[level]
    _output.as_text = fmt == "text" or (fmt == "auto" and is_terminal)
    _output.in_colour = is_terminal


def get_logger(name: str) -> Logger:
    """Return the logger of the part *name*, as `layer.fetch`; it may be made at import, before `configure`."""
    return Logger(name)


class Logger:
    """Writes the events of one part of the program. Thread-safe: an event is one write.

    A field may be any value: what is no plain value is written as its text. With `exc_info`, an exception or True for the one
    that is handled now, the event has a stack.
    """

    __slots__ = ("_component",)

    def __init__(self, component: str) -> None:
        self._component = component

    def debug(self, event: str, /, **fields: object) -> None:
        """Started, done, failed."""
        self._write("debug", event, fields)

    def info(self, event: str, /, **fields: object) -> None:
        """A state has changed."""
        self._write("info", event, fields)

    def warning(self, event: str, /, **fields: object) -> None:
        """Someone should look."""
        self._write("warning", event, fields)

    def error(self, event: str, /, **fields: object) -> None:
        """We failed."""
        self._write("error", event, fields)

    def exception(self, event: str, /, **fields: object) -> None:
        """We failed, with the stack of the exception that is handled now."""
        self._write("error", event, {**fields, "exc_info": True})

    def _write(self, level: LogLevel, event: str, fields: dict[str, object]) -> None:
        if _RANKS[level] < _output.rank:
            return
        stack = _stack(fields.pop("exc_info", None))
        if stack:
            fields["exception"] = stack
        values = {key: _plain(value) for key, value in fields.items()}
        render = _text_line if _output.as_text else _json_line
        sys.stderr.write(render(level, self._component, event, values))
        sys.stderr.flush()


def _json_line(level: LogLevel, component: str, event: str, fields: Mapping[str, object]) -> str:
    time = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    record = {"time": time, "level": level, "component": component, "msg": event, **fields}
    return json.dumps(record, default=str) + "\n"


def _text_line(level: LogLevel, component: str, event: str, fields: Mapping[str, object]) -> str:
    time = datetime.now().astimezone().strftime("%H:%M:%S.%f")
    shown = f"\x1b[{_COLOURS[level]}m{level:7}\x1b[0m" if _output.in_colour else f"{level:7}"
    stack = fields.get("exception", "")
    pairs = [f"{key}={_word(value)}" for key, value in {**fields, "component": component}.items() if key != "exception"]
    return f"{time} {shown} {event}  {' '.join(pairs)}\n" + (f"{stack}\n" if stack else "")


def _word(value: object) -> str:
    """Return *value* as text in which nothing can be taken for the end of a line or a command to a terminal."""
    text = str(value)
    return text if text.isprintable() and " " not in text else repr(text)


def _stack(exc_info: object) -> str:
    error = sys.exc_info()[1] if exc_info is True else exc_info
    return "".join(traceback.format_exception(error)).rstrip("\n") if isinstance(error, BaseException) else ""


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    return value if isinstance(value, _PLAIN) else str(value)
