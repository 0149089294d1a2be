"""A containerd in memory: images, blobs and snapshots with directories, for tests of what configures one."""

from __future__ import annotations

import contextlib
import gzip
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from apparate.containerd.client import Container, Image, Mount, Usage
from apparate.errors import AlreadyExists, NotFound
from apparate.oci.digest import Digest
from apparate.oci.manifest import Descriptor


@dataclass
class FakeSnapshots:
    """One snapshotter: a directory for each snapshot; a view or child is its parent's directory below its own."""

    root: Path
    committed: dict[str, Path] = field(default_factory=dict)
    active: dict[str, tuple[Path, Path | None]] = field(default_factory=dict)
    kind: str = "overlay"
    made: int = 0

    def exists(self, name: str) -> bool:
        return name in self.committed

    def names(self) -> Sequence[str]:
        return [*self.committed, *self.active]

    def usage(self, name: str) -> Usage:
        if name not in self.committed:
            raise NotFound(name)
        return Usage(sum(path.stat().st_size for path in self.committed[name].rglob("*")), 1)

    def add(self, name: str, content: str) -> None:
        folder = self.root / f"c{len(self.committed)}"
        folder.mkdir(parents=True)
        (folder / "file").write_text(content)
        self.committed[name] = folder

    def prepare(self, key: str, parent: str) -> Sequence[Mount]:
        below = self._parent(parent)
        self.made += 1
        folder = self.root / f"a{self.made}"
        folder.mkdir(parents=True)
        self.active[key] = (folder, below)
        if below is None:
            return [Mount("bind", str(folder), ("rw", "rbind"))]
        return [Mount("overlay", "overlay", (f"workdir={folder}.w", f"upperdir={folder}", f"lowerdir={below}"))]

    def view(self, key: str, parent: str) -> Sequence[Mount]:
        below = self._parent(parent)
        assert below is not None
        self.active[key] = (below, None)
        return [Mount(self.kind, "overlay", (f"lowerdir={below}:/never/looked/at",))]

    def commit(self, name: str, key: str) -> None:
        if name in self.committed:
            raise AlreadyExists(name)
        self.committed[name] = self.active.pop(key)[0]

    def remove(self, key: str) -> None:
        if self.active.pop(key, None) is None:
            raise NotFound(key)

    def _parent(self, name: str) -> Path | None:
        if name and name not in self.committed:
            raise NotFound(name)
        return self.committed[name] if name else None


@dataclass
class FakeContainerd:
    """`containerd.client.Containerd`, one namespace."""

    root: Path
    blobs: dict[Digest, bytes] = field(default_factory=dict)
    stored: list[Image] = field(default_factory=list)
    labels: dict[tuple[Digest, str], str] = field(default_factory=dict)
    loaded: dict[str, FakeSnapshots] = field(default_factory=dict)
    leases: int = 0

    def version(self) -> str:
        return "1.6.20"

    def snapshotters(self) -> Sequence[str]:
        return list(self.loaded)

    def namespaces(self) -> Sequence[str]:
        return ["k8s.io"]

    def images(self, namespace: str) -> Sequence[Image]:
        return list(self.stored)

    def delete_image(self, namespace: str, name: str) -> None:
        self.stored = [image for image in self.stored if image.name != name]

    def containers(self, namespace: str) -> Sequence[Container]:
        return []

    def has_content(self, namespace: str, digest: Digest) -> bool:
        return digest in self.blobs

    def read_content(self, namespace: str, digest: Digest, bytes_max: int) -> bytes:
        if digest not in self.blobs:
            raise NotFound(str(digest))
        return self.blobs[digest]

    def label_content(self, namespace: str, digest: Digest, label: str, value: str) -> None:
        if digest not in self.blobs:
            raise NotFound(str(digest))
        self.labels[digest, label] = value

    def apply(self, namespace: str, layer: Descriptor, mounts: Sequence[Mount]) -> Digest:
        assert self.leases, "what is made without a lease may be collected at once"
        return Digest.of(gzip.decompress(self.blobs[layer.digest]))

    @contextlib.contextmanager
    def lease(self, namespace: str) -> Iterator[None]:
        self.leases += 1
        yield
        self.leases -= 1

    def collect(self, namespace: str) -> None:
        """Nothing is left over here."""

    def on(self, namespace: str, snapshotter: str) -> FakeSnapshots:
        return self.loaded.setdefault(snapshotter, FakeSnapshots(self.root / snapshotter))


@dataclass
class FakeCri:
    """`containerd.client.Cri`."""

    pods: int = 0

    def version(self) -> str:
        return "1.6.20"

    def run_sandbox(self, name: str, cgroup_parent: str, labels: Mapping[str, str], timeout_s: float) -> str:
        self.pods += 1
        return name

    def sandboxes(self, labels: Mapping[str, str]) -> Sequence[str]:
        return []

    def remove_sandbox(self, sandbox_id: str) -> None:
        self.pods -= 1
