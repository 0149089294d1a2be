"""Deterministic container images in pure Python: as values, in a registry, or as an OCI layout.

    reference = push(address, "team/app", [{"etc/": None, "etc/motd": b"hello\\n"}])
    reference = push(address, "team/app", build_image([torture_layer()]), tag="v1")

`address` is `host:port` of a registry that speaks plain HTTP, or any object with an `address`.
Same arguments, same digests. Nothing here uses the package under test.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import zstandard
from tests.support.tarball import LayerItems, LayerPairs, Node, tar_bytes

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
CREATED = "2020-09-13T12:26:40Z"
_HTTP_TIMEOUT_S = 60


class HasAddress(Protocol):
    """A running registry, as the fixtures hand it out."""

    @property
    def address(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer blob with the facts a manifest and a config need."""

    blob: bytes
    media_type: str
    diff_id: str

    @property
    def descriptor(self) -> dict[str, object]:
        """The layer's descriptor in a manifest."""
        return descriptor(self.media_type, self.blob)


@dataclass(frozen=True, slots=True)
class Image:
    """A manifest or an index: its bytes, and every blob and child manifest below it."""

    media_type: str
    manifest: bytes
    blobs: Mapping[str, bytes] = field(default_factory=dict)
    children: tuple[Image, ...] = ()
    platform: str = ""

    @property
    def digest(self) -> str:
        """The digest of the manifest bytes."""
        return sha256(self.manifest)

    @property
    def descriptor(self) -> dict[str, object]:
        """The descriptor for an index, platform included."""
        entry = descriptor(self.media_type, self.manifest)
        if self.platform:
            os_name, architecture, *variant = self.platform.split("/")
            entry["platform"] = {"os": os_name, "architecture": architecture} | (
                {"variant": variant[0]} if variant else {}
            )
        return entry


LayerSource = LayerItems | LayerPairs | Layer


