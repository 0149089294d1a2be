"""The proofs that molecule's playbooks call by name; each fails with an AssertionError that says what was seen.

What one proof leaves for a later one (a container that must go on) is noted in the run's folder, by node.
"""

from __future__ import annotations

import base64
import json
import os
import urllib.request
from collections.abc import Callable
from pathlib import Path

import yaml
from tests.support.cri import RUNNING, Container, CriClient
from tests.support.nodes.api import server_of
from tests.support.nodes.plays import POINTS, kill_at, refusals
from tests.support.nodes.prove import NodeUnderTest, start_lazy, start_ordinary
from tests.support.processes import run, wait_until

REFUSALS = Path(__file__).resolve().parents[2] / "molecule" / "failure" / "refusals.yml"
CONFIG = "/etc/containerd/config.toml"
LABEL = "cloud.tencent.com/apparate"
READ_ROUNDS = 3
BOOT_TIMEOUT_S = 60.0
READ_TIMEOUT_S = 120.0
_READER = "n=0; while :; do sha256sum /data/* >/tmp/now || echo FAILED; n=$((n+1)); echo round $n; sleep 0.2; done"


def prepared(name: str, work: Path) -> None:
    """A lazy pod and an ordinary pod start on a prepared node, and go."""
    node = NodeUnderTest(name, work)
    with node.cri() as cri:
        started = [start_lazy(node, cri), start_ordinary(node, cri)]
        for pod, _ in started:
            cri.remove_pod(pod)
        cri.remove_image(node.fixtures.lazy)


def occupied(name: str, work: Path) -> None:
    """An ordinary container runs on a node that nobody has prepared, and is to go on."""
    node = NodeUnderTest(name, work)
    with node.cri() as cri:
        _, container = start_ordinary(node, cri)
        _note(node, container)


def survived(name: str, work: Path) -> None:
    """The container that was noted still runs and can be looked into, and its image starts without being pulled."""
    node = NodeUnderTest(name, work)
    with node.cri() as cri:
        container = _noted(node, cri)
        if container.status().state != RUNNING:
            raise AssertionError(f"{name}: the container from before has ended: {container.status()}")
        answer = container.exec(["cat", "/etc/tool"]).stdout
        if answer != "ordinary\n":
            raise AssertionError(f"{name}: the container from before answers {answer!r}")
        pod = cri.run_pod("again")
        cri.start(pod, node.fixtures.tool, ["cat", "/etc/tool"]).wait_output("ordinary")
        cri.remove_pod(pod)


def still_running(name: str, work: Path) -> None:
    """The container that was noted runs, and its image starts without being pulled.

    It is not looked into: on cgroup v1 systemd 252 removes the blkio group of containers outside its units when a slice goes,
    and runc then enters none of them.
    """
    node = NodeUnderTest(name, work)
    with node.cri() as cri:
        container = _noted(node, cri)
        if container.status().state != RUNNING:
            raise AssertionError(f"{name}: the container from before has ended: {container.status()}")
        pod = cri.run_pod("again")
        cri.start(pod, node.fixtures.tool, ["cat", "/etc/tool"]).wait_output("ordinary")
        cri.remove_pod(pod)


def refused(name: str, work: Path) -> None:
    """Each bad input is refused with its sentence. Whether anything was changed the caller finds out."""
    node = NodeUnderTest(name, work)
    cases = yaml.safe_load(REFUSALS.read_text())
    said = refusals({case["name"]: case["variables"] for case in cases if "config" not in case}, name)
    own = node.run("cat", CONFIG)
    for case in cases:
        if "config" in case:
            node.run("tee", CONFIG, given=case["config"])
            said |= refusals({case["name"]: case["variables"]}, name)
    node.run("tee", CONFIG, given=own)
    wrong = {case["name"]: said[case["name"]] for case in cases if case["says"] not in said[case["name"]]}
    if wrong:
        raise AssertionError(f"{name}: not refused as it should be: {json.dumps(wrong, indent=1)}")
    print(f"{name}: refused {len(cases)} times, each with its sentence")


def killed(name: str, work: Path) -> None:
    """A play that is killed in the middle leaves containerd and its containers at work."""
    node = NodeUnderTest(name, work)
    for number, point in enumerate(POINTS):
        kill_at(point, work / f"{name}-killed-{number}.log")
        with node.cri() as cri:
            if _noted(node, cri).status().state != RUNNING:
                raise AssertionError(
                    f"{name}: the container from before has ended with a play that was killed: {point.name}"
                )
        print(f"{name}: killed when {point.name}; containerd answers")


def labelled(name: str, work: Path) -> None:
    """Kubernetes has the label."""
    _expect_labels(name, work, {LABEL: "true"})


def unlabelled(name: str, work: Path) -> None:
    """Kubernetes has the label no more."""
    _expect_labels(name, work, {})


