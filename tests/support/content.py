"""What a registry holds and what it has handed out, asked directly over HTTP."""

from __future__ import annotations

import json
import re
import urllib.request
from dataclasses import dataclass
from typing import Any

from tests.support.distribution import Registry
from tests.support.images import Image, descriptor, push, sha256

_ACCEPT = ", ".join(
    (
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
    )
)
_SERVED = re.compile(r'"GET /v2/\S+/blobs/(\S+) HTTP/1\.[01]" (\d+) (\d+)')


@dataclass(frozen=True, slots=True)
class Stored:
    """An image of one platform as a registry holds it."""

    repository: str
    media_type: str
    manifest: dict[str, Any]
    config: dict[str, Any]

    @property
    def layers(self) -> list[dict[str, Any]]:
        """Descriptors, base first."""
        return list(self.manifest["layers"])

    @property
    def digests(self) -> list[str]:
        return [str(layer["digest"]) for layer in self.layers]

    @property
    def size(self) -> int:
        """Compressed bytes of all layers."""
        return sum(int(layer["size"]) for layer in self.layers)


def stored(reference: str) -> Stored:
    """The image `host:port/repository:tag` of a registry without TLS; of an index, the first platform."""
    address, _, rest = reference.partition("/")
    repository, _, tag = rest.rpartition(":")
    manifest, media_type = _get(f"http://{address}/v2/{repository}/manifests/{tag}")
    if "manifests" in manifest:
        first = manifest["manifests"][0]["digest"]
        manifest, media_type = _get(f"http://{address}/v2/{repository}/manifests/{first}")
    config, _ = _get(f"http://{address}/v2/{repository}/blobs/{manifest['config']['digest']}")
    return Stored(repository, media_type, manifest, config)


def blob(address: str, repository: str, digest: str) -> bytes:
    """The bytes of one blob."""
    with urllib.request.urlopen(f"http://{address}/v2/{repository}/blobs/{digest}", timeout=60) as answer:
        return bytes(answer.read())


def served_bytes(registry: Registry, digests: list[str]) -> int:
    """Bytes of these blobs that *registry* has sent so far, by its own access log."""
    wanted = set(digests)
    total = 0
    for line in registry.requests("GET"):
        found = _SERVED.search(line)
        if found and found[1] in wanted:
            total += int(found[3])
    return total


def with_layer_of(registry: Registry, converted: str, source: str, number: int, name: str) -> str:
    """Push the image *converted* with its layer *number* taken from *source*, where it is an ordinary layer."""
    one, other = stored(converted), stored(source)
    manifest, config = json.loads(json.dumps(one.manifest)), json.loads(json.dumps(one.config))
    manifest["layers"][number] = other.layers[number]
    config["rootfs"]["diff_ids"][number] = other.config["rootfs"]["diff_ids"][number]
    blobs = {}
    for place, layer in enumerate(manifest["layers"]):
        origin = other if place == number else one
        blobs[str(layer["digest"])] = blob(registry.address, origin.repository, str(layer["digest"]))
    raw = json.dumps(config).encode()
    manifest["config"] = descriptor(str(manifest["config"]["mediaType"]), raw)
    blobs[sha256(raw)] = raw
    return push(registry, name, Image(one.media_type, json.dumps(manifest).encode(), blobs))


def _get(url: str) -> tuple[dict[str, Any], str]:
    request = urllib.request.Request(url, headers={"Accept": _ACCEPT})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read()), str(answer.headers["Content-Type"])
