"""Connection to a test node through its namespaces, with pipelining: a task costs one process, not four of podman's.

The process id of a node's init stands in `$NODE_WORK/pids/NAME`, where podman writes it at each start.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.connection import ConnectionBase

DOCUMENTATION = """
name: node
short_description: Run tasks in a test node
description: Enters the namespaces of a podman container whose process id podman has written to a file.
options:
  remote_addr:
    description: Name of the node.
    default: inventory_hostname
    vars:
      - {name: inventory_hostname}
      - {name: ansible_host}
"""
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Connection(ConnectionBase):
    transport = "node"
    has_pipelining = True

    def _connect(self) -> Connection:
        self._connected = True
        return self

    def close(self) -> None:
        self._connected = False

    def exec_command(self, cmd: str, in_data: bytes | None = None, sudoable: bool = True) -> tuple[int, bytes, bytes]:
        """Run the shell command *cmd* on the node; returns exit code, standard output and standard error."""
        super().exec_command(cmd, in_data=in_data, sudoable=sudoable)
        done = subprocess.run(
            [*self._enter(), "/bin/sh", "-c", cmd], input=in_data or b"", capture_output=True, check=False
        )
        return done.returncode, done.stdout, done.stderr

    def put_file(self, in_path: str, out_path: str) -> None:
        super().put_file(in_path, out_path)
        with Path(in_path).open("rb") as source:
            self._copy(out_path, ["/bin/sh", "-c", 'cat >"$1"', "sh", out_path], stdin=source)

    def fetch_file(self, in_path: str, out_path: str) -> None:
        super().fetch_file(in_path, out_path)
        with Path(out_path).open("wb") as target:
            self._copy(in_path, ["cat", in_path], stdout=target)

    def _copy(self, path: str, command: list[str], **streams: object) -> None:
        done = subprocess.run([*self._enter(), *command], stderr=subprocess.PIPE, check=False, **streams)
        if done.returncode:
            raise AnsibleConnectionFailure(f"{path}: {done.stderr.decode(errors='replace')}")

    def _enter(self) -> list[str]:
        pid_file = Path(os.environ["NODE_WORK"]) / "pids" / self.get_option("remote_addr")
        try:
            pid = pid_file.read_text().strip()
        except OSError as error:
            raise AnsibleConnectionFailure(f"{pid_file} cannot be read: the node was never started") from error
        clean = ["env", "--ignore-environment", f"PATH={PATH}", "HOME=/root", "LC_ALL=C.UTF-8"]
        return ["nsenter", "--target", pid, "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--", *clean]
