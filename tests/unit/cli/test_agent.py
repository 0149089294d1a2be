"""`apparate agent` from the outside: its input, its end, its last words."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.support.distribution import free_port
from tests.support.kubernetes_fake import FakeKubernetes
from tests.support.processes import wait_until

from apparate.cli import agent
from apparate.cli.main import run
from apparate.cli.settings import Settings
from apparate.errors import Unsupported
from apparate.kubernetes.access import Access
from apparate.node.agent.host import Done, Host
from apparate.node.agent.settings import AgentSettings, names


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKubernetes]:
    """A cluster that the command takes for its own, and a node below *tmp_path*."""
    with FakeKubernetes(tmp_path) as fake:
        fake.put("nodes", "node-a", {"metadata": {"labels": {"cloud.tencent.com/apparate": "true"}}, "status": {}})
        fake.put("daemonsets", "apparate", {}, "apparate")
        monkeypatch.setattr(Access, "in_cluster", lambda *_: fake.account("agent"))
        for name, value in (("NODE_NAME", "node-a"), ("POD_NAMESPACE", "apparate"), ("APPARATE_DAEMONSET", "apparate")):
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("APPARATE_LISTEN", f"127.0.0.1:{free_port()}")
        monkeypatch.setenv("APPARATE_HOST", str(tmp_path / "host"))
        monkeypatch.setattr(agent, "TERMINATION_LOG", tmp_path / "termination-log")
        (tmp_path / "termination-log").touch()
        yield fake


def _get(path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{os.environ['APPARATE_LISTEN']}{path}") as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except OSError:
        return 0, ""


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({}, "NODE_NAME is not set: the chart sets it, by hand give the flag"),
        ({"NODE_NAME": "a"}, "POD_NAMESPACE is not set"),
        ({"NODE_NAME": "a", "POD_NAMESPACE": "b"}, "APPARATE_DAEMONSET is not set"),
        ({"NODE_NAME": "../a", "POD_NAMESPACE": "b"}, "NODE_NAME: '../a' is no name of a Kubernetes object"),
        (
            {"NODE_NAME": "a", "POD_NAMESPACE": "b", "APPARATE_DAEMONSET": "c", "APPARATE_SECRETS": "ok, Not/Ok"},
            "APPARATE_SECRETS: 'Not/Ok' is no name of a Kubernetes object",
        ),
        (
            {"NODE_NAME": "a", "POD_NAMESPACE": "b", "APPARATE_DAEMONSET": "c", "APPARATE_MAX_UNAVAILABLE": "0"},
            "APPARATE_MAX_UNAVAILABLE must be 1 to 100, not 0",
        ),
        (
            {"NODE_NAME": "a", "POD_NAMESPACE": "b", "APPARATE_DAEMONSET": "c"},
            "KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set: run this in a pod of the cluster",
        ),
    ],
)
def test_wrong_input_is_one_sentence(
    variables: dict[str, str], sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("KUBERNETES_SERVICE_HOST", "NODE_NAME", "POD_NAMESPACE", "APPARATE_DAEMONSET"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert run(["agent", "run"]) in {2, 5}
    assert sentence in capsys.readouterr().err.splitlines()[-1]


def test_lists_are_separated_by_commas() -> None:
    assert names(" a,b ,,a, c") == ("a", "b", "c")
    assert AgentSettings("n", "ns", "ds", secrets=names("")).secrets == ()


def test_flags_go_before_the_environment(cluster: FakeKubernetes, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["agent", "run", "--node", "UPPER"]) == 2
    assert "NODE_NAME: 'UPPER'" in capsys.readouterr().err


def test_help_lists_every_variable(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["agent", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    documented = (Path(__file__).parents[3] / "snapshotter/docs/agent.md").read_text()
    for option in agent.run.params:
        if option.envvar:
            assert str(option.envvar) in said
            assert f"`{option.envvar}`" in documented


def test_failed_preparation_leaves_its_word_its_metric_and_its_exit_code(
    cluster: FakeKubernetes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(_: object) -> None:
        raise Unsupported("containerd 1.3.0 is too old: upgrade it to 1.4.3 or later")

    monkeypatch.setattr("apparate.node.agent.host.Host.require_same_architecture", refuse)
    seen: list[str] = []
    watcher = threading.Thread(target=lambda: seen.append(_wait_for_metric("apparate_agent_prepare_failed 1.0")))
    watcher.start()
    assert run(["agent", "prepare", "--hold-s", "1"]) == Unsupported.exit_code
    watcher.join()
    assert seen == ["seen"]
    assert (tmp_path / "termination-log").read_text().startswith("containerd 1.3.0 is too old")
    assert [event["reason"] for event in cluster.all("events")] == ["ApparatePrepareFailed"]
    assert "apparate: containerd 1.3.0 is too old" in capsys.readouterr().err


def _wait_for_metric(line: str) -> str:
    wait_until(lambda: line in _get("/metrics")[1], line, 10)
    return "seen"


def test_operators_package_with_a_broken_program_is_told(
    cluster: FakeKubernetes, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "host/opt/apparate/1.0.0").mkdir(parents=True)
    monkeypatch.setattr(Host, "run", lambda *_: Done(("apparate",), 127, "", "apparate: not found on the host\n"))
    assert run(["agent", "prepare", "--hold-s", "0"]) == 1
    assert "the node does not tell its state: not found on the host" in capsys.readouterr().err


def test_run_serves_until_it_is_told_to_end(
    cluster: FakeKubernetes, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent, "load_settings", lambda _: _settings_below(folder))
    monkeypatch.setattr(agent, "STATE_DIR", folder)
    pages: dict[str, Any] = {}

    def look_and_end() -> None:
        try:
            wait_until(lambda: "ServiceDown" in _get("/readyz")[1], "readiness", 10)
            pages.update({path: _get(path) for path in ("/livez", "/readyz", "/metrics", "/")})
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    looker = threading.Thread(target=look_and_end)
    looker.start()
    try:
        assert run(["agent", "run"]) == 0
    finally:
        looker.join()
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGINT, before[1])
    assert pages["/livez"] == (200, "ok\n")
    assert pages["/readyz"][0] == 503
    assert "apparate_agent_ready 0.0" in pages["/metrics"][1]
    assert pages["/"][0] == 404
    assert (folder / "mode").read_text() == "lazy\n", "the DaemonSet is there and the node labelled: nothing changes"


def _settings_below(folder: Path) -> Settings:
    own = Settings()
    return replace(
        own,
        snapshotter=replace(own.snapshotter, mode_file=folder / "mode", telemetry_socket=folder / "s.sock"),
        loader=replace(own.loader, telemetry_socket=folder / "l.sock"),
        registry=replace(own.registry, credentials_dir=str(folder / "credentials")),
    )


def test_other_commands_load_nothing_of_the_agent() -> None:
    code = (
        "import sys, apparate.cli.main as m\n"
        "for name in m.COMMANDS:\n"
        "    if name != 'agent': m.cli.get_command(None, name)\n"
        "print([name for name in sys.modules if name.startswith(('apparate.kubernetes', 'apparate.node.agent'))])"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3] / "snapshotter")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
