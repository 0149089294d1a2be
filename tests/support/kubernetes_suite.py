"""What our client, and with it the agent, relies on of an API server. Run on the fake and on real ones.

A test class inherits from `KubernetesApiSuite` and has a fixture `server` that gives an `ApiServer`.
"""

from __future__ import annotations

import base64
import threading
import uuid
from typing import Any, Protocol

import pytest
from tests.support.processes import wait_until

from apparate.errors import AlreadyExists, InvalidArgument, NotFound
from apparate.kubernetes.client import MERGE, Client, WatchEvent, collection
from apparate.kubernetes.errors import Conflict, Denied, Expired
from apparate.kubernetes.watch import Follower, Objects


class ApiServer(Protocol):
    """A server under test. *node* is a node of it, *namespace* one in which the client may do everything."""

    client: Client
    namespace: str
    node: str

    def powerless(self) -> Client:
        """Return a client of an account without rights."""

    def unknown(self) -> Client:
        """Return a client whose token is nobody's."""


def _name(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4().hex[:8]}"


def _secret(name: str, text: str) -> dict[str, Any]:
    data = {".dockerconfigjson": base64.b64encode(text.encode()).decode()}
    return {"metadata": {"name": name}, "type": "kubernetes.io/dockerconfigjson", "data": data}


