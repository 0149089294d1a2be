import json
from pathlib import Path

import pytest

from apparate.oci import names
from apparate.oci.digest import Digest
from apparate.snapshot.content import ContentStore

LAYER = Digest.of(b"layer")
MANIFEST = json.dumps(
    {
        "schemaVersion": 2,
        "config": {"mediaType": names.OCI_CONFIG, "digest": str(Digest.of(b"{}")), "size": 2},
        "layers": [
            {"mediaType": names.OCI_LAYER_GZIP, "digest": str(LAYER), "size": 5, "annotations": {names.TOC_DIGEST: "x"}}
        ],
        "mediaType": names.OCI_MANIFEST,
    }
).encode()


def store(folder: Path, digest: Digest, body: bytes) -> ContentStore:
    blobs = folder / "io.containerd.content.v1.content" / "blobs" / digest.algorithm
    blobs.mkdir(parents=True)
    (blobs / digest.hex).write_bytes(body)
    return ContentStore(folder / "io.containerd.snapshotter.v1.apparate")


def test_the_layers_of_a_manifest_that_containerd_has(tmp_path: Path) -> None:
    digest = Digest.of(MANIFEST)
    (layer,) = store(tmp_path, digest, MANIFEST).layers(digest) or ()
    assert (layer.digest, layer.size, layer.annotations) == (LAYER, 5, {names.TOC_DIGEST: "x"})


def test_a_manifest_that_is_not_there_is_the_registrys(tmp_path: Path) -> None:
    assert ContentStore(tmp_path / "root").layers(Digest.of(MANIFEST)) is None


@pytest.mark.parametrize("body", [MANIFEST[:-2], b"", MANIFEST.replace(b"layer", b"player")])
def test_bytes_that_are_not_the_manifest_are_not_believed(tmp_path: Path, body: bytes) -> None:
    digest = Digest.of(MANIFEST)
    assert store(tmp_path, digest, body).layers(digest) is None


@pytest.mark.parametrize("body", [b"[]", b"{}", json.dumps({"mediaType": names.OCI_INDEX, "manifests": []}).encode()])
def test_what_is_no_manifest_of_one_image_has_no_layers(tmp_path: Path, body: bytes) -> None:
    digest = Digest.of(body)
    assert store(tmp_path, digest, body).layers(digest) is None
