"""A cluster from its parts: made, watched, broken on purpose, and taken away."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

from tests.support.cluster import programs, settings
from tests.support.cluster.api import Api, Document, Kubectl
from tests.support.cluster.layout import (
    API_PORT,
    CONTROL,
    DISK_BYTES,
    LABEL,
    REGISTRY_HOST,
    ClusterSpec,
    NodeSpec,
)
from tests.support.cluster.machine import Machine
from tests.support.cluster.pki import Authority, service_account_keys
from tests.support.cluster.site import Site
from tests.support.processes import wait_until

READY_TIMEOUT_S: Final = 120.0
POLL_S: Final = 0.2
_READER: Final = "system:masters"
_T = TypeVar("_T")


class Cluster:
    """One Kubernetes on *site*; `start` makes it, `remove` takes it away."""

    def __init__(self, site: Site, spec: ClusterSpec) -> None:
        self.site = site
        self.spec = spec
        self.folder = site.folder / spec.name
        self.folder.mkdir()
        self.kubeconfig = self.folder / "admin.conf"
        names = [CONTROL, *(one.name for one in spec.nodes)]
        self._ips = {name: spec.ip_of(name, site.number) for name in names}
        self._authority = Authority(self.folder / "pki", f"{spec.name} authority")
        self._accounts = service_account_keys(self.folder / "pki")
        self.machines = {name: self._machine(name) for name in names}
        self._api: Api | None = None
        self._kubectl: Kubectl | None = None

    @property
    def api(self) -> Api:
        if self._api is None:
            raise AssertionError(f"cluster {self.spec.name} was not started")
        return self._api

    @property
    def kubectl(self) -> Kubectl:
        if self._kubectl is None:
            raise AssertionError(f"cluster {self.spec.name} was not started")
        return self._kubectl

    @property
    def control(self) -> Machine:
        return self.machines[CONTROL]

    @property
    def nodes(self) -> list[Machine]:
        return [self.machines[one.name] for one in self.spec.nodes]

    def start(self) -> None:
        """Make every machine and wait until all nodes are ready and pods can be made."""
        self._write_control()
        for one in self.spec.nodes:
            self._write_node(one)
        with ThreadPoolExecutor(len(self.machines)) as pool:
            list(pool.map(lambda machine: machine.create(), self.machines.values()))
        self._api = Api(self.kubeconfig)
        program = programs.kubernetes(self.spec.kubernetes) / "hyperkube"
        self._kubectl = Kubectl(programs.named(self.folder / "bin", str(program), "kubectl"), self.kubeconfig)
        wait_until(self.api.is_ready, "the API server is ready", READY_TIMEOUT_S, POLL_S)
        for one in self.spec.nodes:
            self.wait_ready(one.name)
        account = "/api/v1/namespaces/default/serviceaccounts/default"
        wait_until(lambda: self.api.find(account), "namespaces have their service account", READY_TIMEOUT_S, POLL_S)
        for name in self.spec.labelled:
            self.label(name)

    def remove(self) -> None:
        """Take the machines away, with all that is on them."""
        if self._api is not None:
            self._api.close()
        with ThreadPoolExecutor(len(self.machines)) as pool:
            list(pool.map(lambda machine: machine.remove(), self.machines.values()))
        shutil.rmtree(self.folder)

    def renew(self, name: str) -> Machine:
        """Replace the node *name* by a new machine of that name, as the node was first; return it when it is ready."""
        machine = self.machines[name]
        machine.remove()
        self.kubectl("delete", "node", name, "--ignore-not-found")
        machine.create()
        self.wait_ready(name)
        if name in self.spec.labelled:
            self.label(name)
        return machine

    def label(self, name: str, value: str | None = "true") -> None:
        """Label a node for apparate, or with None take the label away."""
        self.kubectl("label", "--overwrite", "node", name, f"{LABEL}={value}" if value else f"{LABEL}-")

    def wait_ready(self, name: str) -> None:
        """Wait until the node is there and says Ready."""
        self.wait(lambda: self._is_ready(name), f"node {name} is ready")

    def wait(self, condition: Callable[[], _T | None], what: str, timeout_s: float = READY_TIMEOUT_S) -> _T:
        """Wait for *condition*, asked a few times a second."""
        return wait_until(condition, what, timeout_s, POLL_S)

    def ip_of(self, name: str) -> str:
        return self._ips[name]

    def _is_ready(self, name: str) -> bool:
        found = self.api.find(f"/api/v1/nodes/{name}")
        return found is not None and condition_of(found, "Ready") == "True"

    def _machine(self, name: str) -> Machine:
        node = next((one for one in self.spec.nodes if one.name == name), None)
        mounts = {"/opt/k8s": programs.kubernetes(node.kubernetes if node else self.spec.kubernetes)}
        if node:
            mounts |= {"/opt/containerd": programs.containerd(node.containerd), "/opt/cni/bin": programs.cni_plugins()}
            mounts |= {"/opt/runc/runc": programs.runc()}
        else:
            mounts |= {"/opt/etcd": programs.etcd()}
        return Machine(
            name=name,
            container=f"{self.site.network}-{self.spec.name}-{name}",
            ip=self._ips[name],
            network=self.site.network,
            image=self.site.image,
            owner=self.site.owner,
            files=self.folder / name,
            mounts=mounts,
            volumes=("/var/lib/node",) if node else ("/var/lib/etcd",),
            hosts={REGISTRY_HOST: self.site.registry.ip},
        )

    def _write_control(self) -> None:
        folder = self.folder / CONTROL
        ip = self._ips[CONTROL]
        service = ("kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local")
        names = [f"DNS:{name}" for name in service] + [f"IP:{a}" for a in (self.spec.api_service, ip, "127.0.0.1")]
        _write(folder, settings.control_plane(self.spec, ip) | settings.routes(self.spec, CONTROL, self._ips))
        self._certify(folder, "apiserver", "/CN=kube-apiserver", names)
        self._certify(folder, "apiserver-kubelet", f"/O={_READER}/CN=kube-apiserver-kubelet")
        for path in (self._authority.ca, self._authority.ca_key, *self._accounts):
            shutil.copy(path, folder)
        for name in ("controllers", "scheduler"):
            user = "system:kube-controller-manager" if name == "controllers" else "system:kube-scheduler"
            (folder / f"{name}.conf").write_text(self._kubeconfig(name, f"/CN={user}"))
        self.kubeconfig.write_text(self._kubeconfig("admin", f"/O={_READER}/CN=admin"))
        self.kubeconfig.chmod(0o600)

    def _write_node(self, one: NodeSpec) -> None:
        folder, ip = self.folder / one.name, self._ips[one.name]
        files = settings.node(self.spec, one, ip) | settings.routes(self.spec, one.name, self._ips)
        _write(folder, {**files, "disk-bytes": str(DISK_BYTES)})
        user = f"/O=system:nodes/CN=system:node:{one.name}"
        certificate, key = self._certify(folder, "kubelet", user, [f"DNS:{one.name}", f"IP:{ip}"])
        (folder / "kubelet.conf").write_text(settings.kubeconfig(self._server, self._authority.ca, certificate, key))
        (folder / "proxy.conf").write_text(self._kubeconfig(f"proxy-{one.name}", "/CN=system:kube-proxy"))
        shutil.copy(self._authority.ca, folder)
        shutil.copy(self.site.registry.authority.ca, folder / "registry-ca.crt")
        (folder / "images").mkdir()
        shutil.copy(self.site.pause, folder / "images")

    def _certify(self, folder: Path, name: str, subject: str, names: Sequence[str] = ()) -> tuple[Path, Path]:
        """Issue a certificate and put it with its key into *folder* as *name*."""
        certificate, key = self._authority.issue(f"{folder.name}-{name}", subject, names)
        return Path(shutil.copy(certificate, folder / f"{name}.crt")), Path(shutil.copy(key, folder / f"{name}.key"))

    def _kubeconfig(self, name: str, subject: str) -> str:
        return settings.kubeconfig(self._server, self._authority.ca, *self._authority.issue(name, subject))

    @property
    def _server(self) -> str:
        return f"https://{self._ips[CONTROL]}:{API_PORT}"


def condition_of(document: Document, kind: str) -> str:
    """The status of the condition *kind* of a node or pod; empty when it has none."""
    for condition in document.get("status", {}).get("conditions", ()):
        if condition["type"] == kind:
            return str(condition["status"])
    return ""


def _write(folder: Path, files: settings.Files) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
