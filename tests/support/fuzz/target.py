"""What a fuzzer needs to know of a parser."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Target:
    """A parser.

    `run` hands it the input and uses what it returns, so that nothing is accepted which breaks later. `seeds` are inputs that
    it accepts, `words` are what its inputs are made of, `max_bytes` is the longest input that is tried.
    """

    run: Callable[[bytes], object]
    seeds: Callable[[], Sequence[bytes]]
    words: tuple[bytes, ...] = ()
    max_bytes: int = 4096


def text_of(data: bytes) -> str:
    """*data* as text: what is no UTF-8 becomes lone surrogates, as in names of files and in JSON escapes."""
    return data.decode("utf-8", "surrogateescape")


def deep(opening: bytes, closing: bytes = b"", *, depth: int = 5000) -> bytes:
    """Something within something, deeper than any stack."""
    return opening * depth + closing * depth
