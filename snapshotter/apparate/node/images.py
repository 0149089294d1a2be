"""Images that are on a node already, made usable under another snapshotter.

CRI takes an image for present as soon as it knows its name. When a container is created and the image has no snapshots in the default
snapshotter, containerd unpacks it then, which needs every layer in the content store. Where layers were dropped after unpacking
(`discard_unpacked_layers`), or were never there, that fails for ever with "content digest not found", the sandbox image included, so no
pod starts any more. Such images are carried over: from their blobs where those are here, else from the unpacked directories
of the former snapshotter. Neither needs a registry.
"""

from __future__ import annotations

import platform
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from apparate.containerd.client import K8S, SNAPSHOT_REFERENCE, Containerd, Mount, Snapshots
from apparate.errors import (
    AlreadyExists,
    ApparateError,
    FailedPrecondition,
    FormatError,
    IntegrityError,
    NotFound,
    Unsupported,
)
from apparate.node.treecopy import copy_tree
from apparate.oci.digest import Digest
from apparate.oci.manifest import (
    CONFIG_BYTES_MAX,
    MANIFEST_BYTES_MAX,
    Descriptor,
    ImageConfig,
    Index,
    Manifest,
    Platform,
    chain_ids,
    parse_manifest,
)
from apparate.telemetry.logging import get_logger

_log = get_logger("node.images")

IMAGE_CARRIED = "image is usable under the new snapshotter"

_ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of an image of this node's platform."""

    descriptor: Descriptor
    diff_id: Digest
    chain_id: str


@dataclass(frozen=True, slots=True)
class NodeImage:
    """An image of the node. *missing* are the layers whose blobs are not in the content store."""

    names: tuple[str, ...]
    config: Digest
    layers: tuple[Layer, ...]
    missing: tuple[Layer, ...]

    @property
    def top(self) -> str:
        """The chain id of the whole image."""
        return self.layers[-1].chain_id

    def usable_under(self, snapshots: Snapshots) -> bool:
        """Say whether a container of this image can be created on *snapshots* without a registry."""
        return not self.missing or snapshots.exists(self.top)


class NodeImages:
    """The images that CRI knows, in one containerd."""

    def __init__(self, daemon: Containerd, namespace: str = K8S) -> None:
        self._daemon = daemon
        self._namespace = namespace

    def survey(self) -> list[NodeImage]:
        """Return the images of this node's platform. One whose manifest or configuration is not here is no image to CRI either."""
        names: dict[Digest, list[str]] = {}
        targets: dict[Digest, Descriptor] = {}
        for image in self._daemon.images(self._namespace):
            names.setdefault(image.target.digest, []).append(image.name)
            targets[image.target.digest] = image.target
        found = []
        for digest, target in targets.items():
            with suppress(NotFound, FormatError):  # nor can containerd start what it cannot read
                manifest = self._manifest(target)
                if manifest is not None and manifest.layers:
                    found.append(self._image(manifest, tuple(sorted(names[digest]))))
        return found

    def size_under(self, images: Iterable[NodeImage], former: str) -> int:
        """Return what the layers of *images* occupy under *former*, each once: what they will occupy under another."""
        snapshots = self._daemon.on(self._namespace, former)
        chains = {layer.chain_id for image in images for layer in image.layers}
        total = 0
        for chain in chains:
            with suppress(NotFound):
                total += snapshots.usage(chain).size
        return total

    def carry(self, image: NodeImage, former: str, target: str) -> None:
        """Give *image* all its snapshots under *target*; what is there stays. It may be repeated, also after a crash.

        Raises:
            FailedPrecondition: a layer is neither in the content store nor under *former*: the image has to be pulled again.
            Unsupported: the directories of *former* cannot be read.
            Unavailable: the disk does not take it.
        """
        source = self._daemon.on(self._namespace, former)
        snapshots = self._daemon.on(self._namespace, target)
        with self._daemon.lease(self._namespace):
            parent = ""
            for layer in image.layers:
                if not snapshots.exists(layer.chain_id):
                    self._layer(layer, parent, image, source, snapshots)
                parent = layer.chain_id
            self._daemon.label_content(self._namespace, image.config, f"{SNAPSHOT_REFERENCE}{target}", image.top)
        _log.info(IMAGE_CARRIED, ref=image.names[0], layers=len(image.layers), copied=len(image.missing))

    def release(self, image: NodeImage, target: str) -> None:
        """Take back that *image* holds snapshots under *target*."""
        with suppress(NotFound):
            self._daemon.label_content(self._namespace, image.config, f"{SNAPSHOT_REFERENCE}{target}", "")

    def remove(self, image: NodeImage) -> None:
        """Remove every name of *image*, so that kubelet pulls it again."""
        for name in image.names:
            self._daemon.delete_image(self._namespace, name)

    def _manifest(self, target: Descriptor) -> Manifest | None:
        parsed = parse_manifest(self._read(target, MANIFEST_BYTES_MAX), target.media_type)
        if isinstance(parsed, Manifest):
            return parsed
        for descriptor in _of_this_platform(parsed):
            if self._daemon.has_content(self._namespace, descriptor.digest):
                chosen = parse_manifest(self._read(descriptor, MANIFEST_BYTES_MAX), descriptor.media_type)
                return chosen if isinstance(chosen, Manifest) else None
        return None

    def _image(self, manifest: Manifest, names: tuple[str, ...]) -> NodeImage:
        config = ImageConfig.parse(self._read(manifest.config, CONFIG_BYTES_MAX))
        if len(config.diff_ids) != len(manifest.layers):
            raise NotFound(f"{names[0]}: {len(manifest.layers)} layers, {len(config.diff_ids)} diff ids: no image")
        layers = tuple(
            Layer(descriptor, diff_id, str(chain))
            for descriptor, diff_id, chain in zip(
                manifest.layers, config.diff_ids, chain_ids(config.diff_ids), strict=True
            )
        )
        missing = tuple(
            layer for layer in layers if not self._daemon.has_content(self._namespace, layer.descriptor.digest)
        )
        return NodeImage(names, manifest.config.digest, layers, missing)

    def _read(self, descriptor: Descriptor, bytes_max: int) -> bytes:
        return self._daemon.read_content(self._namespace, descriptor.digest, bytes_max)

    def _layer(self, layer: Layer, parent: str, image: NodeImage, source: Snapshots, target: Snapshots) -> None:
        with _extraction(target, layer.chain_id, parent) as mounts:
            if layer not in image.missing:
                applied = self._daemon.apply(self._namespace, layer.descriptor, mounts)
                if applied != layer.diff_id:
                    raise IntegrityError(f"layer {layer.descriptor.digest}", str(layer.diff_id), str(applied))
                return
            if not source.exists(layer.chain_id):
                raise FailedPrecondition(
                    f"layer {layer.descriptor.digest} of {image.names[0]} is neither stored nor unpacked on this node: remove the "
                    "image, or pull it again, then repeat"
                )
            with _viewed(source, layer.chain_id) as view:
                copy_tree(_top_of(view), _upper_of(mounts))


