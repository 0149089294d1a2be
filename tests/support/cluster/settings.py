"""What stands in a machine's /etc/k8s: arguments and files of every program, from the cluster's layout alone."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tests.support.cluster.layout import API_PORT, PAUSE, REGISTRY_HOST, ClusterSpec, NodeSpec

CLUSTER_DNS_HOST: Final = 10
EVICTION_FREE_PERCENT: Final = 15
"""Free disk below which kubelet removes images and then pods: so many percent of the node's own disk."""
GC_HIGH_PERCENT: Final = 80
GC_LOW_PERCENT: Final = 70

Files = dict[str, str]
"""Path below /etc/k8s -> content."""


def etcd() -> Files:
    url = "http://127.0.0.1:2379"
    peer = "http://127.0.0.1:2380"
    return _arguments(
        "etcd",
        data_dir="/var/lib/etcd/data",
        listen_client_urls=url,
        advertise_client_urls=url,
        listen_peer_urls=peer,
        initial_advertise_peer_urls=peer,
        initial_cluster=f"default={peer}",
    )


def control_plane(spec: ClusterSpec, ip: str) -> Files:
    """etcd, API server, controller manager, scheduler; certificates and kubeconfigs come beside these."""
    api = _arguments(
        "kube-apiserver",
        advertise_address=ip,
        secure_port=str(API_PORT),
        etcd_servers="http://127.0.0.1:2379",
        client_ca_file="/etc/k8s/ca.crt",
        tls_cert_file="/etc/k8s/apiserver.crt",
        tls_private_key_file="/etc/k8s/apiserver.key",
        service_account_key_file="/etc/k8s/sa.pub",
        service_account_signing_key_file="/etc/k8s/sa.key",
        service_account_issuer="https://kubernetes.default.svc.cluster.local",
        service_cluster_ip_range=spec.services,
        authorization_mode="Node,RBAC",
        enable_admission_plugins="NodeRestriction",
        kubelet_client_certificate="/etc/k8s/apiserver-kubelet.crt",
        kubelet_client_key="/etc/k8s/apiserver-kubelet.key",
        kubelet_certificate_authority="/etc/k8s/ca.crt",
        kubelet_preferred_address_types="InternalIP",
        allow_privileged="true",
    )
    controllers = _arguments(
        "kube-controller-manager",
        kubeconfig="/etc/k8s/controllers.conf",
        root_ca_file="/etc/k8s/ca.crt",
        service_account_private_key_file="/etc/k8s/sa.key",
        use_service_account_credentials="true",
        cluster_signing_cert_file="/etc/k8s/ca.crt",
        cluster_signing_key_file="/etc/k8s/ca.key",
        leader_elect="false",
    )
    scheduler = _arguments("kube-scheduler", kubeconfig="/etc/k8s/scheduler.conf", leader_elect="false")
    return {**etcd(), **api, **controllers, **scheduler}


def node(spec: ClusterSpec, one: NodeSpec, ip: str) -> Files:
    """kubelet, kube-proxy, containerd and CNI of one worker."""
    flags = {"config": "/etc/k8s/kubelet.json", "kubeconfig": "/etc/k8s/kubelet.conf"}
    flags |= {"hostname_override": one.name, "node_ip": ip}
    if one.is_old:
        flags |= {"container_runtime_endpoint": "unix:///run/containerd/containerd.sock"}
        flags |= {"pod_infra_container_image": PAUSE}  # or its own collection takes it
    return {
        **_arguments("kubelet", **flags),
        "kubelet.json": json.dumps(_kubelet(spec, one), indent=1),
        **_arguments("kube-proxy", config="/etc/k8s/proxy.json"),
        "proxy.json": json.dumps(_proxy(spec, one), indent=1),
        "cni/10-bridge.conflist": json.dumps(_cni(spec, one), indent=1),
        "containerd.toml": _CONTAINERD_1 if one.is_old else _CONTAINERD_2,
        f"certs.d/{REGISTRY_HOST}/hosts.toml": _HOSTS,
    }


