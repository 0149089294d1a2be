"""Archives of the tree: the tar.zst, what the image needs too, and checksums."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

import zstandard

from hostpackage.inputs import digest_of

ZSTD_LEVEL: Final = 12
SUMS_NAME: Final = "SHA256SUMS"


def write_tar_zst(tree: Path, version: str, epoch: int, out: Path) -> Path:
    """Pack *tree* so that it is unpacked in /opt/apparate, and return the file."""
    target = out / f"apparate-{version}-x86_64.tar.zst"
    compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL, threads=1)
    with target.open("wb") as file, compressor.stream_writer(file, closefd=False) as packed, tar_writer(packed) as tar:
        add_tree(tar, tree, version, epoch)
    return target


@contextmanager
def tar_writer(
    file: IO[bytes] | zstandard.ZstdCompressionWriter, form: int = tarfile.PAX_FORMAT
) -> Iterator[tarfile.TarFile]:
    """Write a tar archive to *file*, which need not seek."""
    with tarfile.open(fileobj=file, mode="w|", format=form) as tar:
        yield tar


def add_tree(tar: tarfile.TarFile, tree: Path, name: str, epoch: int) -> None:
    """Add *tree* to *tar* as *name*: in the order of the names, of root, with one time."""
    add_entry(tar, name, tree, epoch)
    for path in sorted(tree.rglob("*")):
        add_entry(tar, f"{name}/{path.relative_to(tree)}", path, epoch)


def add_entry(tar: tarfile.TarFile, name: str, path: Path, epoch: int) -> None:
    """Add the one file, link or folder *path* to *tar*."""
    entry = tar.gettarinfo(path, name)
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    entry.mtime = epoch
    if entry.islnk():  # a second name of one file in the build folder, which says nothing
        entry.type, entry.size = tarfile.REGTYPE, path.stat().st_size
    if entry.isreg():
        with path.open("rb") as content:
            tar.addfile(entry, content)
    else:
        tar.addfile(entry)


def add_bytes(tar: tarfile.TarFile, name: str, content: bytes, epoch: int, mode: int = 0o644) -> None:
    """Add a file that is nowhere on disk."""
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode, entry.mtime = len(content), mode, epoch
    tar.addfile(entry, io.BytesIO(content))


def write_sums(files: list[Path], out: Path) -> Path:
    """Write the checksums of *files*, as sha256sum(1) checks them."""
    target = out / SUMS_NAME
    target.write_text("".join(f"{digest_of(path)}  {path.name}\n" for path in sorted(files)))
    return target
