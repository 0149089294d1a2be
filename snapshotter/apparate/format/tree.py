"""A table of contents as the tree that a mounted layer shows: what containerd's unpacking of the same tar would give.

The entries are applied in their order, as containerd's `archive.Apply` does on overlayfs:

- a later entry replaces an earlier one of the same path, with everything below it; only a directory over a directory
  keeps the children and takes the new attributes;
- a missing parent is made, 0755 root:root, but of the group of a set-group-ID directory that it lies in, as by mkdir(2);
  an entry for the root itself is ignored;
- a hard link is the same inode, and its own attributes are applied to that inode; so the inode loses its capabilities
  unless the link's entry has them too, as by chown(2);
- an access list takes the mode's permissions, as by chmod(2);
- `.wh.NAME` becomes the character device 0:0 NAME, `.wh..wh..opq` the attribute trusted.overlay.opaque=y of its directory,
  other `.wh..wh.*` nothing. A real NAME of the same layer wins over its whiteout, in either order;
- times outside [0, 2^63) ns are 0; `trusted.*` and attributes of unknown namespaces are not set, nor is `user.*` on
  anything but files and directories.

What containerd would refuse, or would write somewhere else than the entry says (through a symbolic link), is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from apparate.errors import FormatError
from apparate.format import acl
from apparate.format.toc import FORMAT_NAMES, NO_XATTRS, Chunk, Entry, EntryType, TableOfContents

MAX_INODES: Final = 4_000_000
MAX_NAME_BYTES: Final = 255
MAX_LINK_BYTES: Final = 4095
MAX_ID: Final = (1 << 32) - 1
MAX_DEVICE_MAJOR: Final = (1 << 12) - 1
MAX_DEVICE_MINOR: Final = (1 << 20) - 1
MAX_XATTR_NAME_BYTES: Final = 255
MAX_XATTR_VALUE_BYTES: Final = 65535
#: Sum of all file sizes: what the 32-bit block numbers of an EROFS image can address, less room for the metadata.
MAX_DATA_BYTES: Final = (1 << 44) - (1 << 40)

WHITEOUT_PREFIX: Final = b".wh."
WHITEOUT_META_PREFIX: Final = b".wh..wh."
OPAQUE_MARKER: Final = b".wh..wh..opq"
OPAQUE_XATTR: Final = b"trusted.overlay.opaque"

_FORMAT: Final = "layer"
_TIME_END_NS: Final = 1 << 63
_DIR_MODE: Final = 0o755
_SET_GID: Final = 0o2000
_SYMLINK_MODE: Final = 0o777
_BLOCK: Final = 4096
_ANY_TYPE_XATTRS: Final = (b"security.", b"system.posix_acl_")
_USER_XATTRS: Final = b"user."
_CAPABILITY: Final = b"security.capability"


@dataclass(slots=True, eq=False)
class Node:
    """One inode. `type` is never HARDLINK: linked names share the node. Two nodes are equal only if they are the same."""

    type: EntryType
    mode: int
    uid: int = 0
    gid: int = 0
    size: int = 0
    #: Within [0, 2^63).
    mtime_ns: int = 0
    #: Target of a symbolic link.
    link: bytes = b""
    xattrs: Mapping[bytes, bytes] = field(default_factory=lambda: NO_XATTRS)
    devmajor: int = 0
    devminor: int = 0
    chunks: tuple[Chunk, ...] = ()
    #: Names of this inode; for a directory, 2 and one for each child directory.
    nlink: int = 1
    #: Of a directory: name -> node. None for all else.
    children: dict[bytes, Node] | None = None
    #: Position in `TableOfContents.entries` of the entry that made this inode; -1: no entry did.
    source: int = -1

    @property
    def is_whiteout(self) -> bool:
        return self.type is EntryType.CHAR and self.devmajor == 0 and self.devminor == 0


@dataclass(frozen=True, slots=True)
class Tree:
    """`files` are the regular inodes with at least one byte, in the order in which their data lies in the blob."""

    root: Node
    files: list[Node]
    inode_count: int

    def walk(self) -> Iterator[tuple[bytes, Node]]:
        """Give (path, node) for every name, parents first, names of a directory in byte order; the root is b""."""
        stack = [(b"", self.root)]
        while stack:
            path, node = stack.pop()
            yield path, node
            if node.children:
                prefix = path + b"/" if path else b""
                names = sorted(node.children.items(), key=_name, reverse=True)
                stack.extend((prefix + name, child) for name, child in names)


def build_tree(toc: TableOfContents) -> Tree:
    """Return the tree of *toc*.

    Raises:
        FormatError: the entries do not make a tree; `field` is the TOC's key (`name`, `linkName`, `uid`, ...).
    """
    builder = _Builder()
    for position, entry in enumerate(toc.entries):
        builder.add(position, entry)
    return builder.finish()


def whiteout_target(base: bytes) -> bytes | None:
    """Return the name that the whiteout *base* hides, None if *base* is an ordinary name, b"" for `.wh..wh.*`."""
    if not base.startswith(WHITEOUT_PREFIX):
        return None
    return b"" if base.startswith(WHITEOUT_META_PREFIX) else base[len(WHITEOUT_PREFIX) :]


def _refuse(position: int, entry: Entry, key: str, reason: str) -> FormatError:
    return FormatError(_FORMAT, key, f"{reason} (entry {position}, {entry.path[:256]!r})")


class _Builder:
    def __init__(self) -> None:
        self._root = Node(EntryType.DIR, _DIR_MODE, nlink=2, children={})
        #: Every directory of the tree by its path: one dictionary look-up for each entry.
        self._dirs: dict[bytes, Node] = {b"": self._root}
        self._inodes = 1
        #: Hard links whose target has not been seen yet: placeholder, directory, name, position, entry.
        self._pending: list[tuple[Node, Node, bytes, int, Entry]] = []

    def add(self, position: int, entry: Entry) -> None:
        path = entry.path
        if not path or path in FORMAT_NAMES:
            return
        parent_path, _, name = path.rpartition(b"/")
        parent = self._dirs.get(parent_path)
        if parent is None:
            parent = self._make_parents(position, entry, parent_path)
        if name.startswith(WHITEOUT_PREFIX):
            self._whiteout(position, entry, parent, name)
            return
        existing = parent.children.get(name) if parent.children else None
        if existing is not None:
            if entry.type is EntryType.DIR and existing.type is EntryType.DIR:
                self._apply_attributes(position, existing, entry)
                existing.source = position
                return
            self._remove(parent, name, path)
        if entry.type is EntryType.HARDLINK:
            self._hard_link(position, entry, parent, name)
        else:
            self._insert(position, entry, parent, name)

    def finish(self) -> Tree:
        for placeholder, parent, name, position, entry in self._pending:
            if parent.children is None or parent.children.get(name) is not placeholder:
                continue  # replaced later
            target = self._resolve(position, entry)
            target.nlink += 1
            parent.children[name] = target
        files: dict[int, Node] = {}
        total = 0
        for node in self._walk_nodes():
            if node.type is EntryType.REG and node.size and id(node) not in files:
                files[id(node)] = node
                total += -(-node.size // _BLOCK) * _BLOCK
                if total > MAX_DATA_BYTES:
                    raise FormatError(_FORMAT, "size", f"the files are larger than {MAX_DATA_BYTES} bytes in all")
        ordered = sorted(files.values(), key=_blob_position)
        return Tree(self._root, ordered, self._inodes)

    def _walk_nodes(self) -> Iterator[Node]:
        for directory in self._dirs.values():
            if directory.children:
                yield from directory.children.values()

    def _insert(self, position: int, entry: Entry, parent: Node, name: bytes) -> None:
        if len(name) > MAX_NAME_BYTES:
            raise _refuse(position, entry, "name", f"a component is longer than {MAX_NAME_BYTES} bytes")
        kind = entry.type
        node = Node(kind, entry.mode, source=position)
        if kind is EntryType.REG:
            node.size = entry.size
            node.chunks = entry.chunks
        elif kind is EntryType.DIR:
            node.nlink = 2
            node.children = {}
            parent.nlink += 1
            self._dirs[entry.path] = node
        elif kind is EntryType.SYMLINK:
            if not 0 < len(entry.link) <= MAX_LINK_BYTES or b"\0" in entry.link:
                raise _refuse(position, entry, "linkName", f"must be 1 to {MAX_LINK_BYTES} bytes without NUL")
            node.link = entry.link
        elif kind in (EntryType.CHAR, EntryType.BLOCK):
            if not (0 <= entry.devmajor <= MAX_DEVICE_MAJOR and 0 <= entry.devminor <= MAX_DEVICE_MINOR):
                raise _refuse(position, entry, "devMajor", f"no device {entry.devmajor}:{entry.devminor} can exist")
            node.devmajor, node.devminor = entry.devmajor, entry.devminor
        self._apply_attributes(position, node, entry)
        assert parent.children is not None
        parent.children[name] = node
        self._count(position, entry)

    def _apply_attributes(self, position: int, node: Node, entry: Entry) -> None:
        if not (0 <= entry.uid <= MAX_ID and 0 <= entry.gid <= MAX_ID):
            raise _refuse(position, entry, "uid", f"owner {entry.uid}:{entry.gid} is outside [0, 2^32)")
        node.mode = _SYMLINK_MODE if node.type is EntryType.SYMLINK else entry.mode
        node.uid = entry.uid
        node.gid = entry.gid
        node.mtime_ns = entry.mtime_ns if 0 <= entry.mtime_ns < _TIME_END_NS else 0
        if entry.xattrs or node.xattrs:
            node.xattrs = _xattrs_after(position, node, entry)

    def _whiteout(self, position: int, entry: Entry, parent: Node, name: bytes) -> None:
        if name == OPAQUE_MARKER:
            parent.xattrs = {**parent.xattrs, OPAQUE_XATTR: b"y"}
            return
        if name.startswith(WHITEOUT_META_PREFIX):
            return
        hidden = name[len(WHITEOUT_PREFIX) :]
        if hidden in (b"", b".", b".."):
            raise _refuse(position, entry, "name", "a whiteout that names nothing")
        if len(hidden) > MAX_NAME_BYTES:
            raise _refuse(position, entry, "name", f"a component is longer than {MAX_NAME_BYTES} bytes")
        assert parent.children is not None
        if hidden in parent.children:
            return
        node = Node(EntryType.CHAR, 0, source=position)
        if 0 <= entry.uid <= MAX_ID and 0 <= entry.gid <= MAX_ID:
            node.uid, node.gid = entry.uid, entry.gid
        parent.children[hidden] = node
        self._count(position, entry)

    def _hard_link(self, position: int, entry: Entry, parent: Node, name: bytes) -> None:
        assert parent.children is not None
        target = self._find(entry.link)
        if target is None or target.type is EntryType.HARDLINK:
            placeholder = Node(EntryType.HARDLINK, 0, link=entry.link, source=position)
            parent.children[name] = placeholder
            self._pending.append((placeholder, parent, name, position, entry))
            return
        if target.type is EntryType.DIR or target.is_whiteout:
            raise _refuse(position, entry, "linkName", "a hard link to a directory or to a whiteout")
        self._apply_attributes(position, target, entry)
        target.nlink += 1
        parent.children[name] = target

    def _resolve(self, position: int, entry: Entry) -> Node:
        """Follow a chain of hard links that pointed forward."""
        seen = set()
        link = entry.link
        while True:
            if link in seen:
                raise _refuse(position, entry, "linkName", "hard links form a cycle")
            seen.add(link)
            target = self._find(link)
            if target is None:
                raise _refuse(position, entry, "linkName", f"no entry {link[:256]!r} to link to")
            if target.type is EntryType.DIR or target.is_whiteout:
                raise _refuse(position, entry, "linkName", "a hard link to a directory or to a whiteout")
            if target.type is not EntryType.HARDLINK:
                return target
            link = target.link

    def _find(self, path: bytes) -> Node | None:
        parent_path, _, name = path.rpartition(b"/")
        parent = self._dirs.get(parent_path)
        if parent is None or not path:
            return self._root if not path else None
        assert parent.children is not None
        return parent.children.get(name)

    def _make_parents(self, position: int, entry: Entry, path: bytes) -> Node:
        """Return the directory *path*, made with all that is missing above it."""
        end = path.rfind(b"/")
        while end > 0 and path[:end] not in self._dirs:
            end = path.rfind(b"/", 0, end)
        known = path[:end] if end > 0 else b""
        node = self._dirs[known]
        for name in path[len(known) + 1 if known else 0 :].split(b"/"):
            assert node.children is not None
            existing = node.children.get(name)
            if existing is not None and not existing.is_whiteout:
                raise _refuse(position, entry, "name", f"its parent {known + b'/' + name!r} is a {existing.type.value}")
            if len(name) > MAX_NAME_BYTES:
                raise _refuse(position, entry, "name", f"a component is longer than {MAX_NAME_BYTES} bytes")
            gid = node.gid if node.mode & _SET_GID else 0
            child = Node(EntryType.DIR, _DIR_MODE, gid=gid, nlink=2, children={})
            node.children[name] = child
            node.nlink += 1
            known = known + b"/" + name if known else name
            self._dirs[known] = child
            node = child
            if existing is None:
                self._count(position, entry)
        return node

    def _remove(self, parent: Node, name: bytes, path: bytes) -> None:
        """Take the name out of the tree, and with a directory all below it."""
        assert parent.children is not None
        node = parent.children.pop(name)
        if node.type is EntryType.DIR:
            parent.nlink -= 1
        stack = [(path, node)]
        while stack:
            path, node = stack.pop()
            if node.children is not None:
                del self._dirs[path]
                stack.extend((path + b"/" + child_name, child) for child_name, child in node.children.items())
                self._inodes -= 1
            elif node.type is not EntryType.HARDLINK:
                node.nlink -= 1
                self._inodes -= node.nlink == 0

    def _count(self, position: int, entry: Entry) -> None:
        self._inodes += 1
        if self._inodes > MAX_INODES:
            raise _refuse(position, entry, "entries", f"more than {MAX_INODES} inodes")


def _xattrs_after(position: int, node: Node, entry: Entry) -> dict[bytes, bytes]:
    """Return the attributes of *node* once *entry* is applied as containerd does it: chown, setxattr, chmod."""
    xattrs = {**node.xattrs}
    if node.type is not EntryType.DIR:
        xattrs.pop(_CAPABILITY, None)
    xattrs |= _settable_xattrs(position, node.type, entry)
    if acl.ACCESS in xattrs and node.type is not EntryType.SYMLINK:
        access = acl.after_chmod(xattrs.pop(acl.ACCESS), node.mode)
        if access is not None:
            xattrs[acl.ACCESS] = access
    return xattrs


def _settable_xattrs(position: int, kind: EntryType, entry: Entry) -> dict[bytes, bytes]:
    """Return what containerd would set: other names it ignores, because the kernel refuses them."""
    kept = {}
    for name, value in entry.xattrs.items():
        user = name.startswith(_USER_XATTRS) and kind in (EntryType.REG, EntryType.DIR)
        if not (user or name.startswith(_ANY_TYPE_XATTRS)):
            continue
        if len(name) > MAX_XATTR_NAME_BYTES or len(value) > MAX_XATTR_VALUE_BYTES or b"\0" in name:
            raise _refuse(position, entry, "xattrs", f"attribute {name[:256]!r} is larger than the kernel allows")
        kept[name] = value
    return kept


def _name(item: tuple[bytes, Node]) -> bytes:
    return item[0]


def _blob_position(node: Node) -> tuple[int, int]:
    if not node.chunks:
        return (1 << 63, 0)
    return (node.chunks[0].member, node.chunks[0].inner_offset)
