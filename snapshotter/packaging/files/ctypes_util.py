"""Stands in for ctypes.util in the host package.

The original runs ldconfig, gcc and objdump of the host to find a library there, and a library of the host is the last thing
this interpreter may load. Here a library is found if it came along.
"""

from pathlib import Path

_LIBRARIES = Path(__file__).resolve().parent.parent.parent


def find_library(name: str) -> str | None:
    """Return the file name of library *name*, as `pthread`, or None if it is not part of the package."""
    found = sorted(path.name for path in _LIBRARIES.glob(f"lib{name}.so.*"))
    return found[0] if found else None
