"""The agent's end decides what stays: a roll-out changes nothing, a node that leaves is ordinary and gives its credentials up."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.support.processes import wait_until
from tests.unit.node.agent.helpers import LABELS, RELEASE, Node, secret_of

from apparate.node.agent.ownership import Ownership
from apparate.oci.digest import Digest
from apparate.registry.keychain import LEAVING_NAME
from apparate.snapshot.model import Info, Kind, Origin, Record, SnapshotId


def test_rollout_changes_nothing(node: Node) -> None:
    node.cluster.put("secrets", "pull", secret_of(), "apparate")
    with node.running(secrets=("pull",)):
        node.wait_for("Ready")
        before = {path.name: path.stat().st_mtime_ns for path in node.credentials.iterdir()}
    assert node.mode == "lazy"
    with node.running(secrets=("pull",)):
        node.wait_for("Ready")
    assert {path.name: path.stat().st_mtime_ns for path in node.credentials.iterdir()} == before


def _remove_chart(node: Node) -> None:
    node.cluster.remove("daemonsets", "apparate", "apparate")


def _remove_rights(node: Node) -> None:
    node.cluster.account("agent", lambda *_: False)


def _remove_account(node: Node) -> None:
    node.cluster.revoke("agent")


def _remove_in_foreground(node: Node) -> None:
    node.cluster.put("daemonsets", "apparate", {"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}, "apparate")


def _remove_label(node: Node) -> None:
    node.set_label(None)


@pytest.mark.parametrize(
    "remove", [_remove_chart, _remove_rights, _remove_account, _remove_in_foreground, _remove_label]
)
def test_node_that_leaves_is_ordinary_and_has_no_credentials(node: Node, remove: Callable[[Node], None]) -> None:
    node.cluster.put("secrets", "pull", secret_of(), "apparate")
    with node.running(secrets=("pull",)):
        node.wait_for("Ready")
        wait_until(lambda: bool(node.files()), "the credentials", 10)
        remove(node)
    assert node.mode == "ordinary"
    assert node.files() == []
    assert Ownership(RELEASE, node.folder).active() is None


def test_server_that_refuses_only_while_it_starts_removes_nothing(node: Node) -> None:
    refusals = iter([False, False])  # then it has read the roles
    node.cluster.put("secrets", "pull", secret_of(), "apparate")
    with node.running(secrets=("pull",)):
        node.wait_for("Ready")
        node.cluster.account("agent", lambda _verb, resource, _name: resource != "daemonsets" or next(refusals, True))
    assert next(refusals, "all used") == "all used"
    assert (node.mode, node.files()) == ("lazy", ["chart-apparate_pull.json"])


def test_removed_node_says_nothing_of_the_label(node: Node) -> None:
    with node.running():
        node.wait_for("Ready")
        node.cluster.remove("nodes", "node-a")
    assert node.mode == "lazy"


def _image(node: Node, *, container: bool) -> None:
    digest = Digest.of(b"layer")
    layer = Info("image", "", Kind.COMMITTED, 1, 1, LABELS)
    node.host.records = [Record(SnapshotId(1), layer, origin=Origin.LAZY, layer=digest)]
    if container:
        active = Info("k8s.io/2/c", "image", Kind.ACTIVE, 1, 1)
        node.host.records.append(Record(SnapshotId(2), active, parent_id=SnapshotId(1)))


@pytest.mark.parametrize(("container", "left"), [(False, []), (True, [LEAVING_NAME, "chart-apparate_pull.json"])])
def test_credentials_stay_while_a_container_may_read_from_the_registry(
    node: Node, *, container: bool, left: list[str]
) -> None:
    node.cluster.put("secrets", "pull", secret_of(), "apparate")
    _image(node, container=container)
    with node.running(secrets=("pull",)):
        wait_until(lambda: bool(node.files()), "the credentials", 10)
        _remove_chart(node)
    assert node.files() == left
    assert node.mode == "ordinary"
    node.cluster.put("daemonsets", "apparate", {}, "apparate")
    with node.running(secrets=("pull",)):
        wait_until(lambda: node.files() == ["chart-apparate_pull.json"], "the note to go", 10)
