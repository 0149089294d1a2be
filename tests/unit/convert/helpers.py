"""Layers and layouts for the tests of conversion, without network."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from tests.support.images import Layer, build_layer
from tests.support.tarball import LayerItems

from apparate.convert.converter import Converter
from apparate.convert.layer import LayerWriter, WrittenLayer
from apparate.convert.result import ConvertResult
from apparate.convert.settings import ConvertOptions, ConvertSettings
from apparate.convert.spool import Spool, read_layer
from apparate.convert.stores import LayoutImage
from apparate.format.formats import layer_format_for
from apparate.format.prefetch import PrefetchRange
from apparate.format.toc import FORMAT_NAMES, Compression
from apparate.format.writer import LayerFormat, LayerOptions
from apparate.oci.digest import Digest
from apparate.oci.manifest import Descriptor
from apparate.registry.client import RegistryClient
from apparate.registry.settings import RegistrySettings

SIZE_MAX = 1 << 30


def spooled(layer: Layer, directory: Path) -> Spool:
    descriptor = Descriptor.of(layer.blob, layer.media_type)
    return read_layer(
        [layer.blob], descriptor, Digest.parse(layer.diff_id), str(directory), SIZE_MAX, lambda _done: None
    )


@contextmanager
def written(
    entries: LayerItems,
    directory: Path,
    *,
    layer_format: LayerFormat | None = None,
    prefetch: list[PrefetchRange] | None = None,
    threads: int = 2,
) -> Iterator[tuple[WrittenLayer, ThreadPoolExecutor]]:
    """A layer made of *entries*, and the pool that made it."""
    chosen = layer_format or layer_format_for(Compression.GZIP, LayerOptions())
    spool = spooled(build_layer(entries), directory)
    with ThreadPoolExecutor(threads) as pool:
        layer = LayerWriter(chosen, pool, threads, str(directory)).write(spool, prefetch, lambda _done, _total: None)
        spool.close()
        try:
            yield layer, pool
        finally:
            layer.close()


def convert_layout(
    source: Path, target: Path, *, tag: str | None = None, threads: int = 2, **options: object
) -> ConvertResult:
    """Convert the only image of the layout *source*, or the one named *tag*, into the layout *target*."""
    client = RegistryClient(RegistrySettings(hosts_dirs=()))
    try:
        return Converter(client, ConvertSettings(threads=threads)).convert(
            LayoutImage(source, tag),
            LayoutImage(target, "converted"),
            ConvertOptions(**options),  # type: ignore[arg-type]  # each test names real options
        )
    finally:
        client.close()


def blob(layout: Path, digest: str | Digest) -> bytes:
    return (layout / "blobs" / "sha256" / str(digest).removeprefix("sha256:")).read_bytes()


def members_of_tar(data: bytes) -> dict[bytes, dict[str, object]]:
    """What Python's tarfile sees in a tar, as unpacking it shows it; the format's own files left out.

    Names that are hard links of one another give the same object, with the attributes that were unpacked last.
    """
    found: dict[bytes, dict[str, object]] = {}
    with tarfile.open(fileobj=io.BytesIO(data), errors="surrogateescape") as archive:
        for member in archive:
            name = _raw(member.name).strip(b"/")
            if name in FORMAT_NAMES:
                continue
            if member.islnk():
                found[name] = found[_raw(member.linkname).strip(b"/")]
            else:
                file = archive.extractfile(member) if member.isreg() else None
                found[name] = {
                    "type": b"0" if member.isreg() else member.type,
                    "content": file.read() if file else b"",
                    "link": member.linkname,
                    "device": (member.devmajor, member.devminor),
                }
            xattrs = {key: value for key, value in member.pax_headers.items() if key.startswith("SCHILY.xattr.")}
            own = {"mode": member.mode, "owner": (member.uid, member.gid), "mtime": member.mtime}
            found[name] |= own | xattrs
    return found


def _raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def gunzip(data: bytes) -> bytes:
    return gzip.decompress(data)