class KubernetesApiSuite:
    """The suite."""

    def test_object_is_created_read_replaced(self, server: ApiServer) -> None:
        leases = collection("coordination.k8s.io/v1", "leases", server.namespace)
        name = _name("lease")
        spec = {"holderIdentity": "a", "leaseDurationSeconds": 60, "renewTime": "2026-01-01T00:00:00.000000Z"}
        made = server.client.create(leases, {"metadata": {"name": name}, "spec": spec})
        read = server.client.get(f"{leases}/{name}")
        assert read["spec"]["holderIdentity"] == "a"
        assert read["metadata"]["resourceVersion"] == made["metadata"]["resourceVersion"]
        freed = {"leaseDurationSeconds": 60, "renewTime": "2026-01-01T00:00:01.000000Z"}
        done = server.client.replace(f"{leases}/{name}", {"metadata": read["metadata"], "spec": freed})
        assert not done["spec"].get("holderIdentity")

    def test_second_object_of_a_name_is_refused(self, server: ApiServer) -> None:
        leases = collection("coordination.k8s.io/v1", "leases", server.namespace)
        body = {"metadata": {"name": _name("lease")}, "spec": {"leaseDurationSeconds": 60}}
        server.client.create(leases, body)
        with pytest.raises(AlreadyExists):
            server.client.create(leases, body)

    def test_replacing_an_old_version_is_a_conflict(self, server: ApiServer) -> None:
        leases = collection("coordination.k8s.io/v1", "leases", server.namespace)
        name = _name("lease")
        made = server.client.create(leases, {"metadata": {"name": name}, "spec": {"leaseDurationSeconds": 60}})
        server.client.replace(f"{leases}/{name}", {**made, "spec": {"leaseDurationSeconds": 61}})
        with pytest.raises(Conflict):
            server.client.replace(f"{leases}/{name}", {**made, "spec": {"leaseDurationSeconds": 62}})

    def test_time_of_a_lease_without_microseconds_is_refused(self, server: ApiServer) -> None:
        leases = collection("coordination.k8s.io/v1", "leases", server.namespace)
        body = {"metadata": {"name": _name("lease")}, "spec": {"renewTime": "yesterday"}}
        with pytest.raises(InvalidArgument):
            server.client.create(leases, body)

    def test_what_is_not_there_is_not_found(self, server: ApiServer) -> None:
        with pytest.raises(NotFound, match="404"):
            server.client.get(f"{collection('apps/v1', 'daemonsets', server.namespace)}/{_name('absent')}")

    def test_account_without_rights_is_denied(self, server: ApiServer) -> None:
        with pytest.raises(Denied) as caught:
            server.powerless().get(collection("v1", "secrets", server.namespace))
        assert caught.value.status == 403

    def test_unknown_account_is_denied(self, server: ApiServer) -> None:
        with pytest.raises(Denied) as caught:
            server.unknown().get(collection("v1", "secrets", server.namespace))
        assert caught.value.status == 401

    def test_one_secret_is_listed_by_its_name(self, server: ApiServer) -> None:
        secrets = collection("v1", "secrets", server.namespace)
        name = _name("pull")
        server.client.create(secrets, _secret(name, "{}"))
        server.client.create(secrets, _secret(_name("other"), "{}"))
        found = server.client.get(secrets, {"fieldSelector": f"metadata.name={name}"})
        assert [item["metadata"]["name"] for item in found["items"]] == [name]

    def test_secrets_are_listed_by_their_type(self, server: ApiServer) -> None:
        secrets = collection("v1", "secrets", server.namespace)
        pull, other = _name("pull"), _name("other")
        server.client.create(secrets, _secret(pull, "{}"))
        server.client.create(secrets, {"metadata": {"name": other}, "type": "Opaque"})
        found = server.client.get(secrets, {"fieldSelector": "type=kubernetes.io/dockerconfigjson"})
        names = {item["metadata"]["name"] for item in found["items"]}
        assert pull in names
        assert other not in names

    def test_watch_tells_what_happened_after_a_version(self, server: ApiServer) -> None:
        secrets = collection("v1", "secrets", server.namespace)
        name = _name("pull")
        query = {"fieldSelector": f"metadata.name={name}"}
        version = server.client.get(secrets, query)["metadata"]["resourceVersion"]
        server.client.create(secrets, _secret(name, "{}"))
        server.client.create(secrets, _secret(_name("other"), "{}"))
        server.client.patch(f"{secrets}/{name}", {"metadata": {"annotations": {"a": "b"}}}, MERGE)
        events: list[WatchEvent] = []
        for event in server.client.watch(secrets, query, version):
            events.append(event)
            if len(events) == 2:
                break
        assert [event.kind for event in events] == ["ADDED", "MODIFIED"]
        assert {event.object["metadata"]["name"] for event in events} == {name}
        assert events[-1].version

    def test_watch_from_a_forgotten_version_is_expired(self, server: ApiServer) -> None:
        secrets = collection("v1", "secrets", server.namespace)
        with pytest.raises(Expired):
            list(server.client.watch(secrets, {}, "1"))

    def test_follower_tells_of_every_change(self, server: ApiServer) -> None:
        secrets = collection("v1", "secrets", server.namespace)
        name = _name("pull")
        told: list[Objects] = []
        news = threading.Event()

        def changed(objects: Objects) -> None:
            told.append(objects)
            news.set()

        follower = Follower(server.client, secrets, {"fieldSelector": f"metadata.name={name}"}, changed)
        follower.start()
        try:
            assert news.wait(10)
            assert told == [{}]
            server.client.create(secrets, _secret(name, "{}"))
            wait_until(lambda: len(told) == 2, "the new Secret to be told", 10)
            assert list(told[-1]) == [(server.namespace, name)]
        finally:
            follower.stop()

    def test_condition_of_a_node_is_merged_by_its_type(self, server: ApiServer) -> None:
        path = f"{collection('v1', 'nodes')}/{server.node}"
        moment = "2026-01-01T00:00:00Z"
        kind = _name("Suite")
        before = {each["type"] for each in server.client.get(path).get("status", {}).get("conditions", ())}
        condition = {"type": kind, "status": "True", "reason": "Ok", "message": "m", "lastHeartbeatTime": moment}
        server.client.patch(f"{path}/status", {"status": {"conditions": [condition]}})
        server.client.patch(f"{path}/status", {"status": {"conditions": [{**condition, "status": "False"}]}})
        conditions = {each["type"]: each for each in server.client.get(path)["status"]["conditions"]}
        assert set(conditions) == before | {kind}
        assert conditions[kind]["status"] == "False"
        server.client.patch(f"{path}/status", {"status": {"conditions": [{"type": kind, "$patch": "delete"}]}})
        assert kind not in {each["type"] for each in server.client.get(path)["status"].get("conditions", ())}

    def test_annotation_of_a_node_is_set_and_removed(self, server: ApiServer) -> None:
        path = f"{collection('v1', 'nodes')}/{server.node}"
        key = f"example.org/{_name('suite')}"
        server.client.patch(path, {"metadata": {"annotations": {key: "x"}}}, MERGE)
        assert server.client.get(path)["metadata"]["annotations"][key] == "x"
        server.client.patch(path, {"metadata": {"annotations": {key: None}}}, MERGE)
        assert key not in server.client.get(path)["metadata"].get("annotations", {})

    def test_event_about_a_node_lives_in_the_default_namespace(self, server: ApiServer) -> None:
        moment = "2026-01-01T00:00:00Z"
        about = {"kind": "Node", "apiVersion": "v1", "name": server.node, "uid": server.node}
        event = {
            "metadata": {"name": _name(server.node), "namespace": "default"},
            "involvedObject": about,
            "type": "Warning",
            "reason": "Suite",
            "message": "m",
            "count": 2,
            "firstTimestamp": moment,
            "lastTimestamp": moment,
            "source": {"component": "apparate", "host": server.node},
        }
        made = server.client.create(collection("v1", "events", "default"), event)
        assert made["involvedObject"]["name"] == server.node
