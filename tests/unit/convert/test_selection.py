"""Which images are converted, which are refused, and to which layer a prefetch range belongs."""

from __future__ import annotations

import pytest

from apparate.convert.selection import (
    Claims,
    check_layers,
    choose,
    concerning,
    listed_paths,
    refuse_accelerated,
    refuse_lazy,
    require_platform,
)
from apparate.errors import FailedPrecondition, FormatError, NotFound, Unsupported
from apparate.format.prefetch import PrefetchRange
from apparate.format.toc import Entry, EntryType
from apparate.oci import names
from apparate.oci.digest import Digest
from apparate.oci.manifest import Descriptor, ImageConfig, Index, Manifest, Platform

AMD64 = Platform("linux", "amd64")
ARM64 = Platform("linux", "arm64", "v8")
WINDOWS = Platform("windows", "amd64")


def described(platform: Platform | None, media_type: str = names.OCI_MANIFEST, **annotations: str) -> Descriptor:
    return Descriptor(media_type, Digest.of(str(platform).encode()), 100, annotations, platform)


def index(*entries: Descriptor) -> Index:
    return Index(entries)


def test_all_linux_platforms_are_chosen_in_their_order() -> None:
    choice = choose(index(described(ARM64), described(WINDOWS), described(AMD64)), (), "app")
    assert [entry.platform for entry in choice.chosen] == [ARM64, AMD64]
    assert choice.left_out == (("windows/amd64", "only Linux images can be accelerated"),)


def test_a_platform_without_its_variant_matches_any() -> None:
    choice = choose(index(described(AMD64), described(ARM64)), [Platform("linux", "arm64")], "app")
    assert [entry.platform for entry in choice.chosen] == [ARM64]
    assert choice.left_out == (("linux/amd64", "not asked for"),)


def test_attestations_are_left_out_and_are_no_platform() -> None:
    statement = Descriptor(
        names.OCI_MANIFEST,
        Digest.of(b"statement"),
        100,
        {"vnd.docker.reference.type": "attestation-manifest"},
        Platform("unknown", "unknown"),
    )
    choice = choose(index(described(AMD64), statement), (), "app")
    assert [entry.platform for entry in choice.chosen] == [AMD64]
    assert "attestation" in choice.left_out[0][1]


def test_a_platform_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(NotFound, match="app has no image for linux/s390x; it has linux/amd64, linux/arm64/v8"):
        choose(index(described(AMD64), described(ARM64)), [Platform("linux", "s390x")], "app")


def test_an_index_for_windows_alone_is_refused() -> None:
    with pytest.raises(Unsupported, match="only Linux"):
        choose(index(described(WINDOWS)), (), "app")
    with pytest.raises(Unsupported, match="it is empty"):
        choose(index(), (), "app")


def test_a_single_image_for_another_platform_is_refused() -> None:
    with pytest.raises(NotFound, match="it has linux/amd64"):
        require_platform(ImageConfig(AMD64, (), {}), [ARM64], "app")
    with pytest.raises(Unsupported, match="windows/amd64"):
        require_platform(ImageConfig(WINDOWS, (), {}), [], "app")
    require_platform(ImageConfig(AMD64, (), {}), [AMD64], "app")


def test_what_we_made_is_refused_with_its_source() -> None:
    made = {names.SOURCE_DIGEST: "sha256:x", names.SOURCE_REFERENCE: "host/app:v1"}
    with pytest.raises(FailedPrecondition, match=r"accelerated already.*host/app:v1"):
        refuse_accelerated(made, "host/app:v1-apparate")
    refuse_accelerated({}, "host/app:v1-apparate")


def manifest(*layers: Descriptor) -> Manifest:
    return Manifest(Descriptor.of(b"{}", names.OCI_CONFIG), layers)


def layer(number: int, media_type: str = names.OCI_LAYER_GZIP, **annotations: str) -> Descriptor:
    return Descriptor(media_type, Digest.of(b"%d" % number), 10, annotations)


@pytest.mark.parametrize("key", [names.TOC_DIGEST, names.ZSTD_CHUNKED_CHECKSUM, names.OLD_ZSTD_CHUNKED_CHECKSUM])
def test_an_image_of_lazy_layers_is_refused_and_one_with_an_ordinary_layer_is_not(key: str) -> None:
    lazy = [layer(0, **{key: "sha256:x"}), layer(1, **{key: "sha256:y"})]
    with pytest.raises(FailedPrecondition, match="--reconvert"):
        refuse_lazy(manifest(*lazy), "app")
    refuse_lazy(manifest(*lazy, layer(2)), "app")
    refuse_lazy(manifest(), "app")


