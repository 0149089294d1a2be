"""The package of the image on a host: brought, started, configured, taken away; each step may be repeated.

What is brought is what a deb brings, by the same script: `dist` is replaced by one rename, `share/libexec/activate` makes it the
current version, restarts services that run, and goes back by itself if the new version does not start (docs/packaging.md).
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from apparate.errors import ApparateError, FailedPrecondition, Unavailable
from apparate.node import files
from apparate.node.agent.host import Host
from apparate.telemetry.logging import get_logger

_log = get_logger("node.agent.payload")

BROUGHT: Final = "package brought to the host"
REMOVED: Final = "package removed from the host"

HOME: Final = Path("/opt/apparate")
PROGRAM: Final = str(HOME / "current/bin/apparate")
ACTIVATE: Final = str(HOME / "dist/share/libexec/activate")
DEACTIVATE: Final = str(HOME / "current/share/libexec/deactivate")
UNIT_DIR: Final = Path("/etc/systemd/system")
"""Not /usr/lib: it is read-only on immutable hosts."""
PACKAGED_UNIT_DIRS: Final = (Path("/lib/systemd/system"), Path("/usr/lib/systemd/system"))
TMPFILES_DIR: Final = Path("/etc/tmpfiles.d")
SERVICES: Final = ("apparate-loader.service", "apparate-snapshotter.service")

SPACE_RESERVE: Final = 64 * 1024 * 1024
QUICK_S: Final = 60.0
"""For programs that only look."""
START_S: Final = 240.0
"""Both services have 90 s to start, and to stop before that."""
CONFIGURE_S: Final = 3600.0
"""Images that would be lost are copied: gigabytes, on a slow disk."""


class Payload:
    """The package in *source*, an image's directory, for one host."""

    def __init__(self, host: Host, source: Path) -> None:
        self._host = host
        self._source = source

    def is_present(self) -> bool:
        """Whether any package of apparate is on the host."""
        home = self._host.path(HOME)
        return home.is_dir() and any(home.iterdir())

    def was_activated(self) -> bool:
        """Whether a version ever became the host's current one: before that nothing of it has run."""
        return self._host.link(HOME / "current").is_symlink()

    def is_packaged(self) -> bool:
        """Whether the host's package manager has one: its units lie where the chart puts none."""
        return any(self._host.path(folder / SERVICES[0]).exists() for folder in PACKAGED_UNIT_DIRS)

    def version(self) -> str:
        """Return the version that would be brought. Raises FailedPrecondition: this image holds no package."""
        version, build = (_line(self._source / name) for name in ("VERSION", "BUILD-ID"))
        if not version or not build:
            raise FailedPrecondition(f"{self._source} is no package of apparate: run this in the chart's image")
        return version

    def is_current(self) -> bool:
        """Whether exactly this package is the host's current one, with its units."""
        current = self._host.path(HOME / self.version())
        link = self._host.link(HOME / "current")
        same = _line(current / "BUILD-ID") == _line(self._source / "BUILD-ID")
        units = self._units().items()
        is_linked = link.is_symlink() and str(link.readlink()) == self.version()
        return same and is_linked and all(files.read(self._host.path(path)) == body for path, body in units)

    def bring(self) -> None:
        """Have this package as the host's current one; services that run go over to it without an error for a container.

        Raises:
            ApparateError: it does not run there; the former one, if there was one, is current and runs.
        """
        with _on_the_host():
            self._copy()
            before = {path: files.read(self._host.path(path)) for path in self._units()}
            self._write_units(self._units())
            self._host.path("/etc/apparate/credentials").mkdir(mode=0o700, parents=True, exist_ok=True)
        done = self._host.run([ACTIVATE, "--restart"], START_S)
        if done.code:
            with _on_the_host():
                self._write_units(before)
            self._systemctl("daemon-reload")
        done.require_success(f"version {self.version()} does not run on this node")
        _log.info(BROUGHT, version=self.version())

    def start(self) -> None:
        """Have both services enabled and running.

        Raises:
            ApparateError: what on-demand loading needs is missing, or they do not start; then they are neither enabled nor running.
        """
        if self._are_running():
            return
        self._require_needs()
        done = self._systemctl("enable", "--now", *SERVICES)
        if done:
            self._systemctl("disable", "--now", *SERVICES)
            raise Unavailable(
                f"the services do not start: {done} (journalctl -u apparate-loader -u apparate-snapshotter)"
            )

    def configure(self) -> bool:
        """Have containerd use the snapshotter; return whether anything was changed.

        Raises:
            ApparateError: as `apparate node configure` ended, with its sentence; containerd is as it was.
        """
        done = self._host.run([PROGRAM, "node", "configure", "--json"], CONFIGURE_S)
        done.require_success("containerd was not configured")
        return bool(_parsed(done.out, "apparate node configure").get("changed"))

    def status(self) -> Mapping[str, Any]:
        """Return what `apparate node status` says. Raises ApparateError: it says nothing."""
        done = self._host.run([PROGRAM, "node", "status", "--json"], QUICK_S)
        return _parsed(done.require_success("the node does not tell its state").out, "apparate node status")

    def stop(self) -> None:
        """Stop and disable the services and take their mounts away. Raises ApparateError: containers would see it."""
        self._host.run([DEACTIVATE], START_S).require_success("the services are not stopped")

    def take_away(self) -> None:
        """Delete what `bring` brought; what an operator put beside it stays."""
        with _on_the_host():
            self._write_units(dict.fromkeys(self._units()))
            shutil.rmtree(self._host.path(HOME), ignore_errors=False)
        self._systemctl("daemon-reload")
        self._host.run(["systemctl", "reset-failed", *SERVICES], QUICK_S)  # fails where they had not failed
        _log.info(REMOVED)

    def restore(self, *options: str) -> None:
        """Give containerd back, with *options* of `apparate node restore`. Raises ApparateError: as that ended."""
        done = self._host.run([PROGRAM, "node", "restore", "--json", *options], CONFIGURE_S)
        done.require_success("containerd was not given back")

    def running_lazy(self) -> list[str]:
        """Return the names of running containers on layers loaded on demand. Raises ApparateError: nobody can tell."""
        done = self._host.run([PROGRAM, "node", "status", "--running-lazy"], QUICK_S)
        if done.code not in {0, FailedPrecondition.exit_code}:
            done.require_success("nobody can tell which containers run on lazy layers")
        names = [line for line in done.out.splitlines() if line.strip()]
        if done.code and not names:
            done.require_success("nobody can tell which containers run on lazy layers")
        return names

    def _copy(self) -> None:
        home = self._host.path(HOME)
        if _line(home / "dist/BUILD-ID") == _line(self._source / "BUILD-ID"):
            return
        home.mkdir(mode=0o755, parents=True, exist_ok=True)
        fresh, former = home / ".dist-new", home / ".dist-old"
        for leftover in (fresh, former):
            shutil.rmtree(leftover, ignore_errors=True)
        _require_room(self._source, home)
        shutil.copytree(self._source.resolve(), fresh, symlinks=True)
        _sync_file_system(fresh)  # its name must not be on the disk before its bytes
        if (home / "dist").exists():
            (home / "dist").rename(former)
        fresh.rename(home / "dist")
        shutil.rmtree(former, ignore_errors=True)

    def _units(self) -> dict[Path, bytes]:
        share = self._source / "share"
        units = {UNIT_DIR / path.name: path for path in (share / "systemd").iterdir() if path.suffix != ".preset"}
        units |= {TMPFILES_DIR / path.name: path for path in (share / "tmpfiles").iterdir()}
        return {target: path.read_bytes() for target, path in sorted(units.items())}

    def _write_units(self, wanted: Mapping[Path, bytes | None]) -> None:
        for path, body in wanted.items():
            target = self._host.link(path)
            if target.is_symlink():
                raise FailedPrecondition(
                    f"{path} of the node is a symbolic link: systemctl unmask {path.name}, or remove it"
                )
            if files.read(target) != body:
                files.replace(target, body)

    def _require_needs(self) -> None:
        done = self._host.run([PROGRAM, "node", "check", "--json"], QUICK_S)
        if done.code != FailedPrecondition.exit_code:
            done.require_success("the node was not checked")
            return
        failed = [finding for finding in json.loads(done.out) if finding.get("level") == "failed"]
        text = "; ".join(f"{finding['name']}: {finding['detail']}: {finding['fix']}" for finding in failed)
        raise FailedPrecondition(f"the node lacks what on-demand loading needs: {text}")

    def _are_running(self) -> bool:
        # One by one: of several, systemctl says whether there is one that is.
        asked = [(question, service) for question in ("is-enabled", "is-active") for service in SERVICES]
        return all(self._host.run(["systemctl", what, "--quiet", unit], QUICK_S).code == 0 for what, unit in asked)

    def _systemctl(self, *arguments: str) -> str:
        """Return what went wrong; empty: nothing."""
        done = self._host.run(["systemctl", *arguments], START_S)
        return done.said if done.code else ""


def _line(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (FileNotFoundError, NotADirectoryError):
        return ""


def _sync_file_system(path: Path) -> None:
    """Have everything below *path* on the disk; of its file system alone: another one may hang, as NFS does."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(handle):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(path))
    finally:
        os.close(handle)


def _require_room(source: Path, target: Path) -> None:
    needed = sum(path.lstat().st_size for path in source.resolve().rglob("*")) + SPACE_RESERVE
    free = shutil.disk_usage(target).free
    if needed > free:
        raise FailedPrecondition(
            f"{HOME} needs {needed >> 20} MiB and its file system has {free >> 20} MiB free: make room on the node"
        )


def _parsed(text: str, what: str) -> Mapping[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ApparateError(f"{what} did not print JSON")
    return value


@contextmanager
def _on_the_host() -> Iterator[None]:
    """Name the file of the host that cannot be changed, as one below a read-only /etc."""
    try:
        yield
    except OSError as error:
        place = error.filename or "a file"
        raise FailedPrecondition(f"{place} of the node cannot be changed: {error.strerror}") from error
