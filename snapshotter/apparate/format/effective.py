"""Which entries of a source tar are written, and with which header.

A tar may name a path twice, link to a file that is replaced later, or give a hard link other attributes than its target;
what that means depends on who reads it. Here it is decided once (`format.tree`: as containerd decides), so that the written
layer has one entry for each path and one meaning for all readers, and entries may be moved.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from apparate.format.tar_header import build_header
from apparate.format.toc import FORMAT_NAMES, Compression, Entry, EntryType, TableOfContents
from apparate.format.tree import OPAQUE_MARKER, OPAQUE_XATTR, Node, build_tree, whiteout_target
from apparate.format.writer import Piece, SourceEntry

_FIRST: Final = (-1, 0)


@dataclass(slots=True)
class Item:
    """An entry to be written. `source` has its payload; `primary` is set for a hard link: the item it links to."""

    entry: Entry
    header: Piece
    source: SourceEntry
    primary: Item | None = None
    #: Must stay in front of everything: a whiteout of a name that the layer itself brings again.
    is_early: bool = False


def effective_items(source: Sequence[SourceEntry]) -> list[Item]:
    """Return what is to be written, in an order close to the source's; the target of a hard link precedes its links.

    Raises:
        FormatError: the entries do not make a tree.
    """
    return _Chooser(source).choose()


class _Chooser:
    def __init__(self, source: Sequence[SourceEntry]) -> None:
        self._source = source
        entries = [item.entry for item in source]
        self._nodes = dict(build_tree(TableOfContents(entries, [], Compression.GZIP)).walk())
        self._last = {entry.path: position for position, entry in enumerate(entries)}
        self._has_duplicates = len(self._last) < len(entries)
        counts = Counter(entry.path for entry in entries) if self._has_duplicates else Counter[bytes]()
        self._duplicates = {path for path, count in counts.items() if count > 1}
        #: Item and sort key by what is written; a key is (position, 0), or for a moved link (position of its target, 1).
        self._chosen: list[tuple[tuple[int, int], Item]] = []
        self._links: dict[int, list[int]] = {}

    def choose(self) -> list[Item]:
        for position, source in enumerate(self._source):
            entry = source.entry
            if entry.path in FORMAT_NAMES:
                continue
            if not entry.path:
                if self._last[b""] == position:
                    self._keep(position, _FIRST)
                continue
            hidden = whiteout_target(entry.path.rpartition(b"/")[2])
            if hidden is not None:
                self._choose_whiteout(position, entry, hidden)
            else:
                self._choose_real(position, entry)
        for node_source, positions in self._links.items():
            self._choose_links(node_source, positions)
        if self._links or self._has_duplicates:
            self._chosen.sort(key=_key)
        return [item for _, item in self._chosen]

    def _choose_whiteout(self, position: int, entry: Entry, hidden: bytes) -> None:
        parent_path, _, base = entry.path.rpartition(b"/")
        parent = self._nodes.get(parent_path)
        if parent is None or parent.children is None:
            return
        if not hidden:  # a marker: the last one of its name, unless its directory has lost the mark again
            if self._last[entry.path] == position and (base != OPAQUE_MARKER or OPAQUE_XATTR in parent.xattrs):
                self._keep(position, (position, 0))
            return
        node = parent.children.get(hidden)
        if node is None or node.source == position:
            self._keep(position, (position, 0))
        elif not node.is_whiteout and self._last[entry.path] == position:
            # A real entry of the same name: whoever unpacks the tar needs the whiteout before it.
            self._keep(position, (position, 0)).is_early = True

    def _choose_real(self, position: int, entry: Entry) -> None:
        node = self._nodes.get(entry.path)
        if node is None or (self._has_duplicates and self._last[entry.path] != position):
            return
        if node.type is EntryType.DIR:
            self._choose_dir(position, entry, node)
        elif node.nlink > 1 or node.source != position:
            self._links.setdefault(node.source, []).append(position)
        else:
            self._keep(position, (position, 0))

    def _choose_dir(self, position: int, entry: Entry, node: Node) -> None:
        item = self._keep(position, (position, 0))
        if entry.path in self._duplicates:
            xattrs = {name: value for name, value in node.xattrs.items() if name != OPAQUE_XATTR}
            if not xattrs.keys() <= entry.xattrs.keys():
                item.entry = replace(entry, xattrs={**xattrs, **entry.xattrs})
                item.header = build_header(item.entry)

    def _choose_links(self, node_source: int, positions: list[int]) -> None:
        """Write an inode of several names: the file under one name, the others as links to it."""
        made = self._source[node_source]
        node = self._nodes[self._source[positions[0]].entry.path]
        first = node_source if node_source in positions else positions[0]
        target = self._source[first].entry.path
        links = [position for position in positions if position != first]
        names = [self._source[position].entry for position in links]
        plain = first == node_source and all(_says_the_same(made.entry, name, target) for name in names)
        if plain:
            primary = self._keep(first, (first, 0))
        else:
            entry = _entry_of(node, target, made.entry)
            primary = Item(entry, build_header(entry), made)
            self._chosen.append(((first, 0), primary))
        for position, name in zip(links, names, strict=True):
            key = (position, 0) if position > first else (first, 1)
            link = self._keep(position, key)
            link.primary = primary
            if not plain:
                link.entry = replace(primary.entry, path=name.path, type=EntryType.HARDLINK, link=target, size=0)
                link.header = build_header(link.entry)

    def _keep(self, position: int, key: tuple[int, int]) -> Item:
        source = self._source[position]
        item = Item(source.entry, source.header if source.runs is None else build_header(source.entry), source)
        self._chosen.append((key, item))
        return item


def _key(chosen: tuple[tuple[int, int], Item]) -> tuple[int, int]:
    return chosen[0]


def _says_the_same(target: Entry, link: Entry, path: bytes) -> bool:
    """Whether applying the attributes of *link* to its target changes nothing, and it names the target itself."""
    return (
        link.type is EntryType.HARDLINK
        and link.link == path
        and (link.mode == target.mode or target.type is EntryType.SYMLINK)
        and (link.uid, link.gid, link.mtime_ns) == (target.uid, target.gid, target.mtime_ns)
        and all(target.xattrs.get(name) == value for name, value in link.xattrs.items())
    )


def _entry_of(node: Node, path: bytes, made: Entry) -> Entry:
    """Return the entry that makes *node* as it ended up."""
    return replace(
        made, path=path, mode=node.mode, uid=node.uid, gid=node.gid, mtime_ns=node.mtime_ns, xattrs=dict(node.xattrs)
    )
