"""The path rule that all formats share: how a name in a tar header or a TOC becomes `Entry.path`."""

from __future__ import annotations

from typing import Final

from apparate.errors import FormatError

#: Longest path, in bytes as cleaned: what the kernel takes, with room for the prefix of a whiteout.
MAX_PATH_BYTES: Final = 4096 + 4


def clean_path(name: bytes, fmt: str, key: str) -> bytes:
    """Return *name* relative to the root: no '/' at its ends, no empty and no '.' component; the root is b"".

    Raises:
        FormatError: a '..' component, a NUL, or more than MAX_PATH_BYTES; *key* is named.
    """
    path = name.strip(b"/")
    if path[:1] == b"." or b"/." in path or b"//" in path:
        parts = [part for part in path.split(b"/") if part not in (b"", b".")]
        if b".." in parts:
            raise FormatError(fmt, key, f"{name[:256]!r} leaves its directory by '..'")
        path = b"/".join(parts)
    if len(path) > MAX_PATH_BYTES:
        raise FormatError(fmt, key, f"{name[:256]!r}... is longer than {MAX_PATH_BYTES} bytes")
    if b"\0" in path:
        raise FormatError(fmt, key, f"{name[:256]!r} has a NUL")
    return path
