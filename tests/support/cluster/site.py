"""What clusters of one run share: a network, the private registry, the image of machines, a folder."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from tests.support.busybox import pause_image, write_archive
from tests.support.cluster import podman
from tests.support.cluster.images import fill, push_package
from tests.support.cluster.layout import PAUSE
from tests.support.cluster.registry import PrivateRegistry
from tests.support.nodes.images import image

_FOLDER: Final = "apparate-cluster-"
"""Of a run, below the temporary one; the id of its process follows."""


class Site:
    """Network and registry; made by `create`, taken away by `podman.remove` with the name of the owner."""

    def __init__(self, folder: Path, owner: str) -> None:
        self.folder = folder
        self.owner = owner
        self.image = image("cluster")
        self.network, self.number = podman.make_network(owner)
        self.pause = write_archive(folder / "pause.tar", pause_image(), PAUSE)
        self.registry = PrivateRegistry(
            folder / "registry", network=self.network, number=self.number, image=self.image, owner=owner
        )

    def create(self, packages: Sequence[Path]) -> None:
        """Start the registry with the tests' images, and the agent's from *packages*, folders of `make package`."""
        with self.registry.filling() as open_registry:
            fill(open_registry)
            for folder in packages:
                push_package(open_registry, folder)
        self.registry.create()


def remove_abandoned() -> None:
    """Remove what runs that were killed have left behind: machines, networks, folders, and what kubelets have set."""
    podman.remove(podman.abandoned())
    for folder in Path(tempfile.gettempdir()).glob(f"{_FOLDER}*-*"):
        owner = folder.name.removeprefix(_FOLDER).partition("-")[0]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            shutil.rmtree(folder)


@contextlib.contextmanager
def site(packages: Sequence[Path]) -> Iterator[Site]:
    """A site for one run of tests; nothing is left of it and its clusters afterwards."""
    remove_abandoned()
    owner = str(os.getpid())
    folder = Path(tempfile.mkdtemp(prefix=f"{_FOLDER}{owner}-"))
    podman.save_sysctls()
    try:
        made = Site(folder, owner)
        made.create(packages)
        yield made
    finally:
        podman.remove([owner])
        shutil.rmtree(folder)
