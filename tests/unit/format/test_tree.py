"""A TOC becomes the tree that containerd's unpacking of the same tar gives; what that would refuse, we refuse."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apparate.errors import FormatError
from apparate.format import tree as tree_module
from apparate.format.toc import Chunk, Compression, Entry, EntryType, TableOfContents
from apparate.format.tree import Node, Tree, build_tree

REG, DIR, LINK, SYM, CHAR = EntryType.REG, EntryType.DIR, EntryType.HARDLINK, EntryType.SYMLINK, EntryType.CHAR


def grow(*entries: Entry) -> Tree:
    return build_tree(TableOfContents(list(entries), [], Compression.GZIP))


def paths(tree: Tree) -> dict[bytes, Node]:
    return dict(tree.walk())


def file(path: bytes, *, size: int = 0, uid: int = 0, gid: int = 0, mtime_ns: int = 0) -> Entry:
    return Entry(path, REG, 0o644, uid, gid, size, mtime_ns)


def link(path: bytes, target: bytes) -> Entry:
    return Entry(path, LINK, link=target)


def test_missing_parents_are_made_as_root_owns_them() -> None:
    nodes = paths(grow(file(b"a/b/c")))
    assert list(nodes) == [b"", b"a", b"a/b", b"a/b/c"]
    for path in (b"", b"a", b"a/b"):
        node = nodes[path]
        assert (node.type, node.mode, node.uid, node.gid, node.mtime_ns) == (DIR, 0o755, 0, 0, 0)


def test_missing_directory_takes_the_group_of_a_set_group_id_parent() -> None:
    nodes = paths(grow(Entry(b"a", DIR, 0o2770, uid=5, gid=6), file(b"a/b/c/d")))
    assert (nodes[b"a/b"].mode, nodes[b"a/b"].uid, nodes[b"a/b"].gid) == (0o755, 0, 6)
    assert (nodes[b"a/b/c"].mode, nodes[b"a/b/c"].gid) == (0o755, 0)


def test_an_entry_for_the_root_changes_nothing() -> None:
    root = grow(Entry(b"", DIR, 0o700, uid=5)).root
    assert (root.mode, root.uid) == (0o755, 0)


def test_the_last_of_two_files_wins() -> None:
    assert paths(grow(file(b"a", size=1), file(b"a", size=2)))[b"a"].size == 2


def test_a_second_directory_keeps_the_children_and_gives_its_attributes() -> None:
    first = Entry(b"d", DIR, 0o700, xattrs={b"user.a": b"1", b"user.b": b"1"})
    second = Entry(b"d", DIR, 0o711, uid=3, xattrs={b"user.b": b"2"})
    nodes = paths(grow(first, file(b"d/x"), second))
    assert set(nodes) == {b"", b"d", b"d/x"}
    assert (nodes[b"d"].mode, nodes[b"d"].uid) == (0o711, 3)
    assert dict(nodes[b"d"].xattrs) == {b"user.a": b"1", b"user.b": b"2"}


def test_a_file_replaces_a_directory_with_all_below_it() -> None:
    tree = grow(file(b"d/e/f"), file(b"d"), file(b"x"))
    assert set(paths(tree)) == {b"", b"d", b"x"}
    assert tree.inode_count == 3
    assert tree.root.nlink == 2


def test_a_directory_replaces_a_file() -> None:
    assert paths(grow(file(b"d"), Entry(b"d", DIR, 0o755), file(b"d/x")))[b"d"].type is DIR


def test_directories_count_their_child_directories() -> None:
    nodes = paths(grow(file(b"a/b/c"), Entry(b"a/d", DIR), file(b"a/f")))
    assert (nodes[b""].nlink, nodes[b"a"].nlink, nodes[b"a/b"].nlink) == (3, 4, 2)


def test_linked_names_share_one_inode() -> None:
    nodes = paths(grow(file(b"a", size=3), link(b"b", b"a"), link(b"c", b"b")))
    assert nodes[b"a"] is nodes[b"b"] is nodes[b"c"]
    assert nodes[b"a"].nlink == 3


def test_a_links_attributes_are_applied_to_the_inode() -> None:
    linked = Entry(b"b", LINK, 0o600, uid=4, mtime_ns=7, link=b"a", xattrs={b"user.x": b"y"})
    node = paths(grow(file(b"a"), linked))[b"a"]
    assert (node.mode, node.uid, node.mtime_ns, dict(node.xattrs)) == (0o600, 4, 7, {b"user.x": b"y"})


def test_a_link_may_come_before_its_target() -> None:
    nodes = paths(grow(link(b"b", b"c"), link(b"c", b"a"), file(b"a")))
    assert nodes[b"a"] is nodes[b"b"] is nodes[b"c"]
    assert nodes[b"a"].nlink == 3


def test_a_link_keeps_the_inode_when_its_target_is_replaced() -> None:
    nodes = paths(grow(file(b"a", size=1), link(b"b", b"a"), file(b"a", size=2)))
    assert (nodes[b"a"].size, nodes[b"b"].size) == (2, 1)
    assert (nodes[b"a"].nlink, nodes[b"b"].nlink) == (1, 1)


def test_a_link_that_is_replaced_is_not_resolved() -> None:
    assert paths(grow(link(b"b", b"nowhere"), file(b"b", size=1)))[b"b"].size == 1


def test_a_whiteout_becomes_a_device_that_overlayfs_knows() -> None:
    node = paths(grow(file(b"d/.wh.x")))[b"d/x"]
    assert node.is_whiteout
    assert (node.type, node.devmajor, node.devminor, node.mode) == (CHAR, 0, 0, 0)


@pytest.mark.parametrize("order", [1, -1])
def test_a_real_entry_wins_over_its_whiteout_in_either_order(order: int) -> None:
    entries = [file(b".wh.x"), file(b"x", size=1)][::order]
    assert paths(grow(*entries))[b"x"].size == 1


@pytest.mark.parametrize("order", [1, -1])
def test_an_implied_directory_wins_over_its_whiteout_in_either_order(order: int) -> None:
    entries = [file(b".wh.d"), file(b"d/x")][::order]
    assert set(paths(grow(*entries))) == {b"", b"d", b"d/x"}


def test_an_opaque_marker_becomes_the_attribute_of_its_directory() -> None:
    nodes = paths(grow(file(b"d/.wh..wh..opq"), Entry(b"d", DIR, 0o700, xattrs={b"user.a": b"1"})))
    assert set(nodes) == {b"", b"d"}
    assert dict(nodes[b"d"].xattrs) == {b"trusted.overlay.opaque": b"y", b"user.a": b"1"}


def test_an_opaque_root_is_marked() -> None:
    assert dict(grow(file(b".wh..wh..opq")).root.xattrs) == {b"trusted.overlay.opaque": b"y"}


def test_other_markers_of_aufs_are_nothing() -> None:
    assert set(paths(grow(file(b".wh..wh.plnk"), file(b".wh..wh.aufs")))) == {b""}


def test_a_whiteout_may_hide_the_longest_name() -> None:
    assert b"n" * 255 in paths(grow(file(b".wh." + b"n" * 255)))


def test_entries_of_the_format_are_hidden_in_the_root_only() -> None:
    names = [b".prefetch.landmark", b".no.prefetch.landmark", b"stargz.index.json"]
    tree = grow(*(file(name) for name in names), *(file(b"d/" + name) for name in names))
    assert set(paths(tree)) == {b"", b"d", *(b"d/" + name for name in names)}


@pytest.mark.parametrize(
    ("time", "shown"),
    [(0, 0), (1, 1), (2**63 - 1, 2**63 - 1), (2**63, 0), (-1, 0), (-(10**20), 0), (10**20, 0)],
)
def test_times_that_containerd_does_not_set_are_zero(time: int, shown: int) -> None:
    assert paths(grow(file(b"a", mtime_ns=time)))[b"a"].mtime_ns == shown


def test_attributes_that_the_kernel_would_refuse_are_left_out() -> None:
    xattrs = {
        b"user.a": b"",
        b"security.capability": b"c",
        b"system.posix_acl_access": b"acl",
        b"trusted.overlay.opaque": b"y",
        b"trusted.t": b"1",
        b"system.other": b"2",
        b"bogus": b"3",
    }
    kept = {b"user.a", b"security.capability", b"system.posix_acl_access"}
    nodes = paths(grow(Entry(b"f", REG, xattrs=xattrs), Entry(b"s", SYM, link=b"f", xattrs=xattrs)))
    assert set(nodes[b"f"].xattrs) == kept
    assert set(nodes[b"s"].xattrs) == kept - {b"user.a"}


def test_a_hard_link_takes_the_capabilities_away_unless_it_has_them_itself() -> None:
    capable = Entry(b"a", REG, xattrs={b"security.capability": b"c", b"user.a": b"1"})
    plain = Entry(b"b", EntryType.HARDLINK, link=b"a")
    same = Entry(b"b", EntryType.HARDLINK, link=b"a", xattrs={b"security.capability": b"c"})
    assert dict(paths(grow(capable, plain))[b"a"].xattrs) == {b"user.a": b"1"}
    assert dict(paths(grow(capable, same))[b"a"].xattrs) == {b"security.capability": b"c", b"user.a": b"1"}


def acl(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


@pytest.mark.parametrize(
    ("given", "mode", "kept"),
    [
        (acl((1, 6, 0), (2, 6, 7), (4, 4, 0), (16, 6, 0), (32, 4, 0)), 0o751,
         acl((1, 7, 0), (2, 6, 7), (4, 4, 0), (16, 5, 0), (32, 1, 0))),
        (acl((1, 6, 0), (2, 6, 7), (4, 4, 0), (32, 4, 0)), 0o700, acl((1, 7, 0), (2, 6, 7), (4, 0, 0), (32, 0, 0))),
        (acl((1, 6, 0), (4, 4, 0), (32, 4, 0)), 0o751, None),
        (b"no access list", 0o751, b"no access list"),
    ],
)  # fmt: skip
def test_an_access_list_takes_the_mode(given: bytes, mode: int, kept: bytes | None) -> None:
    name = b"system.posix_acl_access"
    assert paths(grow(Entry(b"f", REG, mode, xattrs={name: given})))[b"f"].xattrs.get(name) == kept


def test_a_symbolic_link_has_the_only_mode_it_can_have() -> None:
    assert paths(grow(Entry(b"s", SYM, 0o600, link=b"x")))[b"s"].mode == 0o777


def test_files_come_in_the_order_in_which_their_data_lies() -> None:
    def at(path: bytes, member: int, inner: int) -> Entry:
        return Entry(path, REG, size=1, chunks=(Chunk(0, 1, b"d" * 32, member, inner),))

    tree = grow(at(b"z", 0, 0), at(b"gone", 0, 1), at(b"b", 0, 2), at(b"a", 1, 0), file(b"empty"), at(b"gone", 2, 0))
    zeros = Entry(b"zeros", REG, size=5)
    assert [node.source for node in tree.files] == [0, 2, 3, 5]
    assert [node.source for node in grow(zeros, at(b"y", 0, 0)).files] == [1, 0]


@pytest.mark.parametrize(
    ("entries", "field"),
    [
        ([Entry(b"l", SYM, link=b"/etc"), file(b"l/passwd")], "name"),
        ([file(b"f"), file(b"f/x")], "name"),
        ([file(b"f"), file(b"f/x/y/z")], "name"),
        ([file(b"a"), link(b"b", b"a"), file(b"b/c")], "name"),
        ([file(b".wh.")], "name"),
        ([file(b"d/.wh..")], "name"),
        ([file(b"d/.wh...")], "name"),
        ([file(b"n" * 256)], "name"),
        ([file(b"n" * 256 + b"/x")], "name"),
        ([file(b".wh." + b"n" * 256)], "name"),
        ([link(b"a", b"a")], "linkName"),
        ([link(b"a", b"b"), link(b"b", b"a")], "linkName"),
        ([link(b"a", b"b"), link(b"b", b"c"), link(b"c", b"b")], "linkName"),
        ([link(b"a", b"missing")], "linkName"),
        ([link(b"a", b"missing/deep")], "linkName"),
        ([Entry(b"d", DIR), link(b"a", b"d")], "linkName"),
        ([link(b"a", b"d"), Entry(b"d", DIR)], "linkName"),
        ([link(b"a", b"")], "linkName"),
        ([file(b".wh.w"), link(b"a", b"w")], "linkName"),
        ([Entry(b"s", SYM, link=b"")], "linkName"),
        ([Entry(b"s", SYM, link=b"x" * 4096)], "linkName"),
        ([Entry(b"s", SYM, link=b"a\0b")], "linkName"),
        ([file(b"f", uid=-1)], "uid"),
        ([file(b"f", gid=2**32)], "uid"),
        ([Entry(b"c", CHAR, devmajor=4096)], "devMajor"),
        ([Entry(b"c", CHAR, devminor=2**20)], "devMajor"),
        ([Entry(b"c", CHAR, devmajor=-1)], "devMajor"),
        ([Entry(b"f", REG, xattrs={b"user." + b"n" * 251: b""})], "xattrs"),
        ([Entry(b"f", REG, xattrs={b"user.n": bytes(65536)})], "xattrs"),
        ([Entry(b"f", REG, xattrs={b"user.a\0b": b""})], "xattrs"),
        ([file(b"f", size=2**62)], "size"),
        ([file(b"f%d" % number, size=2**43) for number in range(3)], "size"),
    ],
)
def test_what_makes_no_tree_is_refused_by_the_name_of_its_field(entries: Sequence[Entry], field: str) -> None:
    with pytest.raises(FormatError) as caught:
        grow(*entries)
    assert caught.value.field == field


def test_deep_paths_cannot_make_more_inodes_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_module, "MAX_INODES", 1000)
    with pytest.raises(FormatError) as caught:
        grow(*(file(b"%d/" % number + b"d/" * 100 + b"f") for number in range(20)))
    assert caught.value.field == "entries"


def test_a_path_of_two_thousand_directories_is_walked() -> None:
    assert len(paths(grow(file(b"d/" * 2000 + b"f")))) == 2002


def test_names_are_walked_in_byte_order_with_parents_first() -> None:
    tree = grow(file(b"b"), file(b"a/z"), file(b"a-b"), file(b"a/b"))
    assert list(paths(tree)) == [b"", b"a", b"a/b", b"a/z", b"a-b", b"b"]


NAMES = st.lists(st.sampled_from([b"a", b"b", b".wh.a", b".wh..wh..opq"]), min_size=1, max_size=3).map(b"/".join)


@given(st.lists(st.builds(Entry, path=NAMES, type=st.sampled_from(list(EntryType)), link=NAMES), max_size=12))
def test_any_entries_make_a_sound_tree_or_none(entries: list[Entry]) -> None:
    try:
        tree = grow(*entries)
    except FormatError:
        return
    nodes = paths(tree)
    counts: dict[int, int] = {}
    for node in nodes.values():
        counts[id(node)] = counts.get(id(node), 0) + 1
        assert node.type is not LINK
        assert (node.children is not None) == (node.type is DIR)
    for node in nodes.values():
        subdirectories = [child for child in (node.children or {}).values() if child.type is DIR]
        assert node.nlink == (2 + len(subdirectories) if node.type is DIR else counts[id(node)])
    assert tree.inode_count == len(counts)
