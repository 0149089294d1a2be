from apparate.oci import names
from apparate.oci.digest import Digest
from apparate.snapshot.inventory import find, images
from apparate.snapshot.model import Info, Kind, Origin, Record, SnapshotId

A, B, C = (Digest.of(name) for name in (b"a", b"b", b"c"))


def _record(
    number: int,
    parent: int | None,
    layer: Digest | None,
    *,
    reference: str = "r.example/app:v1",
    origin: Origin = Origin.LAZY,
    kind: Kind = Kind.COMMITTED,
    reason: str = "",
    promised: bool = False,
) -> Record:
    labels = {names.CRI_IMAGE_REF: reference, names.CRI_LAYER_DIGEST: str(layer)} if layer else {}
    if promised:
        labels[names.TOC_DIGEST] = str(A)
    info = Info(f"s{number}", f"s{parent}" if parent else "", kind, 0, 0, labels)
    lazy = layer if origin is Origin.LAZY and kind is Kind.COMMITTED else None
    parent_id = SnapshotId(parent) if parent else None
    return Record(SnapshotId(number), info, parent_id, origin, lazy, reason)


def test_image_is_its_top_snapshot_with_all_ancestors() -> None:
    records = [
        _record(1, None, A),
        _record(2, 1, B, origin=Origin.UNPACKED, reason="no table of contents"),
        _record(3, 2, None, kind=Kind.ACTIVE, origin=Origin.ORDINARY),
    ]
    (image,) = images(records)
    assert image.reference == "r.example/app:v1"
    assert [layer.layer_digest for layer in image.layers] == [A, B]
    assert image.layers[1].reason == "no table of contents"
    assert image.containers == 1
    assert not image.is_lazy


def test_base_that_another_image_brought_is_a_layer_of_both() -> None:
    records = [_record(1, None, A, reference="r.example/base:1"), _record(2, 1, C, reference="r.example/app:v2")]
    base_image, app = sorted(images(records), key=lambda image: len(image.layers))
    assert [layer.layer_digest for layer in base_image.layers] == [A]
    assert [layer.layer_digest for layer in app.layers] == [A, C]
    assert app.is_lazy


def test_image_is_found_by_any_form_of_its_reference() -> None:
    found = images([_record(1, None, A, reference="docker.io/library/app:latest")])
    assert find(found, "app") == found
    assert find(found, "app:v2") == []


def test_snapshot_without_image_is_listed_without_reference() -> None:
    (image,) = images([_record(1, None, None, origin=Origin.ORDINARY)])
    assert image.reference == ""
    assert image.layers[0].layer_digest is None


def test_an_image_without_any_table_of_contents_is_ordinary_whatever_its_reasons() -> None:
    reason = "the image has no table of contents for this layer"
    records = [_record(n, n - 1 or None, layer, origin=Origin.ORDINARY, reason=reason) for n, layer in ((1, A), (2, B))]
    (image,) = images(records)
    assert not image.is_accelerated
    assert [image.is_fallback(layer) for layer in image.layers] == [False, False]


def test_an_image_that_promises_and_was_unpacked_all_the_same_is_a_fallback() -> None:
    records = [
        _record(1, None, A, origin=Origin.ORDINARY, reason="the registry is away", promised=True),
        _record(2, 1, B, origin=Origin.ORDINARY, reason="no table of contents"),
    ]
    (image,) = images(records)
    assert image.is_accelerated
    assert [image.is_fallback(layer) for layer in image.layers] == [True, True]


def test_the_odd_layers_of_a_lazy_image_are_fallbacks() -> None:
    records = [
        _record(1, None, A, origin=Origin.UNPACKED, reason="no table of contents"),
        _record(2, 1, B),
        _record(3, 2, C, origin=Origin.ORDINARY, reason="no table of contents"),
    ]
    (image,) = images(records)
    assert [image.is_fallback(layer) for layer in image.layers] == [True, False, True]
