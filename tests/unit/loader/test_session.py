"""When a session is taken over, and when a new one begins. The kernel is a stand-in."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from apparate.errors import FailedPrecondition
from apparate.loader import handshake, kernel
from apparate.loader.session import FD_NAME, Catalogued, open_session
from apparate.loader.settings import LoaderSettings
from apparate.telemetry import systemd

DEVICE = "0:39"
OURS = Catalogued("ours", Path("/var/lib/layers"))


@dataclass
class Machine:
    """A mount table and a descriptor store."""

    settings: LoaderSettings
    mounts: list[kernel.Mount] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    devices: list[int] = field(default_factory=list)

    def note(self, event: str) -> bool:
        self.events.append(event)
        return True

    def mounted(self, device: str = DEVICE) -> None:
        self.mounts.append(kernel.Mount(1, device, str(self.settings.fuse_dir), "fuse", "apparate"))

    def wrote(self, **state: object) -> None:
        self.settings.run_dir.mkdir(exist_ok=True)
        (self.settings.run_dir / "session.json").write_text(json.dumps(state))

    def state(self) -> dict[str, object]:
        found: dict[str, object] = json.loads((self.settings.run_dir / "session.json").read_text())
        return found


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    made = Machine(LoaderSettings(run_dir=tmp_path / "run"))

    def open_device() -> int:
        made.devices.append(os.open("/dev/null", os.O_RDWR))
        return made.devices[-1]

    def mount(_fd: int, _target: str, _background: int) -> handshake.Negotiated:
        assert not (made.settings.run_dir / "session.json").exists()  # nothing is promised before the mount answers
        made.events.append("mount")
        made.mounted("0:77")
        return handshake.Negotiated(38, resend=True)

    def unmount(target: str, _flags: int) -> None:
        made.events.append("detach")
        made.mounts = [entry for entry in made.mounts if entry.target != target]

    monkeypatch.setattr(kernel, "mounts", lambda: made.mounts)
    monkeypatch.setattr(kernel, "unmount", unmount)
    monkeypatch.setattr(kernel, "set_read_ahead", lambda *_: None)
    monkeypatch.setattr(handshake, "open_device", open_device)
    monkeypatch.setattr(handshake, "mount", mount)
    monkeypatch.setattr(systemd, "store_fd", lambda name, _fd: made.note(f"keep {name}"))
    monkeypatch.setattr(systemd, "remove_fd", lambda name: made.note(f"drop {name}"))
    monkeypatch.setattr(systemd, "notify", lambda *_, **__: False)
    yield made
    for fd in made.devices:
        os.close(fd)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    os.close(writing)


@pytest.fixture
def kept(pipe: tuple[int, int]) -> int:
    """A descriptor that polls as one of a living connection."""
    return pipe[0]


NEW = [f"drop {FD_NAME}", f"keep {FD_NAME}", "mount"]


def test_the_first_session_is_kept_before_it_is_mounted(machine: Machine) -> None:
    session = open_session(machine.settings, {}, OURS)
    assert not session.taken_over
    assert machine.events == NEW
    assert machine.state() == {"device": "0:77", "minor": 38, "resend": True, "drained": False, "catalogue": "ours"}


def test_a_kept_session_that_answers_is_taken_over(machine: Machine, kept: int) -> None:
    machine.mounted()
    machine.wrote(device=DEVICE, resend=True)
    session = open_session(machine.settings, {FD_NAME: [kept]}, OURS)
    assert (session.taken_over, session.fd, session.device, session.can_resend) == (True, kept, DEVICE, True)
    assert machine.events == []
    os.close(kept)


def test_a_state_of_another_version_is_understood(machine: Machine, kept: int) -> None:
    machine.mounted()
    machine.wrote(device=DEVICE, colour="blue")
    assert open_session(machine.settings, {FD_NAME: [kept]}, OURS).taken_over
    os.close(kept)


def test_a_descriptor_that_was_never_mounted_is_given_up(machine: Machine, pipe: tuple[int, int]) -> None:
    assert not open_session(machine.settings, {FD_NAME: [pipe[0]]}, OURS).taken_over
    assert machine.events == NEW
    with pytest.raises(BrokenPipeError):  # nobody holds the other end any more
        os.write(pipe[1], b"x")


def test_a_mount_that_never_answered_is_made_anew(machine: Machine, kept: int) -> None:
    machine.mounted()
    assert not open_session(machine.settings, {FD_NAME: [kept]}, OURS).taken_over
    assert machine.events == ["detach", *NEW]


@pytest.mark.parametrize("text", ["", "[]", "{", '{"minor": 38}', "null"])
def test_a_state_that_cannot_be_read_is_none(machine: Machine, kept: int, text: str) -> None:
    machine.mounted()
    machine.settings.run_dir.mkdir()
    (machine.settings.run_dir / "session.json").write_text(text)
    assert not open_session(machine.settings, {FD_NAME: [kept]}, OURS).taken_over


def test_a_mount_of_another_session_is_made_anew(machine: Machine, kept: int) -> None:
    machine.mounted("0:41")
    machine.wrote(device=DEVICE, resend=True)
    assert not open_session(machine.settings, {FD_NAME: [kept]}, OURS).taken_over


def test_a_dead_mount_whose_descriptor_is_lost_is_made_anew(machine: Machine) -> None:
    machine.mounted()
    machine.mounted()
    machine.wrote(device=DEVICE, resend=True)
    assert not open_session(machine.settings, {}, OURS).taken_over
    assert machine.events == ["detach", *NEW]


def test_an_aborted_connection_is_not_taken_over(machine: Machine) -> None:
    reading, writing = os.pipe()
    os.close(reading)  # a pipe that nobody reads polls as an error, as an aborted connection does
    machine.mounted()
    machine.wrote(device=DEVICE, resend=True)
    assert not open_session(machine.settings, {FD_NAME: [writing]}, OURS).taken_over


@pytest.mark.parametrize("noted", [{}, {"catalogue": "ours"}])
def test_a_session_of_our_catalogue_or_of_an_unknown_one_is_ours_from_then_on(
    machine: Machine, kept: int, noted: dict[str, str]
) -> None:
    machine.mounted()
    machine.wrote(device=DEVICE, resend=True, **noted)
    assert open_session(machine.settings, {FD_NAME: [kept]}, OURS).taken_over
    assert machine.state()["catalogue"] == "ours"
    os.close(kept)


def test_a_session_of_another_catalogue_is_left_as_it_is(machine: Machine, pipe: tuple[int, int]) -> None:
    machine.mounted()
    machine.wrote(device=DEVICE, resend=True, catalogue="another")
    before = machine.state()
    with pytest.raises(FailedPrecondition, match=r"layers\.root /var/lib/layers is not .* set it back"):
        open_session(machine.settings, {FD_NAME: [pipe[0]]}, OURS)
    assert (machine.state(), machine.events) == (before, [])
    assert os.write(pipe[1], b"x") == 1  # somebody holds the other end still
    os.close(pipe[0])
