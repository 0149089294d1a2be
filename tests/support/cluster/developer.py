"""The developer's cluster: one for a machine, with everything installed, until it is taken down."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Final

from tests.support.cluster import podman, programs
from tests.support.cluster.cluster import Cluster
from tests.support.cluster.helm import Chart, Helm
from tests.support.cluster.images import APPS, version_in
from tests.support.cluster.layout import LABEL, LATE_NODE, MIXED, REGISTRY_HOST
from tests.support.cluster.pods import PULL_SECRET, secret
from tests.support.cluster.registry import USER
from tests.support.cluster.site import Site, remove_abandoned
from tests.support.peers import cache_root

FOLDER: Final = cache_root() / "cluster" / "developer"
INSTALL_TIMEOUT_S: Final = 300


def up(packages: Path) -> None:
    """Make the cluster anew, install the chart on it, and print what to type next."""
    started = time.monotonic()
    down()
    remove_abandoned()
    FOLDER.mkdir(parents=True)
    podman.save_sysctls()
    site = Site(FOLDER, podman.DEVELOPER)
    site.create([packages])
    cluster = Cluster(site, MIXED)
    cluster.start()
    came_up_s = time.monotonic() - started
    _let_default_pods_pull(cluster)
    helm = Helm(FOLDER / "bin", cluster.kubeconfig, "helm-3")
    version = version_in(packages)
    Chart.packaged(helm, FOLDER / "chart", version, site.registry).install("--wait", f"--timeout={INSTALL_TIMEOUT_S}s")
    programs.named(FOLDER / "bin", os.readlink(cluster.folder / "bin" / "kubectl"), "kubectl")
    _write_docker_config(site)
    print(_next_words(cluster, came_up_s, time.monotonic() - started))


def down() -> None:
    """Take the developer's cluster away, if there is one."""
    podman.remove([podman.DEVELOPER])
    if FOLDER.exists():
        shutil.rmtree(FOLDER)


def _let_default_pods_pull(cluster: Cluster) -> None:
    """`kubectl run` in the default namespace pulls from the private registry."""
    cluster.kubectl.apply(secret(PULL_SECRET, "default", cluster.site.registry.docker_config()))
    patch = json.dumps({"imagePullSecrets": [{"name": PULL_SECRET}]})
    cluster.kubectl("patch", "serviceaccount", "default", "--namespace=default", "--patch", patch)


def _write_docker_config(site: Site) -> None:
    """Credentials and certificates for pushing to the registry from this machine."""
    config = FOLDER / "docker" / "config.json"
    config.parent.mkdir()
    entry = {"username": USER, "password": site.registry.password}
    config.write_text(json.dumps({"auths": {site.registry.ip: entry, REGISTRY_HOST: entry}}))
    config.chmod(0o600)


def _next_words(cluster: Cluster, came_up_s: float, whole_s: float) -> str:
    registry = cluster.site.registry
    return f"""\
Kubernetes was up after {came_up_s:.0f} s, with apparate installed after {whole_s:.0f} s. Next:

  export PATH={FOLDER / "bin"}:$PATH KUBECONFIG={cluster.kubeconfig}
  kubectl get nodes -L {LABEL}
  kubectl get pods -A -o wide
  kubectl run lazy --image={APPS[0].lazy} --overrides='{{"spec":{{"nodeName":"{MIXED.labelled[1]}"}}}}' -- sleep 2000000000
  kubectl label node {LATE_NODE.name} {LABEL}=true      # and see the agent come
  podman exec -it {cluster.machines[MIXED.labelled[1]].container} apparate images

Push to the registry ({REGISTRY_HOST} for pods, {registry.ip} from here):

  export DOCKER_CONFIG={FOLDER / "docker"} SSL_CERT_FILE={registry.authority.ca}
  .venv/bin/apparate convert {registry.ip}/test/tool:1 {registry.ip}/test/tool:1-apparate

make cluster-down takes it away."""
