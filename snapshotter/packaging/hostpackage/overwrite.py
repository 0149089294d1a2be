"""Paths of the host that are compiled into libraries, and their replacement by ones that never exist.

A replacement has the same length, so no offset in the file changes. Each must be found exactly as often as written here:
another version of a library that says it differently fails the build instead of leaking.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from hostpackage.failure import BuildError

NOWHERE: Final = b"/dev/null/"
"""No path below a file that is no directory exists, whoever owns the host."""

STRINGS: Final[Mapping[str, tuple[str, ...]]] = {
    # Which libraries the host caches or forces upon every program (security agents do).
    "ld-linux-x86-64.so.2": ("/etc/ld.so.cache", "/etc/ld.so.preload"),
    # Locale archives and converters differ between versions of glibc. Without nsswitch.conf glibc takes
    # "files" and "files dns", which are compiled in; what a host names there are libraries of the host.
    "libc.so.6": (
        "/usr/lib/locale",
        "/usr/lib/locale/locale-archive",
        "/usr/lib/x86_64-linux-gnu/gconv",
        "/usr/lib/x86_64-linux-gnu/gconv/gconv-modules.cache",
        "/etc/nsswitch.conf",
    ),
    # Modules and configuration of another OpenSSL. Authorities are loaded by name (apparate.registry.authorities).
    "libcrypto.so.3": (
        "/usr/lib/ssl",
        "/usr/lib/ssl/certs",
        "/usr/lib/ssl/cert.pem",
        "/usr/lib/ssl/private",
        "/usr/lib/ssl/ct_log_list.cnf",
        "/usr/lib/x86_64-linux-gnu/engines-3",
        "/usr/lib/x86_64-linux-gnu/ossl-modules",
    ),
}
"""Strings that stand alone, by the file that holds them."""

_IMMEDIATES: Final[Mapping[str, tuple[tuple[bytes, bytes], ...]]] = {
    # The first 16 bytes of /var/run/nscd/socket, which the compiler copies as one vector.
    "libc.so.6": ((b"/var/run/nscd/so", b"/dev/null/cd//so"),),
}


def overwrite(library: Path) -> None:
    """Take the host's paths out of *library*, if it is known to hold some.

    Raises:
        BuildError: a path is not there exactly once.
    """
    content = library.read_bytes()
    changed = content
    for text in STRINGS.get(library.name, ()):
        old = text.encode()
        changed = _replace(library, changed, b"\0" + old + b"\0", b"\0" + _nowhere(old) + b"\0")
    for old, new in _IMMEDIATES.get(library.name, ()):
        changed = _replace(library, changed, old, new)
    if changed != content:
        library.write_bytes(changed)


def _nowhere(old: bytes) -> bytes:
    # The end of the old path stays, so that a message of strace still tells which one it was.
    return NOWHERE + old[len(NOWHERE) :]


def _replace(library: Path, content: bytes, old: bytes, new: bytes) -> bytes:
    found = content.count(old)
    if found != 1:
        raise BuildError(f"{library.name} holds {old!r} {found} times, not once: look at this version of it anew")
    return content.replace(old, new)
