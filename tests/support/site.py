"""A node before it is prepared: containerd as the site has it, with images and pods, and our services beside it, unknown to it."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Client, Listener
from pathlib import Path
from typing import Any

from tests.support.busybox import pause_image, write_archive
from tests.support.containerd import PAUSE, Containerd, Release, Settings, release
from tests.support.leftovers import mounts_below
from tests.support.processes import run
from tests.support.services import NAME, Services, command, environment

CONFIGURE_TIMEOUT_S = 300.0


@dataclass(slots=True)
class Site:
    """The machine of a customer.

    Attributes:
        restarts: how often containerd was restarted by command.
        faults: the next restart calls the last of them first and fails with what it returns, if anything; no containerd then.
    """

    base: Path
    containerd: Containerd
    services: Services
    restarts: int = 0
    faults: list[Callable[[], str]] = field(default_factory=list)

    @property
    def config(self) -> Path:
        return self.containerd.base / "config.toml"

    @property
    def state_dir(self) -> Path:
        return self.base / "state"

    @property
    def _door(self) -> Path:
        return self.base / "restart.sock"

    def arguments(self, verb: str, *more: str) -> list[str]:
        """The command line of `apparate node VERB` for this machine."""
        places = [
            "--containerd",
            str(self.containerd.release.folder / "containerd"),
            "--containerd-config",
            str(self.config),
        ]
        if verb != "check":
            places += ["--state-dir", str(self.state_dir)]
        if verb in {"configure", "restore"}:
            places += ["--restart-command", f"{sys.executable} -m tests.support.site {self._door}"]
        return command("node", verb, "--config", self.services.config, *places, *more)

    def apparate(self, verb: str, *more: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Run `apparate node VERB`; its exit code must be *code*."""
        done = subprocess.run(
            self.arguments(verb, *more),
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=CONFIGURE_TIMEOUT_S,
            check=False,
        )
        if done.returncode != code:
            raise AssertionError(f"apparate node {verb} exited {done.returncode}:\n{done.stdout}{done.stderr}")
        return done

    def start(self, verb: str, *more: str) -> subprocess.Popen[str]:
        """Start `apparate node VERB`."""
        return subprocess.Popen(
            self.arguments(verb, *more),
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def lose_layers(self, reference: str) -> None:
        """Delete the blobs of an image's layers from containerd, as `discard_unpacked_layers` does."""
        manifest = json.loads(self.containerd.ctr("content", "get", self._target(reference)))
        for layer in manifest["layers"]:
            self.containerd.ctr("content", "rm", layer["digest"])

    def _target(self, reference: str) -> str:
        for line in self.containerd.ctr("images", "ls").splitlines():
            name, _, digest, *_ = line.split()
            if name == reference:
                return digest
        raise AssertionError(f"no image {reference}")

    def environment(self) -> dict[str, str]:
        env = environment()
        root = Path(__file__).resolve().parents[2]
        return {**env, "PYTHONPATH": f"{env['PYTHONPATH']}:{root}"}

    def json(self, verb: str, *more: str) -> Any:
        """What `apparate node VERB --json` says."""
        return json.loads(self.apparate(verb, "--json", *more).stdout)

    @contextlib.contextmanager
    def restartable(self) -> Iterator[None]:
        """Answer the restart command of this machine meanwhile, as a service manager does."""
        with Listener(str(self._door), "AF_UNIX") as door:
            thread = threading.Thread(target=self._serve, args=(door,), daemon=True)
            thread.start()
            try:
                yield
            finally:
                with Client(str(self._door), "AF_UNIX") as last:
                    last.send("stop")
                thread.join()

    def _serve(self, door: Listener) -> None:
        while True:
            try:
                with door.accept() as caller:
                    if caller.recv() == "stop":
                        return
                    caller.send(self._restart())
            except (EOFError, ConnectionError):  # the caller was killed: the restart goes on, as systemd's does
                continue

    def _restart(self) -> str:
        self.restarts += 1
        error = self.faults.pop()() if self.faults else ""
        if error:
            self.containerd.process.stop()
            return error
        try:
            self.containerd.restart(kill=False)
        except AssertionError as error:
            return str(error)
        return ""


@contextlib.contextmanager
def site(base: Path, chosen: Release | str, *, plain_http: Sequence[str] = ()) -> Iterator[Site]:
    """A running machine below *base* with a sandbox image, not yet prepared."""
    found = release(chosen) if isinstance(chosen, str) else chosen
    place = base / "node"
    root = place / "root" / f"io.containerd.snapshotter.v1.{NAME}"
    with contextlib.ExitStack() as stack:
        services = Services(base / "apparate", root, plain_http=plain_http)
        stack.callback(_unmount, services)
        stack.enter_context(services)
        daemon = Containerd(found, place, Settings(plain_http=plain_http))
        made = Site(base, daemon, services)
        stack.enter_context(daemon)
        daemon.import_image(write_archive(base / "pause.tar", pause_image(), PAUSE))
        stack.enter_context(made.restartable())
        yield made


def _unmount(services: Services) -> None:
    for point in reversed(mounts_below(services.run_dir)):
        run(["umount", point])


def main(door: str) -> int:
    """Ask the machine behind *door* to restart its containerd; 1 with the reason if it does not start."""
    with Client(door, "AF_UNIX") as service_manager:
        service_manager.send("restart")
        error = service_manager.recv()
    print(error, file=sys.stderr)
    return 1 if error else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