def power_cut(name: str, work: Path) -> None:
    """After a power cut without a registry, containers of both kinds start from what is on the node."""
    node = NodeUnderTest(name, work)
    with node.cri() as cri:
        pod, _ = start_lazy(node, cri)
        node.run("/opt/apparate/current/bin/apparate", "complete", node.fixtures.lazy)
        cri.remove_pod(pod)
    node.run("systemctl", "disable", "test-registry.service")
    run(["podman", "kill", "--signal", "KILL", name])
    run(["podman", "start", name])
    wait_until(lambda: _is_up(node), f"{name} has booted", BOOT_TIMEOUT_S)
    with node.cri() as cri:
        pod = cri.run_pod("after")
        lazy = cri.start(pod, node.fixtures.lazy, ["sha256sum", node.fixtures.last_file])
        lazy.wait_output(node.fixtures.last_file_sha256)
        cri.start(pod, node.fixtures.tool, ["cat", "/etc/tool"]).wait_output("ordinary")
        cri.remove_pod(pod)
    node.run("systemctl", "enable", "--now", "test-registry.service")


def reading(name: str, work: Path) -> None:
    """A container reads its whole lazy image again and again, and is to go on."""
    node = NodeUnderTest(name, work)
    with node.cri() as cri:
        cri.pull(node.fixtures.lazy)
        container = cri.start(cri.run_pod("reader"), node.fixtures.lazy, ["sh", "-c", _READER])
        container.wait_output("round 1", READ_TIMEOUT_S)
        _note(node, container)


def read_on(name: str, work: Path) -> None:
    """The reader goes on without an error, and the services run from the current version."""
    node = NodeUnderTest(name, work)
    with node.cri() as cri:
        container = _noted(node, cri)
        before = container.output().count("round ")
        wait_until(
            lambda: container.output().count("round ") >= before + READ_ROUNDS, "the reader goes on", READ_TIMEOUT_S
        )
        if "FAILED" in container.output() or "rror" in container.output():
            raise AssertionError(f"{name}: the reader has seen an error:\n{container.output()}")
        if container.status().state != RUNNING:
            raise AssertionError(f"{name}: the reader has ended: {container.status()}")
    current = node.run("readlink", "-f", "/opt/apparate/current").strip()
    for unit in ("apparate-loader.service", "apparate-snapshotter.service"):
        process = node.run("systemctl", "show", "--property=MainPID", "--value", unit).strip()
        program = node.run("readlink", f"/proc/{process}/exe").strip()
        if not program.startswith(f"{current}/"):
            raise AssertionError(f"{name}: {unit} runs {program}, not {current}")
    print(f"{name}: the reader went on, served by {current}")


def silent(name: str, work: Path) -> None:
    """The password of a registry is in its file, 0600, and nowhere else: not on the node, not in what the playbooks said."""
    node = NodeUnderTest(name, work)
    secret = os.environ["NODE_SECRET"]
    forms = (secret, base64.b64encode(f"puller:{secret}".encode()).decode())
    credentials = "/etc/apparate/credentials/roles.json"
    if node.run("stat", "-c", "%a %U", credentials) != "600 root\n" or forms[1] not in node.run("cat", credentials):
        raise AssertionError(f"{name}: {credentials} is not as it should be")
    places = ["/etc", "/root", "/run", "/tmp", "/var/lib", "/var/log", "/var/tmp"]
    spared = ["--exclude-dir=containerd", f"--exclude={Path(credentials).name}"]
    search = ["grep", "-rlsF", "--binary-files=text", "--file=-", *spared, *places]  # no argument shows it either
    found = node.run("sh", "-c", '"$@" || true', "sh", *search, given="\n".join(forms))
    said = Path(os.environ["NODE_LOG"]).read_text(errors="replace")
    journal = node.run("journalctl", "--no-pager", "--output", "cat")
    if found or any(form in text for form in forms for text in (said, journal)):
        raise AssertionError(f"{name}: the password is in {found or 'the output or the journal'}")


def _expect_labels(name: str, work: Path, wanted: dict[str, str]) -> None:
    with urllib.request.urlopen(f"{server_of(work / 'kubeconfig')}/api/v1/nodes/{name}") as answer:
        labels = json.load(answer)["metadata"]["labels"]
    if labels != wanted:
        raise AssertionError(f"{name}: labels are {labels}, not {wanted}")


def _is_up(node: NodeUnderTest) -> bool:
    done = run(["sh", "-c", f"podman exec {node.name} systemctl is-system-running --wait || true"])
    return done.strip() == "running"


def _note(node: NodeUnderTest, container: Container) -> None:
    (node.work / f"{node.name}.json").write_text(json.dumps({"id": container.id, "log": str(container.log)}))


def _noted(node: NodeUnderTest, cri: CriClient) -> Container:
    noted = json.loads((node.work / f"{node.name}.json").read_text())
    return Container(cri, noted["id"], Path(noted["log"]))


PROOFS: dict[str, Callable[[str, Path], None]] = {
    "prepared": prepared,
    "occupied": occupied,
    "survived": survived,
    "still_running": still_running,
    "power_cut": power_cut,
    "reading": reading,
    "read_on": read_on,
    "silent": silent,
    "refused": refused,
    "killed": killed,
    "labelled": labelled,
    "unlabelled": unlabelled,
}
