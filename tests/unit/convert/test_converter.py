"""Whole conversions, from one OCI layout to another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.support.images import (
    Image,
    Layer,
    build_image,
    build_index,
    build_layer,
    descriptor,
    pattern,
    plain_layer,
    sha256,
    to_json,
    write_layout,
)
from tests.support.tarball import Node, hardlink
from tests.support.torture import base_layer, crowded_layer, deep_image, torture_image, torture_layer
from tests.unit.convert.helpers import blob, convert_layout, gunzip, members_of_tar

from apparate.convert.layout import LayoutTarget
from apparate.errors import (
    AlreadyExists,
    ApparateError,
    FailedPrecondition,
    FormatError,
    IntegrityError,
    NotFound,
    Unsupported,
)
from apparate.format.prefetch import PrefetchRange
from apparate.format.toc import Compression
from apparate.oci import names
from apparate.oci.digest import Digest
from apparate.oci.manifest import Platform


def top(layout: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The entry of index.json and the document it names."""
    entries = json.loads((layout / "index.json").read_bytes())["manifests"]
    (entry,) = [e for e in entries if e["annotations"]["org.opencontainers.image.ref.name"] == "converted"]
    return entry, json.loads(blob(layout, entry["digest"]))


def document(layout: Path, digest: str) -> dict[str, Any]:
    return dict(json.loads(blob(layout, digest)))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tmp_path / "source"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "target"


def test_the_result_unpacks_to_what_the_source_does(source: Path, target: Path) -> None:
    write_layout(source, torture_image())
    result = convert_layout(source, target)
    layers = [base_layer(), torture_layer(), {}]
    assert len(result.images[0].layers) == len(layers)
    base = members_of_tar(gunzip(build_layer(base_layer()).blob))
    added: list[dict[bytes, dict[str, object]]] = [{}, {b"replaced": base[b"replaced"]}, {}]  # implied by the torture
    for entries, more, layer in zip(layers, added, result.images[0].layers, strict=True):
        tar = gunzip(blob(target, layer.layer.digest))
        assert Digest.of(tar) == layer.diff_id
        assert members_of_tar(tar) == members_of_tar(gunzip(build_layer(entries).blob)) | more


def test_configuration_and_manifest_keep_what_is_not_ours(source: Path, target: Path) -> None:
    image = build_image(
        [plain_layer()],
        config={"Cmd": ["/x"], "Env": ["A=ü"], "Labels": {"k": "v"}, "OnBuild": None},
        annotations={"org.opencontainers.image.base.name": "debian:12"},
    )
    write_layout(source, image, tag="v1")
    result = convert_layout(source, target)
    entry, manifest = top(target)
    assert entry["mediaType"] == manifest["mediaType"] == names.OCI_MANIFEST
    assert entry["digest"] == str(result.digest)
    assert "subject" not in manifest
    assert manifest["annotations"]["org.opencontainers.image.base.name"] == "debian:12"
    assert manifest["annotations"][names.SOURCE_DIGEST] == image.digest
    assert manifest["config"]["mediaType"] == names.OCI_CONFIG
    old = json.loads(image.blobs[json.loads(image.manifest)["config"]["digest"]])
    new = document(target, manifest["config"]["digest"])
    assert new["rootfs"]["diff_ids"] == [str(layer.diff_id) for layer in result.images[0].layers]
    assert {**new, "rootfs": None} == {**old, "rootfs": None}
    (layer,) = manifest["layers"]
    assert layer["mediaType"] == names.OCI_LAYER_GZIP
    assert layer["annotations"][names.TOC_DIGEST].startswith("sha256:")


@pytest.mark.parametrize("docker", [False, True])
@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
def test_every_kind_of_source_gives_the_same_layers(source: Path, target: Path, docker: bool, compression: str) -> None:
    write_layout(source, build_image([plain_layer()], docker=docker, compression=compression))
    result = convert_layout(source, target)
    _, manifest = top(target)
    assert manifest["layers"][0]["mediaType"] == names.OCI_LAYER_GZIP
    expected = build_image([plain_layer()])
    write_layout(source / "other", expected)
    other = convert_layout(source / "other", target / "other")
    assert [layer.layer for layer in result.images[0].layers] == [layer.layer for layer in other.images[0].layers]


