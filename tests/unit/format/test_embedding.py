"""A packed index inside a layer: no decompressor sees it, and we find it again."""

from __future__ import annotations

import contextlib
import gzip
import io
import shutil
import subprocess
import zlib

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from apparate.errors import FormatError, IntegrityError
from apparate.format.embedding import MAX_REGION_BYTES, IndexLocation, embed, extract
from apparate.format.toc import Compression

SIZES = [1, 65_530, 65_531, 65_532, 131_062, 131_063, 300_000]


def content(length: int) -> bytes:
    return bytes(number * 7 % 251 for number in range(length))


@pytest.mark.parametrize("compression", list(Compression))
@pytest.mark.parametrize("length", SIZES)
def test_what_is_embedded_comes_back(compression: Compression, length: int) -> None:
    region = embed(content(length), compression)
    assert extract(region, compression) == content(length)
    assert len(region) <= length + 28 * (length // 65_531 + 1)


@pytest.mark.parametrize("length", SIZES)
def test_gzip_readers_see_only_the_tar(length: int) -> None:
    blob = gzip.compress(b"first", mtime=0) + embed(content(length), Compression.GZIP) + gzip.compress(b"last", mtime=0)
    assert gzip.decompress(blob) == b"firstlast"
    pieces, rest = [], blob
    while rest:
        inflater = zlib.decompressobj(31)
        pieces.append(inflater.decompress(rest))
        rest = inflater.unused_data
    assert b"".join(pieces) == b"firstlast"


@pytest.mark.parametrize("tool", ["gzip", "pigz", "igzip"])
def test_gzip_tools_see_only_the_tar(tool: str) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    blob = gzip.compress(b"first", mtime=0) + embed(content(200_000), Compression.GZIP) + gzip.compress(b"last")
    done = subprocess.run([tool, "-dc"], input=blob, capture_output=True, check=True, timeout=60)
    assert done.stdout == b"firstlast"


def test_zstd_readers_see_only_the_tar() -> None:
    blob = zstandard.compress(b"first") + embed(content(200_000), Compression.ZSTD) + zstandard.compress(b"last")
    with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(blob), read_across_frames=True) as reader:
        assert reader.read() == b"firstlast"


def test_a_location_survives_its_annotation_and_proves_the_region() -> None:
    region = embed(content(1000), Compression.GZIP)
    location = IndexLocation.of(region, 12_345)
    text = location.to_annotation()
    assert len(text) < 128
    assert IndexLocation.from_annotation(text) == location
    location.verify(region)
    with pytest.raises(IntegrityError):
        location.verify(region[:-1] + b"x")


def test_an_unknown_version_is_no_location() -> None:
    assert IndexLocation.from_annotation("v2:anything") is None
    assert IndexLocation.from_annotation("") is None


@pytest.mark.parametrize(
    "text",
    [
        "v1:",
        "v1:1:2",
        "v1:-1:10:" + "0" * 64,
        "v1:01:10:" + "0" * 64,
        "v1:1:0:" + "0" * 64,
        "v1:1:10:" + "0" * 63,
        "v1:1:10:" + "A" * 64,
        "v1:1:10:" + "0" * 64 + "\n",
        f"v1:1:{MAX_REGION_BYTES + 1}:" + "0" * 64,
        "v1:9999999999999999999:10:" + "0" * 64,
        "v1:٣:10:" + "0" * 64,
    ],
)
def test_an_annotation_that_lies_is_refused(text: str) -> None:
    with pytest.raises(FormatError) as caught:
        IndexLocation.from_annotation(text)
    assert caught.value.field == "annotation"


@pytest.mark.parametrize("compression", list(Compression))
def test_a_cut_or_lengthened_region_is_refused(compression: Compression) -> None:
    region = embed(content(70_000), compression)
    for length in (5, 15, 20, 65_560, len(region) - 1):
        with pytest.raises(FormatError):
            extract(region[:length], compression)
    with pytest.raises(FormatError):
        extract(region + b"\0", compression)


@given(st.binary(max_size=200), st.sampled_from(list(Compression)))
def test_any_bytes_give_our_error_or_content(region: bytes, compression: Compression) -> None:
    with contextlib.suppress(FormatError):
        assert len(extract(region, compression)) <= len(region)


@given(st.integers(0, 65_600), st.integers(0, 255), st.sampled_from(list(Compression)))
def test_a_changed_byte_gives_our_error_or_other_content(offset: int, value: int, compression: Compression) -> None:
    region = bytearray(embed(content(65_540), compression))
    region[offset % len(region)] = value
    with contextlib.suppress(FormatError):
        extract(region, compression)
