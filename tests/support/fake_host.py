"""A host in a folder: the real script `activate`, stubs for systemctl and for `apparate node`, and the trouble a test wants."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from apparate.node.agent.host import Done, Host
from apparate.node.agent.payload import ACTIVATE, DEACTIVATE, HOME, PROGRAM

_PACKAGING = Path(__file__).parents[2] / "snapshotter/packaging/host"


def make_package(folder: Path, version: str = "1.0.0", build: str = "a") -> Path:
    """Return a package of the form of the real one, whose program can only say its version."""
    root = folder / f"package-{version}-{build}"
    (root / "bin").mkdir(parents=True)
    program = root / "bin/apparate"
    program.write_text(f"#!/bin/sh\necho {version}\n")
    program.chmod(0o755)
    shutil.copytree(_PACKAGING, root / "share")
    (root / "VERSION").write_text(f"{version}\n")
    (root / "BUILD-ID").write_text(f"{build}\n")
    return root


@dataclass(slots=True)
class NodeState:
    """What the stubs know of the host."""

    running: set[str] = field(default_factory=set)
    enabled: set[str] = field(default_factory=set)
    configured: str = "no"
    serves: bool = True
    lazy: list[str] = field(default_factory=list)
    standing: list[str] = field(default_factory=list)
    findings: list[dict[str, str]] = field(default_factory=list)
    """Failed ones of `node check`."""
    refusals: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Exit code and standard error of a program, by its last word that is no option."""


class FakeHost(Host):
    """A host whose root is a folder."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        root.mkdir(parents=True, exist_ok=True)
        self.state = NodeState()
        self.calls: list[str] = []
        self.on_call: Callable[[str], None] = lambda _: None

    def run(self, argv: Sequence[str], timeout_s: float) -> Done:
        self.calls.append(" ".join(argv))
        self.on_call(self.calls[-1])
        words = [word for word in argv if not word.startswith("-")]
        key = next((word for word in reversed(words) if word in self.state.refusals), "")
        if key:
            code, said = self.state.refusals[key]
            return Done(tuple(argv), code, "", said)
        if argv[0] == ACTIVATE:
            return self._activate(argv)
        if argv[0] == DEACTIVATE:
            self.state.running.clear()
            self.state.enabled.clear()
            return Done(tuple(argv), 0, "", "")
        if argv[0] == "systemctl":
            return Done(tuple(argv), *self._systemctl(argv[1:]))
        if argv[0] == PROGRAM:
            return Done(tuple(argv), *self._node(argv[2], argv[3:]))
        raise AssertionError(f"the host has no program {argv[0]}")

    def called(self, what: str) -> int:
        """Return how often a command line had *what* in it."""
        return sum(what in call for call in self.calls)

    def _activate(self, argv: Sequence[str]) -> Done:
        stubs = self.root / "stubs"
        stubs.mkdir(exist_ok=True)
        for name in ("systemctl", "systemd-tmpfiles"):
            (stubs / name).write_text("#!/bin/sh\nexit 0\n")
            (stubs / name).chmod(0o755)
        environment = {"PATH": f"{stubs}:{os.environ['PATH']}", "APPARATE_ROOT": str(self.path(HOME))}
        command = [str(self.path(argv[0])), *argv[1:]]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        return Done(tuple(argv), done.returncode, done.stdout, done.stderr)

    def _systemctl(self, arguments: Sequence[str]) -> tuple[int, str, str]:
        units = {word for word in arguments[1:] if not word.startswith("-")}
        state = self.state
        match arguments[0]:
            case "is-enabled":
                return (0 if units & state.enabled else 1), "", ""  # one of several suffices
            case "is-active":
                return (0 if units & state.running else 3), "", ""
            case "enable":
                state.enabled |= units
                state.running |= units
            case "disable":
                state.enabled -= units
                state.running -= units
            case "daemon-reload" | "reset-failed":
                pass
            case other:
                raise AssertionError(other)
        return 0, "", ""

    def _node(self, command: str, options: Sequence[str]) -> tuple[int, str, str]:
        state = self.state
        match command:
            case "check":
                return (5 if state.findings else 0), json.dumps(state.findings), ""
            case "configure":
                changed = state.configured != "yes"
                state.configured = "yes"
                return 0, json.dumps({"changed": changed}), '{"msg": "a line of the log"}\n'
            case "status" if "--running-lazy" in options:
                return (5 if state.lazy else 0), "".join(f"{name}\n" for name in state.lazy), ""
            case "status":
                serves = state.serves and bool(state.running)
                value = {"configured": state.configured, "driver": "erofs-file", "snapshotter_serves": serves}
                return 0, json.dumps({**value, "loader_serves": serves}), ""
            case "restore" if "--default-only" in options:
                state.configured = "leaving"
                return 0, json.dumps({"changed": True}), ""
            case "restore":
                if state.standing:
                    return 5, "", f"apparate: {len(state.standing)} containers stand on snapshotter apparate\n"
                if state.configured != "elsewhere":
                    state.configured = "no"
                return 0, json.dumps({"changed": True}), ""
            case other:
                raise AssertionError(other)
