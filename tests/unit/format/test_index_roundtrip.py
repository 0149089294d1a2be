"""The index of a layer, from its TOC to the local form and back."""

from __future__ import annotations

import hashlib
import mmap
import tracemalloc
from pathlib import Path

import pytest
from tests.support.erofs import sample, torture

from apparate.errors import IntegrityError
from apparate.format.erofs import writer as erofs_writer
from apparate.format.erofs.reader import ErofsReader
from apparate.format.index import LayerIndex, Piece, build_index, build_local, member_digest, unpack
from apparate.format.prefetch import PrefetchRange
from apparate.format.toc import PREFETCH_LANDMARK, Chunk, Compression, Entry, EntryType, Member, TableOfContents
from apparate.format.tree import build_tree

WIRE_SHA256 = "cf5d49d12dad3700ab3d3a457d8bb9eaacca71d6012ea1070e4c500e75957d9f"
METADATA_SHA256 = "24cc32f38ca9214c1df1cdecfa99ded4e2b3c5e7fe43644a27566e302193581b"


def sha(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def example() -> TableOfContents:
    """Two members: `a` and `b` share the first, the landmark and the second half of `c` the others."""
    entries = [
        Entry(b"etc", EntryType.DIR, 0o755),
        Entry(b"etc/a", EntryType.REG, 0o644, size=5, chunks=(Chunk(0, 5, sha(b"aaaaa"), 0, 0),)),
        Entry(b"b", EntryType.REG, 0o644, size=3, chunks=(Chunk(0, 3, sha(b"bbb"), 0, 1024),)),
        Entry(PREFETCH_LANDMARK, EntryType.REG, size=1, chunks=(Chunk(0, 1, sha(b"\x0f"), 1, 0),)),
        Entry(
            b"c",
            EntryType.REG,
            0o600,
            size=6000,
            chunks=(Chunk(0, 1000, sha(b"1" * 1000), 2, 0), Chunk(5000, 1000, sha(b"2" * 1000), 3, 0)),
        ),
    ]
    members = [Member(0, 100, 2048), Member(110, 30, 1), Member(140, 50), Member(200, 60, 1536)]
    return TableOfContents(entries, members, Compression.GZIP)


def test_members_and_pieces_are_those_of_the_toc() -> None:
    index = LayerIndex(unpack(build_index(example())))
    start = index.metadata_size
    assert index.member_count == 3
    assert index.member(0) == (0, 100, 2048, 1027)
    assert index.pieces(0) == [Piece(start, 0, 5), Piece(start + 4096, 1024, 3)]
    assert index.member(1) == (140, 50, 0, 1000)
    assert index.pieces(2) == [Piece(start + 8192 + 5000, 0, 1000)]
    assert index.image_size == start + 4096 * 4
    assert index.blob_end == 260
    assert index.inode_count == 5


def test_members_in_counts_what_a_range_touches_and_nothing_else() -> None:
    index = LayerIndex(unpack(build_index(example())))
    start = index.metadata_size
    assert index.members_in(start, 1) == range(1)
    assert index.members_in(start + 4096, 4096) == range(1)
    assert index.members_in(start, 4096 * 4) == range(3)
    assert index.members_in(start + 8192, 4096) == range(1, 2)
    assert index.members_in(start + 8192 + 1000, 4000) == range(2, 2)
    assert index.members_in(start + 8192 + 4999, 2) == range(2, 3)
    assert not index.members_in(0, start)
    assert not index.members_in(start, 0)
    assert not index.members_in(index.image_size, 4096)


def test_a_member_with_the_right_bytes_is_accepted_and_any_other_is_refused() -> None:
    index = LayerIndex(unpack(build_index(example())))
    raw = bytearray(b"aaaaa".ljust(1024, b"\0") + b"bbb" + bytes(9))
    index.verify(0, raw)
    assert index.digest(0) == member_digest([sha(b"aaaaa"), sha(b"bbb")])
    index.verify(1, b"1" * 1000)
    assert index.digest(1) == sha(b"1" * 1000)
    raw[1024] ^= 1
    with pytest.raises(IntegrityError):
        index.verify(0, raw)
    with pytest.raises(IntegrityError):
        index.verify(1, b"1" * 999)


def test_prefetch_comes_from_the_profile_else_from_the_landmark() -> None:
    by_landmark = LayerIndex(build_local(example()))
    start = by_landmark.metadata_size
    assert by_landmark.prefetch == ((start, 4099),)
    profile = [
        PrefetchRange(b"c", 5500, 9999),
        PrefetchRange(b"etc/a"),
        PrefetchRange(b"etc/none"),
        PrefetchRange(b"etc"),
    ]
    assert LayerIndex(build_local(example(), profile=profile)).prefetch == ((start + 8192 + 5500, 500), (start, 5))


def test_wire_form_and_direct_build_give_the_same_local_form() -> None:
    toc = example()
    packed = build_index(toc, toc_digest=sha(b"toc"))
    assert unpack(packed) == build_local(toc, toc_digest=sha(b"toc"))
    assert build_index(example(), toc_digest=sha(b"toc")) == packed
    assert LayerIndex(unpack(packed)).toc_digest == sha(b"toc")


def test_the_metadata_are_an_image_with_the_tree() -> None:
    index = LayerIndex(unpack(build_index(example())))
    reader = ErofsReader(index.metadata())
    found = {path: reader.address(inode) for path, inode in reader.walk()}
    start = index.metadata_size
    assert found == {b"": 0, b"b": start + 4096, b"c": start + 8192, b"etc": 0, b"etc/a": start}
    assert reader.image_size == index.image_size


def test_an_empty_layer_has_an_index() -> None:
    index = LayerIndex(unpack(build_index(TableOfContents([], [], Compression.ZSTD))))
    assert index.member_count == 0
    assert index.image_size == index.metadata_size == 4096
    assert index.compression is Compression.ZSTD
    assert not index.members_in(0, 4096)
    assert index.prefetch == ()
    assert index.blob_end == 0


def test_the_bytes_of_version_1_stay_as_they_are() -> None:
    """What is written is part of the digest of converted layers: a change needs a new version and a changed docs page."""
    assert sha(build_index(example(), toc_digest=sha(b"toc"))).hex() == WIRE_SHA256
    assert sha(erofs_writer.build(build_tree(torture().toc)).metadata).hex() == METADATA_SHA256


def test_an_index_costs_little_memory_beside_its_file(tmp_path: Path) -> None:
    path = tmp_path / "index"
    contents = {b"%d" % number: b"content" for number in range(1000)}
    path.write_bytes(unpack(build_index(sample([Entry(name, EntryType.REG) for name in contents], contents).toc)))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        LayerIndex(mapped).close()
        tracemalloc.start()
        index = LayerIndex(mapped)
        kept, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        members = index.member_count
        index.close()
    assert members == 1000
    assert kept < 8192
