"""docs/registry.md says what the code does."""

import dataclasses
from pathlib import Path

import pytest

from apparate.registry import attempts, auth, breakers, exchange, hosts, keychain, streams, tokens, uploads
from apparate.registry.settings import RegistrySettings

PAGE = (Path(__file__).parents[3] / "snapshotter/docs/registry.md").read_text()
EVENTS = [
    value
    for module in (auth, breakers, exchange, hosts, keychain)
    for name, value in vars(module).items()
    if name.startswith("EVENT_")
]


@pytest.mark.parametrize("field", dataclasses.fields(RegistrySettings), ids=lambda field: field.name)
def test_every_setting_is_on_the_page_with_its_default(field: dataclasses.Field[object]) -> None:
    (row,) = [line for line in PAGE.splitlines() if line.startswith(f"| `{field.name}` |")]
    default = field.default
    for value in default if isinstance(default, tuple) else (default,):
        assert (f"{value:g}" if isinstance(value, float) else str(value)) in row


@pytest.mark.parametrize("event", EVENTS)
def test_every_event_is_on_the_page(event: str) -> None:
    assert f"`{event}`" in PAGE


@pytest.mark.parametrize(
    "sentence",
    [
        f"up to {attempts.BACKOFF_BASE_S:g} s · 2ⁿ⁻¹, at most {attempts.BACKOFF_MAX_S:g} s",
        f"{attempts.PASSES_WITHOUT_DEADLINE} passes",
        f"{streams.RESUMES_MAX} times, and once more for each MiB",
        f"after {breakers.FAILURES_TO_OPEN} failures in a row for {breakers.OPEN_S:g} s, doubled up to {breakers.OPEN_S_MAX:g} s",
        f"at once for {breakers.DISTRUST_S:g} s",
        f"at most {auth.CREDENTIALS_TRIED_MAX}, then the anonymous",
        f"{tokens.LIFETIME_USED:.0%} of their lifetime ({tokens.LIFETIME_DEFAULT_S} s if".replace("%", " %"),
        f"chunks of {uploads.CHUNK_BYTES >> 20} MiB",
    ],
)
def test_figures_are_those_of_the_code(sentence: str) -> None:
    assert sentence in PAGE.replace("\n", " ")
