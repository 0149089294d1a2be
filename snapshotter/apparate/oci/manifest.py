"""Manifests, indexes and image configurations as values, in OCI's and Docker's spelling.

Sources: OCI image specification 1.1 (manifest.md, image-index.md, config.md), Docker image manifest V2, schema 2.
Parsing is strict where a wrong value could mislead us (digests, sizes, types) and keeps unknown keys out: what we write
is what we understand.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from apparate.errors import FormatError, InvalidArgument
from apparate.oci import names
from apparate.oci.digest import Digest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MANIFEST_BYTES_MAX = 4 * 1024 * 1024
"""Registries accept no larger manifest (distribution specification: at least 4 MiB must be accepted)."""
CONFIG_BYTES_MAX = 8 * 1024 * 1024
"""As containerd limits the configuration it reads into memory."""
LAYERS_MAX = 512
"""overlayfs stacks at most 500 lower directories; no image with more can run."""
SIZE_MAX = 1 << 53
"""Sizes are JSON numbers; beyond this they lose digits."""

JsonObject = dict[str, object]


@dataclass(frozen=True, slots=True)
class Platform:
    """What an image runs on (image-index.md, "platform")."""

    os: str
    architecture: str
    variant: str = ""
    os_version: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the platform written `os/architecture[/variant]`.

        Raises:
            InvalidArgument: not two or three non-empty parts.
        """
        parts = text.split("/")
        if len(parts) not in {2, 3} or not all(parts):
            raise InvalidArgument(
                f"platform {text!r}: write os/architecture or os/architecture/variant, as linux/amd64"
            )
        return cls(*parts)

    def matches(self, wanted: Platform) -> bool:
        """Whether an image for this platform serves one who asks for *wanted*: an unnamed variant matches any."""
        same = (self.os, self.architecture) == (wanted.os, wanted.architecture)
        return same and (not wanted.variant or not self.variant or self.variant == wanted.variant)

    def to_json(self) -> JsonObject:
        """Return the JSON object, optional keys only where they say something."""
        out: JsonObject = {"architecture": self.architecture, "os": self.os}
        if self.os_version:
            out["os.version"] = self.os_version
        if self.variant:
            out["variant"] = self.variant
        return out

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A reference to content by type, digest and size (descriptor.md)."""

    media_type: str
    digest: Digest
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict)
    platform: Platform | None = None
    artifact_type: str = ""
    urls: tuple[str, ...] = ()

    @classmethod
    def of(cls, body: bytes, media_type: str) -> Self:
        """Return the descriptor of *body*."""
        return cls(media_type, Digest.of(body), len(body))

    def to_json(self) -> JsonObject:
        """Return the JSON object, optional keys only where they say something."""
        out: JsonObject = {"mediaType": self.media_type, "digest": str(self.digest), "size": self.size}
        if self.urls:
            out["urls"] = list(self.urls)
        if self.annotations:
            out["annotations"] = dict(sorted(self.annotations.items()))
        if self.platform is not None:
            out["platform"] = self.platform.to_json()
        if self.artifact_type:
            out["artifactType"] = self.artifact_type
        return out


@dataclass(frozen=True, slots=True)
class Manifest:
    """An image for one platform."""

    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = field(default_factory=dict)
    media_type: str = names.OCI_MANIFEST

    def to_json(self) -> bytes:
        """Return the body; the same value always gives the same bytes."""
        out: JsonObject = {
            "schemaVersion": 2,
            "mediaType": self.media_type,
            "config": self.config.to_json(),
            "layers": [layer.to_json() for layer in self.layers],
        }
        if self.annotations:
            out["annotations"] = dict(sorted(self.annotations.items()))
        return dump_json(out)


@dataclass(frozen=True, slots=True)
class Index:
    """Images for several platforms."""

    manifests: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = field(default_factory=dict)
    media_type: str = names.OCI_INDEX

    def to_json(self) -> bytes:
        """Return the body; the same value always gives the same bytes."""
        out: JsonObject = {
            "schemaVersion": 2,
            "mediaType": self.media_type,
            "manifests": [manifest.to_json() for manifest in self.manifests],
        }
        if self.annotations:
            out["annotations"] = dict(sorted(self.annotations.items()))
        return dump_json(out)


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """The part of an image configuration that we use; `raw` keeps the whole object (config.md)."""

    platform: Platform
    diff_ids: tuple[Digest, ...]
    raw: Mapping[str, object]

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """Return the configuration in *body*.

        Raises:
            FormatError: not a JSON object of the right shape; the error names the field.
        """
        if len(body) > CONFIG_BYTES_MAX:
            raise FormatError("image config", "size", f"{len(body)} bytes, at most {CONFIG_BYTES_MAX} are read")
        raw = _load(body, "image config")
        rootfs = raw.get("rootfs")
        if not isinstance(rootfs, dict):
            raise FormatError("image config", "rootfs", "is missing or no object")
        ids = rootfs.get("diff_ids")
        if not isinstance(ids, list) or len(ids) > LAYERS_MAX:
            raise FormatError("image config", "rootfs.diff_ids", f"is missing, no list, or longer than {LAYERS_MAX}")
        diff_ids = tuple(_digest(item, "image config", "rootfs.diff_ids") for item in ids)
        return cls(_platform(raw, "image config"), diff_ids, raw)


def parse_manifest(body: bytes, media_type: str | None = None) -> Manifest | Index:
    """Return what *body* describes; *media_type* is the Content-Type, used where the body names none.

    Raises:
        FormatError: not a manifest or index of a known kind; the error names the field.
    """
    if len(body) > MANIFEST_BYTES_MAX:
        raise FormatError("manifest", "size", f"{len(body)} bytes, at most {MANIFEST_BYTES_MAX} are read")
    raw = _load(body, "manifest")
    kind = _kind(raw, media_type)
    annotations = _annotations(raw, "manifest")
    if kind in names.INDEX_TYPES:
        manifests = _list(raw, "manifests")
        return Index(tuple(_descriptor(item, "manifests") for item in manifests), annotations, kind)
    layers = _list(raw, "layers")
    if len(layers) > LAYERS_MAX:
        raise FormatError("manifest", "layers", f"{len(layers)} layers, at most {LAYERS_MAX} can be stacked")
    config = _descriptor(raw.get("config"), "config")
    return Manifest(config, tuple(_descriptor(item, "layers") for item in layers), annotations, kind)


def chain_ids(diff_ids: Sequence[Digest]) -> list[Digest]:
    """Return the chain id of each prefix of *diff_ids* (config.md, "Layer ChainID")."""
    out: list[Digest] = []
    for diff_id in diff_ids:
        out.append(Digest("sha256", hashlib.sha256(f"{out[-1]} {diff_id}".encode()).hexdigest()) if out else diff_id)
    return out


def dump_json(value: Mapping[str, object]) -> bytes:
    """Return *value* as compact JSON, keys in the given order, text as UTF-8."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _load(body: bytes, what: str) -> JsonObject:
    try:
        value = json.loads(body)
        # Half a surrogate pair is no character, and cannot be written again.
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise FormatError(what, "body", f"is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise FormatError(what, "body", "is no JSON object")
    return value


def _kind(raw: JsonObject, media_type: str | None) -> str:
    named = raw.get("mediaType") or (media_type or "").partition(";")[0].strip()
    if not isinstance(named, str):
        raise FormatError("manifest", "mediaType", "is no string")
    if named in names.INDEX_TYPES | names.MANIFEST_TYPES:
        # A body that is one thing and calls itself another is how digests of confused manifests are abused (CVE-2021-41190).
        if ("layers" in raw) and ("manifests" in raw):
            raise FormatError("manifest", "mediaType", "the body has layers and manifests at once")
        return named
    if named in {"", "application/json", "application/octet-stream"}:
        return names.OCI_INDEX if "manifests" in raw else names.OCI_MANIFEST
    if named == names.DOCKER_MANIFEST_V1 or raw.get("schemaVersion") == 1:
        raise FormatError("manifest", "schemaVersion", "1 is not read; push the image again with a current client")
    raise FormatError("manifest", "mediaType", f"{named!r} is neither an image manifest nor an index")


def _list(raw: JsonObject, key: str) -> list[object]:
    value = raw.get(key)
    if value is None and key == "layers":
        return []
    if not isinstance(value, list):
        raise FormatError("manifest", key, "is missing or no list")
    return value


def _digest(value: object, what: str, key: str) -> Digest:
    if not isinstance(value, str):
        raise FormatError(what, key, "is no digest")
    try:
        return Digest.parse(value)
    except InvalidArgument as error:
        raise FormatError(what, key, str(error)) from error


def _annotations(raw: JsonObject, where: str) -> dict[str, str]:
    value = raw.get("annotations")
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise FormatError("manifest", f"{where}.annotations", "is no object of strings")
    return value


def _platform(raw: Mapping[str, object], what: str) -> Platform:
    texts = [raw.get(key, "") for key in ("os", "architecture", "variant", "os.version")]
    if not all(isinstance(text, str) for text in texts):
        raise FormatError(what, "platform", "os, architecture, variant and os.version are strings")
    return Platform(*(str(text) for text in texts))


def _descriptor(value: object, where: str) -> Descriptor:
    if not isinstance(value, dict):
        raise FormatError("manifest", where, "has an entry that is no descriptor")
    media_type, size = value.get("mediaType", ""), value.get("size")
    if not isinstance(media_type, str):
        raise FormatError("manifest", f"{where}.mediaType", "is no string")
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= SIZE_MAX:
        raise FormatError("manifest", f"{where}.size", f"{size!r} is no number of bytes")
    platform = value.get("platform")
    if platform is not None and not isinstance(platform, dict):
        raise FormatError("manifest", f"{where}.platform", "is no object")
    urls = value.get("urls") or []
    if not isinstance(urls, list) or not all(isinstance(url, str) for url in urls):
        raise FormatError("manifest", f"{where}.urls", "is no list of strings")
    return Descriptor(
        media_type,
        _digest(value.get("digest"), "manifest", f"{where}.digest"),
        size,
        _annotations(value, where),
        None if platform is None else _platform(platform, f"manifest {where}"),
        str(value.get("artifactType") or ""),
        tuple(urls),
    )
