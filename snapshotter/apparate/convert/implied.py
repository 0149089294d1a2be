"""Directories that a layer only implies: it puts something into them and has no entry of their own. Pure.

When containerd unpacks such a layer for overlayfs it makes the directory with owner, mode and extended attributes of the same
directory in the topmost layer below that has it (`mkparent` of its package archive), 0755 root:root if none has. A layer that
is loaded on demand is seen by itself, so the converter writes those attributes into it, as an entry. Their time is that of
the directory below; when unpacked it would be the time of unpacking, which no image has.

What is kept of each layer (`Survey`) stays for the whole conversion of an image: about 400 bytes for a directory or a
symbolic link, 8 bytes for any other name.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Final

from apparate.format.tar_header import build_header
from apparate.format.toc import Entry, EntryType
from apparate.format.tree import whiteout_target
from apparate.format.writer import SourceEntry, Span

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

LINKS_MAX: Final = 255
"""Symbolic links followed on one path (containerd's fs.RootPath)."""
_NOTHING: Final = Span(0, 0)


@dataclass(frozen=True, slots=True)
class Survey:
    """What other layers want to know of one layer's names."""

    directories: dict[bytes, Entry | None]
    """By path; None: implied."""
    links: dict[bytes, bytes]
    """Targets of symbolic links, by path."""
    others: array[int]
    """Keys of all other names and of whited-out ones, ascending."""

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> Survey:
        """Return the survey of the layer with *entries*, in their order."""
        directories: dict[bytes, Entry | None] = {}
        links: dict[bytes, bytes] = {}
        others = array("Q")
        for entry in entries:
            parent, _, base = entry.path.rpartition(b"/")
            while parent and parent not in directories:
                directories[parent] = None
                parent = parent.rpartition(b"/")[0]
            hidden = whiteout_target(base)
            if hidden is not None:
                others.append(_key(entry.path[: len(entry.path) - len(base)] + hidden))
            elif entry.type is EntryType.DIR:
                _enter(directories, entry)
            else:
                directories.pop(entry.path, None)
                if entry.type is EntryType.SYMLINK:
                    links[entry.path] = entry.link
                else:
                    others.append(_key(entry.path))
        return cls(directories, links, array("Q", sorted(others)))

    @property
    def implied(self) -> list[bytes]:
        """The directories without an entry."""
        return [path for path, entry in self.directories.items() if entry is None]

    def resolve(self, path: bytes) -> bytes:
        """Return *path* with the layer's own symbolic links followed, the last component's too; none leads out of the root.

        After LINKS_MAX links the rest is left as it is.
        """
        if not self.links:
            return path
        done: list[bytes] = []
        left = path.split(b"/")[::-1]
        links = 0
        while left:
            name = left.pop()
            if name == b"..":
                del done[-1:]
                continue
            if name in {b"", b"."}:
                continue
            target = self.links.get(b"/".join((*done, name)))
            if target is None or links == LINKS_MAX:
                done.append(name)
                continue
            links += 1
            if target.startswith(b"/"):
                done.clear()
            left.extend(target.split(b"/")[::-1])
        return b"/".join(done)

    def has_other(self, path: bytes) -> bool:
        """Whether *path*, or something it would lie in, is a name that is no directory, or is whited out."""
        while path:
            key = _key(path)
            at = bisect_left(self.others, key)
            if path in self.links or (at < len(self.others) and self.others[at] == key):
                return True
            path = path.rpartition(b"/")[0]
        return False


def _enter(directories: dict[bytes, Entry | None], entry: Entry) -> None:
    """Let *entry* be its directory: a later entry of the same path keeps extended attributes that it does not set itself."""
    before = directories.get(entry.path)
    if before is not None and not before.xattrs.keys() <= entry.xattrs.keys():
        entry = replace(entry, xattrs={**before.xattrs, **entry.xattrs})
    directories[entry.path] = entry


def _key(path: bytes) -> int:
    return int.from_bytes(blake2b(path, digest_size=8).digest(), "little")


def directories_from_below(survey: Survey, below: Sequence[Survey]) -> tuple[Entry, ...]:
    """Return the entries that the directories implied by a layer get; *below* is what lies under it, the base first.

    A directory that no layer below gives attributes is left implied: every reader makes it 0755 root:root.
    """
    found = []
    for path in survey.implied:
        entry = _look(path, below)
        if entry is not None:
            found.append(replace(entry, path=path))
    return tuple(found)


def attributes(entry: Entry) -> tuple[object, ...]:
    """Return what makes one of `directories_from_below` differ from another, hashable."""
    xattrs = tuple(sorted(entry.xattrs.items()))
    return entry.path, entry.mode, entry.uid, entry.gid, entry.mtime_ns, xattrs


def _look(path: bytes, below: Sequence[Survey]) -> Entry | None:
    for survey in reversed(below):
        place = survey.resolve(path)
        if place in survey.directories:
            entry = survey.directories[place]
            if entry is not None:
                return entry
            path = place  # made, when unpacked, of what lies below it in its turn
        elif survey.has_other(place):
            return None
    return None


def with_directories(source: Sequence[SourceEntry], added: Iterable[Entry]) -> list[SourceEntry]:
    """Return *source* with the directories *added*, each in front of the first entry that lies in it."""
    missing = {entry.path: entry for entry in added}
    if not missing:
        return list(source)
    complete: list[SourceEntry] = []
    for item in source:
        new: list[Entry] = []
        parent = item.entry.path.rpartition(b"/")[0]
        while parent:
            entry = missing.pop(parent, None)
            if entry is not None:
                new.append(entry)
            parent = parent.rpartition(b"/")[0]
        complete += [SourceEntry(entry, build_header(entry), _NOTHING) for entry in reversed(new)]
        complete.append(item)
    return complete
