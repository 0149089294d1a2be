"""Fixtures of the snapshotter's tests: a snapshotter over a loader without a kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.fake_loader import FakeLoader

from apparate.oci.digest import Digest
from apparate.snapshot.directories import SnapshotDirectories
from apparate.snapshot.metastore import METADATA_NAME, Metastore
from apparate.snapshot.overlay import Overlay
from apparate.snapshot.reconcile import metadata_lost, reconcile_directories
from apparate.snapshot.settings import SnapshotterSettings
from apparate.snapshot.snapshotter import Parts, Snapshotter

MakeSnapshotter = Callable[..., Snapshotter]


def applier(blob: Iterator[bytes], directory: Path, lowers: Sequence[Path]) -> Digest:
    """Write the blob as one file; its own digest is the diff id."""
    data = b"".join(blob)
    (directory / "unpacked").write_bytes(data)
    assert all(lower.is_dir() for lower in lowers)
    return Digest.of(data)


@pytest.fixture
def fake(tmp_path: Path) -> FakeLoader:
    return FakeLoader(tmp_path / "layers")


@pytest.fixture
def make(tmp_path: Path, fake: FakeLoader) -> Iterator[MakeSnapshotter]:
    made: list[Snapshotter] = []

    def start(**changes: object) -> Snapshotter:
        root = tmp_path / "root"
        root.mkdir(exist_ok=True)
        settings = replace(SnapshotterSettings(root=root, unmount_idle_s=0.0), **changes)  # type: ignore[arg-type]  # fields by name
        lost = metadata_lost(root)
        store, directories = Metastore(root / METADATA_NAME), SnapshotDirectories(root)
        reconcile_directories(store, directories, lost=lost)
        snapshotter = Snapshotter(Parts(settings, store, directories, Overlay(("index=off",)), fake, applier, lost))
        snapshotter.start()
        made.append(snapshotter)
        return snapshotter

    yield start
    for snapshotter in made:
        snapshotter.close()


@pytest.fixture
def snapshotter(make: MakeSnapshotter) -> Snapshotter:
    return make()
