"""Looking for a password where it must not be: process lists while something happens, and everything written on a node."""

from __future__ import annotations

import base64
import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.support.cluster.machine import Machine

LOOK_S: Final = 0.2
SEARCHED: Final = ("/etc", "/root", "/run", "/tmp", "/var/lib", "/var/lib/kubelet", "/var/log", "/var/tmp")
NOT_SEARCHED: Final = ("/var/lib/containerd", "/var/lib/node", "/etc/k8s", "/run/containerd")
"""Content of images; the same disk as a file; the site's own files. Records of containers are searched through `ctr`."""


def forms(user: str, password: str, docker_config: str) -> tuple[str, ...]:
    """The ways in which a password is written down."""
    pair = base64.b64encode(f"{user}:{password}".encode()).decode()
    return (password, pair, base64.b64encode(docker_config.encode()).decode(), json.dumps(pair))


@contextlib.contextmanager
def nobody_says(words: tuple[str, ...]) -> Iterator[None]:
    """While the body runs, no process of this machine and its nodes has one of *words* in its command line or environment."""
    stop, found = threading.Event(), set[str]()

    def look() -> None:
        needles = [word.encode() for word in words]
        while not stop.wait(LOOK_S):
            for folder in Path("/proc").glob("[0-9]*"):
                for name in ("cmdline", "environ"):
                    with contextlib.suppress(OSError):  # it has ended
                        content = (folder / name).read_bytes()
                        if any(needle in content for needle in needles):
                            found.add(f"{name} of {(folder / 'comm').read_text().strip()}")

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    assert not found, f"the password was in {found}"


def places_with(machine: Machine, words: tuple[str, ...], spared: tuple[str, ...] = ()) -> list[str]:
    """Files on *machine* that hold one of *words*, *spared* ones left out; the journal is searched too."""
    skipped = [word for path in (*NOT_SEARCHED, *spared) for word in ("-path", path, "-prune", "-o")]
    find = ["find", *SEARCHED, "-xdev", *skipped, "-type", "f", "-size", "-20M", "-print0"]
    # No argument shows the words either, and the folder of the file with them is not searched.
    script = f'cat >"$0"; {" ".join(find)} | xargs -0 -r grep -lsF --binary-files=text -f "$0" || true; rm "$0"'
    found = machine.run("sh", "-c", script, "/dev/shm/words", given="\n".join(words)).split()
    journal = machine.run("journalctl", "--no-pager", "--output=cat")
    return found + [f"journal: {line}" for line in journal.splitlines() if any(word in line for word in words)]
