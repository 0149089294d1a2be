from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from apparate.node.preflight import Finding, Level
from apparate.node.preflight_containerd import run
from apparate.node.program import Program
from apparate.node.settings import NodeSettings

DUMP = """version = 2
root = "{root}"
[grpc]
address = "{address}"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "pause:1"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
disable_snapshot_annotations = true
"""


class FakeContainerd:
    """A program that prints what a test wants as its version and its dump."""

    def __init__(self, folder: Path) -> None:
        root = folder / "io.containerd.snapshotter.v1.apparate"
        self.settings = NodeSettings(folder / "s.sock", root, config=folder / "config.toml")
        self._folder = folder
        self.settings.config.write_text("version = 2\n")
        self.says()

    def says(self, dump: str = DUMP, version: str = "1.6.20", status: int = 0) -> None:
        program, printed = self._folder / "containerd", self._folder / "dump"
        printed.write_text(dump.replace("{address}", str(self._folder / "c.sock")).replace("{root}", str(self._folder)))
        program.write_text(
            f'#!/bin/sh\n[ "$1" != --version ] || {{ echo containerd github.com/containerd/containerd {version}; exit; }}\n'
            f"[ {status} = 0 ] && cat {printed} || {{ cat {printed} >&2; exit {status}; }}\n"
        )
        program.chmod(0o755)

    def findings(self) -> dict[str, Finding]:
        return {finding.name: finding for finding in run(self.settings, lambda _: Program(self._folder / "containerd"))}


@pytest.fixture
def containerd(tmp_path: Path) -> FakeContainerd:
    return FakeContainerd(tmp_path)


def test_ordinary_node_has_nothing_to_mend_but_what_does_not_run(containerd: FakeContainerd) -> None:
    found = containerd.findings()
    assert found["containerd"].detail.startswith("1.6.20, ")
    assert "replaces it" in found["default snapshotter"].detail
    assert found["containerd socket"].level is Level.WARNING
    assert {finding.level for name, finding in found.items() if name != "containerd socket"} == {Level.OK}


def test_socket_that_serves_is_seen(containerd: FakeContainerd, tmp_path: Path) -> None:
    with closing(socket.socket(socket.AF_UNIX)) as server:
        server.bind(str(tmp_path / "c.sock"))
        server.listen()
        assert containerd.findings()["containerd socket"].level is Level.OK


@pytest.mark.parametrize(
    ("change", "name", "said"),
    [
        (lambda dump: f'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n{dump}', "cri", "disabled_plugins"),
        (lambda dump: dump.replace("overlayfs", "nydus"), "default snapshotter", "--replace nydus"),
        (
            lambda dump: f'{dump}[proxy_plugins.apparate]\ntype = "snapshot"\naddress = "/run/x"\n',
            "proxy plugin",
            "rename or remove it",
        ),
    ],
)
def test_what_configure_would_refuse_is_a_failure(
    containerd: FakeContainerd, change: Callable[[str], str], name: str, said: str
) -> None:
    containerd.says(change(DUMP))
    finding = containerd.findings()[name]
    assert finding.level is Level.FAILED
    assert said in finding.fix


def test_configured_node_without_annotations_is_a_warning(containerd: FakeContainerd) -> None:
    containerd.says(DUMP.replace("overlayfs", "apparate"))
    assert "annotations are disabled" in containerd.findings()["default snapshotter"].detail
    containerd.says(DUMP.replace("overlayfs", "apparate").replace("= true", "= false"))
    assert containerd.findings()["default snapshotter"].level is Level.OK


def test_old_containerd_is_a_failure_and_ends_the_look(containerd: FakeContainerd) -> None:
    containerd.says(version="v1.4.2")
    found = containerd.findings()
    assert list(found) == ["containerd"]
    assert "upgrade it to 1.4.3" in found["containerd"].detail


def test_file_that_containerd_refuses_is_shown_with_its_words(containerd: FakeContainerd) -> None:
    containerd.says('time="x" level=warning msg="old"\ncontainerd: unexpected token', status=1)
    finding = containerd.findings()["containerd config"]
    assert finding.level is Level.FAILED
    assert "refuses" in finding.detail
    assert "unexpected token; mend the file first" in finding.detail
    assert "level=warning" not in finding.detail


def test_missing_containerd_is_a_failure(tmp_path: Path) -> None:
    settings = NodeSettings(tmp_path / "s.sock", tmp_path, containerd=str(tmp_path / "none"))
    finding = run(settings)[0]
    assert (finding.name, finding.level) == ("containerd", Level.FAILED)


def test_data_where_older_containerds_do_not_look_is_a_warning(containerd: FakeContainerd) -> None:
    containerd.says(DUMP.replace("{root}", "/srv/containerd"))
    finding = containerd.findings()["image file system"]
    assert finding.level is Level.WARNING
    assert "/srv/containerd/io.containerd.snapshotter.v1.apparate" in finding.fix
