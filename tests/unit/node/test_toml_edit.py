from __future__ import annotations

import difflib
import hashlib
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apparate.errors import FormatError, InvalidArgument
from apparate.node.toml_edit import Path as Keys
from apparate.node.toml_edit import Value, apply, parse, revert

CORPUS = Path(__file__).parents[2] / "corpus/containerd"
DOTTED = "dotted.toml"
"""TOML lets nobody open a table that dotted keys have made."""
FILES = sorted(path.name for path in CORPUS.glob("*.toml") if path.name != DOTTED)
CRI_1 = ("plugins", "io.containerd.grpc.v1.cri", "containerd")
CRI_IMAGES = ("plugins", "io.containerd.cri.v1.images")
WANTED: list[tuple[Keys, Value | tuple[str, ...]]] = [
    *(((*table, "snapshotter"), "apparate") for table in (CRI_1, CRI_IMAGES)),
    *(((*table, "disable_snapshot_annotations"), False) for table in (CRI_1, CRI_IMAGES)),
    *(((*table, "discard_unpacked_layers"), False) for table in (CRI_1, CRI_IMAGES)),
    (("proxy_plugins", "apparate", "type"), "snapshot"),
    (("proxy_plugins", "apparate", "address"), "/run/apparate/snapshotter.sock"),
    (("proxy_plugins", "apparate", "exports", "root"), "/var/lib/x"),
]


def _read(name: str) -> str:
    return (CORPUS / name).read_bytes().decode()


def _value(text: str, keys: Keys) -> object:
    value: object = tomllib.loads(text)
    for key in keys:
        assert isinstance(value, dict)
        value = value[key]
    return value


def test_corpus_is_as_it_was_made() -> None:
    for line in (CORPUS / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split()
        assert hashlib.sha256((CORPUS / name).read_bytes()).hexdigest() == digest, name
    assert len(FILES) + 1 == len((CORPUS / "SHA256SUMS").read_text().splitlines())


@pytest.mark.parametrize("name", FILES)
def test_settings_are_there_and_nothing_else_is_lost(name: str) -> None:
    before = _read(name)
    after, edits = apply(before, WANTED, name)
    for keys, value in WANTED:
        assert _value(after, keys) == value
    assert {edit.path for edit in edits} <= {keys for keys, _ in WANTED}
    gone = [line[2:] for line in difflib.ndiff(before.splitlines(), after.splitlines()) if line.startswith("- ")]
    touched = (
        "snapshotter",
        "disable_snapshot_annotations",
        "discard_unpacked_layers",
        'io.containerd.grpc.v1.cri" = {',
        "proxy_plugins.other",
    )
    assert [line for line in gone if not any(word in line for word in touched)] == []
    comments = [line.strip() for line in before.splitlines() if line.strip().startswith("#")]
    assert [line.strip() for line in after.splitlines() if line.strip().startswith("#")] == comments


@pytest.mark.parametrize("name", FILES)
def test_second_application_changes_nothing(name: str) -> None:
    once, _ = apply(_read(name), WANTED, name)
    assert apply(once, WANTED, name) == (once, ())


@pytest.mark.parametrize("name", FILES)
def test_reverting_gives_the_values_back(name: str) -> None:
    before = _read(name)
    after, edits = apply(before, WANTED, name)
    back, left = revert(after, edits, name)
    assert left == ()
    assert tomllib.loads(back) == tomllib.loads(before)


@pytest.mark.parametrize("name", FILES)
def test_reverting_spares_what_others_have_written_since(name: str) -> None:
    after, edits = apply(_read(name), WANTED, name)
    edited = (
        after.replace('root = "/var/lib/x"', 'root = "/srv"\n# a remark')
        + '\n[stream_processors.mine]\naccepts = ["a"]\n'
    )
    back, left = revert(edited, edits, name)
    assert [edit.path for edit in left] == [("proxy_plugins", "apparate", "exports", "root")]
    assert "# a remark" in back
    values = tomllib.loads(back)
    assert values["proxy_plugins"]["apparate"] == {"exports": {"root": "/srv"}}
    assert values["stream_processors"]["mine"] == {"accepts": ["a"]}


def test_comment_beside_a_value_stays_beside_it() -> None:
    after, _ = apply(_read("comments.toml"), WANTED, "comments.toml")
    assert 'snapshotter = "apparate"   # back again' in after
    assert '# snapshotter = "native"    # tried in March' in after


def test_tables_made_by_dotted_keys_are_refused_with_the_fix() -> None:
    with pytest.raises(FormatError, match="write dotted keys of plugins and proxy_plugins as tables"):
        apply(_read(DOTTED), WANTED, DOTTED)


def test_table_that_is_none_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="plugins is no table"):
        apply("plugins = 1\n", WANTED, "f")


def test_text_that_is_no_toml_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="f is no TOML"):
        apply("[a\n", WANTED, "f")
    with pytest.raises(InvalidArgument, match="f is no TOML"):
        revert("[a\n", (), "f")


_keys = st.sampled_from(["a", "b", "io.containerd.x", "ünïcode", 'quo"te'])
_scalars = st.one_of(st.booleans(), st.integers(-5, 5), st.text(max_size=5), st.lists(st.integers(), max_size=3))
_tables = st.recursive(
    st.dictionaries(_keys, _scalars, max_size=3),
    lambda inner: st.dictionaries(_keys, inner | _scalars, max_size=3),
    max_leaves=8,
)


@given(_tables, st.lists(st.tuples(st.lists(_keys, min_size=1, max_size=3).map(tuple), st.booleans()), max_size=4))
def test_any_edit_is_reverted_or_refused(table: dict[str, object], wanted: list[tuple[Keys, bool]]) -> None:
    import tomlkit

    before = tomlkit.dumps(table)
    try:
        after, edits = apply(before, wanted, "f")
    except (InvalidArgument, FormatError):
        return
    back, left = revert(after, edits, "f")
    assert left == ()
    assert parse(back, "f") == parse(before, "f")
