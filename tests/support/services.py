"""Our two host services as real processes, with all their paths below one folder and their logs judged."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.support.processes import Process, children_of, wait_until

REPOSITORY = Path(__file__).resolve().parents[2]
NAME = "apparate"
NOBODY = 65534
RESTART_TIMEOUT_S = 90.0  # the keeper gives a draining loader 75 s
LOG_SHOWN = 200
_LOUD = {"warning", "error", "critical"}


def as_nobody(line: Sequence[str | Path]) -> list[str | Path]:
    """Return *line* run by an ordinary user, who may read everything: root's home, where a checkout may lie, is closed on Debian."""
    reads = "+dac_read_search"
    drop = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    return [*drop, f"--inh-caps={reads}", f"--ambient-caps={reads}", *line]


def command(*arguments: str | Path) -> list[str]:
    """The command line that runs `apparate ARGUMENTS` from this checkout."""
    return [sys.executable, "-m", "apparate", *(str(argument) for argument in arguments)]


def environment(package: Path = REPOSITORY / "snapshotter") -> dict[str, str]:
    """The environment in which `command` finds the package in *package*, and no credentials of the user who runs the tests."""
    return {**os.environ, "PYTHONPATH": str(package), "DOCKER_CONFIG": "/nonexistent"}


def apparate(*arguments: str | Path, check: bool = True, timeout_s: float = 600.0) -> subprocess.CompletedProcess[str]:
    """Run `apparate ARGUMENTS` to its end; with *check* a failure is an AssertionError that shows what it said."""
    done = subprocess.run(
        command(*arguments), env=environment(), capture_output=True, text=True, timeout=timeout_s, check=False
    )
    if check and done.returncode:
        raise AssertionError(
            f"apparate {' '.join(map(str, arguments))} exited {done.returncode}:\n{done.stdout}{done.stderr}"
        )
    return done


