from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from apparate.config import SETTINGS_BYTES_MAX, from_toml, load
from apparate.errors import InvalidArgument


@dataclass(frozen=True, slots=True)
class Inner:
    chunk_bytes: int = 1
    mode: Literal["a", "b"] = "a"

    def __post_init__(self) -> None:
        if self.chunk_bytes < 1:
            raise InvalidArgument("chunk_bytes: must be at least 1")


@dataclass(frozen=True, slots=True)
class Outer:
    root: Path = Path("/x")
    timeout_s: float = 1.5
    hosts: tuple[str, ...] = ()
    extra: dict[str, int] = field(default_factory=dict)
    maybe: Path | None = None
    inner: Inner = field(default_factory=Inner)


def test_absent_keys_keep_their_defaults() -> None:
    assert from_toml(Outer, "") == Outer()


def test_every_kind_of_value_is_read() -> None:
    text = """
    root = "/y"
    timeout_s = 2
    hosts = ["a", "b"]
    extra = {n = 1}
    maybe = "/z"
    [inner]
    chunk_bytes = 5
    mode = "b"
    """
    assert from_toml(Outer, text) == Outer(Path("/y"), 2.0, ("a", "b"), {"n": 1}, Path("/z"), Inner(5, "b"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rot = '/x'", "did you mean root?"),
        ("[inner]\nchunk_byte = 1", "did you mean inner.chunk_bytes?"),
        ("zzz = 1", "known here"),
        ("root = 'relative'", "absolute path"),
        ("timeout_s = true", "timeout_s"),
        ("hosts = 'a'", "a list"),
        ("hosts = [1]", r"hosts\[0\]"),
        ("extra = {n = 'x'}", "extra.n"),
        ("inner = 1", "a table"),
        ("[inner]\nmode = 'c'", "'a', 'b'"),
        ("[inner]\nchunk_bytes = 0", "at least 1"),
        ("= 1", "no TOML"),
    ],
)
def test_wrong_setting_is_refused_with_the_fix(text: str, said: str) -> None:
    with pytest.raises(InvalidArgument, match=said):
        from_toml(Outer, text)


def test_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "none.toml"
    with pytest.raises(InvalidArgument, match=r"none\.toml"):
        load(Outer, missing)
    missing.write_bytes(b"\xff")
    with pytest.raises(InvalidArgument, match="UTF-8"):
        load(Outer, missing)
    missing.write_bytes(b"#" * (SETTINGS_BYTES_MAX + 1))
    with pytest.raises(InvalidArgument, match="larger"):
        load(Outer, missing)
    missing.write_text("timeout_s = 3.0")
    assert load(Outer, missing).timeout_s == 3.0
