"""The cluster of the tests, on paper: no two things have one address, and each version gets what it understands."""

from __future__ import annotations

import ipaddress
import json

import pytest
from tests.support.cluster import settings
from tests.support.cluster.layout import CLUSTERS, CONTROL, NEW_NODE, OLD_NODE, REGISTRY_IP, ClusterSpec

SPECS = tuple(CLUSTERS.values())
NETWORK = 3


def test_no_two_machines_have_one_address() -> None:
    names = [(spec, name) for spec in SPECS for name in (CONTROL, *(one.name for one in spec.nodes))]
    addresses = [spec.ip_of(name, NETWORK) for spec, name in names] + [f"10.91.{NETWORK}.{REGISTRY_IP}"]
    assert len(set(addresses)) == len(names) + 1
    assert all(ipaddress.ip_address(one) in ipaddress.ip_network(f"10.91.{NETWORK}.0/24") for one in addresses)


def test_networks_of_pods_and_services_are_apart() -> None:
    ranges = [ipaddress.ip_network(text) for spec in SPECS for text in (spec.pods, spec.services)]
    assert not [(a, b) for a in ranges for b in ranges if a is not b and a.overlaps(b)]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_every_machine_has_a_route_to_the_pods_of_every_other(spec: ClusterSpec) -> None:
    ips = {name: spec.ip_of(name, NETWORK) for name in (CONTROL, *(one.name for one in spec.nodes))}
    for own in ips:
        expected = {f"{spec.pods_of(one)} {ips[one.name]}" for one in spec.nodes if one.name != own}
        assert set(settings.routes(spec, own, ips)["routes"].splitlines()) == expected


def test_an_old_kubelet_gets_by_flag_what_a_new_one_reads_in_its_file() -> None:
    spec = CLUSTERS["mixed"]
    old, new = (settings.node(spec, one, spec.ip_of(one.name, NETWORK)) for one in (OLD_NODE, NEW_NODE))
    assert "--container-runtime-endpoint=" in old["kubelet.args"]
    assert "containerRuntimeEndpoint" not in json.loads(old["kubelet.json"])
    assert "--container-runtime-endpoint=" not in new["kubelet.args"]
    assert "containerRuntimeEndpoint" in json.loads(new["kubelet.json"])
    assert "version = 2" in old["containerd.toml"]
    assert "version = 3" in new["containerd.toml"]
