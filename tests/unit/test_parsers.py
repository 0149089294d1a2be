"""Every parser of what comes from outside: whatever it is given, it answers or raises one of our own errors.

`make test-matrix` looks for worse with a fuzzer; what it has found is in tests/corpus/bad/input.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.fuzz.target import Target
from tests.support.fuzz.targets import TARGETS

from apparate import errors
from apparate.errors import ApparateError

CORPUS = Path(__file__).parents[1] / "corpus" / "bad"
EXPECTED: dict[str, str] = json.loads((CORPUS / "expected.json").read_text())["input"]
EDITS_MAX = 6


@st.composite
def damaged(draw: st.DrawFn, target: Target, seeds: list[bytes]) -> bytes:
    """A sample with parts replaced, inserted, removed, repeated or cut."""
    made = draw(st.sampled_from(seeds))[: target.max_bytes]
    parts = st.one_of(st.binary(max_size=9), st.sampled_from(target.words or (b"",)), st.sampled_from([b"\xff", b"\0"]))
    for _ in range(draw(st.integers(1, EDITS_MAX))):
        start = draw(st.integers(0, len(made)))
        end = min(len(made), start + draw(st.integers(0, 9)))
        kind = draw(st.sampled_from(["replace", "insert", "remove", "repeat", "cut"]))
        part = draw(parts)
        made = {
            "replace": made[:start] + part + made[start + len(part) :],
            "insert": made[:start] + part + made[start:],
            "remove": made[:start] + made[end:],
            "repeat": made[:end] + made[start:],
            "cut": made[:start],
        }[kind]
    return made


@pytest.mark.parametrize("name", TARGETS)
def test_samples_raise_nothing_but_our_errors(name: str) -> None:
    seeds = TARGETS[name].seeds()
    accepted = 0
    for seed in seeds:
        with contextlib.suppress(ApparateError):
            TARGETS[name].run(seed)
            accepted += 1
    assert accepted, "no sample is accepted, so nothing behind the first check is tried"


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_samples_raise_nothing_but_our_errors(name: str) -> None:
    target = TARGETS[name]
    seeds = list(target.seeds())

    @given(st.one_of(damaged(target, seeds), st.binary(max_size=300)))
    def try_one(data: bytes) -> None:
        with contextlib.suppress(ApparateError):
            target.run(data)

    try_one()


@pytest.mark.parametrize("path", sorted(EXPECTED))
def test_inputs_that_once_broke_a_parser_are_refused(path: str) -> None:
    target, _, _ = path.partition("/")
    data = (CORPUS / "input" / path).read_bytes()
    if EXPECTED[path]:
        with pytest.raises(getattr(errors, EXPECTED[path])):
            TARGETS[target].run(data)
    else:
        TARGETS[target].run(data)
