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
) -> Record:
    labels = {names.CRI_IMAGE_REF: reference, names.CRI_LAYER_DIGEST: str(layer)} if layer else {}
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
