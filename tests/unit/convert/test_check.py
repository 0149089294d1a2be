"""The proof finds every lie: in the TOC, in the index, in the data."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from tests.support.images import pattern
from tests.support.tarball import directory, file, hardlink, symlink
from tests.support.torture import torture_layer
from tests.unit.convert.helpers import gunzip, members_of_tar, written

from apparate.convert.check import prove
from apparate.convert.layer import WrittenLayer
from apparate.errors import FormatError
from apparate.format.estargz.writer import EstargzFormat
from apparate.format.formats import layer_format_for
from apparate.format.prefetch import PrefetchRange
from apparate.format.toc import Compression, Entry, EntryType, TableOfContents
from apparate.format.writer import LayerOptions, LayerPlan, MemberSummary, TocDocument
from apparate.oci.digest import Digest

ENTRIES = {
    "etc/": None,
    "etc/motd": b"hello\n",
    "bin/": directory(mode=0o711),
    "bin/tool": file(pattern(200_000), mode=0o755, xattrs={"user.a": b"1"}),
    "bin/alias": hardlink("bin/tool"),
    "lib": symlink("usr/lib"),
}
Lie = Callable[[list[Entry]], None]


def prove_layer(
    entries: Mapping[str, object], where: Path, layer_format: EstargzFormat | None = None
) -> tuple[Digest, int]:
    with written(entries, where, layer_format=layer_format) as (layer, pool):  # type: ignore[arg-type]  # a layer's items
        proof = prove(layer, None, pool, 2, lambda _done, _total: None)
        return proof.diff_id, proof.raw_size


@pytest.mark.parametrize("compression", list(Compression))
@pytest.mark.parametrize("ranges", [None, [], [PrefetchRange(b"bin/ping"), PrefetchRange(b"large", 1_000_000, 70_000)]])
def test_a_sound_layer_is_proven(tmp_path: Path, compression: Compression, ranges: list[PrefetchRange] | None) -> None:
    chosen = layer_format_for(compression, LayerOptions())
    with written(torture_layer(), tmp_path, layer_format=chosen, prefetch=ranges) as (layer, pool):
        told: list[tuple[int, int]] = []
        proof = prove(layer, ranges, pool, 2, lambda done, total: told.append((done, total)))
        assert told[-1] == (layer.descriptor.size, layer.descriptor.size)
        assert proof.entries == len(layer.entries)
        assert bool(proof.prefetch_size) == bool(ranges)
        if compression is Compression.GZIP:
            tar = gunzip(os.pread(layer.fd, layer.descriptor.size, 0))
            assert proof.diff_id == Digest.of(tar)
            assert proof.raw_size == len(tar)
            assert len(members_of_tar(tar)) > 60


class _LyingToc(EstargzFormat):
    """Writes a TOC that differs from the tar."""

    def __init__(self, lie: Lie) -> None:
        super().__init__(LayerOptions())
        self._lie = lie

    def table(self, plan: LayerPlan, members: Sequence[MemberSummary]) -> TableOfContents:
        toc = super().table(plan, members)
        entries = list(toc.entries)
        self._lie(entries)
        return dataclasses.replace(toc, entries=entries)


def changed(path: bytes, /, **fields: object) -> Lie:
    def lie(entries: list[Entry]) -> None:
        number = next(at for at, entry in enumerate(entries) if entry.path == path)
        entries[number] = dataclasses.replace(entries[number], **fields)  # type: ignore[arg-type]  # fields of Entry

    return lie


def swapped(entries: list[Entry]) -> None:
    entries[-1], entries[-2] = entries[-2], entries[-1]


def moved_chunk(entries: list[Entry]) -> None:
    """Let etc/motd begin one byte later in its member, with a digest that fits what is there."""
    number = next(at for at, entry in enumerate(entries) if entry.path == b"etc/motd")
    chunk = entries[number].chunks[0]
    data = b"ello\n\0"
    moved = dataclasses.replace(chunk, inner_offset=chunk.inner_offset + 1, digest=Digest.of(data).raw)
    entries[number] = dataclasses.replace(entries[number], chunks=(moved,))


@pytest.mark.parametrize(
    "lie",
    [
        changed(b"etc/motd", mode=0o4755),
        changed(b"etc/motd", uid=1),
        changed(b"etc/motd", gid=1),
        changed(b"etc/motd", mtime_ns=1),
        changed(b"etc/motd", xattrs={b"user.x": b"1"}),
        changed(b"bin/tool", xattrs={}),
        changed(b"etc/motd", path=b"etc/other"),
        changed(b"lib", link=b"usr/lib64"),
        changed(b"lib", type=EntryType.FIFO, link=b""),
        changed(b"bin/alias", link=b"etc/motd"),
        swapped,
        moved_chunk,
        lambda entries: entries.pop(),
        lambda entries: entries.append(Entry(b"extra", EntryType.DIR)),
    ],
)
def test_a_toc_that_differs_from_the_tar_is_found(tmp_path: Path, lie: Lie) -> None:
    with pytest.raises(FormatError):
        prove_layer(ENTRIES, tmp_path, _LyingToc(lie))


class _LyingIndex(EstargzFormat):
    """Tells the index of another table than the TOC in the blob."""

    def document(self, toc: TableOfContents, file_digests: Mapping[int, bytes]) -> TocDocument:
        entries = list(toc.entries)
        changed(b"etc/motd", mode=0o4755)(entries)
        return super().document(dataclasses.replace(toc, entries=entries), file_digests)


def test_an_index_that_differs_from_the_toc_is_found(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"index\.metadata"):
        prove_layer(ENTRIES, tmp_path, _LyingIndex(LayerOptions()))


def test_a_tar_that_differs_from_the_plan_is_found(tmp_path: Path) -> None:
    with written(ENTRIES, tmp_path) as (layer, pool):
        number = next(at for at, entry in enumerate(layer.entries) if entry.path == b"etc/motd")
        layer.entries[number] = dataclasses.replace(layer.entries[number], mode=0)
        with pytest.raises(FormatError, match="differs from the source"):
            prove(layer, None, pool, 2, lambda _done, _total: None)


def flip(layer: WrittenLayer, offset: int) -> None:
    byte = os.pread(layer.fd, 1, offset)
    os.pwrite(layer.fd, bytes((byte[0] ^ 0x10,)), offset)


def test_every_flipped_byte_is_found(tmp_path: Path) -> None:
    with written({"a": b"hello\n", "b": pattern(5000)}, tmp_path) as (layer, pool):
        for offset in range(layer.descriptor.size):
            flip(layer, offset)
            with pytest.raises(FormatError):
                prove(layer, None, pool, 2, lambda _done, _total: None)
            flip(layer, offset)
