"""Layers that the writer makes: read back by our reader, and by readers that know nothing of members and TOCs."""

from __future__ import annotations

import gzip
import io
import random
import shutil
import subprocess
import tarfile
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support import tarball
from tests.support.tarball import Node
from tests.support.written import WrittenLayer, read_file, source_of, write_layer

from apparate.errors import FormatError, InvalidArgument
from apparate.format.embedding import embed
from apparate.format.formats import layer_format_for
from apparate.format.inflate import inflate_bounded
from apparate.format.prefetch import PrefetchRange
from apparate.format.toc import FORMAT_NAMES, Compression, Entry, EntryType, TableOfContents
from apparate.format.tree import Tree, build_tree
from apparate.format.writer import LayerOptions, SourceEntry, Span
from apparate.oci import names

KIB = 1024
BOTH = pytest.mark.parametrize("compression", list(Compression))


def noise(length: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(length)


def shape(tree: Tree) -> dict[bytes, tuple[object, ...]]:
    """Return everything a mounted layer shows of a tree but content; linked names have the same group."""
    groups: dict[int, int] = {}
    return {
        path: (
            node.type,
            node.mode,
            node.uid,
            node.gid,
            node.size,
            node.mtime_ns,
            node.link,
            dict(node.xattrs),
            (node.devmajor, node.devminor),
            node.nlink,
            groups.setdefault(id(node), len(groups)),
        )
        for path, node in tree.walk()
    }


def content_of(tar: bytes) -> dict[bytes, bytes]:
    """Return the content of each regular file, the last one of a name."""
    return {item.entry.path: _stored(tar, item) for item in source_of(tar) if item.entry.type is EntryType.REG}


def _stored(tar: bytes, item: SourceEntry) -> bytes:
    payload = tar[item.payload.offset : item.payload.offset + item.payload.length]
    if item.runs is None:
        return payload
    content = bytearray(item.entry.size)
    at = 0
    for offset, length in item.runs:
        content[offset : offset + length] = payload[at : at + length]
        at += length
    return bytes(content)


def check(tar: bytes, layer: WrittenLayer) -> None:
    """Prove that *layer* is *tar* in another order: same tree, same content, for us and for any reader of the tar."""
    source = build_tree(TableOfContents([item.entry for item in source_of(tar)], [], Compression.GZIP))
    for toc in (layer.toc, layer.parse(data_end=layer.trailer.region_offset)):
        tree = build_tree(toc)
        assert shape(tree) == shape(source)
    content = content_of(tar)
    for (path, node), (_, made) in zip(build_tree(layer.parse()).walk(), source.walk(), strict=True):
        if node.type is EntryType.REG:
            origin = source_of(tar)[made.source].entry.path
            assert read_file(layer.blob, layer.parse(), node) == content[origin], path
    assert inflate_bounded(layer.compression, layer.blob, 1 << 30) == layer.raw
    again = [item.entry for item in source_of(layer.raw)]
    plain = [entry for entry in again if entry.path not in FORMAT_NAMES]
    assert shape(build_tree(TableOfContents(plain, [], Compression.GZIP))) == shape(source)
    assert len({entry.path for entry in again}) == len(again), "one entry for each path"


def torture() -> bytes:
    """Return a layer with every kind of entry."""
    return tarball.tar_bytes(
        [
            ("./", tarball.directory(mode=0o700)),
            ("etc", tarball.directory(mode=0o751, uid=7, xattrs={"user.d": b"\0\xff"})),
            ("etc/passwd", tarball.file(b"root", xattrs={"security.capability": b"\1\0\0\2" + bytes(16)})),
            ("etc/empty", b""),
            ("etc/link", tarball.symlink("/absolute/../target")),
            ("etc/hard", tarball.hardlink("etc/passwd", xattrs={})),
            ("dev/null", tarball.char(1, 3)),
            ("dev/sda", tarball.block(8, 1)),
            ("run/pipe", tarball.fifo()),
            ("big", noise(300 * KIB)),
            ("holes", tarball.sparse(3 << 20, [(0, b"a" * 512), (2 << 20, b"z" * 512)])),
            ("setuid", tarball.file(b"s" * 5000, mode=0o6755, uid=100_000, gid=3_000_000_000)),
            ("times", tarball.file(b"t", mtime_ns=1_600_000_000_123_456_789)),
            ("old", tarball.file(b"o", mtime_ns=-1_500_000_000)),
            ("future", tarball.file(b"f", mtime_ns=2**63 - 1)),
            (b"caf\xe9/" + b"n" * 255, b"not utf-8"),
            ("deep/" * 40 + "file", b"deep"),
            ("opaque/.wh..wh..opq", b""),
            ("gone/.wh.file", b""),
            ("linkfar", tarball.symlink("t" * 4000)),
        ]
    )


@BOTH
@pytest.mark.parametrize(
    "prefetch",
    [
        None,
        [],
        [PrefetchRange(b"big", 8192, 4096), PrefetchRange(b"etc/hard"), PrefetchRange(b"big", 200_000, 10)],
        [PrefetchRange(b"holes", 1 << 20, 100), PrefetchRange(b"caf\xe9/" + b"n" * 255), PrefetchRange(b"dev/null")],
        [PrefetchRange(b"no/such/file")],
    ],
)
def test_a_layer_of_every_kind_of_entry_is_kept(compression: Compression, prefetch: list[PrefetchRange] | None) -> None:
    tar = torture()
    check(tar, write_layer(tar, compression, prefetch=prefetch))


@BOTH
@pytest.mark.parametrize("entries", [[], [("d", None)], [("empty", b"")], [("only", b"x")]])
def test_small_and_empty_layers_are_kept(compression: Compression, entries: list[tuple[str, bytes | None]]) -> None:
    tar = tarball.tar_bytes(entries)
    check(tar, write_layer(tar, compression))


def test_an_empty_stream_is_an_empty_layer() -> None:
    check(b"", write_layer(b""))


PARTS = st.sampled_from(["a", "b", "c", ".wh.a", ".wh..wh..opq", "usr"])
PATHS = st.lists(PARTS, min_size=1, max_size=3).map("/".join)
NODES = st.one_of(
    st.binary(max_size=300).map(lambda data: tarball.file(data)),
    st.integers(1, 40).map(lambda pages: tarball.file(noise(pages * 3000))),
    st.integers(0, 0o7777).map(lambda mode: tarball.directory(mode=mode)),
    PATHS.map(tarball.symlink),
    PATHS.map(tarball.hardlink),
    st.just(tarball.char(0, 0)),
    st.just(tarball.file(b"attributes", uid=5, xattrs={"user.x": b"y", "trusted.no": b"z"})),
    st.lists(st.integers(0, 20), unique=True, max_size=4).map(
        lambda blocks: tarball.sparse(21 * 512, [(512 * block, b"d" * 512) for block in sorted(blocks)])
    ),
)
RANGES = st.one_of(
    st.none(),
    st.lists(
        st.builds(
            PrefetchRange,
            PATHS.map(str.encode),
            st.integers(0, 50_000),
            st.one_of(st.none(), st.integers(0, 50_000)),
        ),
        max_size=5,
    ),
)
OPTIONS = st.builds(
    LayerOptions,
    member_bytes=st.sampled_from([4096, 16 * KIB, 64 * KIB]),
    cold_bytes=st.sampled_from([4096, 128 * KIB]),
    chunk_bytes=st.sampled_from([0, 4096, 12 * KIB]),
    level=st.just(1),
)


@given(st.lists(st.tuples(PATHS, NODES), max_size=8), RANGES, OPTIONS, st.sampled_from(list(Compression)))
def test_any_tar_that_makes_a_tree_is_kept(
    entries: list[tuple[str, Node]],
    prefetch: list[PrefetchRange] | None,
    options: LayerOptions,
    compression: Compression,
) -> None:
    tar = tarball.tar_bytes(entries)
    try:
        build_tree(TableOfContents([item.entry for item in source_of(tar)], [], Compression.GZIP))
    except FormatError:
        with pytest.raises(FormatError):
            write_layer(tar, compression, options=options, prefetch=prefetch)
        return
    check(tar, write_layer(tar, compression, options=options, prefetch=prefetch))


@BOTH
def test_the_same_input_gives_the_same_bytes(compression: Compression) -> None:
    tar = torture()
    prefetch = [PrefetchRange(b"big", 0, 9000), PrefetchRange(b"etc/passwd")]
    assert write_layer(tar, compression, prefetch=prefetch) == write_layer(tar, compression, prefetch=prefetch)


def test_stock_gzip_and_tar_read_a_layer() -> None:
    layer = write_layer(
        torture(), prefetch=[PrefetchRange(b"big", 0, 9000)], region=embed(b"i" * 200_000, Compression.GZIP)
    )
    assert gzip.decompress(layer.blob) == layer.raw
    subprocess.run(["gzip", "-t"], input=layer.blob, check=True)
    listing = subprocess.run(["tar", "-tzf", "-"], input=layer.blob, check=True, capture_output=True).stdout
    assert b"holes\n" in listing
    with tarfile.open(fileobj=io.BytesIO(layer.blob)) as archive:
        big = archive.extractfile("big")
        assert big is not None
        assert big.read() == noise(300 * KIB)


@pytest.mark.skipif(shutil.which("zstd") is None, reason="no zstd command")
def test_stock_zstd_and_tar_read_a_layer() -> None:
    layer = write_layer(torture(), Compression.ZSTD, region=embed(b"i" * 200_000, Compression.ZSTD))
    raw = subprocess.run(["zstd", "-dc"], input=layer.blob, check=True, capture_output=True).stdout
    assert raw == layer.raw
    assert raw.endswith(bytes(1024))
    listing = subprocess.run(["tar", "-tf", "-"], input=raw, check=True, capture_output=True).stdout
    assert b"holes\n" in listing


@BOTH
def test_the_annotations_name_toc_and_size(compression: Compression) -> None:
    layer = write_layer(torture(), compression)
    annotations = layer.trailer.annotations
    assert annotations[names.TOC_DIGEST] == "sha256:" + layer.document.digest.hex()
    assert annotations[names.UNCOMPRESSED_SIZE] == str(len(layer.raw))


@BOTH
def test_the_embedded_region_lies_between_data_and_toc(compression: Compression) -> None:
    tar = torture()
    region = embed(noise(100_000), compression)
    layer = write_layer(tar, compression, region=region)
    start = layer.trailer.region_offset
    assert layer.blob[start : start + len(region)] == region
    last = layer.toc.members[-1]
    assert last.offset + last.length <= start
    check(tar, layer)


@BOTH
def test_small_files_share_members_of_the_usual_size(compression: Compression) -> None:
    tar = tarball.tar_bytes([(f"f{number}", noise(3000, number)) for number in range(200)])
    layer = write_layer(tar, compression)
    sizes = [member.raw_length for member in layer.plan.members]
    assert max(sizes) <= 64 * KIB
    assert len(sizes) < 16
    check(tar, layer)


@BOTH
def test_no_file_of_at_most_a_members_size_is_cut(compression: Compression) -> None:
    tar = tarball.tar_bytes([(f"f{number}", noise(1000 * number, number)) for number in range(1, 65)])
    toc = write_layer(tar, compression).toc
    assert all(len(entry.chunks) <= 1 for entry in toc.entries)


def test_a_large_file_is_cut_at_multiples_of_the_member_size() -> None:
    tar = tarball.tar_bytes([("a", b"x"), ("big", noise(200 * KIB + 5)), ("z", b"y")])
    layer = write_layer(tar)
    big = next(entry for entry in layer.toc.entries if entry.path == b"big")
    assert [(chunk.offset, chunk.length) for chunk in big.chunks] == [
        (0, 64 * KIB),
        (64 * KIB, 64 * KIB),
        (128 * KIB, 64 * KIB),
        (192 * KIB, 8 * KIB + 5),
    ]
    last = next(entry for entry in layer.toc.entries if entry.path == b"z").chunks[0]
    assert last.member == big.chunks[-1].member, "the rest of a large file shares its member"


def test_many_headers_do_not_swell_the_member_of_a_file() -> None:
    tar = tarball.tar_bytes([*((f"d{number}", None) for number in range(2000)), ("f", b"x"), ("g", b"y")])
    layer = write_layer(tar)
    file = next(entry for entry in layer.toc.entries if entry.path == b"f")
    assert file.chunks[0].inner_offset <= 16 * KIB


def hot_bytes(layer: WrittenLayer) -> int:
    """Return the raw size of the members in front of the landmark."""
    count = next(
        number
        for number, member in enumerate(layer.plan.members)
        if any(layer.plan.entries[chunk.entry].path == b".prefetch.landmark" for chunk in member.chunks)
    )
    return sum(member.raw_length for member in layer.plan.members[:count])


def test_a_prefetched_file_lies_in_front_behind_its_parents_and_before_the_landmark() -> None:
    tar = tarball.tar_bytes([("a", b"1"), ("d", None), ("d/e", None), ("d/e/hot", b"hot"), ("z", b"2")])
    layer = write_layer(tar, prefetch=[PrefetchRange(b"d/e/hot")])
    assert [entry.path for entry in layer.toc.entries] == [b"d", b"d/e", b"d/e/hot", b".prefetch.landmark", b"a", b"z"]
    assert layer.parse().prefetch_members() == 1
    assert hot_bytes(layer) == 4 * 512


def test_without_a_hit_the_landmark_says_that_nothing_is_to_be_loaded_ahead() -> None:
    tar = tarball.tar_bytes([("a", b"1")])
    for prefetch in (None, [], [PrefetchRange(b"elsewhere")]):
        layer = write_layer(tar, prefetch=prefetch)
        assert [entry.path for entry in layer.toc.entries] == [b".no.prefetch.landmark", b"a"]
        assert layer.parse().prefetch_members() == 0


def test_the_landmark_is_the_one_that_other_tools_know() -> None:
    layer = write_layer(tarball.tar_bytes([("a", b"1")]))
    landmark = layer.toc.entries[0]
    assert landmark == Entry(b".no.prefetch.landmark", EntryType.REG, size=1, chunks=landmark.chunks)
    known = "dc0e9c3658a1a3ed1ec94274d8b19925c93e1abb7ddba294923ad9bde30f8cb8"
    assert landmark.chunks[0].digest.hex() == known


def test_hot_ranges_are_cut_at_pages_and_cold_bytes_lie_in_large_members() -> None:
    tar = tarball.tar_bytes([("lib", noise(1 << 20))])
    wanted = [
        PrefetchRange(b"lib", 100_001, 50),
        PrefetchRange(b"lib", 500_000, 5000),
        PrefetchRange(b"lib", 110_000, 1),
    ]
    layer = write_layer(tar, prefetch=wanted)
    chunks = layer.toc.entries[0].chunks
    spans = [(chunk.offset, chunk.length) for chunk in chunks]
    assert (98_304, 12_288) in spans, "two ranges with a gap of 6 KiB are one, from page to page"
    assert (499_712, 8192) in spans
    cold = [length for offset, length in spans if (offset, length) not in ((98_304, 12_288), (499_712, 8192))]
    assert max(cold) == 128 * KIB
    assert len({chunk.member for chunk in chunks}) == len(chunks)
    check(tar, layer)


def test_hot_pieces_of_small_files_share_a_member() -> None:
    tar = tarball.tar_bytes([(f"f{number}", noise(5000, number)) for number in range(20)])
    wanted = [PrefetchRange(b"f%d" % number) for number in (19, 3, 7)]
    layer = write_layer(tar, prefetch=wanted)
    first = layer.toc.entries[:3]
    assert [entry.path for entry in first] == [b"f19", b"f3", b"f7"]
    assert {entry.chunks[0].member for entry in first} == {0}


def test_a_hot_hard_link_brings_its_target_in_front() -> None:
    tar = tarball.tar_bytes([("a", b"1"), ("file", b"content"), ("link", tarball.hardlink("file"))])
    layer = write_layer(tar, prefetch=[PrefetchRange(b"link")])
    assert [entry.path for entry in layer.toc.entries] == [b"file", b"link", b".prefetch.landmark", b"a"]


def test_format_entries_of_the_source_are_dropped() -> None:
    tar = tarball.tar_bytes([(".prefetch.landmark", b"\x0f"), ("a", b"1"), ("stargz.index.json", b"{}")])
    layer = write_layer(tar)
    assert [entry.path for entry in layer.toc.entries] == [b".no.prefetch.landmark", b"a"]


def test_headers_are_taken_over_byte_for_byte() -> None:
    with io.BytesIO() as out:
        with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
            info = tarfile.TarInfo("n" * 150)
            info.uname, info.gname, info.size = "someone", "some group", 3
            archive.addfile(info, io.BytesIO(b"abc"))
        tar = out.getvalue()
    header = source_of(tar)[0].header
    assert isinstance(header, Span)
    assert tar[: header.length] in write_layer(tar).raw


def test_a_file_replaced_behind_its_hard_link_keeps_both_contents() -> None:
    tar = tarball.tar_bytes([("a", b"old"), ("b", tarball.hardlink("a")), ("a", b"new"), ("c", tarball.hardlink("b"))])
    layer = write_layer(tar)
    toc = layer.parse()
    files = {path: read_file(layer.blob, toc, node) for path, node in build_tree(toc).walk() if node.size}
    assert files == {b"a": b"new", b"b": b"old", b"c": b"old"}
    with tarfile.open(fileobj=io.BytesIO(layer.raw)) as archive:
        assert {name: stream.read() for name in "abc" if (stream := archive.extractfile(name)) is not None} == {
            "a": b"new",
            "b": b"old",
            "c": b"old",
        }


def test_a_whiteout_of_a_name_that_comes_again_stays_before_it() -> None:
    tar = tarball.tar_bytes([("d", None), ("d/.wh.x", b""), ("d/x", b"again"), ("e", b"")])
    layer = write_layer(tar, prefetch=[PrefetchRange(b"d/x")])
    paths = [entry.path for entry in layer.toc.entries]
    assert paths.index(b"d/.wh.x") < paths.index(b"d/x")


def test_the_padding_that_a_cut_archive_lacks_is_made_up_for() -> None:
    whole = tarball.tar_bytes([("a", b"1" * 100), ("b", b"2" * 700)], end=False)
    cut = whole[: -(-700 % 512)]
    check(cut, write_layer(cut))


@pytest.mark.parametrize(
    "options",
    [
        LayerOptions(member_bytes=0),
        LayerOptions(member_bytes=5000),
        LayerOptions(cold_bytes=1 << 30),
        LayerOptions(chunk_bytes=-4096),
        LayerOptions(chunk_bytes=100),
        LayerOptions(level=0),
        LayerOptions(level=23),
    ],
)
@BOTH
def test_options_without_sense_are_refused(compression: Compression, options: LayerOptions) -> None:
    with pytest.raises(InvalidArgument):
        write_layer(b"", compression, options=options)


@BOTH
def test_a_member_of_another_length_than_planned_is_refused(compression: Compression) -> None:
    layer_format = layer_format_for(compression, LayerOptions())
    plan = layer_format.plan([], None)
    with pytest.raises(InvalidArgument):
        layer_format.encode(plan.members[0], b"short")


def test_whole_files_are_hashed_only_where_the_toc_needs_it() -> None:
    tar = tarball.tar_bytes([("small", noise(1000)), ("big", noise(100_000))])
    layer = write_layer(tar)
    assert [layer.plan.entries[file.entry].path for file in layer.plan.whole_files] == [b"big"]
    digest = "sha256:" + sha256(noise(100_000)).hexdigest()
    assert digest.encode() in layer.raw
