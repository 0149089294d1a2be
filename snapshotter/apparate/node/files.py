"""Replacing a file that others read at any moment: whole or not at all, with the owner, mode and labels that it had."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from apparate.errors import InvalidArgument, Unavailable

NEW_FILE_MODE: Final = 0o644
_OWNER_ONLY: Final = 0o600
_DIRECTORY_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def read(path: Path) -> bytes | None:
    """Return the content of *path*, None if there is no such file. Raises InvalidArgument: it cannot be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InvalidArgument(f"{path} cannot be read: {error.strerror}") from error


def digest(body: bytes | None) -> str:
    """Return the SHA-256 of *body* in hexadecimal; empty for None."""
    return "" if body is None else hashlib.sha256(body).hexdigest()


def replace(path: Path, body: bytes | None, *, mode: int = NEW_FILE_MODE) -> None:
    """Let *path* have the content *body*, or not exist if that is None; durable when this returns.

    A symbolic link stays one: the file that it names is replaced. An existing file keeps mode, owner and extended attributes
    (SELinux labels are among them); a new one gets *mode*, its missing directories 0755.

    Raises:
        Unavailable: the disk does not take it; the old file is untouched.
    """
    path = Path(os.path.realpath(path))
    try:
        if body is None:
            path.unlink(missing_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, body, mode)
        if path.parent.exists():
            _sync_directory(path.parent)
    except OSError as error:
        raise Unavailable(f"{path} cannot be written: {error.strerror}") from error


@contextmanager
def spare(path: Path) -> Iterator[Callable[[], None]]:
    """Keep what *path* is now on its own disk meanwhile; the yielded function puts it back, also when the disk is full by then.

    Raises:
        Unavailable: the disk does not take it.
    """
    path = Path(os.path.realpath(path))
    body = read(path)
    kept = _beside(path, "before")

    def put_back() -> None:
        try:
            if body is None:
                path.unlink(missing_ok=True)
            else:
                kept.replace(path)
            _sync_directory(path.parent)
        except OSError as error:
            raise Unavailable(f"{path} cannot be put back: {error.strerror}; its old content is in {kept}") from error

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if body is not None:
            _stage(kept, body, path, NEW_FILE_MODE)
    except OSError as error:
        raise Unavailable(f"{kept} cannot be written: {error.strerror}") from error
    try:
        yield put_back
    finally:
        kept.unlink(missing_ok=True)


def remove_leftovers(path: Path) -> None:
    """Remove what a killed run has left beside *path*."""
    path = Path(os.path.realpath(path))
    for role in ("before", "new"):
        _beside(path, role).unlink(missing_ok=True)


def _beside(path: Path, role: str) -> Path:
    """Return a name beside *path* that no pattern for configuration files matches; the same each time, so nothing piles up."""
    return path.with_name(f".{path.name}.apparate-{role}")


def _write(path: Path, body: bytes, mode: int) -> None:
    fresh = _beside(path, "new")
    _stage(fresh, body, path, mode)
    fresh.replace(path)


def _stage(fresh: Path, body: bytes, model: Path, mode: int) -> None:
    """Write *body* to *fresh*, durable, with mode and attributes of *model* if that exists."""
    try:
        fresh.unlink(missing_ok=True)
        with fresh.open("xb") as out:
            os.fchmod(out.fileno(), mode & _OWNER_ONLY)
            out.write(body)
            os.fchmod(out.fileno(), mode)
            _take_attributes(model, out.fileno())
            out.flush()
            os.fsync(out.fileno())
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


def _take_attributes(path: Path, target: int) -> None:
    try:
        source = path.stat()
    except FileNotFoundError:
        return
    os.fchown(target, source.st_uid, source.st_gid)
    os.fchmod(target, stat.S_IMODE(source.st_mode))
    for name in os.listxattr(path):
        with suppress(OSError):  # a file system may compute some, as system.*, and take none of them
            os.setxattr(target, name, os.getxattr(path, name))


def _sync_directory(path: Path) -> None:
    handle = os.open(path, _DIRECTORY_FLAGS)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
