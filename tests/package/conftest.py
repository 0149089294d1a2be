"""The package, built once, and its tree."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support import host_package
from tests.support.leftovers import clean_folder


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with every form of the package; PACKAGES names one that is built already."""
    if os.environ.get("PACKAGES"):
        return Path(os.environ["PACKAGES"])
    return host_package.build(tmp_path_factory.mktemp("packages") / "dist")


@pytest.fixture(scope="session")
def tree(packages: Path) -> Iterator[Path]:
    """The versioned folder, unpacked."""
    with clean_folder("tree") as folder:
        yield host_package.unpack(packages, folder / "apparate")
