"""Giving a node back: refused while it would hurt, complete otherwise, and only what is the chart's."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.fake_host import FakeHost
from tests.unit.node.agent.conftest import STATE_DIR, MakePreparer

from apparate.errors import ApparateError, FailedPrecondition
from apparate.node.agent.ownership import Ownership, Release
from apparate.node.agent.payload import HOME, Payload
from apparate.node.agent.remove import Paths, Remover

ROOT = Path("/var/lib/containerd/io.containerd.snapshotter.v1.apparate")
RELEASE = Release("apparate", "apparate")


def _remover(host: FakeHost, package: Path) -> Remover:
    ownership = Ownership(RELEASE, host.path(STATE_DIR))
    paths = Paths(ROOT, Path(f"{STATE_DIR}/mode"), Path(STATE_DIR))
    return Remover(host, Payload(host, package), ownership, paths)


@pytest.fixture
def prepared(make_preparer: MakePreparer, host: FakeHost, package: Path) -> FakeHost:
    """A node from which the release has gone."""
    for folder in ("/etc/systemd/system", "/etc/tmpfiles.d", "/opt", "/var/lib/containerd"):
        host.path(folder).mkdir(parents=True)
    make_preparer().prepare()
    host.path(ROOT).mkdir(parents=True)
    host.path(ROOT / "metadata.db").write_text("x")
    host.path("/etc/apparate/credentials/chart-apparate_pull.json").write_text("{}")
    host.path(f"{STATE_DIR}/mode").write_text("ordinary\n")
    Ownership(RELEASE, host.path(STATE_DIR)).leave()
    return host


def _tree(host: FakeHost) -> set[str]:
    found = {str(path.relative_to(host.root)) for path in host.root.rglob("*")}
    return {name for name in found if not name.startswith("stubs")}


def test_node_is_as_it_was_before_the_chart(prepared: FakeHost, package: Path) -> None:
    _remover(prepared, package).remove()
    folders = {
        "etc",
        "etc/systemd",
        "etc/systemd/system",
        "etc/tmpfiles.d",
        "opt",
        "var",
        "var/lib",
        "var/lib/containerd",
    }
    assert _tree(prepared) == folders
    assert prepared.state.configured == "no"
    assert not prepared.state.running


def test_running_lazy_containers_stop_it_and_new_images_are_ordinary(prepared: FakeHost, package: Path) -> None:
    prepared.state.lazy = ["k8s.io/1/web"]
    with pytest.raises(FailedPrecondition, match=r"1 containers run on layers .* \(k8s\.io/1/web\): drain the node"):
        _remover(prepared, package).remove()
    assert prepared.path(f"{STATE_DIR}/mode").read_text() == "ordinary\n"
    assert prepared.path("/etc/apparate/credentials/chart-apparate_pull.json").exists()
    assert prepared.called("restore") == 0
    assert prepared.state.running


def test_unknown_counts_as_running(prepared: FakeHost, package: Path) -> None:
    prepared.state.refusals["status"] = (5, "apparate: the metadata cannot be read\n")
    with pytest.raises(FailedPrecondition, match="nobody can tell which containers run on lazy layers: the metadata"):
        _remover(prepared, package).remove()
    assert prepared.state.running


def test_first_pod_gives_new_pods_back_and_the_next_one_completes(prepared: FakeHost, package: Path) -> None:
    prepared.state.standing = ["kube-system/kube-proxy", "the job's own pod"]
    with pytest.raises(
        FailedPrecondition, match="2 containers stand on snapshotter apparate; new pods stand on the former"
    ):
        _remover(prepared, package).remove()
    assert prepared.state.configured == "leaving"
    assert prepared.state.running
    prepared.state.standing = []
    _remover(prepared, package).remove()
    assert not prepared.path(HOME).exists()


def test_release_that_is_at_work_is_not_removed_below_its_feet(
    make_preparer: MakePreparer, host: FakeHost, package: Path
) -> None:
    make_preparer().prepare()
    with pytest.raises(FailedPrecondition, match=r"a release of the chart is at work here .*helm uninstall it first"):
        _remover(host, package).remove()
    assert host.state.running


def test_operators_node_loses_only_what_the_pod_wrote(host: FakeHost, package: Path) -> None:
    host.path(HOME).mkdir(parents=True)
    (host.path(HOME) / "dist").mkdir()
    folder = host.path("/etc/apparate/credentials")
    folder.mkdir(parents=True)
    (folder / "chart-apparate_pull.json").write_text("{}")
    (folder / "mine.json").write_text("{}")
    host.path(STATE_DIR).mkdir(parents=True)
    host.path(f"{STATE_DIR}/mode").write_text("ordinary\n")
    _remover(host, package).remove()
    assert [path.name for path in folder.iterdir()] == ["mine.json"]
    assert host.path(HOME / "dist").exists()
    assert not host.path(f"{STATE_DIR}/mode").exists()
    assert host.calls == []


def test_settings_of_an_operator_stay(prepared: FakeHost, package: Path) -> None:
    config = prepared.path("/etc/apparate/config.toml")
    config.write_text("[log]\n")
    _remover(prepared, package).remove()
    assert config.read_text() == "[log]\n"


def test_removal_that_was_interrupted_goes_on(prepared: FakeHost, package: Path) -> None:
    _remover(prepared, package)._payload.take_away()
    _remover(prepared, package).remove()
    assert not prepared.path(STATE_DIR).exists()


def test_configuration_of_somebody_else_keeps_the_services(prepared: FakeHost, package: Path) -> None:
    prepared.state.configured = "elsewhere"
    with pytest.raises(
        FailedPrecondition, match=r"containerd still uses the snapshotter .*not the chart's: take them out"
    ):
        _remover(prepared, package).remove()
    assert prepared.state.running


def test_failed_preparation_can_be_removed_at_once(make_preparer: MakePreparer, host: FakeHost, package: Path) -> None:
    host.state.refusals["configure"] = (1, "apparate: containerd does not start\n")
    with pytest.raises(ApparateError, match="containerd does not start"):
        make_preparer().prepare()
    host.state.refusals.clear()
    _remover(host, package).remove()
    assert not host.path(HOME).exists()
    assert not host.path(STATE_DIR).exists()


def test_package_that_never_ran_is_just_deleted(make_preparer: MakePreparer, host: FakeHost, package: Path) -> None:
    def interrupt(call: str) -> None:
        if "activate" in call:
            raise KeyboardInterrupt

    host.on_call = interrupt
    with pytest.raises(KeyboardInterrupt):
        make_preparer().prepare()
    host.on_call = lambda _: None
    host.calls.clear()
    _remover(host, package).remove()
    assert host.called("node") == 0
    assert not host.path(HOME).exists()
