"""A node in lines, to see that it was given back as it was."""

from __future__ import annotations

import difflib
from typing import Final

from tests.support.cluster.machine import Machine
from tests.support.nodes.scenarios import MOLECULE

_SCRIPT: Final = MOLECULE / "resources" / "fingerprint.sh"
_PODS: Final = ("mount /var/lib/kubelet/pods/", "mount /run/netns/", "mount /var/run/netns/")
"""Mounts of whatever pods run at the moment."""


def fingerprint(machine: Machine) -> list[str]:
    """Files, units, packages and mounts of *machine*, one a line."""
    lines = machine.run("sh", "-s", given=_SCRIPT.read_text()).splitlines()
    return [line.strip() for line in lines if not line.startswith(_PODS)]


def assert_same(before: list[str], after: list[str], what: str) -> None:
    """Fail with the difference, if there is one."""
    changes = list(difflib.unified_diff(before, after, "before", "after", lineterm="", n=0))
    assert not changes, f"{what} is not as it was:\n" + "\n".join(changes)
