"""Images that are not loaded on demand, and reads that failed: told once, as events and metrics."""

from __future__ import annotations

import pytest
from tests.support.processes import wait_until
from tests.unit.node.agent.helpers import LABELS, RELEASE, Node

from apparate.node.agent import run as run_module
from apparate.node.agent.ownership import Found, Ownership
from apparate.oci.digest import Digest
from apparate.snapshot.model import Info, Kind, Record, SnapshotId


def test_fallback_is_an_event_once(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "SURVEY_S", 0.01)
    labels = {**LABELS, "containerd.io/snapshot/stargz/toc.digest": str(Digest.of(b"toc"))}
    node.host.records = [
        Record(
            SnapshotId(1), Info("image", "", Kind.COMMITTED, 1, 1, labels), reason="GET https://r/v2/: HTTP status 401"
        )
    ]
    with node.running() as agent:
        wait_until(lambda: "ApparateImageFallback" in node.reasons(), "the event", 10)
        page = agent.metrics_page().body.decode()
    assert 'apparate_agent_images{state="fallback"} 1.0' in page
    events = [event for event in node.cluster.all("events") if event["reason"] == "ApparateImageFallback"]
    assert len(events) == 1
    assert "registry.example/app:1: GET https://r/v2/: HTTP status 401" in events[0]["message"]


def test_reads_that_failed_are_an_event(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "SURVEY_S", 0.01)
    node.host.loader_metrics["apparate_loader_read_errors_total"] = 5
    with node.running() as agent:
        wait_until(lambda: agent._survey._read_errors == 5, "the first look", 10)
        node.host.loader_metrics["apparate_loader_read_errors_total"] = 7
        wait_until(lambda: "ApparateReadsFailed" in node.reasons(), "the event", 10)
    (event,) = [event for event in node.cluster.all("events") if event["reason"] == "ApparateReadsFailed"]
    assert event["message"].startswith("2 reads of containers ended with an error")


def test_driver_that_changes_leaves_no_second_series(node: Node) -> None:
    own = Ownership(RELEASE, node.folder)
    own.note(Found("yes", "tree"))
    with node.running() as agent:
        node.wait_for("Ready")
        own.note(Found("yes", "erofs-file"))
        wait_until(lambda: b'driver="erofs-file"' in agent.metrics_page().body, "the new driver", 10)
        assert agent.metrics_page().body.count(b"\napparate_agent_info{") == 1


def test_metrics_of_all_three_processes_are_one_page(node: Node) -> None:
    node.host.loader_metrics["apparate_loader_reads_total"] = 7
    page = node.agent().metrics_page().body.decode()
    assert 'apparate_loader_reads_total{service="loader"} 7.0' in page
    assert "apparate_agent_ready" in page
    kinds = [line.split()[2] for line in page.splitlines() if line.startswith("# TYPE")]
    assert len(kinds) == len(set(kinds))
