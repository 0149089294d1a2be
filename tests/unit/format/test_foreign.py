"""Layers that other tools made (tests/corpus/foreign) show the tree of their source, content included."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.support.foreign_layers import foreign_source
from tests.support.written import read_file, source_of

from apparate.format.estargz import reader as estargz
from apparate.format.toc import Compression, EntryType, Member, TableOfContents
from apparate.format.tree import Node, build_tree
from apparate.format.zstd_chunked import reader as zstd_chunked
from apparate.oci import names
from apparate.oci.digest import Digest

CORPUS = Path(__file__).parents[2] / "corpus" / "foreign"
ANNOTATIONS: dict[str, dict[str, str]] = json.loads((CORPUS / "annotations.json").read_text())
TAIL = 100


def parse(name: str) -> tuple[bytes, TableOfContents]:
    """Return a blob and its TOC, found and verified as its annotations say."""
    blob = (CORPUS / name).read_bytes()
    annotations = ANNOTATIONS[name]
    toc_digest = annotations.get(names.TOC_DIGEST)
    digest = None if toc_digest is None else Digest.parse(toc_digest)
    if name.endswith(".gz"):
        location = estargz.locate(blob[-TAIL:], len(blob))
        assert location is not None
        return blob, estargz.parse_toc(blob[location.offset :][: location.length], location, digest)
    location = zstd_chunked.locate(blob[-TAIL:], len(blob))
    assert location is not None
    annotated = zstd_chunked.locate_annotated(annotations, len(blob))
    assert annotated in (None, location)
    checksum = zstd_chunked.annotated_checksum(annotations)
    compressed = blob[location.offset :][: location.length]
    return blob, zstd_chunked.parse_toc(compressed, location, digest, compressed_digest=checksum)


def shown(node: Node) -> tuple[object, ...]:
    xattrs = dict(node.xattrs)
    device = (node.devmajor, node.devminor)
    return (node.type, node.mode, node.uid, node.gid, node.size, node.mtime_ns, node.link, xattrs, device, node.nlink)


@pytest.mark.parametrize("name", sorted(ANNOTATIONS))
def test_a_layer_of_another_tool_shows_the_tree_of_its_source(name: str) -> None:
    tar = foreign_source()
    source = source_of(tar)
    expected = build_tree(TableOfContents([item.entry for item in source], [], Compression.GZIP))
    blob, toc = parse(name)
    tree = build_tree(toc)
    assert {path: shown(node) for path, node in tree.walk()} == {path: shown(node) for path, node in expected.walk()}
    made = dict(expected.walk())
    for path, node in tree.walk():
        if node.type is EntryType.REG:
            payload = source[made[path].source].payload
            assert read_file(blob, toc, node) == tar[payload.offset : payload.offset + payload.length]


def test_the_landmark_of_another_tool_is_heeded() -> None:
    _, toc = parse("estargz.gz")
    big = next(entry for entry in toc.entries if entry.path == b"big")
    assert toc.prefetch_members() == len(big.chunks)
    assert {chunk.member for chunk in big.chunks} == set(range(toc.prefetch_members()))


def test_members_that_files_share_are_recognised() -> None:
    for name in ("estargz-min-chunk.gz", "zstdchunked-min-chunk.zst"):
        _, toc = parse(name)
        assert any(chunk.inner_offset for entry in toc.entries for chunk in entry.chunks)


def test_long_runs_of_zeros_need_no_member() -> None:
    _, toc = parse("containers-storage.zst")
    zeros = next(entry for entry in toc.entries if entry.path == b"zeros")
    assert sum(chunk.length for chunk in zeros.chunks) < zeros.size
    assert all(isinstance(member, Member) and member.length < 64_000 for member in toc.members)
