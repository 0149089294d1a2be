"""One machine of a cluster, from outside: processes in it, power, files."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.support.cluster.podman import LABEL, MACHINE, podman, remove_machine
from tests.support.processes import run, wait_until

PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
BOOT_TIMEOUT_S: Final = 60.0
RUN_TIMEOUT_S: Final = 300.0
POLL_S: Final = 0.2
_NAMESPACES: Final = ("--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup")


@dataclass(frozen=True, slots=True)
class Machine:
    """A podman container that boots systemd.

    Attributes:
        name: host name, and the node's name in Kubernetes.
        container: podman's name.
        files: what is /etc/k8s inside.
        mounts: path inside -> path here, read-only.
        volumes: paths inside that outlive a reboot and vanish with the machine.
    """

    name: str
    container: str
    ip: str
    network: str
    image: str
    owner: str
    files: Path
    mounts: Mapping[str, Path]
    volumes: Sequence[str] = ()
    hosts: Mapping[str, str] = field(default_factory=dict)

    def create(self) -> None:
        """Make the machine and switch it on; it boots meanwhile."""
        options = [f"--volume={source}:{target}:ro" for target, source in self.mounts.items()]
        options += [f"--volume={path}" for path in self.volumes]
        options += [f"--add-host={name}:{ip}" for name, ip in self.hosts.items()]
        options += [f"--volume={self.files}:/etc/k8s:ro", f"--volume={self.files}/cni:/etc/cni/net.d:ro"]
        (self.files / "cni").mkdir(exist_ok=True)
        podman(
            "run", "--detach", f"--name={self.container}", f"--hostname={self.name}", f"--network={self.network}",
            f"--ip={self.ip}", f"--label={LABEL}={self.owner}", f"--pidfile={self._pid_file}", *MACHINE, *options, self.image,
        )  # fmt: skip

    def remove(self) -> None:
        remove_machine(self.container)

    def power_cut(self) -> None:
        """End every process at once; the disks stay as they are."""
        podman("kill", "--signal", "KILL", self.container)
        podman("wait", self.container)
        self._pid_file.unlink()  # the number may soon be somebody else's

    def power_on(self) -> None:
        podman("start", self.container)

    def wait_booted(self) -> None:
        wait_until(
            lambda: self._answers("systemctl", "is-system-running", "--wait"), f"{self.name} boots", BOOT_TIMEOUT_S
        )

    def run(self, *command: str, given: str = "", timeout_s: float = RUN_TIMEOUT_S) -> str:
        """Run *command* inside, with *given* as its standard input, and return what it printed."""
        return run([*self.enter(), *command], input=given, timeout_s=timeout_s)

    def status_of(self, *command: str, timeout_s: float = RUN_TIMEOUT_S) -> tuple[int, str]:
        """Run *command* inside; return its exit code and all it said."""
        done = subprocess.run(
            [*self.enter(), *command], capture_output=True, text=True, check=False, timeout=timeout_s,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr

    def put(self, source: Path, target: str) -> None:
        """Copy the file *source* to the path *target* inside."""
        with source.open("rb") as content:
            command = [*self.enter(), "sh", "-c", 'cat >"$1"', "sh", target]
            subprocess.run(command, stdin=content, check=True, timeout=RUN_TIMEOUT_S)

    def journal(self, unit: str) -> str:
        return self.run("journalctl", "--no-pager", "--output=cat", f"--unit={unit}")

    @property
    def root(self) -> Path:
        """Its root file system, seen from outside."""
        return Path("/proc") / self._pid / "root"

    def enter(self) -> list[str]:
        """The start of a command line that runs what follows inside."""
        clean = ["env", "--ignore-environment", f"PATH={PATH}", "HOME=/root", "LC_ALL=C.UTF-8"]
        return ["nsenter", "--target", self._pid, *_NAMESPACES, "--", *clean]

    def _answers(self, *command: str) -> bool:
        return self.status_of(*command, timeout_s=BOOT_TIMEOUT_S)[0] == 0

    @property
    def _pid(self) -> str:
        return self._pid_file.read_text().strip()

    @property
    def _pid_file(self) -> Path:
        return self.files.parent / f"{self.container}.pid"
