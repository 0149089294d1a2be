"""Preparing a node: once, by turns, nothing on an operator's, rolled back and told where it fails."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from tests.support.fake_host import FakeHost, make_package
from tests.support.kubernetes_fake import FakeKubernetes
from tests.unit.node.agent.conftest import STATE_DIR, MakePreparer
from tests.unit.node.agent.helpers import settings_of

from apparate.errors import ApparateError, FailedPrecondition, Unavailable, Unsupported
from apparate.node.agent import payload
from apparate.node.agent.ownership import SILENT_S, Release
from apparate.node.agent.payload import HOME
from apparate.node.agent.turns import PREFIX


def _condition(cluster: FakeKubernetes, node: str = "node-a") -> dict[str, Any]:
    found: dict[str, dict[str, Any]] = {
        each["type"]: each for each in cluster.object("nodes", node)["status"]["conditions"]
    }
    return found.get("ApparateReady", {})


def _reasons(cluster: FakeKubernetes) -> list[str]:
    return [event["reason"] for event in cluster.all("events")]


def _files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_host_without_a_package_gets_one_and_is_configured(
    make_preparer: MakePreparer, host: FakeHost, cluster: FakeKubernetes
) -> None:
    make_preparer().prepare()
    assert os.readlink(host.link(HOME / "current")) == "1.0.0"
    assert host.path("/etc/systemd/system/apparate-loader.service").exists()
    assert not list(host.path("/etc/systemd/system").glob("*.preset"))
    assert host.path("/etc/tmpfiles.d/apparate.conf").exists()
    assert host.path("/etc/apparate/credentials").stat().st_mode & 0o777 == 0o700
    assert host.state.running == {"apparate-loader.service", "apparate-snapshotter.service"}
    assert host.state.configured == "yes"
    owner = json.loads(host.path(f"{STATE_DIR}/owner.json").read_text())
    assert (owner["installer"], owner["namespace"], owner["daemonset"]) == ("chart", "apparate", "apparate")
    assert not cluster.object("leases", f"{PREFIX}0", "apparate")["spec"].get("holderIdentity")
    assert _reasons(cluster) == ["ApparatePrepared"]


def test_second_run_changes_nothing_and_asks_no_server(
    make_preparer: MakePreparer, host: FakeHost, cluster: FakeKubernetes
) -> None:
    make_preparer().prepare()
    before = _files(host.root)
    host.calls.clear()
    again = make_preparer()
    cluster.stop()
    again.prepare()
    assert _files(host.root) == before
    assert host.called("configure") == host.called("activate") == 0


def test_operators_node_is_not_changed(
    make_preparer: MakePreparer, host: FakeHost, cluster: FakeKubernetes, package: Path
) -> None:
    host.path(HOME).mkdir(parents=True)
    package.rename(host.path(HOME / "dist"))
    host.state.configured = "yes"
    before = _files(host.root)
    make_preparer(source=host.path(HOME / "dist")).prepare()
    after = _files(host.root)
    assert {name: body for name, body in after.items() if not name.endswith("/chart.json")} == before
    assert host.calls == ["/opt/apparate/current/bin/apparate node status --json"]
    assert cluster.requests == []


def test_newer_version_replaces_the_older_one(make_preparer: MakePreparer, host: FakeHost, tmp_path: Path) -> None:
    make_preparer().prepare()
    make_preparer(source=make_package(tmp_path, "1.1.0", "b")).prepare()
    assert os.readlink(host.link(HOME / "current")) == "1.1.0"
    assert host.called("activate --restart") == 2
    assert not list(host.path(HOME).glob(".*"))


def test_other_build_of_the_same_version_replaces_it(
    make_preparer: MakePreparer, host: FakeHost, tmp_path: Path
) -> None:
    make_preparer().prepare()
    make_preparer(source=make_package(tmp_path, "1.0.0", "b")).prepare()
    assert host.path(HOME / "1.0.0/BUILD-ID").read_text() == "b\n"


def test_version_that_does_not_run_leaves_the_former_one_with_its_units(
    make_preparer: MakePreparer, host: FakeHost, tmp_path: Path
) -> None:
    make_preparer().prepare()
    unit = host.path("/etc/systemd/system/apparate-loader.service")
    before = unit.read_bytes()
    broken = make_package(tmp_path, "1.1.0", "b")
    (broken / "bin/apparate").write_text("#!/bin/sh\nexit 1\n")
    (broken / "share/systemd/apparate-loader.service").write_text("[Unit]\n")
    with pytest.raises(ApparateError, match=r"version 1\.1\.0 does not run on this node: .*current is 1\.0\.0"):
        make_preparer(source=broken).prepare()
    assert os.readlink(host.link(HOME / "current")) == "1.0.0"
    assert unit.read_bytes() == before
    assert host.state.configured == "yes"


@pytest.mark.parametrize(
    ("code", "error"), [(1, ApparateError), (5, FailedPrecondition), (6, Unsupported), (9, Unavailable)]
)
def test_failed_configuration_is_told_everywhere_and_keeps_its_exit_code(
    make_preparer: MakePreparer, host: FakeHost, cluster: FakeKubernetes, code: int, error: type[ApparateError]
) -> None:
    said = '{"msg": "x"}\napparate: containerd 1.3.0 is too old: upgrade it to 1.4.3 or later\n'
    host.state.refusals["configure"] = (code, said)
    with pytest.raises(error, match=r"containerd was not configured: containerd 1\.3\.0 is too old: upgrade") as caught:
        make_preparer().prepare()
    assert caught.value.exit_code == code
    assert (_condition(cluster)["status"], _condition(cluster)["reason"]) == ("False", "PrepareFailed")
    assert "too old" in _condition(cluster)["message"]
    assert "too old" in cluster.object("nodes", "node-a")["metadata"]["annotations"]["apparate.cloud.tencent.com/error"]
    assert _reasons(cluster) == ["ApparatePrepareFailed"]
    lease = cluster.object("leases", f"{PREFIX}0", "apparate")
    assert lease["spec"]["holderIdentity"] == "node-a"
    assert lease["metadata"]["annotations"]["apparate.cloud.tencent.com/failed"] == "1"


def test_missing_needs_stop_before_a_service_is_started(make_preparer: MakePreparer, host: FakeHost) -> None:
    host.state.findings = [
        {"name": "fuse", "level": "failed", "detail": "no /dev/fuse", "fix": "modprobe fuse"},
        {"name": "kernel", "level": "ok", "detail": "6.1", "fix": ""},
    ]
    with pytest.raises(FailedPrecondition, match="lacks what on-demand loading needs: fuse: no /dev/fuse: modprobe"):
        make_preparer().prepare()
    assert not host.state.running
    assert host.called("configure") == 0


def test_services_that_do_not_start_are_disabled_again(make_preparer: MakePreparer, host: FakeHost) -> None:
    host.state.refusals["enable"] = (1, "Job for apparate-loader.service failed.\n")
    host.state.refusals["apparate-snapshotter.service"] = (1, "Job for apparate-loader.service failed.\n")
    with pytest.raises(Unavailable, match="the services do not start: Job for apparate-loader"):
        make_preparer().prepare()
    assert host.called("disable --now") == 1


def test_read_only_etc_is_named(make_preparer: MakePreparer, host: FakeHost) -> None:
    host.path("/etc").mkdir(parents=True)
    host.path("/etc/systemd").write_text("in the way, as a read-only file system is")
    with pytest.raises(ApparateError, match="etc/systemd"):
        make_preparer().prepare()
    assert host.called("configure") == 0


def test_second_release_on_a_node_is_refused(make_preparer: MakePreparer, host: FakeHost) -> None:
    make_preparer().prepare()
    before = _files(host.root)
    other = settings_of()
    with pytest.raises(
        FailedPrecondition, match="DaemonSet apparate in namespace apparate; a node takes one: uninstall"
    ):
        make_preparer(other, Release("elsewhere", "apparate")).prepare()
    after = _files(host.root)
    assert {name for name in after if after[name] != before.get(name)} <= {"var/lib/apparate/events.json"}


def test_release_that_was_silent_for_long_is_followed(make_preparer: MakePreparer, host: FakeHost) -> None:
    make_preparer().prepare()
    chart = host.path(f"{STATE_DIR}/chart.json")
    old = chart.stat().st_mtime - SILENT_S - 1
    os.utime(chart, (old, old))
    make_preparer(release=Release("elsewhere", "apparate")).prepare()
    assert json.loads(chart.read_text())["namespace"] == "elsewhere"


def test_image_without_a_package_is_refused(make_preparer: MakePreparer, tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="is no package of apparate: run this in the chart's image"):
        make_preparer(source=tmp_path / "nothing").prepare()


def test_host_of_another_architecture_is_refused(make_preparer: MakePreparer, host: FakeHost) -> None:
    program = host.path("/proc/1/exe")
    program.parent.mkdir(parents=True)
    program.write_bytes(b"\x7fELF" + bytes(14) + (183).to_bytes(2, "little"))  # AArch64
    with pytest.raises(Unsupported, match="the node is of another architecture"):
        make_preparer().prepare()


def test_run_that_was_killed_while_it_copied_is_begun_anew(make_preparer: MakePreparer, host: FakeHost) -> None:
    preparer = make_preparer()
    (host.path(HOME) / ".dist-new/share").mkdir(parents=True)
    (host.path(STATE_DIR)).mkdir(parents=True)
    host.path(f"{STATE_DIR}/owner.json").write_text("{}")
    preparer.prepare()
    assert host.state.configured == "yes"
    assert not list(host.path(HOME).glob(".*"))


def test_package_that_a_package_manager_installed_over_the_charts_is_the_operators(
    make_preparer: MakePreparer, host: FakeHost, tmp_path: Path
) -> None:
    make_preparer().prepare()
    unit = host.path("/usr/lib/systemd/system/apparate-loader.service")
    unit.parent.mkdir(parents=True)
    unit.write_text("[Unit]\n")
    make_preparer(source=make_package(tmp_path, "1.1.0", "b")).prepare()
    assert os.readlink(host.link(HOME / "current")) == "1.0.0"
    assert not host.path(f"{STATE_DIR}/owner.json").exists()


def test_one_service_that_was_stopped_is_started_again(make_preparer: MakePreparer, host: FakeHost) -> None:
    make_preparer().prepare()
    host.state.running.discard("apparate-loader.service")
    host.state.serves = False

    def serves(call: str) -> None:
        host.state.serves = host.state.serves or "enable --now" in call

    host.on_call = serves
    make_preparer().prepare()
    assert host.state.running == {"apparate-loader.service", "apparate-snapshotter.service"}
    assert host.called("node configure") == 2, "asked again, and it found nothing to do"


def test_disk_without_room_is_said_before_anything_is_copied(
    make_preparer: MakePreparer, host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(payload, "SPACE_RESERVE", 1 << 60)
    with pytest.raises(FailedPrecondition, match=r"/opt/apparate needs \d+ MiB and its file system has \d+ MiB free"):
        make_preparer().prepare()
    assert not host.path(HOME / "dist").exists()


def test_links_of_the_host_are_followed_below_its_own_root(make_preparer: MakePreparer, host: FakeHost) -> None:
    host.path("/data/opt").mkdir(parents=True)
    (host.root / "opt").symlink_to("/data/opt")
    (host.root / "etc").symlink_to("data/../data/etc")
    make_preparer().prepare()
    assert (host.root / "data/opt/apparate/current").is_symlink()
    assert (host.root / "data/etc/systemd/system/apparate-loader.service").exists()
    make_preparer().prepare()
    assert host.called("activate") == 1


def test_links_in_a_circle_are_refused(host: FakeHost) -> None:
    (host.root / "opt").symlink_to("/opt")
    with pytest.raises(FailedPrecondition, match="too many symbolic links"):
        host.path("/opt/apparate")


def test_link_out_of_the_host_stays_below_its_root(host: FakeHost) -> None:
    (host.root / "up").symlink_to("../../../../etc")
    assert host.path("/up/passwd") == host.root / "etc/passwd"


def test_masked_unit_is_refused_and_its_target_untouched(make_preparer: MakePreparer, host: FakeHost) -> None:
    null = host.path("/dev/null")
    null.parent.mkdir()
    null.touch()
    unit = host.path("/etc/systemd/system/apparate-loader.service")
    unit.parent.mkdir(parents=True)
    unit.symlink_to("/dev/null")
    with pytest.raises(FailedPrecondition, match=r"is a symbolic link: systemctl unmask apparate-loader\.service"):
        make_preparer().prepare()
    assert null.read_bytes() == b""
    assert unit.is_symlink()


def test_run_that_is_told_to_end_gives_its_turn_back_unmarked(
    make_preparer: MakePreparer, host: FakeHost, cluster: FakeKubernetes
) -> None:
    def interrupt(call: str) -> None:
        if "node configure" in call:
            raise KeyboardInterrupt

    host.on_call = interrupt
    with pytest.raises(KeyboardInterrupt):
        make_preparer().prepare()
    lease = cluster.object("leases", f"{PREFIX}0", "apparate")
    assert not lease["spec"].get("holderIdentity")
    assert not lease["metadata"].get("annotations")
    assert cluster.all("events") == []


def test_mistake_of_our_own_stops_the_roll_out_too(
    make_preparer: MakePreparer, host: FakeHost, cluster: FakeKubernetes
) -> None:
    def mistake(call: str) -> None:
        if "node configure" in call:
            raise ZeroDivisionError("nobody thought of it")

    host.on_call = mistake
    with pytest.raises(ZeroDivisionError):
        make_preparer().prepare()
    annotations = cluster.object("leases", f"{PREFIX}0", "apparate")["metadata"]["annotations"]
    assert "nobody thought of it" in annotations["apparate.cloud.tencent.com/error"]
    assert "ZeroDivisionError" in _condition(cluster)["message"]
    assert _reasons(cluster) == ["ApparatePrepareFailed"]
