"""Directories without an entry get the attributes that containerd's unpacking gives them."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.images import build_image, build_index, build_layer, write_layout
from tests.support.tarball import EPOCH_NS, Node, directory, file, symlink
from tests.unit.convert.helpers import blob, convert_layout, gunzip, members_of_tar, spooled

from apparate.convert.implied import Survey, directories_from_below, with_directories
from apparate.format.formats import layer_format_for
from apparate.format.prefetch import PrefetchRange
from apparate.format.toc import Compression, Entry, EntryType
from apparate.format.writer import LayerOptions

Items = dict[str, Node | bytes | None]


def surveys(tmp_path: Path, *layers: Items) -> list[Survey]:
    found = []
    for layer in layers:
        spool = spooled(build_layer(layer), tmp_path)
        found.append(Survey.of(source.entry for source in spool.entries))
        spool.close()
    return found


def looks(tmp_path: Path, *layers: Items) -> dict[bytes, tuple[int, int, int]]:
    """Mode and owner of the directories that the last of *layers* implies, where those below give any."""
    *below, upper = surveys(tmp_path, *layers)
    return {entry.path: (entry.mode, entry.uid, entry.gid) for entry in directories_from_below(upper, below)}


def test_directory_of_the_layer_below_is_taken_with_all_its_attributes(tmp_path: Path) -> None:
    look = directory(mode=0o2711, uid=3, gid=4, mtime_ns=EPOCH_NS + 7, xattrs={"user.a": b"1"})
    *below, upper = surveys(tmp_path, {"etc/": look}, {"etc/passwd": b"root\n"})
    (entry,) = directories_from_below(upper, below)
    assert (entry.path, entry.type, entry.mode, entry.uid, entry.gid) == (b"etc", EntryType.DIR, 0o2711, 3, 4)
    assert (entry.mtime_ns, dict(entry.xattrs)) == (EPOCH_NS + 7, {b"user.a": b"1"})


def test_topmost_layer_that_names_the_directory_decides(tmp_path: Path) -> None:
    layers: list[Items] = [
        {"a/": directory(mode=0o700), "a/b/": directory(uid=1)},
        {"a/": directory(mode=0o750)},
        {"a/file": b""},
        {"a/b/file": b""},
    ]
    assert looks(tmp_path, *layers) == {b"a": (0o750, 0, 0), b"a/b": (0o755, 1, 0)}


def test_directory_that_no_layer_names_stays_implied(tmp_path: Path) -> None:
    assert looks(tmp_path, {"a/file": b""}, {"b/": None}, {"a/other": b"", "c/d/e": b""}) == {}


def test_directory_with_an_entry_of_its_own_is_left_alone_wherever_the_entry_is(tmp_path: Path) -> None:
    below: Items = {"a/": directory(mode=0o700)}
    before: Items = {"a/": directory(mode=0o711), "a/file": b""}
    behind: Items = {"a/file": b"", "a/": directory(mode=0o711)}
    assert looks(tmp_path, below, before) == looks(tmp_path, below, behind) == {}


@pytest.mark.parametrize("replacement", [{".wh.a": b""}, {"a": b"a file"}])
def test_directory_that_was_replaced_in_between_is_a_new_one(tmp_path: Path, replacement: Items) -> None:
    below: Items = {"a/": directory(mode=0o700), "a/b/": directory(mode=0o700)}
    assert looks(tmp_path, below, replacement, {"a/b/file": b""}) == {}
    again: Items = {"a/": directory(mode=0o711)}
    assert looks(tmp_path, below, replacement, again, {"a/file": b""}) == {b"a": (0o711, 0, 0)}


def test_emptied_directory_below_still_gives_what_it_hides(tmp_path: Path) -> None:
    """An opaque mark is no entry of the directory below it, and containerd looks at each layer by itself."""
    below: Items = {"a/": None, "a/b/": directory(mode=0o700)}
    assert looks(tmp_path, below, {"a/.wh..wh..opq": b""}, {"a/b/file": b""})[b"a/b"] == (0o700, 0, 0)


@pytest.mark.parametrize("target", ["usr/lib", "/usr/lib", "./usr/../usr/lib/", "../../usr/lib"])
def test_symbolic_links_of_a_layer_are_followed_within_it(tmp_path: Path, target: str) -> None:
    below: Items = {"usr/lib/": directory(mode=0o711), "usr/lib/x/": directory(uid=5), "lib": symlink(target)}
    assert looks(tmp_path, below, {"lib/x/file": b""}) == {b"lib": (0o711, 0, 0), b"lib/x": (0o755, 5, 0)}


def test_dangling_link_is_as_nothing_and_a_link_to_a_file_as_a_file(tmp_path: Path) -> None:
    below: Items = {"a/": directory(mode=0o700)}
    assert looks(tmp_path, below, {"a": symlink("nowhere")}, {"a/file": b""}) == {b"a": (0o700, 0, 0)}
    to_file: Items = {"a": symlink("f"), "f": b""}
    assert looks(tmp_path, below, to_file, {"a/file": b""}) == {}


def test_circle_of_links_ends(tmp_path: Path) -> None:
    assert looks(tmp_path, {"a": symlink("b"), "b": symlink("a")}, {"a/file": b""}) == {}


def test_entries_are_put_in_front_of_what_they_hold(tmp_path: Path) -> None:
    spool = spooled(build_layer({"x": b"", "a/b/one": b"", "a/b/two": b"", "c/three": b""}), tmp_path)
    added = [Entry(path, EntryType.DIR) for path in (b"a/b", b"a", b"c")]
    complete = with_directories(spool.entries, added)
    paths = [item.entry.path for item in complete]
    assert paths == [b"x", b"a", b"a/b", b"a/b/one", b"a/b/two", b"c", b"c/three"]
    assert [item for item in complete if item.entry not in added] == spool.entries
    spool.close()


def images(upper: Items) -> list[Items]:
    base: Items = {"etc/": directory(mode=0o711, uid=3), "etc/a": b"a"}
    return [base, {"etc/b": b"b"}, upper]


@pytest.mark.parametrize("compression", list(Compression))
@pytest.mark.parametrize("prefetch", [None, (PrefetchRange(b"etc/passwd"), PrefetchRange(b"etc/a"))])
def test_converted_layer_has_an_entry_for_what_the_source_implies(
    tmp_path: Path, compression: Compression, prefetch: tuple[PrefetchRange, ...] | None
) -> None:
    write_layout(tmp_path / "source", build_image(images({"etc/passwd": b"root\n", "new/file": b"x"})))
    results = {
        threads: convert_layout(
            tmp_path / "source",
            tmp_path / f"target{threads}",
            threads=threads,
            compression=compression,
            prefetch=prefetch,
        )
        for threads in (1, 4)
    }
    assert results[1].digest == results[4].digest
    if compression is not Compression.GZIP:
        return
    for layer in results[1].images[0].layers:
        tree = members_of_tar(gunzip(blob(tmp_path / "target1", layer.layer.digest)))
        assert (tree[b"etc"]["mode"], tree[b"etc"]["owner"]) == (0o711, (3, 0))
        assert b"new" not in tree


@pytest.mark.parametrize("prefetch", [None, (PrefetchRange(b"etc/passwd"),)])
def test_layer_on_different_bases_is_made_for_each(tmp_path: Path, prefetch: tuple[PrefetchRange, ...] | None) -> None:
    upper: Items = {"etc/passwd": file(b"root\n")}
    modes = {"amd64": 0o711, "arm64": 0o700, "s390x": 0o711}
    built = []
    for name, mode in modes.items():
        base: Items = {"etc/": directory(mode=mode), name: b""}
        built.append(build_image([base, upper], platform=f"linux/{name}"))
    write_layout(tmp_path / "source", build_index(built))
    result = convert_layout(tmp_path / "source", tmp_path / "target", prefetch=prefetch)
    made = [image.layers[1] for image in result.images]
    assert made[0].source.digest == made[1].source.digest
    assert made[0].layer.digest == made[2].layer.digest != made[1].layer.digest


def test_plan_takes_new_headers(tmp_path: Path) -> None:
    spool = spooled(build_layer({"a/file": b"x"}), tmp_path)
    complete = with_directories(spool.entries, [Entry(b"a", EntryType.DIR, 0o700)])
    plan = layer_format_for(Compression.GZIP, LayerOptions()).plan(complete, None)
    spool.close()
    assert [entry.path for entry in plan.entries if entry.path.startswith(b"a")] == [b"a", b"a/file"]
