"""Podman containers that are machines, and what they leave on this machine: a network, and sysctls that kubelet sets for all."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from tests.support.nodes.scenarios import MOLECULE
from tests.support.peers import cache_root
from tests.support.processes import run

LABEL: Final = "apparate.cluster"
"""On containers and networks; its value is the owner: the id of the process that made them, or `developer`."""
DEVELOPER: Final = "developer"
NETWORKS_MAX: Final = 32
COMMAND_TIMEOUT_S: Final = 120.0
SYSCTLS: Final = (
    "vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops", "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)  # fmt: skip
"""What kubelet sets at its start; none of them belongs to a namespace."""
MACHINE: Final = (
    "--systemd=false", "--cgroupns=private", "--privileged", "--pids-limit=-1", "--stop-signal=SIGRTMIN+3",
    "--env=container=podman", "--tmpfs=/run:rw,exec,mode=755", "--tmpfs=/run/lock", "--tmpfs=/tmp:rw,exec,mode=1777",
)  # fmt: skip
"""As tests/molecule/resources/create.yml: systemd makes its own hierarchy below the container's, shared with nobody."""


def podman(*words: str | Path, given: str = "") -> str:
    """Run podman and return what it printed."""
    env = {**os.environ, "CONTAINERS_CONF": str(MOLECULE / "resources" / "containers.conf")}
    return run(["podman", *words], env=env, input=given, timeout_s=COMMAND_TIMEOUT_S)


def make_network(owner: str) -> tuple[str, int]:
    """Make a network with a free number N and return its name and N: 10.91.N.0/24, no names resolved."""
    errors = []
    for number in range(NETWORKS_MAX):
        name = f"apparate-cluster-{number}"
        subnet = ["--subnet", f"10.91.{number}.0/24", "--gateway", f"10.91.{number}.1"]
        try:
            podman("network", "create", "--disable-dns", *subnet, "--label", f"{LABEL}={owner}", name)
        except AssertionError as error:  # another run has it, or somebody else the addresses
            errors.append(str(error))
        else:
            return name, number
    raise AssertionError(f"no free network in 10.91.0.0/16; the last answer was {errors[-1]}")


def remove(owners: Sequence[str]) -> None:
    """Remove containers with their volumes, and networks, of *owners*; restore sysctls when no cluster is left."""
    for owner in owners:
        names = _listed(owner)
        # Side by side, for podman waits the whole time-out for each machine.
        ends = [subprocess.Popen(_remove_command(name), stdout=subprocess.DEVNULL) for name in names]
        failed = [name for name, end in zip(names, ends, strict=True) if end.wait(COMMAND_TIMEOUT_S)]
        if failed:
            raise AssertionError(f"podman cannot remove {', '.join(failed)}")
        networks = podman("network", "ls", "--quiet", "--filter", f"label={LABEL}={owner}").split()
        for network in networks:
            podman("network", "rm", network)
    if not owners_known():
        restore_sysctls()


def remove_machine(name: str) -> None:
    run(_remove_command(name), timeout_s=COMMAND_TIMEOUT_S)


def _remove_command(name: str) -> list[str]:
    return ["podman", "rm", "--force", "--volumes", "--time", "0", "--ignore", name]


def owners_known() -> set[str]:
    """Who has containers or networks."""
    shown = f'{{{{index .Labels "{LABEL}"}}}}'
    containers = podman("ps", "--all", "--filter", f"label={LABEL}", "--format", shown)
    listed = podman("network", "ls", "--quiet", "--filter", f"label={LABEL}").split()
    networks = [podman("network", "inspect", "--format", shown, name).strip() for name in listed]
    return {*containers.split(), *networks}


def abandoned() -> list[str]:
    """Owners whose process has gone, so that nobody else will remove what they have."""
    return [owner for owner in owners_known() if owner.isdigit() and not Path(f"/proc/{owner}").exists()]


def _listed(owner: str) -> list[str]:
    return podman("ps", "--all", "--filter", f"label={LABEL}={owner}", "--format", "{{.Names}}").split()


def save_sysctls() -> None:
    """Note what kubelets will set, unless an earlier run has noted it already and not put it back."""
    with _sysctl_note() as note:
        if not note.exists():
            values = {name: value for name in SYSCTLS if (value := _read_sysctl(name)) is not None}
            note.write_text(json.dumps(values, indent=1))


def restore_sysctls() -> None:
    """Put back what was noted, and forget it."""
    with _sysctl_note() as note:
        if note.exists():
            values: Mapping[str, str] = json.loads(note.read_text())
            for name, value in values.items():
                (Path("/proc/sys") / name).write_text(value)
            note.unlink()


def _read_sysctl(name: str) -> str | None:
    path = Path("/proc/sys") / name
    return path.read_text() if path.exists() else None


@contextlib.contextmanager
def _sysctl_note() -> Iterator[Path]:
    folder = cache_root() / "cluster"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".sysctls.lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield folder / "sysctls.json"
