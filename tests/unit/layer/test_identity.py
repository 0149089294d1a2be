"""Whose numbers the layers have."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from apparate.layer.catalogue import Catalogue


def identity_of(path: Path) -> str:
    with closing(Catalogue(path)) as catalogue:
        return catalogue.identity


def test_a_catalogue_keeps_its_identity_and_no_other_has_it(tmp_path: Path) -> None:
    first = identity_of(tmp_path / "one.db")
    assert identity_of(tmp_path / "one.db") == first
    assert identity_of(tmp_path / "two.db") != first


def test_a_catalogue_of_an_older_version_gets_one(tmp_path: Path) -> None:
    path = tmp_path / "one.db"
    identity_of(path)
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("DROP TABLE identity")
    first = identity_of(path)
    assert first
    assert identity_of(path) == first