def test_the_same_source_and_options_give_the_same_digests(source: Path, target: Path) -> None:
    write_layout(source, torture_image(), tag="v1")
    digests = {convert_layout(source, target / str(n), threads=n).digest for n in (1, 2, 5)}
    assert len(digests) == 1
    assert convert_layout(source, target / "other", level=1).digest not in digests


def platforms() -> Image:
    shared = build_layer(plain_layer(seed=7))
    images = [
        build_image([shared, plain_layer(seed=n)], platform=platform)
        for n, platform in enumerate(("linux/arm64/v8", "linux/amd64"))
    ]
    return build_index(images)


def test_all_platforms_are_converted_and_shared_layers_once(source: Path, target: Path) -> None:
    image = platforms()
    write_layout(source, image)
    result = convert_layout(source, target)
    entry, index = top(target)
    assert entry["mediaType"] == index["mediaType"] == names.OCI_INDEX
    assert index["annotations"][names.SOURCE_DIGEST] == image.digest
    assert [m["platform"]["architecture"] for m in index["manifests"]] == ["arm64", "amd64"]
    assert [str(one.platform) for one in result.images] == ["linux/arm64/v8", "linux/amd64"]
    base = {one.layers[0].layer.digest for one in result.images}
    assert len(base) == 1
    assert [layer.uploaded for one in result.images for layer in one.layers] == [True] * 4
    for described, child in zip(index["manifests"], image.children, strict=True):
        manifest = document(target, described["digest"])
        assert manifest["annotations"][names.SOURCE_DIGEST] == child.digest


def test_a_chosen_platform_of_an_index_stays_in_an_index(source: Path, target: Path) -> None:
    write_layout(source, platforms())
    result = convert_layout(source, target, platforms=(Platform("linux", "amd64"),))
    _, index = top(target)
    assert [m["platform"]["architecture"] for m in index["manifests"]] == ["amd64"]
    assert result.left_out == (("linux/arm64/v8", "not asked for"),)


def test_an_index_inside_an_index_is_followed(source: Path, target: Path) -> None:
    inner = platforms()
    body = {"schemaVersion": 2, "mediaType": names.OCI_INDEX, "manifests": [inner.descriptor]}
    write_layout(source, inner)
    write_layout(source, Image(names.OCI_INDEX, to_json(body), {inner.digest: inner.manifest}), tag="outer")
    assert len(convert_layout(source, target, tag="outer").images) == 2


def test_a_second_run_finds_nothing_to_do(source: Path, target: Path) -> None:
    write_layout(source, build_image([plain_layer()]))
    first = convert_layout(source, target)
    assert first.changed
    second = convert_layout(source, target)
    assert not second.changed
    assert second.digest == first.digest
    assert second.images == ()


def test_layers_that_are_there_are_not_stored_again(source: Path, target: Path) -> None:
    write_layout(source, build_image([plain_layer()]), tag="one")
    convert_layout(source, target)
    write_layout(source, build_image([plain_layer(), plain_layer(seed=1)]), tag="two")
    result = convert_layout(source, target, tag="two", replace=True)
    assert [layer.uploaded for layer in result.images[0].layers] == [False, True]


def test_a_layer_that_occurs_twice_is_converted_once(source: Path, target: Path) -> None:
    write_layout(source, build_image([plain_layer(), {}, plain_layer(), {}]))
    layers = convert_layout(source, target).images[0].layers
    assert layers[0] is layers[2]
    assert layers[1] is layers[3]


def test_an_image_without_layers(source: Path, target: Path) -> None:
    write_layout(source, build_image([]))
    assert convert_layout(source, target).images[0].layers == ()
    assert top(target)[1]["layers"] == []


def test_an_image_of_120_layers(source: Path, target: Path) -> None:
    write_layout(source, deep_image())
    assert len(convert_layout(source, target).images[0].layers) == 120


