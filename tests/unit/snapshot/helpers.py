"""What the snapshotter's tests share besides fixtures."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from tests.support.fake_loader import FakeLayer, FakeLoader

from apparate.errors import AlreadyExists
from apparate.oci import names
from apparate.oci.digest import Digest
from apparate.snapshot.model import Kind, Mount
from apparate.snapshot.remote import ManifestLayer
from apparate.snapshot.snapshotter import Snapshotter

REF = "registry/app:1"


class Image:
    """An image in the fake registry, pulled as containerd pulls it."""

    def __init__(self, fake: FakeLoader, kinds: str) -> None:
        self.layers = [
            FakeLayer(f"layer {n}".encode(), {f"file{n}": b"x" * (n + 1)}, lazy=kind == "lazy")
            for n, kind in enumerate(kinds.split())
        ]
        self.manifest = Digest.of(b"manifest")
        for layer in self.layers:
            fake.add(layer)
        fake.manifests[self.manifest] = [
            ManifestLayer(layer.digest, names.OCI_LAYER_GZIP, 1, self._annotations(layer)) for layer in self.layers
        ]
        self.chain_ids: list[str] = []
        for layer in self.layers:
            diff_id = str(layer.digest)
            below = self.chain_ids[-1] if self.chain_ids else ""
            self.chain_ids.append(
                "sha256:" + hashlib.sha256(f"{below} {diff_id}".encode()).hexdigest() if below else diff_id
            )

    @staticmethod
    def _annotations(layer: FakeLayer) -> dict[str, str]:
        return {names.TOC_DIGEST: "sha256:toc"} if layer.lazy else {}

    def labels(self, number: int) -> dict[str, str]:
        return {
            names.TARGET_SNAPSHOT: self.chain_ids[number],
            names.CRI_IMAGE_REF: REF,
            names.CRI_MANIFEST_DIGEST: str(self.manifest),
            names.CRI_LAYER_DIGEST: str(self.layers[number].digest),
            names.CRI_IMAGE_LAYERS: ",".join(str(layer.digest) for layer in self.layers[number:]),
            **self._annotations(self.layers[number]),
        }


def pull(snapshotter: Snapshotter, image: Image, namespace: str = "k8s.io") -> tuple[str, list[str]]:
    """Unpack *image* as containerd's metadata layer and unpacker do; return the top name and how each layer went."""
    parent, how = "", []
    for number, chain_id in enumerate(image.chain_ids):
        key = f"{namespace}/{number}/extract-{number}-x {chain_id}"
        labels = image.labels(number)
        try:
            snapshotter.prepare(key, parent, labels)
        except AlreadyExists:
            matches = [
                info
                for info in snapshotter.walk([f'labels."containerd.io/snapshot.ref"=={chain_id},parent=="{parent}"'])
                if info.kind is Kind.COMMITTED
            ]
            assert len(matches) == 1
            parent = matches[0].name
            how.append("here")
        else:
            name = f"{namespace}/{100 + number}/{chain_id}"
            snapshotter.commit(name, key, labels)
            parent = name
            how.append("unpacked by containerd")
    return parent, how


def lowers(mounts: Sequence[Mount]) -> list[Path]:
    (mount,) = mounts
    (option,) = [option for option in mount.options if option.startswith("lowerdir=")]
    return [Path(path) for path in option.removeprefix("lowerdir=").split(":")]
