from __future__ import annotations

import json
from pathlib import Path

import pytest

from apparate.errors import FailedPrecondition
from apparate.node import files, toml_edit
from apparate.node.containerd_config import FileChange
from apparate.node.state import Phase, State, StateStore

BEFORE = b'version = 2 # keep\n[plugins."cri".containerd]\n  snapshotter = "overlayfs"  # ours\n'
WANTED: list[tuple[toml_edit.Path, toml_edit.Value | tuple[str, ...]]] = [
    (("plugins", "cri", "containerd", "snapshotter"), "apparate"),
    (("proxy_plugins", "apparate", "address"), "/run/s"),
]


def _begun(tmp_path: Path, before: bytes | None = BEFORE) -> tuple[StateStore, State, Path]:
    """A store with a change whose file has been written."""
    path = tmp_path / "config.toml"
    text, edits = toml_edit.apply((before or b"").decode(), WANTED, "f")
    change = FileChange(path, before, text.encode(), edits)
    store = StateStore(tmp_path / "state")
    state = State.of(change, "overlayfs", "1.0.0")
    if before is not None:
        path.write_bytes(before)
    store.begin(change, state)
    files.replace(path, change.after)
    return store, state, path


def test_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    store, state, _ = _begun(tmp_path)
    assert store.load() == state
    assert (tmp_path / "state/before").read_bytes() == BEFORE
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "state").iterdir()} == {0o600}


def test_untouched_file_goes_back_byte_for_byte(tmp_path: Path) -> None:
    store, state, _ = _begun(tmp_path)
    assert store.give_back(state).body == BEFORE


def test_file_that_was_not_there_goes_away(tmp_path: Path) -> None:
    store, state, _ = _begun(tmp_path, None)
    assert store.give_back(state).body is None


def test_file_that_was_not_there_and_holds_more_now_keeps_that(tmp_path: Path) -> None:
    store, state, path = _begun(tmp_path, None)
    path.write_text(f"{path.read_text()}[debug]\nlevel = 'info'\n")
    given = store.give_back(state)
    assert given.body is not None
    assert toml_edit.parse(given.body.decode(), "f") == {"debug": {"level": "info"}}


def test_file_that_was_never_written_stays(tmp_path: Path) -> None:
    store, state, path = _begun(tmp_path)
    path.write_bytes(BEFORE)
    assert store.give_back(state).body == BEFORE


def test_edited_file_loses_only_what_is_ours(tmp_path: Path) -> None:
    store, state, path = _begun(tmp_path)
    path.write_text(path.read_text().replace("# keep", "# kept") + "[debug]\nlevel = 'info'\n")
    given = store.give_back(state)
    assert given.left == ()
    assert given.body is not None
    text = given.body.decode()
    assert toml_edit.parse(text, "f") == {**toml_edit.parse(BEFORE.decode(), "f"), "debug": {"level": "info"}}
    assert "# kept" in text
    assert "# ours" in text


def test_setting_that_somebody_changed_stays_and_is_named(tmp_path: Path) -> None:
    store, state, path = _begun(tmp_path)
    path.write_text(path.read_text().replace('"apparate"', '"nydus"'))
    given = store.give_back(state)
    assert [edit.path[-1] for edit in given.left] == ["snapshotter"]
    assert given.body is not None
    assert b'snapshotter = "nydus"' in given.body


def test_removed_file_stays_removed(tmp_path: Path) -> None:
    store, state, path = _begun(tmp_path)
    path.unlink()
    assert store.give_back(state).body is None


def test_lost_copy_of_the_old_file_falls_back_to_its_settings(tmp_path: Path) -> None:
    store, state, _ = _begun(tmp_path)
    (tmp_path / "state/before").write_bytes(b"damaged")
    given = store.give_back(state)
    assert given.body is not None
    assert toml_edit.parse(given.body.decode(), "f") == toml_edit.parse(BEFORE.decode(), "f")


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"schema": 2}', b'{"schema": 1}', b"\xff"])
def test_record_that_cannot_be_used_is_refused(tmp_path: Path, body: bytes) -> None:
    (tmp_path / "node.json").write_bytes(body)
    with pytest.raises(FailedPrecondition, match=r"node\.json cannot be used"):
        StateStore(tmp_path).load()


def test_last_error_is_kept_until_it_is_cleared(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    assert store.last_error() == ""
    store.note_error("it failed")
    assert store.last_error() == "it failed"
    store.clear_error()
    assert store.last_error() == ""


def test_forgetting_removes_every_file(tmp_path: Path) -> None:
    store, _, _ = _begun(tmp_path)
    store.note_error("x")
    store.forget()
    assert list((tmp_path / "state").iterdir()) == []
    assert store.load() is None


def test_phase_is_written_by_name(tmp_path: Path) -> None:
    _begun(tmp_path)
    record = json.loads((tmp_path / "state/node.json").read_text())
    assert Phase(record["phase"]) is Phase.CHANGING