def test_a_directory_of_many_entries(source: Path, target: Path) -> None:
    write_layout(source, build_image([crowded_layer(3_000)]))
    assert convert_layout(source, target).images[0].layers[0].entries == 3_002  # and the directory, and a landmark


def test_zstd_layers(source: Path, target: Path) -> None:
    write_layout(source, torture_image())
    result = convert_layout(source, target, compression=Compression.ZSTD)
    _, manifest = top(target)
    assert {layer["mediaType"] for layer in manifest["layers"]} == {names.OCI_LAYER_ZSTD}
    assert result.images[0].layers[1].entries > 60


# --- prefetch --------------------------------------------------------------------------------


def toc_names(tar: bytes) -> list[bytes]:
    return list(members_of_tar(tar))


def test_prefetched_files_come_first_in_the_layer_that_shows_them(source: Path, target: Path) -> None:
    lower = {"a": b"lower a", "b": pattern(300_000), "c": b"c"}
    upper: dict[str, Node | bytes | None] = {"a": b"upper a", "z": b"z", "link": hardlink("z")}
    write_layout(source, build_image([lower, upper]))
    ranges = (PrefetchRange(b"c"), PrefetchRange(b"z"), PrefetchRange(b"a"), PrefetchRange(b"b", 100_000, 10))
    layers = convert_layout(source, target, prefetch=ranges).images[0].layers
    below, above = (gunzip(blob(target, layer.layer.digest)) for layer in layers)
    assert toc_names(below) == [b"c", b"b", b"a"]
    assert toc_names(above) == [b"z", b"a", b"link"]
    assert all(layer.prefetch_size for layer in layers)


def test_a_list_that_names_nothing_of_a_layer_makes_it_cold(source: Path, target: Path) -> None:
    write_layout(source, build_image([{"big": pattern(1_000_000)}]))
    layer = convert_layout(source, target / "1").images[0].layers[0]
    cold = convert_layout(source, target / "2", prefetch=()).images[0].layers[0]
    assert cold.prefetch_size == layer.prefetch_size == 0
    assert cold.members < layer.members


def test_the_prefetch_list_shows_in_what_is_up_to_date(source: Path, target: Path) -> None:
    write_layout(source, build_image([plain_layer()]))
    convert_layout(source, target)
    assert convert_layout(source, target, prefetch=(PrefetchRange(b"data/file-00001"),), replace=True).changed


# --- bad input: nothing is changed -----------------------------------------------------------


def refused(source: Path, target: Path, error: type[ApparateError], words: str, **options: Any) -> None:
    before = (target / "index.json").read_bytes() if (target / "index.json").exists() else None
    with pytest.raises(error, match=words):
        convert_layout(source, target, **options)
    after = (target / "index.json").read_bytes() if (target / "index.json").exists() else None
    assert before == after


def test_a_tag_that_holds_something_else_is_refused(source: Path, target: Path) -> None:
    write_layout(source, build_image([plain_layer()]))
    write_layout(target, build_image([plain_layer(seed=9)]), tag="converted")
    refused(source, target, AlreadyExists, "exists and is another image .* --replace")
    assert not list(target.glob("blobs/sha256/.new-*"))
    assert convert_layout(source, target, replace=True).changed


def test_a_result_of_another_source_is_refused_and_one_of_the_same_source_renewed(source: Path, target: Path) -> None:
    write_layout(source, build_image([plain_layer()]), tag="v1")
    write_layout(source, build_image([plain_layer(seed=2)]), tag="v2")
    convert_layout(source, target, tag="v1")
    refused(source, target, AlreadyExists, "accelerated from another source", tag="v2")
    write_layout(source, build_image([plain_layer(seed=3)]), tag="v1")
    assert convert_layout(source, target, tag="v1").changed


def test_an_accelerated_source_is_refused(source: Path, target: Path) -> None:
    write_layout(source, platforms())
    convert_layout(source, target)
    refused(target, target / "again", FailedPrecondition, "accelerated already", tag="converted")


