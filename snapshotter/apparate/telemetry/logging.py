"""Log set-up. One event, one constant sentence, fields for the rest.

JSON lines on standard error where that is no terminal (journald keeps the fields), coloured text where it is. The names of
fields are listed in docs/debug.md; a secret never becomes one.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Literal, TextIO, cast

import structlog

if TYPE_CHECKING:
    from structlog.typing import EventDict, FilteringBoundLogger, WrappedLogger

LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["auto", "json", "text"]


def get_logger(name: str) -> FilteringBoundLogger:
    """Return the logger of the part *name*, as `layer.fetch`; it may be made at import, it is set up on first use."""
    return cast("FilteringBoundLogger", structlog.get_logger(component=name))


def configure(level: LogLevel = "info", fmt: LogFormat = "auto") -> None:
    """Set up logging for this process; everything goes to standard error."""
    as_text = fmt == "text" or (fmt == "auto" and sys.stderr.isatty())
    renderer = structlog.dev.ConsoleRenderer() if as_text else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
            _plain_values,
            structlog.processors.format_exc_info,
            structlog.processors.EventRenamer("msg"),
            renderer,
        ]
        if not as_text
        else [
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%H:%M:%S.%f", utc=False),
            _plain_values,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(file=cast("TextIO", _StandardError())),
        cache_logger_on_first_use=True,
    )


class _StandardError:
    """Whatever standard error is at the moment of writing: loggers are cached, and a program may be given another one."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


def _plain_values(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Turn digests, references, paths and errors into text, so that a caller may pass them as they are."""
    for key, value in event.items():
        if not isinstance(value, str | int | float | bool | list | dict | tuple | type(None)) and key != "exc_info":
            event[key] = value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)
    return event
