"""What a person sees on a terminal and what a machine reads: the same values, two forms."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Sequence

WIDTH_WITHOUT_TERMINAL: Final = 200
"""Columns of a table that goes into a file or a pipe."""


def print_json(value: object) -> None:
    """Print *value* as JSON on standard output, keys as they are, one document."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()) -> None:
    """Print a table; the *right* columns are numbers. Text from images is shown as it is, never as markup."""
    console = Console(width=None if sys.stdout.isatty() else WIDTH_WITHOUT_TERMINAL, highlight=False)
    table = Table(box=None, pad_edge=False, header_style="bold" if console.is_terminal else "")
    for column in columns:
        table.add_column(column.upper(), justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    console.print(table)


def printable(text: str) -> str:
    """Return *text* with control characters escaped: names in images are somebody else's words."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def bytes_text(count: int) -> str:
    """Return *count* bytes as people write them, decimal units: `47.7 MB`."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    raise AssertionError("the loop ends at GB")