def test_an_image_another_tool_accelerated_is_converted_on_request_only(source: Path, target: Path) -> None:
    image = build_image([plain_layer()])
    manifest = json.loads(image.manifest)
    manifest["layers"][0]["annotations"] = {names.TOC_DIGEST: sha256(b"toc")}
    write_layout(source, Image(image.media_type, to_json(manifest), image.blobs))
    refused(source, target, FailedPrecondition, "--reconvert")
    assert convert_layout(source, target, reconvert=True).changed


def test_a_foreign_platform_is_refused(source: Path, target: Path) -> None:
    write_layout(source, build_image([plain_layer()], platform="windows/amd64"))
    refused(source, target, Unsupported, "only Linux")
    refused(source, target, NotFound, "no image for linux/amd64", platforms=(Platform("linux", "amd64"),))


def test_an_unknown_layer_type_is_refused(source: Path, target: Path) -> None:
    odd = Layer(b"wasm", "application/vnd.wasm.content.layer.v1+wasm", sha256(b"wasm"))
    write_layout(source, build_image([plain_layer(), odd]))
    refused(source, target, Unsupported, "layer 2 of 2 is of type 'application/vnd.wasm")
    assert not list(target.glob("blobs/*/*"))


def test_an_artifact_is_refused(source: Path, target: Path) -> None:
    image = build_image([])
    manifest = json.loads(image.manifest)
    manifest["config"]["mediaType"] = "application/vnd.cncf.helm.config.v1+json"
    write_layout(source, Image(image.media_type, to_json(manifest), image.blobs))
    refused(source, target, Unsupported, "no container image.*helm")


def test_a_missing_source_is_named(source: Path, target: Path) -> None:
    refused(source, target, NotFound, str(source))


def replaced_layer(image: Image, data: bytes) -> Image:
    """The same image with the bytes of its last layer replaced, digest and all as they were."""
    last = json.loads(image.manifest)["layers"][-1]["digest"]
    return Image(image.media_type, image.manifest, {**image.blobs, last: data})


def test_a_damaged_layer_stops_everything(source: Path, target: Path) -> None:
    image = build_image([plain_layer(seed=n) for n in range(6)])
    last = json.loads(image.manifest)["layers"][-1]
    write_layout(source, replaced_layer(image, bytes(last["size"])))
    refused(source, target, IntegrityError, str(last["digest"]))
    write_layout(source, replaced_layer(image, b""))
    refused(source, target, FormatError, "size")


def test_a_layer_that_lies_about_its_diff_id_is_refused(source: Path, target: Path) -> None:
    honest = build_layer(plain_layer())
    write_layout(source, build_image([Layer(honest.blob, honest.media_type, sha256(b"other"))]))
    refused(source, target, IntegrityError, "DiffID")


def test_a_hostile_tar_is_refused(source: Path, target: Path) -> None:
    write_layout(source, build_image([{"dir": hardlink("missing")}]))
    refused(source, target, FormatError, "missing")


def test_a_config_with_another_number_of_layers_is_refused(source: Path, target: Path) -> None:
    image = build_image([plain_layer()])
    manifest = json.loads(image.manifest)
    manifest["layers"] = []
    write_layout(source, Image(image.media_type, to_json(manifest), image.blobs))
    refused(source, target, FormatError, "diff_ids")


def test_a_config_that_is_too_large_is_not_read(source: Path, target: Path) -> None:
    image = build_image([plain_layer()])
    manifest = json.loads(image.manifest)
    manifest["config"] = descriptor(names.OCI_CONFIG, b"{}") | {"size": 1 << 40}
    write_layout(source, Image(image.media_type, to_json(manifest), image.blobs))
    refused(source, target, FormatError, "config.size")


def test_a_name_that_changes_meanwhile_is_not_overwritten(
    source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_layout(source, build_image([plain_layer()]))
    put = LayoutTarget.put_manifest

    def interfering(self: LayoutTarget, body: bytes, media_type: str) -> None:
        monkeypatch.undo()
        put(self, body, media_type)
        write_layout(target, build_image([plain_layer(seed=5)]), tag="converted")

    monkeypatch.setattr(LayoutTarget, "put_manifest", interfering)
    with pytest.raises(AlreadyExists, match="changed by somebody else"):
        convert_layout(source, target)
