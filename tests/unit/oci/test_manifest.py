import json

import pytest

from apparate.errors import FormatError, InvalidArgument
from apparate.oci import names
from apparate.oci.digest import Digest
from apparate.oci.manifest import (
    CONFIG_BYTES_MAX,
    LAYERS_MAX,
    MANIFEST_BYTES_MAX,
    Descriptor,
    ImageConfig,
    Index,
    Manifest,
    Platform,
    chain_ids,
    parse_manifest,
)

AMD64 = Platform("linux", "amd64")
CONFIG = Descriptor.of(b"{}", names.OCI_CONFIG)
LAYER = Descriptor(names.OCI_LAYER_GZIP, Digest.of(b"layer"), 5, {"b": "2", "a": "1"})


def test_manifest_survives_writing_and_parsing() -> None:
    manifest = Manifest(CONFIG, (LAYER, LAYER), {"k": "v"})
    assert parse_manifest(manifest.to_json()) == manifest
    assert manifest.to_json() == manifest.to_json()


def test_index_survives_writing_and_parsing() -> None:
    platform = Platform("linux", "arm64", "v8")
    index = Index((Descriptor(names.OCI_MANIFEST, Digest.of(b"m"), 1, {}, platform),))
    assert parse_manifest(index.to_json()) == index


def test_content_type_tells_what_a_body_without_media_type_is() -> None:
    body = json.dumps({"schemaVersion": 2, "config": CONFIG.to_json(), "layers": []}).encode()
    parsed = parse_manifest(body, f"{names.DOCKER_MANIFEST}; charset=utf-8")
    assert isinstance(parsed, Manifest)
    assert parsed.media_type == names.DOCKER_MANIFEST


def _with(**changes: object) -> bytes:
    value: dict[str, object] = {
        "schemaVersion": 2,
        "mediaType": names.OCI_MANIFEST,
        "config": CONFIG.to_json(),
        "layers": [LAYER.to_json()],
    }
    value.update(changes)
    return json.dumps(value).encode()


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"<html>", "body"),
        (b"[]", "body"),
        (b"[" * 100_000, "body"),
        (_with(layers={}), "layers"),
        (_with(layers=[LAYER.to_json()] * (LAYERS_MAX + 1)), "layers"),
        (_with(manifests=[]), "mediaType"),
        (_with(mediaType="text/html"), "mediaType"),
        (_with(config=None), "config"),
        (_with(config={**CONFIG.to_json(), "size": -1}), "config.size"),
        (_with(config={**CONFIG.to_json(), "size": True}), "config.size"),
        (_with(config={**CONFIG.to_json(), "digest": "sha256:zz"}), "config.digest"),
        (_with(layers=[{**LAYER.to_json(), "annotations": {"a": 1}}]), "layers.annotations"),
        (_with(layers=[{**LAYER.to_json(), "urls": "x"}]), "layers.urls"),
        (_with(mediaType=names.DOCKER_MANIFEST_V1), "schemaVersion"),
        (b" " * (MANIFEST_BYTES_MAX + 1), "size"),
    ],
)
def test_wrong_manifest_is_refused_by_field(body: bytes, field: str) -> None:
    with pytest.raises(FormatError) as caught:
        parse_manifest(body)
    assert caught.value.field == field


def test_config_gives_platform_and_diff_ids() -> None:
    ids = [str(Digest.of(b"1")), str(Digest.of(b"2"))]
    body = json.dumps({"os": "linux", "architecture": "amd64", "rootfs": {"diff_ids": ids}, "x": 1}).encode()
    config = ImageConfig.parse(body)
    assert config.platform == AMD64
    assert [str(item) for item in config.diff_ids] == ids
    assert config.raw["x"] == 1


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"{}", "rootfs"),
        (b'{"rootfs": {"diff_ids": 1}}', "rootfs.diff_ids"),
        (b'{"rootfs": {"diff_ids": ["x"]}}', "rootfs.diff_ids"),
        (b'{"os": 1, "rootfs": {"diff_ids": []}}', "platform"),
        (b" " * (CONFIG_BYTES_MAX + 1), "size"),
    ],
)
def test_wrong_config_is_refused_by_field(body: bytes, field: str) -> None:
    with pytest.raises(FormatError) as caught:
        ImageConfig.parse(body)
    assert caught.value.field == field


def test_chain_ids_follow_the_specification() -> None:
    first, second = Digest.of(b"1"), Digest.of(b"2")
    assert chain_ids([first, second]) == [first, Digest.of(f"{first} {second}".encode())]
    assert chain_ids([]) == []


def test_platform_text_and_matching() -> None:
    arm = Platform.parse("linux/arm64/v8")
    assert str(arm) == "linux/arm64/v8"
    assert arm.matches(Platform.parse("linux/arm64"))
    assert not arm.matches(Platform.parse("linux/arm64/v9"))
    assert not arm.matches(AMD64)
    with pytest.raises(InvalidArgument):
        Platform.parse("linux")