def sha256(data: bytes) -> str:
    """Return the digest of *data* in its text form."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def descriptor(media_type: str, data: bytes) -> dict[str, object]:
    """Return a descriptor of *data*."""
    return {"mediaType": media_type, "digest": sha256(data), "size": len(data)}


def build_layer(entries: LayerItems | LayerPairs | bytes, *, compression: str = "gzip", docker: bool = False) -> Layer:
    """Return a layer of *entries* (or of a finished tar stream); "gzip", "zstd" or "none"."""
    tar = entries if isinstance(entries, bytes) else tar_bytes(entries)
    base = DOCKER_LAYER if docker else OCI_LAYER
    separator = "." if docker else "+"
    if compression == "gzip":
        blob, media_type = gzip.compress(tar, 6, mtime=0), f"{base}{separator}gzip"
    elif compression == "zstd":
        blob, media_type = zstandard.compress(tar, 3), f"{base}{separator}zstd"
    else:
        blob, media_type = tar, base
    return Layer(blob, media_type, sha256(tar))


def build_image(
    layers: Sequence[LayerSource],
    *,
    platform: str = "linux/amd64",
    compression: str = "gzip",
    docker: bool = False,
    config: Mapping[str, object] | None = None,
    annotations: Mapping[str, str] | None = None,
) -> Image:
    """Return an image of one platform; *config* is the inner `config` object (Cmd, Env, ...)."""
    built = [
        layer if isinstance(layer, Layer) else build_layer(layer, compression=compression, docker=docker)
        for layer in layers
    ]
    os_name, architecture, *variant = platform.split("/")
    document: dict[str, object] = {
        "created": CREATED,
        "architecture": architecture,
        "os": os_name,
        "config": dict(config or {"Cmd": ["/bin/sh"]}),
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in built]},
        "history": [{"created": CREATED, "created_by": f"layer {n}"} for n in range(len(built))],
    }
    if variant:
        document["variant"] = variant[0]
    config_blob = to_json(document)
    manifest: dict[str, object] = {
        "schemaVersion": 2,
        "mediaType": DOCKER_MANIFEST if docker else OCI_MANIFEST,
        "config": descriptor(DOCKER_CONFIG if docker else OCI_CONFIG, config_blob),
        "layers": [layer.descriptor for layer in built],
    }
    if annotations:
        manifest["annotations"] = dict(annotations)
    blobs = {sha256(layer.blob): layer.blob for layer in built}
    blobs[sha256(config_blob)] = config_blob
    return Image(str(manifest["mediaType"]), to_json(manifest), blobs, platform=platform)


def build_index(images: Sequence[Image], *, docker: bool = False) -> Image:
    """Return an index of *images*, each with its platform."""
    media_type = DOCKER_INDEX if docker else OCI_INDEX
    body = {
        "schemaVersion": 2,
        "mediaType": media_type,
        "manifests": [image.descriptor for image in images],
    }
    return Image(media_type, to_json(body), children=tuple(images))


def to_json(document: object) -> bytes:
    """Return compact JSON, keys in the order given."""
    return json.dumps(document, separators=(",", ":")).encode()


def push(
    registry: str | HasAddress,
    name: str,
    image: Image | Sequence[LayerSource],
    *,
    tag: str = "latest",
) -> str:
    """Upload *image* (or an image of these layers) and return its reference `host:port/name:tag`."""
    address = registry if isinstance(registry, str) else registry.address
    address = address.removeprefix("http://").rstrip("/")
    whole = image if isinstance(image, Image) else build_image(image)
    connection = http.client.HTTPConnection(address, timeout=_HTTP_TIMEOUT_S)
    try:
        _push_image(connection, name, whole, tag)
    finally:
        connection.close()
    return f"{address}/{name}:{tag}"


def push_blob(address: str, name: str, digest: str, data: bytes) -> None:
    """Upload *data* to the registry at *address* as a blob of the repository *name*, without any manifest."""
    connection = http.client.HTTPConnection(address, timeout=_HTTP_TIMEOUT_S)
    try:
        _push_blob(connection, name, digest, data)
    finally:
        connection.close()


def write_layout(directory: Path, image: Image | Sequence[LayerSource], *, tag: str = "latest") -> Path:
    """Write *image* as *tag* into the OCI image layout *directory* and return the directory."""
    whole = image if isinstance(image, Image) else build_image(image)
    blobs = directory / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    (directory / "oci-layout").write_bytes(to_json({"imageLayoutVersion": "1.0.0"}))
    for each in (whole, *whole.children):
        for digest, data in {**each.blobs, each.digest: each.manifest}.items():
            (blobs / digest.removeprefix("sha256:")).write_bytes(data)
    entry = descriptor(whole.media_type, whole.manifest) | {"annotations": {"org.opencontainers.image.ref.name": tag}}
    index = directory / "index.json"
    present = json.loads(index.read_bytes())["manifests"] if index.exists() else []
    others = [other for other in present if other["annotations"] != entry["annotations"]]
    index.write_bytes(to_json({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [*others, entry]}))
    return directory


def _push_image(connection: http.client.HTTPConnection, name: str, image: Image, reference: str) -> None:
    for child in image.children:
        _push_image(connection, name, child, child.digest)
    for digest, data in image.blobs.items():
        _push_blob(connection, name, digest, data)
    path = f"/v2/{name}/manifests/{reference}"
    _request(connection, "PUT", path, 201, image.manifest, image.media_type)


def _push_blob(connection: http.client.HTTPConnection, name: str, digest: str, data: bytes) -> None:
    response = _request(connection, "POST", f"/v2/{name}/blobs/uploads/", 202)
    location = urlsplit(response.getheader("Location", ""))
    query = f"{location.query}&digest={digest}" if location.query else f"digest={digest}"
    _request(connection, "PUT", f"{location.path}?{query}", 201, data, "application/octet-stream")


def _request(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    expected: int,
    body: bytes = b"",
    media_type: str = "",
) -> http.client.HTTPResponse:
    headers = {"Content-Type": media_type} if media_type else {}
    connection.request(method, path, body=body, headers=headers)
    response = connection.getresponse()
    answer = response.read()
    if response.status != expected:
        raise AssertionError(f"{method} {path}: {response.status} {answer[:200]!r}")
    return response


# --- layers with everything in them -----------------------------------------------------------


def plain_layer(files: int = 3, size: int = 1000, *, seed: int = 0) -> dict[str, Node | bytes | None]:
    """A small ordinary layer: *files* files of *size* bytes of repeatable, compressible content."""
    entries: dict[str, Node | bytes | None] = {"data/": None}
    for number in range(files):
        entries[f"data/file-{number:05}"] = pattern(size, seed=seed * 1_000_003 + number)
    return entries


def pattern(size: int, *, seed: int = 0) -> bytes:
    """Return *size* repeatable bytes that compress to about a half and differ for every seed."""
    hasher = hashlib.shake_128(b"pattern %d" % seed)
    half = hasher.digest(size // 2 + 1)
    return half.hex().encode()[:size]
