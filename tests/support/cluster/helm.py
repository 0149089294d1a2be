"""The chart on a cluster, installed as its users do it."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml
from tests.support.cluster import programs
from tests.support.cluster.layout import REGISTRY_HOST
from tests.support.cluster.registry import USER, PrivateRegistry
from tests.support.peers import peer
from tests.support.processes import run
from tests.support.services import REPOSITORY

CHART: Final = REPOSITORY / "chart"
RELEASE: Final = "apparate"
NAMESPACE: Final = "default"
"""Where `helm install` without further words installs."""
HELM_TIMEOUT_S: Final = 300.0


class Helm:
    """Helm in one of its versions, `helm-3` or `helm-4`, for one cluster; *folder* gets a link to it."""

    def __init__(self, folder: Path, kubeconfig: Path, version: str) -> None:
        self.version = version
        self._program = programs.named(folder, str(peer(version) / "helm"), "helm")
        self._kubeconfig = kubeconfig

    def __call__(self, *words: str | Path) -> str:
        """Run helm and return what it printed.

        Raises:
            AssertionError: it failed; the message has all that it said.
        """
        return run([self._program, f"--kubeconfig={self._kubeconfig}", *words], timeout_s=HELM_TIMEOUT_S)

    def status_of(self, *words: str | Path) -> tuple[int, str]:
        """Exit code and output of a command that may fail."""
        command = [str(word) for word in (self._program, f"--kubeconfig={self._kubeconfig}", *words)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=HELM_TIMEOUT_S)
        return done.returncode, done.stdout + done.stderr


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart whose `values.yaml` was edited and that was packaged again: `archive`."""

    helm: Helm
    archive: Path

    @classmethod
    def packaged(
        cls, helm: Helm, folder: Path, tag: str, registry: PrivateRegistry, *, password: str | None = None
    ) -> Chart:
        """Copy the chart to *folder*, edit it as users are told, and `helm package` it."""
        copy = folder / RELEASE
        shutil.copytree(CHART, copy)
        path = copy / "values.yaml"
        values: dict[str, Any] = yaml.safe_load(path.read_text())
        values["imagePullSecretsCrs"] = {
            "dockerUsername": USER,
            "dockerPassword": registry.password if password is None else password,
            "dockerServer": REGISTRY_HOST,
        }
        values["image"] |= {"registry": REGISTRY_HOST, "tag": tag}
        path.write_text(yaml.safe_dump(values))
        helm("package", copy, "--destination", folder)
        (archive,) = folder.glob(f"{RELEASE}-*.tgz")
        return cls(helm, archive)

    def install(self, *options: str) -> str:
        """`helm install apparate apparate-1.0.0.tgz`, word for word."""
        return self.helm("install", RELEASE, self.archive, *options)

    def upgrade(self, *options: str) -> str:
        return self.helm("upgrade", RELEASE, self.archive, *options)

    def uninstall(self, *options: str) -> str:
        return self.helm("uninstall", RELEASE, *options)
