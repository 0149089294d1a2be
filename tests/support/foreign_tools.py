"""Other tools that pull our images or make images for us, each with all its state below one folder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.containerd import Containerd, Plug, Settings, release
from tests.support.leftovers import mounts_below
from tests.support.peers import peer
from tests.support.processes import Process, run
from tests.support.services import answers

STARGZ = "stargz"


@dataclass(frozen=True, slots=True)
class ContainersStorage:
    """Storage of podman, buildah and skopeo below *base*; what is pulled into it stays there."""

    base: Path

    @property
    def _place(self) -> list[str]:
        return [
            "--root",
            str(self.base / "root"),
            "--runroot",
            str(self.base / "runroot"),
            "--storage-driver",
            "overlay",
        ]

    def podman(self, *arguments: str | Path) -> str:
        return run(["podman", *self._place, "--cgroup-manager", "cgroupfs", *arguments])

    def pull_with_podman(self, reference: str) -> str:
        """Pull and unpack; return the image's id."""
        return self.podman("pull", "--quiet", "--tls-verify=false", reference).strip()

    def pull_with_skopeo(self, reference: str) -> str:
        """Copy from the registry into the storage; return the image's id."""
        place = f"containers-storage:[overlay@{self.base / 'root'}+{self.base / 'runroot'}]{reference}"
        run(["skopeo", "copy", "--quiet", "--src-tls-verify=false", f"docker://{reference}", place])
        return self.podman("image", "inspect", "--format", "{{.Id}}", reference).strip()

    @contextlib.contextmanager
    def mounted(self, image_id: str) -> Iterator[Path]:
        """The file system of an image, read-only."""
        where = Path(self.podman("image", "mount", image_id).strip())
        try:
            yield where
        finally:
            self.podman("image", "unmount", image_id)

    @contextlib.contextmanager
    def in_use(self) -> Iterator[ContainersStorage]:
        """Leaving takes away the mount that the tools leave on their storage."""
        try:
            yield self
        finally:
            for point in reversed(mounts_below(self.base)):
                run(["umount", point])


def push_with_podman(storage: ContainersStorage, image_id: str, target: str, compression: str) -> None:
    """Push an image that was pulled before, its layers compressed anew.

    podman knows by its cache which blobs a host has, and would not compress them: *target* must name the registry otherwise
    than the pull did.
    """
    where = ("--tls-verify=false", "--format=oci", "--compression-format", compression)
    storage.podman("push", "--quiet", *where, image_id, target)


def copy_with_containers_image(compression: str, source: str, target: str) -> None:
    """Copy an image within a registry, its layers compressed anew by the library of newer podmans."""
    run([peer("containers-image") / "containers-image", compression, source, target])


def push_with_go_containerregistry(folder: Path, layers: Sequence[bytes], target: str) -> None:
    """Push an image of these tar streams as the library makes eStargz of them."""
    paths = []
    for number, tar in enumerate(layers):
        paths.append(folder / f"layer-{number}.tar")
        paths[-1].write_bytes(tar)
    run([peer("go-containerregistry") / "go-containerregistry", target, *paths])


def convert_with_estargz(daemon: Containerd, source: str, target: str, kind: str) -> None:
    """Convert with stargz-snapshotter's converter in the store of *daemon* and push; *kind* is estargz or zstdchunked."""
    daemon.pull_with_ctr(source, "overlayfs")
    run([peer("estargz-convert") / "estargz-convert", "-format", kind, daemon.socket, "k8s.io", source, target])
    daemon.ctr("images", "push", "--plain-http", target)


@dataclass(frozen=True, slots=True)
class StargzNode:
    """A containerd whose pods use stargz-snapshotter."""

    containerd: Containerd
    root: Path

    def mounted_layers(self) -> int:
        """How many layers it has mounted by FUSE, each below its own snapshot."""
        return len(mounts_below(self.root))


@contextlib.contextmanager
def stargz_node(base: Path, registry: str) -> Iterator[StargzNode]:
    """stargz-snapshotter that loads nothing but what is read, under the newest containerd."""
    base.mkdir(parents=True, exist_ok=True)
    config, socket, root = base / "stargz.toml", base / "stargz.sock", base / "stargz"
    config.write_text(
        "noprefetch = true\nno_background_fetch = true\n"
        f'[[resolver.host."{registry}".mirrors]]\nhost = "{registry}"\ninsecure = true\n'
    )
    process = Process("stargz", [peer("stargz-snapshotter") / "stargz-snapshotter", config, root, socket], base / "log")
    settings = Settings(default=STARGZ, plugs=[Plug(STARGZ, socket)])
    with contextlib.ExitStack() as stack:
        stack.callback(_unmount_below, base)
        process.start(lambda: answers(socket))
        stack.enter_context(process)
        yield StargzNode(stack.enter_context(Containerd(release("2.4.2"), base / "node", settings)), root)


def _unmount_below(folder: Path) -> None:
    for point in reversed(mounts_below(folder)):
        run(["umount", point])