def routes(spec: ClusterSpec, own: str, ips: Mapping[str, str]) -> Files:
    """How the machine *own* reaches the pods of every other machine."""
    lines = [f"{spec.pods_of(one)} {ips[one.name]}\n" for one in spec.nodes if one.name != own]
    return {"routes": "".join(lines)}


def kubeconfig(server: str, ca: Path, certificate: Path, key: Path) -> str:
    """A kubeconfig that holds what it needs."""

    def data(path: Path) -> str:
        return base64.b64encode(path.read_bytes()).decode()

    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "it", "cluster": {"server": server, "certificate-authority-data": data(ca)}}],
        "users": [{"name": "me", "user": {"client-certificate-data": data(certificate), "client-key-data": data(key)}}],
        "contexts": [{"name": "it", "context": {"cluster": "it", "user": "me"}}],
        "current-context": "it",
    }
    return json.dumps(document, indent=1)


def _arguments(program: str, **flags: str) -> Files:
    words = " ".join(f"--{name.replace('_', '-')}={value}" for name, value in flags.items())
    return {f"{program}.args": f"ARGS={words}\n"}


def _kubelet(spec: ClusterSpec, one: NodeSpec) -> dict[str, object]:
    document: dict[str, object] = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": "/etc/k8s/ca.crt"},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": "/etc/k8s/kubelet.crt",
        "tlsPrivateKeyFile": "/etc/k8s/kubelet.key",
        "clusterDomain": "cluster.local",
        "clusterDNS": [f"10.{96 + spec.index}.0.{CLUSTER_DNS_HOST}"],
        "cgroupDriver": "cgroupfs",
        "failSwapOn": False,
        "oomScoreAdj": 0,  # -999 is refused where CAP_SYS_RESOURCE is missing
        "evictionHard": {
            "memory.available": "100Mi",
            "nodefs.available": f"{EVICTION_FREE_PERCENT}%",
            "nodefs.inodesFree": "5%",
        },
        "evictionPressureTransitionPeriod": "5s",
        "imageGCHighThresholdPercent": GC_HIGH_PERCENT,
        "imageGCLowThresholdPercent": GC_LOW_PERCENT,
        "imageMinimumGCAge": "1s",
        "nodeStatusUpdateFrequency": "5s",
    }
    if not one.is_old:
        document |= {"failCgroupV1": False, "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock"}
    return document


def _proxy(spec: ClusterSpec, one: NodeSpec) -> dict[str, object]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": "/etc/k8s/proxy.conf"},
        "mode": "iptables",
        "clusterCIDR": spec.pods,
        "hostnameOverride": one.name,
        "oomScoreAdj": 0,
        # The machine's own conntrack table is not ours to size.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    }


def _cni(spec: ClusterSpec, one: NodeSpec) -> dict[str, object]:
    ipam = {
        "type": "host-local",
        "ranges": [[{"subnet": spec.pods_of(one)}]],
        "routes": [{"dst": "0.0.0.0/0"}],
        "dataDir": "/run/cni",  # addresses of pods that a reboot has ended are free again
    }
    bridge = {"type": "bridge", "bridge": "cni0", "isGateway": True, "ipMasq": True, "hairpinMode": True, "ipam": ipam}
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    return {"cniVersion": "0.4.0", "name": "pods", "plugins": [bridge, portmap]}


_CONTAINERD_1: Final = f"""\
# This site's containerd.
version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".registry.configs."{REGISTRY_HOST}".tls]
    ca_file = "/etc/k8s/registry-ca.crt"   # 1.4 knows no config_path
"""
_CONTAINERD_2: Final = f"""\
# This site's containerd.
version = 3
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
    runtime_type = 'io.containerd.runc.v2'
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = '{PAUSE}'
[plugins.'io.containerd.cri.v1.images'.registry]
  config_path = '/etc/containerd/certs.d'
"""
_HOSTS: Final = f"""\
server = "https://{REGISTRY_HOST}"
[host."https://{REGISTRY_HOST}"]
  capabilities = ["pull", "resolve"]
  ca = "/etc/k8s/registry-ca.crt"
"""
