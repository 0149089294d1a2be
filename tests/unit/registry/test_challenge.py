"""WWW-Authenticate."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apparate.registry.challenge import Challenge, parse_challenges


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ()),
        ("Basic", (Challenge("basic", {}),)),
        ('Basic realm="a b"', (Challenge("basic", {"realm": "a b"}),)),
        (
            'Bearer realm="https://auth.test/token",service="reg, istry",scope="repository:a/b:pull,push"',
            (
                Challenge(
                    "bearer",
                    {"realm": "https://auth.test/token", "service": "reg, istry", "scope": "repository:a/b:pull,push"},
                ),
            ),
        ),
        (
            'Basic realm="x", Bearer realm="y" , scope="s"',
            (Challenge("basic", {"realm": "x"}), Challenge("bearer", {"realm": "y", "scope": "s"})),
        ),
        (
            'Negotiate, NTLM TlRMTVNTUAAC==, BEARER Realm = "y"',
            (Challenge("negotiate", {}), Challenge("ntlm", {}), Challenge("bearer", {"realm": "y"})),
        ),
        (r'Basic realm="say \"hi\" \\"', (Challenge("basic", {"realm": 'say "hi" \\'}),)),
        ("Bearer realm=https://a.test/t,error=invalid_token", (
            Challenge("bearer", {"realm": "https://a.test/t", "error": "invalid_token"}),)),
        ('Bearer realm="cut', (Challenge("bearer", {"realm": '"cut'}),)),
        ("===", ()),
    ],
)  # fmt: skip
def test_challenges_are_told_apart(text: str, expected: tuple[Challenge, ...]) -> None:
    assert parse_challenges(text) == expected


@given(st.text(max_size=300))
def test_any_text_gives_some_answer(text: str) -> None:
    parse_challenges(text)


@given(st.dictionaries(st.sampled_from(["realm", "service", "scope", "error"]), st.text(max_size=40), min_size=1))
def test_what_is_quoted_comes_back(parameters: dict[str, str]) -> None:
    def quoted(value: str) -> str:
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'

    text = "Bearer " + ",".join(f"{name}={quoted(value)}" for name, value in parameters.items())
    assert parse_challenges(text) == (Challenge("bearer", parameters),)


def test_hostile_headers_take_no_time() -> None:
    begun = time.monotonic()
    for text in ('a="' * 100_000, "a " * 100_000, "," * 1_000_000, 'Bearer x="' + "\\" * 100_000):
        parse_challenges(text)
    assert time.monotonic() - begun < 2.0
