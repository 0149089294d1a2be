"""The text form of prefetch lists."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apparate.errors import InvalidArgument
from apparate.format import prefetch
from apparate.format.prefetch import PrefetchRange, format_list, parse_list

RANGES = st.builds(
    PrefetchRange,
    st.binary(min_size=1).filter(lambda path: path == path.strip(b"/")),
    st.integers(0, 2**62),
    st.one_of(st.none(), st.integers(0, 2**62)),
)


@given(st.lists(RANGES))
def test_what_is_printed_is_read_back(ranges: list[PrefetchRange]) -> None:
    text = format_list(ranges)
    assert text.isascii()
    assert parse_list(text) == ranges


def test_a_list_written_by_hand_is_read() -> None:
    text = "# start of the application\n/usr/bin/python3\n\nusr/lib/caf\u00e9.py 4096 8192\r\na\\040b 0 -1\n".encode()
    assert parse_list(text) == [
        PrefetchRange(b"usr/bin/python3"),
        PrefetchRange("usr/lib/caf\u00e9.py".encode(), 4096, 8192),
        PrefetchRange(b"a b"),
    ]


@pytest.mark.parametrize("line", ["a 1", "a 1 2 3", "a x 2", "a 1 y", "a -1 2", "a 1 -2", "/", "a 1.5 2"])
def test_a_line_that_is_no_range_is_refused_by_its_number(line: str) -> None:
    with pytest.raises(InvalidArgument, match="line 2"):
        parse_list(b"good\n" + line.encode())


def test_more_ranges_than_the_limit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetch, "MAX_RANGES", 3)
    with pytest.raises(InvalidArgument, match="more than 3"):
        parse_list(b"a\n" * 4)