def test_an_unknown_layer_type_is_refused_by_its_place() -> None:
    config = ImageConfig(AMD64, (Digest.of(b"0"), Digest.of(b"1")), {})
    check_layers(manifest(layer(0), layer(1, names.DOCKER_LAYER)), config, "app")
    with pytest.raises(Unsupported, match=r"layer 2 of 2 is of type 'application/vnd\.erofs"):
        check_layers(manifest(layer(0), layer(1, "application/vnd.erofs.layer.v1")), config, "app")
    with pytest.raises(FormatError, match="2 entries for 1 layers"):
        check_layers(manifest(layer(0)), config, "app")


def entry(path: str, kind: EntryType = EntryType.REG) -> Entry:
    return Entry(path.encode(), kind)


def take(claims: Claims, *entries: Entry) -> list[bytes]:
    return [item.path for item in claims.take(entries)]


def claims(*paths: str) -> Claims:
    return Claims([PrefetchRange(path.encode()) for path in paths])


def test_a_range_belongs_to_the_topmost_layer_that_has_the_path() -> None:
    both = claims("b", "a", "c")
    assert take(both, entry("a"), entry("b")) == [b"b", b"a"]
    assert take(both, entry("a"), entry("c")) == [b"c"]
    assert both.key == frozenset()


def test_several_ranges_of_a_path_keep_their_order() -> None:
    ranges = [PrefetchRange(b"a", 8, 1), PrefetchRange(b"b", 0, 1), PrefetchRange(b"a", 0, 1)]
    assert Claims(ranges).take([entry("b"), entry("a")]) == ranges


@pytest.mark.parametrize(
    "upper",
    [
        entry("dir/.wh.file"),
        entry(".wh.dir"),
        entry("dir/.wh..wh..opq"),
        entry("dir/file", EntryType.SYMLINK),
        entry("dir"),
    ],
)
def test_what_an_upper_layer_hides_is_not_looked_for_below(upper: Entry) -> None:
    hidden = claims("dir/file", "other")
    assert take(hidden, upper) == []
    assert take(hidden, entry("dir/file"), entry("other")) == [b"other"]


def test_paths_that_are_no_files_of_the_image_are_told() -> None:
    some = claims("a", "link", "gone", "nowhere", "dir")
    take(some, entry("link", EntryType.SYMLINK), entry(".wh.gone"), entry("dir", EntryType.DIR))
    take(some, entry("a"), entry("gone"), entry("link"))
    assert some.missed == [b"link", b"gone", b"nowhere", b"dir"]


def test_a_directory_of_an_upper_layer_hides_nothing() -> None:
    visible = claims("dir/file")
    assert take(visible, entry("dir", EntryType.DIR)) == []
    assert take(visible, entry("dir/file")) == [b"dir/file"]


def test_a_whiteout_and_its_siblings_of_one_layer_go_together() -> None:
    same = claims("dir/file")
    assert take(same, entry("dir/.wh..wh..opq"), entry("dir/file")) == [b"dir/file"]


def test_entries_that_do_not_concern_a_list_change_nothing() -> None:
    listed = listed_paths([PrefetchRange(b"a/b/file"), PrefetchRange(b"c")])
    entries = [
        entry("a/.wh.b"),
        entry("a/b/other"),
        entry("a/b/.wh..wh..opq"),
        entry(".wh.c"),
        entry("c"),
        entry("a/b", EntryType.SYMLINK),
        entry("d/.wh..wh..opq"),
        entry("a", EntryType.DIR),
        entry("file"),
    ]
    kept = concerning(entries, listed)
    assert [one.path for one in kept] == [b"a/.wh.b", b"a/b/.wh..wh..opq", b".wh.c", b"c", b"a/b"]
    assert concerning([entry(".wh..wh..opq")], listed) != []
    assert concerning(entries, listed_paths([])) == []
    for size in range(len(entries) + 1):
        every, some = claims("a/b/file", "c"), claims("a/b/file", "c")
        assert every.take(entries[:size]) == some.take(concerning(entries[:size], listed))
        assert (every.key, every.missed) == (some.key, some.missed)
