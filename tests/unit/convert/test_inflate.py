"""Layer blobs of every compression become the same tar bytes."""

from __future__ import annotations

import contextlib
import gzip
import random
import struct
from collections.abc import Iterator

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from apparate.convert.inflate import PIECE_BYTES, inflate
from apparate.errors import FormatError

DATA = random.Random(1).randbytes(300_000) + bytes(5_000_000) + b"end"
SKIPPABLE = struct.pack("<II", 0x184D2A53, 4) + b"skip"


def cut(data: bytes, size: int) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


def blobs() -> dict[str, bytes]:
    half = len(DATA) // 2
    frames = zstandard.compress(DATA[:half]) + SKIPPABLE + zstandard.compress(DATA[half:])
    return {
        "plain": DATA,
        "gzip": gzip.compress(DATA, mtime=0),
        "gzip members": gzip.compress(DATA[:half], mtime=0) + gzip.compress(b"") + gzip.compress(DATA[half:], mtime=0),
        "zstd": zstandard.compress(DATA),
        "zstd frames": frames,
        "zstd that begins with a skippable frame": SKIPPABLE + frames,
    }


@pytest.mark.parametrize("kind", list(blobs()))
@pytest.mark.parametrize("size", [1000, 65_536, 1 << 30])
def test_every_compression_gives_the_same_bytes(kind: str, size: int) -> None:
    assert b"".join(inflate(cut(blobs()[kind], size))) == DATA


def test_a_blob_in_single_bytes_is_recognised() -> None:
    data = gzip.compress(b"hello" * 100)
    assert b"".join(inflate(cut(data, 1))) == b"hello" * 100


def test_an_empty_blob_is_empty() -> None:
    assert list(inflate([])) == []
    assert list(inflate([b""])) == []


@pytest.mark.parametrize(
    "compressed", [gzip.compress(bytes(50_000_000), mtime=0), zstandard.compress(bytes(50_000_000))]
)
def test_pieces_are_bounded_whatever_the_ratio(compressed: bytes) -> None:
    total = 0
    for piece in inflate([compressed]):
        assert len(piece) <= PIECE_BYTES
        total += len(piece)
    assert total == 50_000_000


@pytest.mark.parametrize("length", [1, 100, 500])
def test_a_gzip_blob_that_is_cut_off_is_refused(length: int) -> None:
    data = gzip.compress(random.Random(2).randbytes(2000))
    with pytest.raises(FormatError, match="member"):
        list(inflate([data[:-length]]))


def test_garbage_behind_a_gzip_member_is_refused() -> None:
    with pytest.raises(FormatError, match="gzip: member"):
        list(inflate([gzip.compress(b"data") + b"garbage, a lot of it"]))


def test_garbage_behind_a_zstd_frame_is_refused() -> None:
    with pytest.raises(FormatError, match="zstd: frame"):
        list(inflate([zstandard.compress(b"data") + b"garbage, a lot of it"]))


@given(st.binary(max_size=2000), st.sampled_from([b"", b"\x1f\x8b\x08\x00", b"\x28\xb5\x2f\xfd", SKIPPABLE]))
def test_whatever_arrives_only_our_errors_escape(data: bytes, head: bytes) -> None:
    with contextlib.suppress(FormatError):
        list(inflate([head + data]))
