"""Where a layer says that its TOC is: what other tools write is understood, what lies is refused."""

from __future__ import annotations

import gzip
import struct
from typing import Any

import pytest
import zstandard

from apparate.errors import FormatError
from apparate.format.estargz import footer as estargz_footer
from apparate.format.estargz import reader as estargz
from apparate.format.toc import TocLocation
from apparate.format.zstd_chunked import footer as zstd_footer
from apparate.format.zstd_chunked import reader as zstd_chunked
from apparate.oci.digest import Digest

DIGEST = "sha256:" + "ab" * 32


def test_the_footer_of_the_reference_is_understood() -> None:
    footer = bytes.fromhex(
        "1f8b08040000000000ff1a00534716003030303030303030303131333264313953544152475a010000ffff0000000000000000"
    )
    assert estargz_footer.build_footer(0x1132D19) == footer
    size = 0x1132D19 + 1000 + 51
    assert estargz.locate(b"x" * 100 + footer, size) == TocLocation(0x1132D19, 1000)
    assert gzip.decompress(footer) == b""


def test_the_legacy_footer_is_understood() -> None:
    footer = bytes.fromhex("1f8b08040000000000ff1600") + b"%016xSTARGZ" % 500 + bytes.fromhex("010000ffff") + bytes(8)
    assert estargz.locate(footer, 1047) == TocLocation(500, 500)


@pytest.mark.parametrize("offset", [0, 949, 1000, 2**63, 2**64 - 1])
def test_a_toc_outside_the_blob_is_refused(offset: int) -> None:
    with pytest.raises(FormatError) as caught:
        estargz.locate(estargz_footer.build_footer(offset), 1000)
    assert caught.value.field == "footer"


def test_digits_that_are_none_are_refused() -> None:
    footer = estargz_footer.build_footer(500).replace(b"%016x" % 500, b"0x0000000000000_")
    with pytest.raises(FormatError) as caught:
        estargz.locate(footer, 1000)
    assert caught.value.field == "footer"


@pytest.mark.parametrize(
    "build", [estargz_footer.build_footer, lambda at: zstd_footer.build_footer(TocLocation(at, 9, 9))]
)
def test_a_toc_of_ten_gigabytes_is_refused_before_it_is_fetched(build: Any) -> None:
    size = 10 * 2**30 + 5000
    tail = build(100)
    if tail.startswith(b"\x50"):
        tail = zstd_footer.build_footer(TocLocation(100, 10 * 2**30, 10 * 2**30))
    reader = zstd_chunked if tail.startswith(b"\x50") else estargz
    with pytest.raises(FormatError) as caught:
        reader.locate(tail, size)
    assert caught.value.field == "TOC"


@pytest.mark.parametrize(
    "tail", [b"", b"x", gzip.compress(b"plain", mtime=0), zstandard.compress(b"plain"), bytes(200)]
)
def test_other_layers_are_recognised_as_such(tail: bytes) -> None:
    assert estargz.locate(tail, len(tail)) is None
    assert zstd_chunked.locate(tail, len(tail)) is None


def test_a_layer_whose_toc_lies_elsewhere_is_no_layer_of_ours() -> None:
    footer = (
        bytes.fromhex("1f8b08040000000000ff1500")
        + b"SG\x11\0STARGZEXTERNALTOC"
        + bytes.fromhex("010000ffff")
        + bytes(8)
    )
    assert estargz.locate(bytes(100) + footer, 10_000) is None


@pytest.mark.parametrize("magic", [b"GNUlInUx", b"GnUlInUx"])
def test_footers_of_both_lengths_are_understood(magic: bytes) -> None:
    long = struct.pack("<IIQQQQQQQ8s", 0x184D2A50, 64, 500, 300, 900, 1, 0, 0, 0, magic)
    short = struct.pack("<IIQQQQ8s", 0x184D2A50, 40, 500, 300, 900, 1, magic)
    for footer in (long, short):
        assert zstd_chunked.locate(footer, 2000) == TocLocation(500, 300, 900)


@pytest.mark.parametrize(
    ("offset", "length", "kind", "field"),
    [
        (500, 300, 2, "footer"),
        (0, 300, 1, "manifest-position"),
        (500, 0, 1, "manifest-position"),
        (500, 5000, 1, "manifest-position"),
        (2**63, 300, 1, "manifest-position"),
        (500, 2**64 - 1, 1, "manifest-position"),
    ],
)
def test_a_zstd_footer_that_lies_is_refused(offset: int, length: int, kind: int, field: str) -> None:
    footer = struct.pack("<IIQQQQ8s", 0x184D2A50, 40, offset, length, 900, kind, b"GnUlInUx")
    with pytest.raises(FormatError) as caught:
        zstd_chunked.locate(footer, 2000)
    assert caught.value.field == field


@pytest.mark.parametrize("prefix", ["io.github.containers.zstd-chunked.", "io.containers.zstd-chunked."])
def test_annotations_of_both_ages_locate_the_toc(prefix: str) -> None:
    annotations = {prefix + "manifest-position": "500:300:900:1", prefix + "manifest-checksum": DIGEST}
    assert zstd_chunked.locate_annotated(annotations, 2000) == TocLocation(500, 300, 900)
    assert zstd_chunked.annotated_checksum(annotations) == Digest.parse(DIGEST)
    assert zstd_chunked.locate_annotated({}, 2000) is None
    assert zstd_chunked.annotated_checksum({}) is None


@pytest.mark.parametrize(
    "text", ["", "1:2:3", "500:300:900:2", "a:b:c:d", "-5:1:1:1", "1990:300:900:1", "9" * 30 + ":1:1:1"]
)
def test_annotations_that_lie_are_refused(text: str) -> None:
    key = "io.github.containers.zstd-chunked.manifest-position"
    if not text:
        assert zstd_chunked.locate_annotated({key: text}, 2000) is None
        return
    with pytest.raises(FormatError) as caught:
        zstd_chunked.locate_annotated({key: text}, 2000)
    assert caught.value.field == "manifest-position"
