"""What the catalogue says at once after each change."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from apparate.layer.catalogue import Catalogue
from apparate.layer.model import IndexSource
from apparate.oci.digest import Digest

DIGEST = Digest.of(b"layer")


def add(catalogue: Catalogue, reference: str) -> None:
    catalogue.add(DIGEST, reference, 8192, 4096, IndexSource.EMBEDDED, "promise")


def test_references_follow_every_change(tmp_path: Path) -> None:
    with closing(Catalogue(tmp_path / "catalogue.db")) as catalogue:
        assert catalogue.references(DIGEST) == []
        add(catalogue, "a.test/app:v1")
        assert catalogue.references(DIGEST) == ["a.test/app:v1"]
        catalogue.refer(DIGEST, "b.test/app:v1")
        assert catalogue.references(DIGEST) == ["b.test/app:v1", "a.test/app:v1"]
        catalogue.refer(DIGEST, "a.test/app:v1")
        assert catalogue.references(DIGEST) == ["a.test/app:v1", "b.test/app:v1"]
        catalogue.renumber(DIGEST)
        assert catalogue.references(DIGEST) == ["a.test/app:v1", "b.test/app:v1"]
        catalogue.remove(DIGEST)
        assert catalogue.references(DIGEST) == []
        add(catalogue, "c.test/app:v1")
        assert catalogue.references(DIGEST) == ["c.test/app:v1"]


def test_references_are_durable(tmp_path: Path) -> None:
    with closing(Catalogue(tmp_path / "catalogue.db")) as catalogue:
        add(catalogue, "a.test/app:v1")
        catalogue.refer(DIGEST, "b.test/app:v1")
    with closing(Catalogue(tmp_path / "catalogue.db")) as catalogue:
        assert catalogue.references(DIGEST) == ["b.test/app:v1", "a.test/app:v1"]
