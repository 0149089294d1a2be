"""Runs of prepare.yml that are to fail: refused, each with its sentence, or killed in the middle."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from tests.support.processes import children_of, wait_until

ROOT = Path(__file__).resolve().parents[3]
PREPARE = "playbooks/prepare.yml"
PLAY_TIMEOUT_S = 300.0
LOOK_S = 0.03
_ALL_IN_ONE = {"apparate_serial": "100%", "apparate_max_fail_percentage": 100}


@dataclass(frozen=True, slots=True)
class Point:
    """A moment of a play: when the command line of one of its processes, on the node or here, matches."""

    name: str
    process: re.Pattern[str]


POINTS = (
    Point("the package is being unpacked", re.compile(r"dpkg .*--unpack .*apparate")),
    Point("the package is being made the current one", re.compile(r"share/libexec/activate")),
    Point("containerd is being restarted with its new configuration", re.compile(r"systemctl restart containerd")),
)


def refusals(cases: Mapping[str, Mapping[str, object]], node: str) -> dict[str, str]:
    """Run prepare.yml with the bad input of each of *cases*, all at once, and return what was said in each.

    A case is a host of its own in the inventory, which leads to *node*.
    """
    hosts = {name: {"ansible_host": node, **variables} for name, variables in cases.items()}
    inventory = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "refusals.yml"
    inventory.write_text(yaml.safe_dump({"apparate_nodes": {"children": {"refusals": {"hosts": hosts}}}}))
    command = _play(_ALL_IN_ONE, "--limit", "refusals", "--inventory", str(inventory))
    env = {**os.environ, "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json", "ANSIBLE_FORKS": str(len(hosts))}
    done = subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=PLAY_TIMEOUT_S, check=False
    )
    printed, _ = json.JSONDecoder().raw_decode(done.stdout[done.stdout.index("{") :])
    said = dict(_said(printed))
    return {name: said.get(name, "nothing: it was not refused") for name in hosts}


def _said(run: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the last failure of each host."""
    for play in run["plays"]:
        for task in play["tasks"]:
            for host, result in task["hosts"].items():
                if result.get("failed") or result.get("unreachable"):
                    failed = [item for item in result.get("results", []) if item.get("failed")] or [result]
                    yield host, " ".join(str(failed[0].get("msg", failed[0])).split())


def kill_at(point: Point, log: Path) -> None:
    """Run prepare.yml and kill it at *point*, with every process that it has on this machine and on the node.

    Raises:
        AssertionError: it ended before that.
    """
    with log.open("w") as out:
        play = subprocess.Popen(
            _play({}), cwd=ROOT, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            wait_until(
                lambda: play.poll() is not None or _is_at(point, play.pid), point.name, PLAY_TIMEOUT_S, poll_s=LOOK_S
            )
            if play.poll() is not None:
                raise AssertionError(f"the play ended before this: {point.name}\n{log.read_text()}")
        finally:
            _kill_family(play.pid)
            play.wait()


def _play(variables: Mapping[str, object], *options: str) -> list[str]:
    inventory = os.environ["MOLECULE_INVENTORY_FILE"]
    given = ["--extra-vars", json.dumps(variables)] if variables else []
    return ["ansible-playbook", "--inventory", inventory, *options, *given, PREPARE]


def _is_at(point: Point, top: int) -> bool:
    return any(point.process.search(_command_line(pid)) for pid in _descendants(top))


def _command_line(pid: int) -> str:
    with contextlib.suppress(OSError):  # it has ended
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def _descendants(top: int) -> Iterator[int]:
    for pid in children_of(top):
        yield pid
        yield from _descendants(pid)


def _kill_family(top: int) -> None:
    """Stop everybody first, so that nobody who loses its parent escapes, then kill."""
    stopped: set[int] = set()
    while fresh := {top, *_descendants(top)} - stopped:
        for pid in fresh:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        stopped |= fresh
        time.sleep(LOOK_S)
    for pid in stopped:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
