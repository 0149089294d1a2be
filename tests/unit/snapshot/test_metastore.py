from __future__ import annotations

import shutil
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from apparate.errors import (
    AlreadyExists,
    ApparateError,
    FailedPrecondition,
    FormatError,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from apparate.oci.digest import Digest
from apparate.oci.names import TARGET_SNAPSHOT
from apparate.snapshot.metastore import Metastore
from apparate.snapshot.model import Info, Kind, Origin, Record
from apparate.snapshot.remote import Usage
from apparate.snapshot.rows import SCHEMA_VERSION, from_json, read_records, to_json

NOW = 1_700_000_000_123_456_789


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metadata.db"


@pytest.fixture
def store(path: Path) -> Iterator[Metastore]:
    opened = Metastore(path)
    yield opened
    opened.close()


def add(store: Metastore, name: str, parent: str = "", kind: Kind = Kind.ACTIVE, **labels: str) -> Record:
    return store.create(Record(store.reserve_id(), Info(name, parent, kind, NOW, NOW, labels)))


def committed(store: Metastore, name: str, parent: str = "", **labels: str) -> Record:
    add(store, f"key of {name}", parent)
    return store.commit(f"key of {name}", name, labels, "", NOW)


def lazy(store: Metastore, name: str, layer: Digest, parent: str = "") -> Record:
    info = Info(name, parent, Kind.COMMITTED, NOW, NOW)
    return store.create(Record(store.reserve_id(), info, origin=Origin.LAZY, layer=layer))


def test_everything_written_is_there_after_reopening(path: Path, store: Metastore) -> None:
    base = committed(store, "base", a="1", b="\N{SNOWMAN}")
    lazy(store, "lazy", Digest.of(b"l"), "base")
    add(store, "top", "lazy", empty="", label="x")
    store.set_usage(base.id, Usage(10, 2))
    store.update_labels("top", lambda labels: {**labels, "more": "y"}, NOW + 1)
    before = store.records()
    store.close()
    other = Metastore(path)
    assert other.records() == before
    assert other.get("top").info.labels == {"label": "x", "more": "y"}
    assert other.get("top").info.updated_ns == NOW + 1
    assert other.get("top").info.created_ns == NOW
    assert other.get("base").usage == Usage(10, 2)
    assert other.get("lazy").layer == Digest.of(b"l")
    assert [record.info.name for record in other.chain(other.get("top"))] == ["top", "lazy", "base"]
    other.close()


def test_records_can_be_read_from_outside(path: Path, store: Metastore, tmp_path: Path) -> None:
    base = committed(store, "base", a="1", b="\N{SNOWMAN}")
    lazy(store, "lazy", Digest.of(b"l"), "base")
    add(store, "top", "lazy", label="x")
    store.set_usage(base.id, Usage(10, 2))
    before = store.records()
    assert from_json(to_json(before)) == before
    killed = tmp_path / "killed"  # what a process leaves that could not close its store
    killed.mkdir()
    for file in tmp_path.glob(f"{path.name}*"):
        shutil.copy(file, killed)
    store.close()
    assert read_records(path) == before
    assert read_records(killed / path.name) == before


def test_an_open_store_maps_no_shared_memory(path: Path, store: Metastore) -> None:
    add(store, "a")
    assert path.with_name(path.name + "-wal").exists()
    assert not path.with_name(path.name + "-shm").exists()


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b'{"version": 999, "rows": []}', FailedPrecondition),
        (b"not found", FormatError),
        (b"[]", FormatError),
        (b'{"version": 1, "rows": [[1, 2]]}', FormatError),
        (b'{"version": 1, "rows": [[2]]}', FormatError),
    ],
)
def test_what_is_no_page_of_records_is_refused(body: bytes, error: type[ApparateError]) -> None:
    with pytest.raises(error):
        from_json(body)


def test_ids_are_never_used_again(path: Path, store: Metastore) -> None:
    first = add(store, "a").id
    store.remove("a")
    assert add(store, "b").id > first
    last = add(store, "c").id
    store.remove("c")
    store.close()
    other = Metastore(path)
    assert other.reserve_id() > last
    other.close()


def test_a_key_in_use_of_any_kind_is_refused(store: Metastore) -> None:
    committed(store, "name")
    add(store, "view", kind=Kind.VIEW)
    for name in ("name", "view"):
        with pytest.raises(AlreadyExists):
            add(store, name)
    add(store, "key")
    with pytest.raises(AlreadyExists):
        store.commit("key", "view", {}, "", NOW)


def test_a_parent_must_be_there_and_committed(store: Metastore) -> None:
    add(store, "active")
    add(store, "view", kind=Kind.VIEW)
    with pytest.raises(NotFound):
        add(store, "x", "nobody")
    for parent in ("active", "view"):
        with pytest.raises(InvalidArgument):
            add(store, "x", parent)
    with pytest.raises(InvalidArgument):
        add(store, "")


