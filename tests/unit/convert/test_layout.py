"""OCI layouts: read as others write them, written so that nobody ever sees half of one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.images import build_image, plain_layer, write_layout

from apparate.convert.layout import LayoutSource, LayoutTarget
from apparate.convert.stores import LayoutImage, RegistryImage, parse_location
from apparate.errors import FailedPrecondition, FormatError, IntegrityError, InvalidArgument, NotFound
from apparate.oci import names
from apparate.oci.manifest import Descriptor, Manifest

BODY = b"content of a blob"
DESCRIPTOR = Descriptor.of(BODY, "application/octet-stream")
MANIFEST = Manifest(Descriptor.of(b"{}", names.OCI_CONFIG), ()).to_json()


def test_the_only_image_needs_no_tag(tmp_path: Path) -> None:
    image = build_image([plain_layer()])
    write_layout(tmp_path, image, tag="v1")
    assert LayoutSource(tmp_path, None).root().body == image.manifest
    assert LayoutSource(tmp_path, "v1").root().descriptor.digest.hex == image.digest.removeprefix("sha256:")


def test_among_several_images_a_tag_is_asked_for(tmp_path: Path) -> None:
    for tag in ("v1", "v2"):
        write_layout(tmp_path, build_image([plain_layer(seed=len(tag))]), tag=tag)
    with pytest.raises(InvalidArgument, match=r"2 images \(v1, v2\)"):
        LayoutSource(tmp_path, None).root()
    with pytest.raises(NotFound, match="no tag 'v3'; it has v1, v2"):
        LayoutSource(tmp_path, "v3").root()


def test_what_is_no_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no OCI image layout"):
        LayoutSource(tmp_path, None).root()
    (tmp_path / "oci-layout").write_text('{"imageLayoutVersion": "2.0.0"}')
    with pytest.raises(FormatError, match=r"'2\.0\.0'"):
        LayoutSource(tmp_path, None).root()
    (tmp_path / "oci-layout").write_text("[]")
    with pytest.raises(FormatError, match="oci-layout"):
        LayoutSource(tmp_path, None).root()


def test_a_manifest_is_verified(tmp_path: Path) -> None:
    image = build_image([plain_layer()])
    write_layout(tmp_path, image)
    path = tmp_path / "blobs" / "sha256" / image.digest.removeprefix("sha256:")
    path.write_bytes(image.manifest.replace(b"linux", b"linus") + b" ")
    with pytest.raises(IntegrityError):
        LayoutSource(tmp_path, None).root()


def test_a_missing_blob_is_named(tmp_path: Path) -> None:
    write_layout(tmp_path, build_image([]))
    with pytest.raises(NotFound, match=DESCRIPTOR.digest.hex), LayoutSource(tmp_path, None).blob(DESCRIPTOR):
        pass


def test_a_blob_gets_its_name_when_it_is_whole(tmp_path: Path) -> None:
    target = LayoutTarget(tmp_path, "v1")
    with pytest.raises(IntegrityError):
        target.put(DESCRIPTOR, lambda: [b"something else"])

    def broken() -> Iterator[bytes]:
        yield BODY[:5]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        target.put(DESCRIPTOR, broken)
    assert not target.has(DESCRIPTOR)
    assert list((tmp_path / "blobs" / "sha256").iterdir()) == []
    target.put(DESCRIPTOR, lambda: [BODY[:5], BODY[5:]])
    assert target.has(DESCRIPTOR)
    with LayoutSource(tmp_path, None).blob(DESCRIPTOR) as chunks:
        assert b"".join(chunks) == BODY


def test_a_blob_of_the_wrong_size_is_not_there(tmp_path: Path) -> None:
    target = LayoutTarget(tmp_path, "v1")
    target.put(DESCRIPTOR, lambda: [BODY])
    (tmp_path / "blobs" / "sha256" / DESCRIPTOR.digest.hex).write_bytes(BODY[:5])
    assert not target.has(DESCRIPTOR)


def test_publishing_replaces_the_tag_and_keeps_the_others(tmp_path: Path) -> None:
    write_layout(tmp_path, build_image([plain_layer()]), tag="other")
    target = LayoutTarget(tmp_path, "v1")
    assert target.current() is None
    target.publish(MANIFEST, names.OCI_MANIFEST)
    target.publish(MANIFEST, names.OCI_MANIFEST)
    current = target.current()
    assert current is not None
    assert current.body == MANIFEST
    entries = json.loads((tmp_path / "index.json").read_bytes())["manifests"]
    assert [entry["annotations"]["org.opencontainers.image.ref.name"] for entry in entries] == ["other", "v1"]


def test_a_new_layout_is_a_layout(tmp_path: Path) -> None:
    LayoutTarget(tmp_path / "new", None).publish(MANIFEST, names.OCI_MANIFEST)
    assert json.loads((tmp_path / "new" / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    assert LayoutSource(tmp_path / "new", "latest").root().body == MANIFEST


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(FailedPrecondition, match="file"):
        LayoutTarget(tmp_path / "file", None).put(DESCRIPTOR, lambda: [BODY])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("dir", LayoutImage(Path("dir"), None)),
        ("dir:v1", LayoutImage(Path("dir"), "v1")),
        ("/a:b/c", LayoutImage(Path("/a:b/c"), None)),
        ("/a:b/c:v2", LayoutImage(Path("/a:b/c"), "v2")),
    ],
)
def test_layout_locations(text: str, expected: LayoutImage) -> None:
    assert parse_location(text, layout=True) == expected


def test_registry_locations() -> None:
    place = parse_location("alpine", layout=False)
    assert isinstance(place, RegistryImage)
    assert str(place) == "docker.io/library/alpine:latest"
    with pytest.raises(InvalidArgument):
        parse_location("team/UPPER", layout=False)
    with pytest.raises(InvalidArgument, match="DIRECTORY"):
        parse_location(":tag", layout=True)
