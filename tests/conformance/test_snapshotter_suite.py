"""containerd's own snapshotter suite (core/snapshots/testsuite) against our socket, on an empty root."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.fake_loader import FakeLoader
from tests.support.leftovers import mounts_below
from tests.support.peers import peer
from tests.support.processes import run
from tests.support.services import Services

from apparate.grpcapi.loader import loader_handler
from apparate.grpcapi.server import serving

pytestmark = pytest.mark.root

SUITE_TIMEOUT_S = 300
_RESULT = re.compile(r"^ +--- (PASS|FAIL|SKIP): TestSnapshotter/(\S+)", re.MULTILINE)
EXPECTED = {
    "Basic",
    "StatActive",
    "StatComitted",
    "TransitivityTest",
    "PreareViewFailingtest",
    "Update",
    "Remove",
    "Walk",
    "LayerFileupdate",
    "RemoveDirectoryInLowerLayer",
    "Chown",
    "DirectoryPermissionOnCommit",
    "RemoveIntermediateSnapshot",
    "DeletedFilesInChildSnapshot",
    "MoveFileFromLowerLayer",
    "Rename",
    "ViewReadonly",
    "StatInWalk",
    "CloseTwice",
    "RootPermission",
    "128LayersMount",
}


@pytest.fixture(params=["without a loader", "with a fake loader", "with the loader"])
def services(request: pytest.FixtureRequest, folder: Path) -> Iterator[Services]:
    made = Services(folder / "s", folder / "root")
    loader_socket = made.run_dir / "loader.sock"
    if request.param == "with the loader":
        with made:
            yield made
        for point in reversed(mounts_below(made.run_dir)):  # stopping never unmounts
            run(["umount", point])
    elif request.param == "with a fake loader":
        fake = FakeLoader(folder / "layers")
        with serving(loader_socket, [loader_handler(fake)], 4):
            yield from _snapshotter_alone(made)
    else:
        yield from _snapshotter_alone(made)


def _snapshotter_alone(services: Services) -> Iterator[Services]:
    services.start_snapshotter()
    try:
        yield services
    finally:
        services.snapshotter.stop()
    assert services.unexpected() == []


def test_containerds_suite_passes(services: Services, folder: Path) -> None:
    program = peer("snapshotter-suite") / "snapshotter-suite"
    work = folder / "w"
    work.mkdir()
    done = subprocess.run(
        [program, "-test.root", "-test.v"],
        env={**os.environ, "SNAPSHOTTER_SOCKET": str(services.socket), "TMPDIR": str(work)},
        cwd=work,
        capture_output=True,
        text=True,
        timeout=SUITE_TIMEOUT_S,
        check=False,
    )
    results = {name: result for result, name in _RESULT.findall(done.stdout)}
    assert {name: result for name, result in results.items() if result != "PASS"} == {}, done.stdout + done.stderr
    assert set(results) >= EXPECTED
    assert done.returncode == 0, done.stdout + done.stderr
    assert mounts_below(services.root) == []