def test_commit_replaces_labels_and_times_and_keeps_the_parent(store: Metastore) -> None:
    committed(store, "base")
    add(store, "key", "base", old="1")
    record = store.commit("key", "name", {"new": "2", "gone": ""}, "", NOW + 5)
    assert record.info == Info("name", "base", Kind.COMMITTED, NOW + 5, NOW + 5, {"new": "2"})
    with pytest.raises(NotFound):
        store.get("key")
    add(store, "key")


def test_only_an_active_snapshot_can_be_committed(store: Metastore) -> None:
    committed(store, "base")
    add(store, "view", "base", Kind.VIEW)
    for key in ("base", "view"):
        with pytest.raises(FailedPrecondition):
            store.commit(key, "x", {}, "", NOW)
    with pytest.raises(NotFound):
        store.commit("nobody", "x", {}, "", NOW)
    add(store, "key")
    with pytest.raises(InvalidArgument):
        store.commit("key", "", {}, "", NOW)


def test_commit_with_a_parent_rebases_what_has_none(store: Metastore) -> None:
    committed(store, "base")
    committed(store, "other")
    add(store, "key")
    assert store.commit("key", "name", {}, "base", NOW).info.parent == "base"
    with pytest.raises(FailedPrecondition, match="remove"):
        store.remove("base")
    add(store, "second", "base")
    with pytest.raises(InvalidArgument):
        store.commit("second", "x", {}, "other", NOW)
    store.commit("second", "x", {}, "base", NOW)
    add(store, "third")
    with pytest.raises(FailedPrecondition):
        add(store, "active") and store.commit("third", "y", {}, "active", NOW)


def test_a_snapshot_with_children_cannot_be_removed(store: Metastore) -> None:
    committed(store, "a")
    committed(store, "b", "a")
    add(store, "c", "b")
    for name in ("a", "b"):
        with pytest.raises(FailedPrecondition, match="remove"):
            store.remove(name)
    for name in ("c", "b", "a"):
        store.remove(name)
    assert store.records() == []
    with pytest.raises(NotFound):
        store.remove("a")


def test_target_is_found_by_label_and_exact_parent(store: Metastore) -> None:
    committed(store, "base")
    wanted = committed(store, "x", "base", **{TARGET_SNAPSHOT: "t"})
    committed(store, "y", "", **{TARGET_SNAPSHOT: "t"})
    add(store, "z", "x", Kind.ACTIVE, **{TARGET_SNAPSHOT: "u"})
    assert store.find_target("t", "base") == wanted
    assert store.find_target("t", "x") is None
    assert store.find_target("u", "x") is None


def test_layers_are_in_use_below_active_snapshots_only(store: Metastore) -> None:
    one, two, three = (Digest.of(letter) for letter in (b"1", b"2", b"3"))
    lazy(store, "one", one)
    lazy(store, "two", two, "one")
    lazy(store, "three", three, "two")
    assert store.layers() == {one, two, three}
    assert store.layers_in_use() == set()
    add(store, "container", "two")
    add(store, "other", "one", Kind.VIEW)
    assert store.layers_in_use() == {one, two}
    store.remove("container")
    assert store.layers_in_use() == {one}


def test_usage_of_what_is_gone_is_dropped(store: Metastore) -> None:
    record = committed(store, "a")
    active = add(store, "b")
    store.set_usage(active.id, Usage(1, 1))
    assert store.get("b").usage is None
    store.remove("a")
    store.set_usage(record.id, Usage(1, 1))


def test_a_failed_write_changes_nothing(store: Metastore) -> None:
    committed(store, "a")
    store._db.execute("PRAGMA query_only = ON")
    with pytest.raises(Unavailable):
        add(store, "b", "a")
    with pytest.raises(Unavailable):
        store.remove("a")
    store._db.execute("PRAGMA query_only = OFF")
    assert [record.info.name for record in store.records()] == ["a"]
    add(store, "b", "a")


def test_a_newer_schema_is_refused(path: Path) -> None:
    Metastore(path).close()
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    db.close()
    with pytest.raises(FailedPrecondition, match="version"):
        Metastore(path)


def test_a_damaged_file_is_one_clear_line(path: Path) -> None:
    path.write_bytes(b"no database at all, whatever it is" * 100)
    with pytest.raises(FailedPrecondition, match="cannot be read") as caught:
        Metastore(path)
    assert "\n" not in str(caught.value)


def test_readers_never_miss_a_snapshot_that_changes(store: Metastore) -> None:
    add(store, "a")
    stop = threading.Event()
    errors: list[Exception] = []

    def read() -> None:
        while not stop.is_set():
            try:
                store.get("a")
                assert len(store.records()) == 1
            except (NotFound, AssertionError) as error:
                errors.append(error)
                return

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(50):
        store.update_labels("a", lambda _, n=number: {"n": str(n)}, NOW)  # type: ignore[misc]  # a default binds the loop variable
    stop.set()
    reader.join()
    assert errors == []
