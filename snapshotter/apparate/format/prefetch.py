"""The prefetch list: which parts of which files a start touches, in the order in which they are touched.

Text form, one range a line, as `apparate profile` prints it and `apparate convert --prefetch` reads it:

    path [offset length]          # without numbers: the whole file; a '#' at the start of a line is a comment

Bytes of the path that are not printable ASCII, spaces and backslashes are written as three octal digits behind a
backslash (`a\\040b`), as in /proc/mounts; on input also plain UTF-8 is accepted. A leading '/' is ignored.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from apparate.errors import InvalidArgument

MAX_RANGES: Final = 1_000_000
_ESCAPE: Final = re.compile(rb"\\([0-3][0-7]{2})")
_PLAIN: Final = frozenset(range(0x21, 0x7F)) - {ord("\\")}
_COLUMNS: Final = (1, 3)
_MAX_DIGITS: Final = 19


@dataclass(frozen=True, slots=True)
class PrefetchRange:
    """The file bytes [offset, offset + length) of *path* (relative to the root); `length` None: up to the end."""

    path: bytes
    offset: int = 0
    length: int | None = None


def parse_list(text: bytes) -> list[PrefetchRange]:
    """Parse the text form; the order of the lines is kept.

    Raises:
        InvalidArgument: a line that is no range; it names the line.
    """
    ranges: list[PrefetchRange] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or line.startswith(b"#"):
            continue
        if len(ranges) == MAX_RANGES:
            raise InvalidArgument(f"prefetch list: more than {MAX_RANGES} ranges")
        ranges.append(_parse_line(number, words))
    return ranges


def format_list(ranges: Iterable[PrefetchRange]) -> bytes:
    """Return the text form that `parse_list` reads back to the same ranges."""
    lines = []
    for item in ranges:
        path = b"".join(bytes((byte,)) if byte in _PLAIN else b"\\%03o" % byte for byte in item.path)
        if path.startswith(b"#"):
            path = b"\\%03o" % ord("#") + path[1:]
        if item.length is None and item.offset == 0:
            lines.append(path + b"\n")
        else:
            lines.append(b"%s %d %d\n" % (path, item.offset, -1 if item.length is None else item.length))
    return b"".join(lines)


def _parse_line(number: int, words: list[bytes]) -> PrefetchRange:
    path = _ESCAPE.sub(lambda match: bytes((int(match[1], 8),)), words[0]).strip(b"/")
    if len(words) not in _COLUMNS or not path:
        raise InvalidArgument(f"prefetch list: line {number} is not 'path' or 'path offset length'")
    if len(words) == 1:
        return PrefetchRange(path)
    if not (words[1].isdigit() and words[2].removeprefix(b"-").isdigit()):
        raise InvalidArgument(
            f"prefetch list: line {number}: offset and length must be numbers, the offset not negative"
        )
    offset, length = int(words[1][:_MAX_DIGITS]), int(words[2][:_MAX_DIGITS])
    if length < -1 or len(words[1]) > _MAX_DIGITS or len(words[2]) > _MAX_DIGITS:
        raise InvalidArgument(f"prefetch list: line {number}: offset or length out of range")
    return PrefetchRange(path, offset, None if length < 0 else length)
