from __future__ import annotations

import pytest

from apparate.errors import InvalidArgument
from apparate.oci import names
from apparate.oci.digest import Digest
from apparate.snapshot.labels import annotations_of, layer_of, promises_lazy, target_of, without_empty

A, B, M = (Digest.of(letter) for letter in (b"a", b"b", b"m"))
TARGET = {names.TARGET_SNAPSHOT: "sha256:chain"}


@pytest.mark.parametrize(
    ("key", "target"),
    [
        ("k8s.io/12/extract-1700000-abcd sha256:chain", "sha256:chain"),
        ("extract-1700000-abcd sha256:chain", "sha256:chain"),
        ("k8s.io/12/3f0a9c2e", ""),
        ("3f0a9c2e", ""),
        ("k8s.io/12/k8s.io/13/extract-1", ""),
        ("extract-in-a-namespace/12/3f0a9c2e", ""),
    ],
)
def test_only_an_unpackers_key_has_a_target(key: str, target: str) -> None:
    assert target_of(key, TARGET) == target


def test_without_the_label_there_is_no_target() -> None:
    assert target_of("k8s.io/12/extract-1 c", {}) == ""


def test_labels_of_cri_name_the_layer() -> None:
    labels = {
        names.CRI_IMAGE_REF: "docker.io/library/app:1",
        names.CRI_LAYER_DIGEST: str(A),
        names.CRI_MANIFEST_DIGEST: str(M),
        names.CRI_IMAGE_LAYERS: f"{A},{B}",
    }
    layer = layer_of(labels)
    assert layer is not None
    assert (layer.reference, layer.layer_digest, layer.manifest_digest) == ("docker.io/library/app:1", A, M)
    assert layer.layers_upward == (A, B)


def test_labels_of_stargz_clients_name_the_layer() -> None:
    labels = {names.REMOTE_REFERENCE: "r", names.REMOTE_DIGEST: str(A), names.REMOTE_LAYERS: str(A)}
    layer = layer_of(labels)
    assert layer is not None
    assert (layer.reference, layer.layer_digest, layer.manifest_digest, layer.layers_upward) == ("r", A, None, (A,))


def test_a_list_that_was_cut_is_used_as_far_as_it_goes() -> None:
    labels = {names.CRI_IMAGE_REF: "r", names.CRI_LAYER_DIGEST: str(A), names.CRI_IMAGE_LAYERS: f"{A},{str(B)[:20]}"}
    layer = layer_of(labels)
    assert layer is not None
    assert layer.layers_upward == (A,)


def test_no_labels_name_no_layer() -> None:
    assert layer_of({}) is None
    assert layer_of({names.CRI_IMAGE_REF: "r"}) is None
    assert layer_of({names.CRI_LAYER_DIGEST: str(A)}) is None


def test_a_layer_digest_that_is_none_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="digest"):
        layer_of({names.CRI_IMAGE_REF: "r", names.CRI_LAYER_DIGEST: "md5:00"})


def test_annotations_are_what_has_the_prefix() -> None:
    labels = {names.TOC_DIGEST: "x", "other": "y", names.TARGET_SNAPSHOT: "z"}
    assert annotations_of(labels) == {names.TOC_DIGEST: "x"}


def test_a_table_of_contents_is_a_promise() -> None:
    assert promises_lazy({names.TOC_DIGEST: "x"})
    assert promises_lazy({names.ZSTD_CHUNKED_CHECKSUM: "x"})
    assert not promises_lazy({names.CRI_IMAGE_REF: "x"})


def test_empty_values_are_dropped() -> None:
    assert without_empty({"a": "", "b": "c"}) == {"b": "c"}
