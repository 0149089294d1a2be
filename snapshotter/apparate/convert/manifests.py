"""The documents of a converted image: configuration, manifest, index. Pure but for reading the configuration."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Final

from apparate.errors import AlreadyExists, FormatError, Unsupported
from apparate.oci import names
from apparate.oci.digest import Verifier
from apparate.oci.manifest import CONFIG_BYTES_MAX, Descriptor, ImageConfig, Index, Manifest, dump_json, parse_manifest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from apparate.convert.result import LayerResult
    from apparate.convert.settings import ConvertOptions
    from apparate.convert.stores import ImageSource, StoredManifest

OPTIONS: Final = "com.tencent.cloud.apparate.options"
"""Annotation: what the image was converted with (`ConvertOptions.identity`), so that the same work is not done twice."""


def read_config(source: ImageSource, descriptor: Descriptor, name: str) -> ImageConfig:
    """Return the configuration of an image, verified.

    Raises:
        Unsupported: the manifest is of something else than an image.
        IntegrityError: it does not hash to its digest.
        FormatError: too large, or no image configuration.
    """
    if descriptor.media_type not in names.CONFIG_TYPES:
        raise Unsupported(f"{name} is no container image: its configuration is of type {descriptor.media_type!r}")
    if descriptor.size > CONFIG_BYTES_MAX:
        raise FormatError("manifest", "config.size", f"{descriptor.size} bytes, at most {CONFIG_BYTES_MAX} are read")
    verifier = Verifier(descriptor.digest, f"config of {name}")
    body = bytearray()
    with source.blob(descriptor) as chunks:
        for chunk in chunks:
            verifier.update(chunk)
            body += chunk
            if len(body) > descriptor.size:
                raise FormatError("image config", "size", f"is more than the {descriptor.size} bytes of its descriptor")
    verifier.finish()
    return ImageConfig.parse(bytes(body))


def converted_config(config: ImageConfig, layers: Sequence[LayerResult]) -> bytes:
    """Return the configuration of the result: the source's, with the new DiffIDs."""
    diff_ids = [str(layer.diff_id) for layer in layers]
    return dump_json({**config.raw, "rootfs": {"type": "layers", "diff_ids": diff_ids}})


def source_annotations(recorded_name: str, source: Descriptor, options: str) -> dict[str, str]:
    """Return what tells where a result came from; by these, never by its tag, an accelerated image is known."""
    annotations = {names.SOURCE_DIGEST: str(source.digest), OPTIONS: options}
    if recorded_name:
        annotations[names.SOURCE_REFERENCE] = recorded_name
    return annotations


def converted_manifest(
    manifest: Manifest, config: bytes, layers: Sequence[LayerResult], annotations: Mapping[str, str]
) -> Manifest:
    """Return the manifest of the result: OCI types, the source's own annotations kept."""
    return Manifest(
        config=Descriptor.of(config, names.OCI_CONFIG),
        layers=tuple(layer.layer for layer in layers),
        annotations={**manifest.annotations, **annotations},
    )


def converted_index(index: Index, manifests: Sequence[Descriptor], annotations: Mapping[str, str]) -> Index:
    """Return the index of the result."""
    return Index(tuple(manifests), {**index.annotations, **annotations})


def converted_entry(source: Descriptor, body: bytes, config: ImageConfig) -> Descriptor:
    """Return the entry of the result's index for the manifest *body*; the platform as the source said it."""
    descriptor = Descriptor.of(body, names.OCI_MANIFEST)
    return dataclasses.replace(descriptor, platform=source.platform or config.platform, annotations=source.annotations)


def check_target(current: StoredManifest, annotations: Mapping[str, str], name: str, options: ConvertOptions) -> bool:
    """Return whether there is anything to do where the target's name stands for *current* now: False, it is that very result.

    *annotations* are what the result will carry. A result of ours makes way for a newer one of the same source reference.

    Raises:
        AlreadyExists: it is something else, and `options.replace` is not set.
    """
    try:
        found = parse_manifest(current.body, current.descriptor.media_type).annotations
    except FormatError:  # something, but no image: none of ours
        found = {}
    if all(found.get(key) == value for key, value in annotations.items()):
        return False
    source = annotations.get(names.SOURCE_REFERENCE)
    if options.replace or (source and found.get(names.SOURCE_REFERENCE) == source):
        return True
    what = "an image that was accelerated from another source" if names.SOURCE_DIGEST in found else "another image"
    raise AlreadyExists(
        f"{name} exists and is {what} ({current.descriptor.digest}); give another target, or add --replace to overwrite it"
    )
