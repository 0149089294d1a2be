"""Answers to ranged requests."""

import contextlib
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apparate.errors import Unavailable
from apparate.registry.multipart import HEAD_BYTES_MAX
from apparate.registry.ranges import RangesUnsupported, ranged, ranged_tail
from apparate.registry.transport import Request, Response

BLOB = bytes(range(256)) * 4
OCTETS = {"Content-Type": "application/octet-stream"}


class Body:
    """Bytes that come *step* at a time."""

    def __init__(self, data: bytes, step: int = 100) -> None:
        self._data = data
        self._step = step

    def read1(self, amt: int | None = None, /) -> bytes:
        size = min(self._step, len(self._data) if amt is None else amt)
        piece, self._data = self._data[:size], self._data[size:]
        return piece

    def close(self) -> None:
        self._data = b""


def answer(status: int, headers: Mapping[str, str], body: bytes = b"", step: int = 100) -> Response:
    return Response(Request("GET", "https://r.test/v2/a/blobs/x"), status, headers, Body(body, step))


def partial(text: str, length: int) -> Response:
    return answer(206, {**OCTETS, "Content-Range": text, "Content-Length": str(length)})


def test_exact_answer_is_taken() -> None:
    piece = ranged(partial("bytes 10-19/1024", 10), 10, 10)
    assert (piece.offset, piece.length, piece.total) == (10, 10, 1024)


def test_answer_cut_at_the_blobs_end_is_taken() -> None:
    assert ranged(partial("bytes 1020-1023/1024", 4), 1020, 100).length == 4


@pytest.mark.parametrize(
    "text",
    [
        "bytes 11-20/1024", "bytes 10-18/1024", "bytes 10-20/1024", "bytes 9-19/1024", "bytes 0-1023/1024",
        "bytes 10-19/15", "bytes 19-10/1024", "bytes 10-19/*", "bytes */1024", "items 10-19/1024", "", "bytes",
        "bytes 10-19/99999999999999999999999", "bytes \u0661\u0660-19/1024",
    ],
)  # fmt: skip
def test_answer_that_does_not_fit_is_temporary(text: str) -> None:
    with pytest.raises(Unavailable):
        ranged(partial(text, 10), 10, 10)


def test_content_length_has_to_fit() -> None:
    with pytest.raises(Unavailable):
        ranged(partial("bytes 10-19/1024", 11), 10, 10)


def test_whole_blob_is_taken_only_where_it_was_asked_for() -> None:
    whole = {**OCTETS, "Content-Length": "1024"}
    assert ranged(answer(200, whole), 0, 1024).length == 1024
    assert ranged_tail(answer(200, whole), 2000).length == 1024
    for offset, length in ((0, 1023), (1, 1024), (0, 2000)):
        with pytest.raises(RangesUnsupported):
            ranged(answer(200, whole), offset, length)
    with pytest.raises(RangesUnsupported):
        ranged_tail(answer(200, whole), 100)
    with pytest.raises(RangesUnsupported):
        ranged(answer(200, OCTETS), 0, 1024)


@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "TEXT/HTML", "text/plain", "application/problem+json"])
def test_page_is_no_sign_of_missing_ranges(kind: str) -> None:
    page = answer(200, {"Content-Type": kind, "Content-Length": "100"})
    with pytest.raises(Unavailable, match="instead of the blob"):
        ranged(page, 10, 10)
    with pytest.raises(Unavailable, match="instead of the blob"):
        ranged_tail(page, 10)


def test_tail_has_to_be_the_end() -> None:
    assert ranged_tail(partial("bytes 1014-1023/1024", 10), 10).offset == 1014
    assert ranged_tail(partial("bytes 0-4/5", 5), 10).total == 5
    for text in ("bytes 0-9/1024", "bytes 1013-1022/1024", "bytes 1015-1023/1024"):
        with pytest.raises(Unavailable):
            ranged_tail(partial(text, 10), 10)


def multipart(body: bytes, boundary: str = '"sep"', step: int = 100) -> Response:
    return answer(206, {"Content-Type": f"multipart/byteranges; boundary={boundary}"}, body, step)


PART = b"\r\n--sep\r\ncontent-type: a/b\r\nCONTENT-RANGE:  bytes 10-19/1024\r\n\r\n" + BLOB[10:20] + b"\r\n--sep--\r\n"


@pytest.mark.parametrize("step", [1, 7, 1000])
@pytest.mark.parametrize("boundary", ['"sep"', "sep", "sep; x=y"])
def test_first_part_of_a_multipart_answer_is_read(step: int, boundary: str) -> None:
    piece = ranged(multipart(b"preamble" + PART, boundary, step), 10, 10)
    got = b""
    while len(got) < piece.length:
        got += piece.chunks.read1(piece.length - len(got))
    assert got == BLOB[10:20]


@pytest.mark.parametrize(
    "body",
    [b"", b"--sep\r\n", b"--sep\r\n\r\nno range", b"--other\r\nContent-Range: bytes 10-19/1024\r\n\r\n", b"x" * 10 * HEAD_BYTES_MAX],
)  # fmt: skip
def test_multipart_answer_without_a_part_is_temporary(body: bytes) -> None:
    with pytest.raises(Unavailable):
        ranged(multipart(body), 10, 10)


@given(st.sampled_from([200, 206]), st.text(max_size=60), st.text(max_size=60), st.binary(max_size=300))
def test_any_answer_is_taken_or_refused(status: int, kind: str, text: str, body: bytes) -> None:
    for content_type in (kind, f"multipart/byteranges; boundary={kind}"):
        headers = {"Content-Type": content_type, "Content-Range": text}
        with contextlib.suppress(Unavailable, RangesUnsupported):
            piece = ranged(answer(status, headers, body), 10, 10)
            assert piece.offset == 10
            assert piece.length <= 10


@given(st.integers(0, 50), st.integers(1, 50), st.integers(0, 60), st.integers(0, 60), st.integers(0, 60))
def test_accepted_ranges_are_always_those_asked_for(
    offset: int, length: int, first: int, last: int, total: int
) -> None:
    response = answer(206, {**OCTETS, "Content-Range": f"bytes {first}-{last}/{total}"})
    with contextlib.suppress(Unavailable):
        piece = ranged(response, offset, length)
        assert piece.offset == offset
        assert piece.length == min(length, total - offset) > 0
