"""Whole TOCs as they lie in a blob, and the corpus of bad ones: each is refused as expected, in bounded memory."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import zstandard
from tests.support import tarball
from tests.support.written import write_layer

from apparate.errors import ApparateError, FormatError, IntegrityError
from apparate.format.estargz import reader as estargz
from apparate.format.toc import Compression, TocLocation
from apparate.format.tocjson import parse_toc_json
from apparate.format.tree import build_tree
from apparate.format.zstd_chunked import reader as zstd_chunked
from apparate.oci.digest import Digest

END = 10_000
CORPUS = Path(__file__).parents[2] / "corpus" / "bad"
WRONG = Digest("sha256", "00" * 32)


@pytest.mark.parametrize("compression", list(Compression))
def test_a_toc_that_does_not_hash_to_its_digest_is_refused(compression: Compression) -> None:
    layer = write_layer(tarball.tar_bytes([("a", b"1")]), compression)
    reader: Any = estargz if compression is Compression.GZIP else zstd_chunked
    location = reader.locate(layer.blob[-100:], len(layer.blob))
    compressed = layer.blob[location.offset : location.offset + location.length]
    with pytest.raises(IntegrityError):
        reader.parse_toc(compressed, location, WRONG)
    if compression is Compression.ZSTD:
        good = Digest.of(compressed)
        assert reader.parse_toc(compressed, location, None, compressed_digest=good).entries
        with pytest.raises(IntegrityError):
            reader.parse_toc(compressed, location, None, compressed_digest=WRONG)


def test_a_toc_with_a_wrong_length_is_refused() -> None:
    document = b'{"version":1,"entries":[]}'
    compressed = zstandard.compress(document)
    with pytest.raises(FormatError) as caught:
        zstd_chunked.parse_toc(compressed, TocLocation(100, len(compressed), 5), None)
    assert caught.value.field == "TOC"


def test_a_toc_that_is_a_bomb_is_refused_within_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = 4 << 20
    monkeypatch.setattr(estargz, "MAX_TOC_JSON_BYTES", limit)
    monkeypatch.setattr(zstd_chunked, "MAX_TOC_JSON_BYTES", limit)
    bomb = bytes(64 << 20)
    gzip_bomb, zstd_bomb = gzip.compress(bomb), zstandard.compress(bomb)
    del bomb
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match="limit"):
            estargz.parse_toc(gzip_bomb, TocLocation(100, len(gzip_bomb)), None)
        with pytest.raises(FormatError, match="limit"):
            zstd_chunked.parse_toc(zstd_bomb, TocLocation(100, len(zstd_bomb)), None)
        assert tracemalloc.get_traced_memory()[1] < 8 * limit
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "compressed",
    [
        b"",
        b"junk",
        gzip.compress(b"", mtime=0),
        gzip.compress(bytes(1024), mtime=0),
        gzip.compress(b"x" * 5000, mtime=0),
    ],
)
def test_a_toc_that_is_no_tar_with_json_is_refused(compressed: bytes) -> None:
    with pytest.raises(FormatError):
        estargz.parse_toc(compressed, TocLocation(100, len(compressed)), None)


def test_a_toc_cut_off_inside_its_json_is_refused() -> None:
    whole = tarball.tar_bytes([("stargz.index.json", b'{"version":1,"entries":[]}' + b" " * 5000)])
    with pytest.raises(FormatError):
        estargz.read_document(gzip.compress(whole[:1024]))


EXPECTED: dict[str, dict[str, str]] = json.loads((CORPUS / "expected.json").read_text())


@pytest.mark.parametrize("name", sorted(EXPECTED["toc"]))
def test_each_bad_toc_of_the_corpus_is_refused_as_expected(name: str) -> None:
    document = (CORPUS / "toc" / name).read_bytes()
    with pytest.raises(ApparateError) as caught:
        build_tree(parse_toc_json(document, Compression.GZIP, "estargz", END))
    assert getattr(caught.value, "field", "unsupported") == EXPECTED["toc"][name]


@pytest.mark.parametrize("name", sorted(EXPECTED["layer"]))
def test_each_bad_layer_of_the_corpus_is_refused_as_expected(name: str) -> None:
    with pytest.raises(ApparateError) as caught:
        tree_of((CORPUS / "layer" / name).read_bytes(), zstd_chunked if name.endswith(".zst") else estargz)
    assert getattr(caught.value, "field", "unsupported") == EXPECTED["layer"][name]


def tree_of(blob: bytes, reader: Any) -> None:
    location = reader.locate(blob[-100:], len(blob))
    assert location is not None
    build_tree(reader.parse_toc(blob[location.offset :][: location.length], location, None))


def files_of(kind: str) -> list[Path]:
    return [path for path in (CORPUS / kind).rglob("*") if path.is_file()]


def test_every_file_of_the_corpus_has_an_expectation() -> None:
    for kind, names in EXPECTED.items():
        assert {str(path.relative_to(CORPUS / kind)) for path in files_of(kind)} == set(names)


def test_the_corpus_is_what_its_maker_makes() -> None:
    sums = dict(line.split()[::-1] for line in (CORPUS / "SHA256SUMS").read_text().splitlines())
    found = {
        str(path.relative_to(CORPUS)): sha256(path.read_bytes()).hexdigest()
        for kind in EXPECTED
        for path in files_of(kind)
    }
    assert found == sums