@contextmanager
def _extraction(target: Snapshots, chain_id: str, parent: str) -> Iterator[Sequence[Mount]]:
    """Yield the mounts of a new snapshot that becomes *chain_id* if nothing fails, and is removed else.

    Somebody else may make the same snapshot meanwhile, as kubelet when it creates a container: then theirs counts.
    """
    key = f"apparate-node-{uuid.uuid4()} {chain_id}"
    mounts = target.prepare(key, parent)
    try:
        yield mounts
        target.commit(chain_id, key)
    except AlreadyExists:
        target.remove(key)
    except BaseException:
        with suppress(ApparateError):  # the first error counts; the lease lets containerd collect the rest
            target.remove(key)
        raise


@contextmanager
def _viewed(source: Snapshots, chain_id: str) -> Iterator[Sequence[Mount]]:
    key = f"apparate-node-{uuid.uuid4()} view"
    mounts = source.view(key, chain_id)
    try:
        yield mounts
    finally:
        source.remove(key)


def _top_of(mounts: Sequence[Mount]) -> Path:
    """Return the directory of the uppermost layer of a view."""
    last = mounts[-1]
    if last.type in {"bind", "rbind"}:
        return Path(last.source)
    lower = _option(last, "lowerdir")
    if last.type != "overlay" or not lower:
        raise Unsupported(
            f"unpacked layers of type {last.type} cannot be carried over: remove the image, or pull it again"
        )
    return Path(lower.split(":")[0])


def _upper_of(mounts: Sequence[Mount]) -> Path:
    """Return the directory that a new snapshot's files are written to."""
    last = mounts[-1]
    if last.type in {"bind", "rbind"}:
        return Path(last.source)
    return Path(_option(last, "upperdir"))


def _option(mount: Mount, name: str) -> str:
    return next((option.partition("=")[2] for option in mount.options if option.startswith(f"{name}=")), "")


def _of_this_platform(index: Index) -> list[Descriptor]:
    machine = platform.machine()
    wanted = Platform("linux", _ARCHITECTURES.get(machine, machine))
    return [descriptor for descriptor in index.manifests if descriptor.platform and descriptor.platform.matches(wanted)]
