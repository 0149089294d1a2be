"""States of a configured node: containerd, apparate or the file change; the programs are real, the daemon is a fake."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.support.containerd import release
from tests.support.fake_containerd import FakeContainerd, FakeCri

from apparate.containerd.client import Containerd, Cri
from apparate.errors import FailedPrecondition, InvalidArgument, Unavailable, Unsupported
from apparate.node.configure import Configurator, in_phase
from apparate.node.containerd_config import ConfigPlanner
from apparate.node.preflight import Finding, Level
from apparate.node.program import Program
from apparate.node.restore import Restorer
from apparate.node.settings import NodeSettings
from apparate.node.state import Phase, StateStore
from apparate.node.status import Sources, gather
from apparate.node.switch import Report, Switch, Tools

CORPUS = Path(__file__).parents[1] / "corpus/containerd"


@dataclass
class Machine:
    """A node below *base*, and whoever restarts its containerd: it counts."""

    base: Path
    findings: tuple[Finding, ...] = ()
    restarts: int = 0
    cri: FakeCri = field(default_factory=FakeCri)

    def __post_init__(self) -> None:
        self.config = self.base / "config.toml"
        self.drop_in = self.base / "conf.d/apparate.toml"
        self.drop_in.parent.mkdir()
        self.config.write_bytes((CORPUS / "nvidia.toml").read_bytes().replace(b"/etc/containerd/conf.d", b"conf.d"))
        self.original = self.config.read_bytes()
        self.daemon = FakeContainerd(self.base)
        self.daemon.on("k8s.io", "apparate")

    def restart(self) -> None:
        self.restarts += 1

    def switch(self, containerd: str, socket_name: str = "s.sock") -> Switch:
        settings = NodeSettings(
            socket=self.base / socket_name,
            root=self.base,
            config=self.config,
            address=self.base / "c.sock",
            state_dir=self.base / "state",
        )
        program = Program(release(containerd).folder / "containerd")
        return Switch(
            settings, Tools(program, self._connect, self, lambda: self.findings), StateStore(settings.state_dir)
        )

    @contextlib.contextmanager
    def _connect(self, _: Path) -> Iterator[tuple[Containerd, Cri]]:
        yield self.daemon, self.cri

    def configure(self, containerd: str, socket_name: str = "s.sock") -> Report:
        return Configurator(self.switch(containerd, socket_name), "1.0.0").configure(check=False)

    def restore(self, containerd: str) -> Report:
        return Restorer(self.switch(containerd)).restore(check=False, default_only=False, force=False)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    with contextlib.ExitStack() as stack:
        for name in ("s.sock", "other.sock"):
            server = stack.enter_context(contextlib.closing(socket.socket(socket.AF_UNIX)))
            server.bind(str(tmp_path / name))
            server.listen()
        yield Machine(tmp_path)


def test_containerd_2_takes_over_a_main_file_that_was_edited_for_1(machine: Machine) -> None:
    machine.configure("debian")
    assert b"apparate" in machine.config.read_bytes()
    assert not machine.drop_in.exists()
    assert machine.configure("2.4.2").changed
    assert machine.config.read_bytes() == machine.original
    assert b"apparate" in machine.drop_in.read_bytes()
    assert not machine.configure("2.4.2").changed
    machine.restore("2.4.2")
    assert machine.config.read_bytes() == machine.original
    assert not machine.drop_in.exists()
    assert not (machine.base / "state").exists()


def test_moved_socket_is_followed_and_the_original_still_comes_back(machine: Machine) -> None:
    machine.configure("debian")
    machine.configure("debian", "other.sock")
    assert b"other.sock" in machine.config.read_bytes()
    assert not machine.configure("debian", "other.sock").changed
    assert machine.restarts == 2
    machine.restore("debian")
    assert machine.config.read_bytes() == machine.original


def test_package_that_put_its_own_file_back_is_configured_again(machine: Machine) -> None:
    machine.configure("debian")
    machine.config.write_bytes(machine.original)
    assert machine.configure("debian").changed
    machine.restore("debian")
    assert machine.config.read_bytes() == machine.original


def test_failed_finding_stops_before_anything_is_changed(machine: Machine) -> None:
    machine.findings = (Finding("fuse", Level.FAILED, "/dev/fuse is missing", "modprobe fuse"),)
    with pytest.raises(FailedPrecondition, match="modprobe fuse"):
        machine.configure("debian")
    assert machine.config.read_bytes() == machine.original
    assert machine.restarts == 0
    assert not (machine.base / "state/node.json").exists()


def test_probe_pods_are_removed(machine: Machine) -> None:
    machine.configure("debian")
    assert machine.cri.pods == 0


def test_edited_file_of_a_killed_hand_back_loses_every_setting_of_ours(machine: Machine) -> None:
    machine.configure("debian")
    edited = machine.config.read_bytes() + b"\n[debug]\nlevel = 'info'\n"
    machine.config.write_bytes(edited)
    Restorer(machine.switch("debian")).restore(check=False, default_only=True, force=False)
    store = StateStore(machine.base / "state")
    noted = store.load()
    assert noted is not None
    store.save(in_phase(noted, Phase.RETURNING))
    machine.config.write_bytes(edited)  # the kill came between the note and the file
    machine.restore("debian")
    assert b"apparate" not in machine.config.read_bytes()
    assert b"level = 'info'" in machine.config.read_bytes()


def test_node_without_a_sandbox_image_is_tried_without_a_pod(machine: Machine) -> None:
    report = machine.configure("debian")
    assert any("without a pod" in step for step in report.steps)
    assert machine.daemon.on("k8s.io", "apparate").active == {}


def test_node_whose_containerd_is_gone_is_restored_by_force(machine: Machine) -> None:
    machine.configure("debian")
    gone = machine.switch("debian")
    gone.tools = dataclasses.replace(gone.tools, program=Program(Path("/nonexistent/containerd")))
    gone.planner = ConfigPlanner(gone.tools.program, gone.settings)
    with pytest.raises(Unsupported, match="give --force"):
        Restorer(gone).restore(check=False, default_only=False, force=False)
    Restorer(gone).restore(check=False, default_only=False, force=True)
    assert machine.config.read_bytes() == machine.original
    assert not (machine.base / "state").exists()


def test_default_that_has_come_back_is_not_given_back_twice(machine: Machine) -> None:
    machine.configure("debian")
    restorer = Restorer(machine.switch("debian"))
    assert restorer.restore(check=False, default_only=True, force=False).changed
    assert restorer.restore(check=True, default_only=True, force=False) == Report(changed=False)
    restarts = machine.restarts
    assert not restorer.restore(check=False, default_only=True, force=False).changed
    assert machine.restarts == restarts
    assert machine.restore("debian").changed
    assert machine.config.read_bytes() == machine.original


def _configured(machine: Machine) -> str:
    sources = Sources("1.0.0", lambda: "lazy", lambda: "erofs-file", list, machine.base / "loader.sock")
    return gather(machine.switch("debian"), sources).configured


def test_status_names_every_state_of_the_configuration(machine: Machine) -> None:
    assert _configured(machine) == "no"
    machine.configure("debian")
    assert _configured(machine) == "yes"
    ours = machine.config.read_bytes()
    machine.config.write_bytes(ours.replace(b'snapshotter = "apparate"', b'snapshotter = "native"'))
    assert _configured(machine) == "overridden"
    machine.config.write_bytes(ours)
    store = StateStore(machine.base / "state")
    noted = store.load()
    assert noted is not None
    store.save(in_phase(noted, Phase.CHANGING))
    assert _configured(machine) == "unfinished"
    store.save(noted)
    Restorer(machine.switch("debian")).restore(check=False, default_only=True, force=False)
    assert _configured(machine) == "leaving"
    machine.restore("debian")
    machine.config.write_bytes(ours)
    assert _configured(machine) == "elsewhere"


def test_status_of_a_broken_node_says_what_is_unknown(machine: Machine) -> None:
    machine.config.write_text("[plugins\n")

    def broken() -> str:
        raise FailedPrecondition("no loop device")

    sources = Sources("1.0.0", lambda: "lazy", broken, list, machine.base / "s.sock")
    status = gather(machine.switch("debian"), sources)
    assert (status.containerd.program, status.containerd.running) == ("1.6.20", "unknown")
    assert "refuses" in status.containerd.error
    assert status.driver == "unknown: no loop device"
    assert (status.standing, status.loader_serves) == (None, True)


def test_full_disk_stops_before_anything_is_restarted(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Unavailable, match="No space left on device"):
        machine.configure("debian")
    monkeypatch.undo()
    assert machine.config.read_bytes() == machine.original
    assert machine.restarts == 0
    assert machine.configure("debian").changed


def test_file_that_turns_out_wrong_is_put_back_without_a_restart(machine: Machine) -> None:
    switch = machine.switch("debian")
    (machine.base / "conf.d/other.toml").write_text("[broken\n")
    with pytest.raises(InvalidArgument, match="containerd refuses"):
        switch.move(
            machine.config, machine.original.replace(b"conf.d", f"{machine.base}/conf.d".encode()), lambda _: None
        )
    assert machine.config.read_bytes() == machine.original
    assert machine.restarts == 0
