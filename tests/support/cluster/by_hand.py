"""A node prepared as an administrator does it without Ansible and without the chart: deb, services, `apparate node configure`."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tests.support.cluster.machine import Machine
from tests.support.cluster.proofs import APPARATE

CREDENTIALS: Final = "/etc/apparate/credentials/site.json"


def prepare(machine: Machine, packages: Path, docker_config: str) -> None:
    """Install the deb of *packages* on *machine*, give it credentials, and configure its containerd."""
    (package,) = packages.glob("apparate_*_amd64.deb")
    machine.put(package, "/root/apparate.deb")
    machine.run("dpkg", "--install", "/root/apparate.deb")
    machine.run("sh", "-c", f"umask 077; cat >{CREDENTIALS}", given=docker_config)
    machine.run("systemctl", "start", "apparate-loader.service", "apparate-snapshotter.service")
    machine.run(APPARATE, "node", "configure")
