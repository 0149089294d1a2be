"""The mounts that containerd is to perform for a snapshot (containerd, overlay snapshotter).

containerd shortens long lists of lower directories to names relative to their common parent, so that 128
layers fit into the one page of options that mount(2) takes. For that every lower directory is
`<root>/snapshots/<number>/fs`; for a lazy layer this is a symbolic link to where the loader mounted it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from apparate.oci.digest import Digest
from apparate.snapshot.model import Kind, Mount, Record
from apparate.snapshot.overlay import Overlay


def mounts_of(kind: Kind, own: Path, work: Path, lowers: Sequence[Path], overlay: Overlay) -> tuple[Mount, ...]:
    """Return the mounts of an active snapshot or a view.

    *own* and *work* are the directories of the snapshot itself, *lowers* those of its ancestors, nearest first.
    """
    if kind is Kind.ACTIVE and not lowers:
        return (Mount("bind", str(own), ("rw", "rbind")),)
    if kind is Kind.VIEW and len(lowers) < 2:
        return (Mount("bind", str(lowers[0] if lowers else own), ("ro", "rbind")),)
    options = list(overlay.options)
    if kind is Kind.ACTIVE:
        options += [f"workdir={work}", f"upperdir={own}"]
    options.append("lowerdir=" + ":".join(map(str, lowers)))
    return (Mount("overlay", "overlay", tuple(options)),)


def without_repeated_layers(ancestors: Sequence[Record]) -> list[Record]:
    """Return *ancestors*, nearest first, without the farther ones of a lazy layer that occurs again.

    An image may have one layer several times, an empty one above all. They are one mount, and overlayfs refuses the
    same directory twice (ELOOP). The nearest hides everything that the farther ones could show.
    """
    seen: set[Digest] = set()
    kept = []
    for record in ancestors:
        if record.layer is not None:
            if record.layer in seen:
                continue
            seen.add(record.layer)
        kept.append(record)
    return kept
