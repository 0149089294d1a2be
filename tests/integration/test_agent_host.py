"""Programs of the host, run as from a pod: the host is a process 1 of its own, the pod has other namespaces than it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from tests.support.processes import wait_until

pytestmark = pytest.mark.root

_ROOT = Path(__file__).parents[2]
_HEAD = """
import json, sys
from pathlib import Path
from apparate.errors import ApparateError
from apparate.node.agent.host import Host
host = Host(Path("/"))
"""


def _python(code: str) -> list[str]:
    return [sys.executable, "-c", _HEAD + textwrap.dedent(code)]


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(_ROOT / "snapshotter"), "APPARATE_TEST_SECRET": "hunter2"}


def _host() -> list[str]:
    """Return the command that runs another one on a host of its own."""
    return ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", '"$@"; exit $?', "init"]


def _in_a_pod(code: str) -> Any:
    """Run *code* with a mount, network, UTS and IPC namespace of its own and the host's processes; it prints JSON."""
    pod = ["unshare", "--mount", "--net", "--uts", "--ipc", "--propagation", "private"]
    command = [*_host(), *pod, *_python(code)]
    done = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_program_runs_in_the_namespaces_of_process_1() -> None:
    pod, host, there = _in_a_pod(
        """
        import os
        names = ["mnt", "net", "uts", "ipc"]
        pod, one = ([os.readlink(f"/proc/{who}/ns/{name}") for name in names] for who in ("self", 1))
        done = host.run(["sh", "-c", "for n in mnt net uts ipc; do readlink /proc/self/ns/$n; done"], 20)
        print(json.dumps([pod, one, done.out.split()]))
        """
    )
    assert there == host
    assert not set(pod) & set(host)


def test_program_sees_a_file_of_the_host_and_not_one_of_the_pod(tmp_path: Path) -> None:
    (tmp_path / "on-the-host").touch()
    listed = _in_a_pod(
        f"""
        import subprocess
        subprocess.run(["mount", "-t", "tmpfs", "none", "{tmp_path}"], check=True)
        Path("{tmp_path}/in-the-pod").touch()
        print(json.dumps(host.run(["ls", "{tmp_path}"], 20).out.split()))
        """
    )
    assert listed == ["on-the-host"]


def test_nothing_of_the_pods_environment_reaches_the_host() -> None:
    environment = _in_a_pod('print(json.dumps(host.run(["env"], 20).out.splitlines()))')
    assert {line.partition("=")[0] for line in environment} <= {"PATH", "LC_ALL", "HOME"}


def test_exit_code_and_both_outputs_come_back() -> None:
    found = _in_a_pod(
        """
        done = host.run(["sh", "-c", "echo out; echo 'apparate: a sentence' >&2; exit 6"], 20)
        print(json.dumps([done.code, done.out, done.said]))
        """
    )
    assert found == [6, "out\n", "a sentence"]


def test_program_that_the_host_lacks_is_named() -> None:
    found = _in_a_pod(
        """
        done = host.run(["no-such-program"], 20)
        print(json.dumps([done.code, done.said]))
        """
    )
    assert found == [127, "no-such-program: not found on the host"]


def test_program_that_does_not_end_is_ended(tmp_path: Path) -> None:
    said = _in_a_pod(
        f"""
        try:
            host.run(["sh", "-c", "echo $$ >{tmp_path}/pid; exec sleep 1000"], 1.0)
        except ApparateError as error:
            number = Path("{tmp_path}/pid").read_text().strip()
            print(json.dumps([str(error), Path(f"/proc/{{number}}").exists()]))
        """
    )
    assert "did not end within 1 s on the host" in said[0]
    assert said[1] is False


def test_whoever_ends_us_lets_the_program_put_things_back_first(tmp_path: Path) -> None:
    script = tmp_path / "configure"
    script.write_text(f"#!/bin/sh\ntrap 'sleep 0.3; touch {tmp_path}/put-back; exit 1' TERM\ntouch {tmp_path}/begun\n"
                      "while :; do sleep 0.05; done\n")  # fmt: skip
    script.chmod(0o755)
    code = f"""
    import signal
    def interrupt(number, frame):
        raise KeyboardInterrupt
    signal.signal(signal.SIGTERM, interrupt)
    try:
        host.run(["{script}"], 60)
    except KeyboardInterrupt:
        print(json.dumps(Path("{tmp_path}/put-back").exists()))
    """
    command = [*_host(), *_python(code)]
    with subprocess.Popen(command, env=_environment(), stdout=subprocess.PIPE, text=True) as process:
        wait_until(lambda: (tmp_path / "begun").exists(), "the program to begin")
        os.kill(_python_below(process.pid), signal.SIGTERM)
        out, _ = process.communicate(timeout=30)
    assert json.loads(out) is True


def _python_below(parent: int) -> int:
    """Return the process of ours that unshare's init below *parent* has started."""
    children = [parent]
    for _ in range(2):
        children = [
            int(child) for one in children for child in Path(f"/proc/{one}/task/{one}/children").read_text().split()
        ]
    (child,) = children
    return child
