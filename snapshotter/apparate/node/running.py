"""Which containers of this node stand on layers that are loaded on demand: read from the kernel, whether containerd runs or not.

Unknown counts as lazy: whoever asks wants to stop or remove what serves these layers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from apparate.snapshot.model import Origin, Record, SnapshotId

_OCTAL: Final = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class RunningContainer:
    """A mounted container. *name* is containerd's key of its snapshot, `namespace/number/container id`; "" if unknown."""

    snapshot_id: int
    name: str


def running_lazy(root: Path, records: Sequence[Record] | None, proc: Path = Path("/proc")) -> list[RunningContainer]:
    """Return the containers whose file systems are mounted and stand on a lazy layer.

    Args:
        root: where the snapshotter keeps its data.
        records: what it knows; None if that cannot be told.
        proc: where the kernel tells of processes.
    """
    by_id = {record.id: record for record in records or ()}
    found = []
    for snapshot_id in sorted(set(_mounted(root, proc))):
        record = by_id.get(SnapshotId(snapshot_id))
        if record is None or _is_lazy(record, by_id):
            found.append(RunningContainer(snapshot_id, record.info.name if record else ""))
    return found


def _is_lazy(record: Record, by_id: dict[SnapshotId, Record]) -> bool:
    current: Record | None = record
    while current is not None:
        if current.origin is Origin.LAZY:
            return True
        current = by_id.get(current.parent_id) if current.parent_id is not None else None
    return False


def _mounted(root: Path, proc: Path) -> Iterator[int]:
    """Yield the ids of snapshots of ours that are the writable layer of a mounted overlay, in any mount namespace."""
    prefix = f"{root}/snapshots/"
    seen = set()
    for process in _processes(proc):
        try:
            namespace = (process / "ns/mnt").readlink()
            if namespace in seen:
                continue
            text = (process / "mountinfo").read_text(errors="surrogateescape")
        except OSError:  # it has ended
            continue
        seen.add(namespace)
        yield from _upper_ids(text.splitlines(), prefix)


def _processes(proc: Path) -> Iterator[Path]:
    return (path for path in proc.iterdir() if path.name.isdecimal())


def _upper_ids(lines: Iterable[str], prefix: str) -> Iterator[int]:
    for line in lines:
        _, _, tail = line.partition(" - ")  # mountinfo(5): file system type, source and options follow the separator
        fields = tail.split(" ")
        if len(fields) < 3 or fields[0] != "overlay":
            continue
        for option in fields[2].split(","):
            name, _, value = option.partition("=")
            path = _OCTAL.sub(lambda match: chr(int(match[1], 8)), value)
            if name == "upperdir" and path.startswith(prefix):
                number = path[len(prefix) :].split("/")[0]
                if number.isdecimal():
                    yield int(number)