class Services:
    """Snapshotter and loader below *base*; data below *root*, which is where containerd expects a snapshotter's."""

    def __init__(
        self,
        base: Path,
        root: Path,
        *,
        plain_http: Sequence[str] = (),
        sections: Mapping[str, Mapping[str, object]] | None = None,
        package: Path = REPOSITORY / "snapshotter",
    ) -> None:
        """With *package*, run the version that is installed there at each start."""
        self.base = base
        self._package = package
        self.root = root
        self.run_dir = base / "run"
        self.socket = self.run_dir / "snapshotter.sock"
        self.config = base / "apparate.toml"
        self._allowed: set[str] = set()
        base.mkdir(parents=True, exist_ok=True)
        self.run_dir.mkdir(exist_ok=True, mode=0o700)
        self.config.write_text(_toml(self._sections(plain_http, sections or {})))
        self.loader = self._process("loader")
        self.snapshotter = self._process("snapshotter")

    def start(self) -> None:
        self.start_loader()
        self.start_snapshotter()

    def start_loader(self) -> None:
        self.loader.start(lambda: answers(self.run_dir / "loader.sock"))

    def start_snapshotter(self) -> None:
        self.snapshotter.start(lambda: answers(self.socket))

    def loader_worker(self) -> int:
        """Process id of the loader that serves now: the child of its keeper."""
        found = wait_until(lambda: children_of(self.loader.pid), "the loader's keeper has a loader")
        return found[-1]

    def kill_loader(self) -> int:
        """SIGKILL the loader in whatever it does; its keeper starts the next one. Returns the id of the dead process."""
        victim = self.loader_worker()
        os.kill(victim, signal.SIGKILL)
        return victim

    def restart_loader(self) -> None:
        """Have the keeper execute itself and the loader anew, as after the installation of another version."""
        before = self.loader_worker()
        self.loader.signal(signal.SIGHUP)
        wait_until(lambda: before not in children_of(self.loader.pid), "the loader has ended", RESTART_TIMEOUT_S)
        self.loader_worker()

    def kill_snapshotter(self) -> None:
        """SIGKILL the snapshotter and start it again, as the service manager does."""
        self.snapshotter.kill()
        self.start_snapshotter()

    def restart_snapshotter(self) -> None:
        """Stop the snapshotter in good order and start it again."""
        self.snapshotter.stop()
        self.start_snapshotter()

    def stop(self) -> None:
        """Stop both in good order."""
        try:
            self.snapshotter.stop()
        finally:
            self.loader.stop()

    def allow(self, *events: str) -> None:
        """Let the log hold these events at level warning or above: the test provokes them."""
        self._allowed.update(events)

    def events(self, event: str | None = None) -> list[dict[str, Any]]:
        """What both services have logged, in order, or only those called *event*."""
        found = [
            record
            for process in (self.snapshotter, self.loader)
            if process.log.exists()
            for record in records(process.log)
            if event is None or record.get("msg") == event
        ]
        return sorted(found, key=lambda record: str(record.get("time", "")))

    def unexpected(self) -> list[str]:
        """Log records of level warning or above that no test allowed, and lines that are no log records at all."""
        found = []
        for process in (self.snapshotter, self.loader):
            for record in records(process.log) if process.log.exists() else ():
                level, event = str(record.get("level", "error")), str(record.get("msg", record))
                if level in _LOUD and event not in self._allowed:
                    found.append(f"{process.name}: {json.dumps(record)}")
        return found

    def __enter__(self) -> Services:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:  # pytest shows it with the failure
            print(*(json.dumps(record) for record in self.events()[-LOG_SHOWN:]), sep="\n")
        self.stop()
        if kind is None:
            unexpected = self.unexpected()
            if unexpected:
                raise AssertionError("unexpected in the log:\n" + "\n".join(unexpected))

    def _process(self, name: str) -> Process:
        line = command(name, "--config", self.config)
        return Process(f"apparate {name}", line, self.base / f"{name}.log", env=environment(self._package))

    def _sections(
        self, plain_http: Sequence[str], given: Mapping[str, Mapping[str, object]]
    ) -> dict[str, dict[str, object]]:
        ours: dict[str, dict[str, object]] = {
            "log": {"level": "debug", "format": "json"},
            "snapshotter": {
                "root": self.root,
                "socket": self.socket,
                "loader_socket": self.run_dir / "loader.sock",
                "telemetry_socket": self.run_dir / "snapshotter.metrics.sock",
            },
            "loader": {
                "run_dir": self.run_dir,
                "socket": self.run_dir / "loader.sock",
                "telemetry_socket": self.run_dir / "loader.metrics.sock",
            },
            "layers": {"root": self.root / "layers"},
            "registry": {
                "plain_http_hosts": list(plain_http),
                "hosts_dirs": [],
                "credentials_dir": str(self.base / "credentials"),
            },
        }
        for section, values in given.items():
            ours.setdefault(section, {}).update(values)
        return ours


def records(log: Path) -> Iterator[dict[str, Any]]:
    """The JSON records of *log*; a line that is none becomes a record of level error."""
    for line in log.read_text(errors="replace").splitlines():
        if not line.strip():
            continue
        record: object = None
        with contextlib.suppress(json.JSONDecodeError):
            record = json.loads(line)
        yield record if isinstance(record, dict) else {"level": "error", "msg": line}


def answers(path: Path) -> bool:
    """Whether something accepts connections on the unix socket *path*."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True


def _toml(sections: Mapping[str, Mapping[str, object]]) -> str:
    """A TOML file of flat sections; a JSON scalar or list of scalars is also TOML."""
    lines = []
    for section, values in sections.items():
        lines.append(f"[{section}]")
        lines += [
            f"{key} = {json.dumps(str(value) if isinstance(value, Path) else value)}" for key, value in values.items()
        ]
    return "\n".join(lines) + "\n"
