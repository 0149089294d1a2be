"""Inflating members: whole, in part, several in a row, broken, and bombs."""

from __future__ import annotations

import contextlib
import gzip
import random
import tracemalloc

import deflate
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from apparate.errors import FormatError
from apparate.format.inflate import inflate_bounded, inflate_member
from apparate.format.limits import MAX_MEMBER_RAW_BYTES
from apparate.format.toc import Compression

RAW = random.Random(1).randbytes(3000) * 20
SKIPPED = bytes.fromhex("502a4d1805000000") + b"index"
BOTH = pytest.mark.parametrize("compression", list(Compression))


def pack(compression: Compression, raw: bytes) -> bytes:
    if compression is Compression.GZIP:
        return bytes(deflate.gzip_compress(raw, 6))
    return zstandard.ZstdCompressor(level=3).compress(raw)


@BOTH
def test_a_member_of_known_length_is_given_whole(compression: Compression) -> None:
    assert inflate_member(compression, pack(compression, RAW), len(RAW), 10) == RAW


@BOTH
def test_a_member_of_unknown_length_is_given_as_far_as_needed(compression: Compression) -> None:
    assert inflate_member(compression, memoryview(pack(compression, RAW)), 0, 1000) == RAW[:1000]


@BOTH
def test_bytes_behind_the_needed_ones_do_no_harm(compression: Compression) -> None:
    data = pack(compression, RAW) + b"junk" * 100
    assert inflate_member(compression, data, len(RAW), 10) == RAW
    assert inflate_member(compression, data, 0, len(RAW)) == RAW


@BOTH
@pytest.mark.parametrize("known", [True, False])
def test_several_members_in_a_row_are_one(compression: Compression, known: bool) -> None:
    between = SKIPPED if compression is Compression.ZSTD else b""
    data = pack(compression, RAW) + between + pack(compression, b"tail")
    whole = RAW + b"tail"
    assert inflate_member(compression, data, len(whole) if known else 0, len(whole)) == whole


def test_members_of_every_gzip_writer_are_read() -> None:
    for level in (1, 6, 9):
        assert inflate_member(Compression.GZIP, gzip.compress(RAW, level), len(RAW), 1) == RAW


def test_a_zstd_frame_that_does_not_say_its_length_is_read() -> None:
    compressor = zstandard.ZstdCompressor(write_content_size=False).compressobj()
    frame = compressor.compress(RAW) + compressor.flush()
    assert zstandard.frame_content_size(frame) == -1
    assert inflate_member(Compression.ZSTD, frame, len(RAW), 1) == RAW


@BOTH
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("damage", ["cut", "empty", "junk", "short"])
def test_a_broken_member_is_refused(compression: Compression, known: bool, damage: str) -> None:
    data = pack(compression, RAW)
    broken = {"cut": data[:-200], "empty": b"", "junk": b"<html>" * 50, "short": pack(compression, RAW[:-1])}[damage]
    with pytest.raises(FormatError):
        inflate_member(compression, broken, len(RAW) if known else 0, len(RAW))


@BOTH
@pytest.mark.parametrize("known", [True, False])
def test_a_member_above_the_limit_is_refused_before_it_is_inflated(compression: Compression, known: bool) -> None:
    size = MAX_MEMBER_RAW_BYTES + 1
    with pytest.raises(FormatError, match="limit"):
        inflate_member(compression, b"", size if known else 0, size)


@BOTH
@pytest.mark.parametrize("known", [True, False])
def test_a_bomb_cannot_inflate_beyond_what_is_expected(compression: Compression, known: bool) -> None:
    bomb = pack(compression, bytes(256 << 20))
    expected = 1 << 20
    tracemalloc.start()
    try:
        with contextlib.suppress(FormatError):
            assert inflate_member(compression, bomb, expected if known else 0, expected) == bytes(expected)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_a_zstd_window_above_the_limit_is_refused() -> None:
    frame = bytearray(zstandard.ZstdCompressor(write_content_size=False).compress(b"x" * 100))
    descriptor = 0x00  # no content size, no checksum: a window descriptor follows
    huge = bytes(frame[:4]) + bytes([descriptor, 0xF8]) + bytes(frame[6:])
    with pytest.raises(FormatError):
        inflate_bounded(Compression.ZSTD, huge, 100)


@given(st.sampled_from(list(Compression)), st.integers(0, 10**6), st.binary(min_size=1, max_size=9), st.booleans())
def test_damage_raises_nothing_but_our_errors(compression: Compression, place: int, damage: bytes, known: bool) -> None:
    data = bytearray(pack(compression, RAW))
    place %= len(data)
    data[place : place + len(damage)] = damage
    with contextlib.suppress(FormatError):
        raw = inflate_member(compression, bytes(data), len(RAW) if known else 0, len(RAW))
        assert len(raw) == len(RAW)
