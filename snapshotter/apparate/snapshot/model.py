"""What a snapshot is, as values (containerd, core/snapshots/snapshotter.go)."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NewType

from apparate.oci.digest import Digest
from apparate.snapshot.remote import Usage

SnapshotId = NewType("SnapshotId", int)
"""Our own number of a snapshot: the name of its directory; never used twice."""


class Kind(enum.Enum):
    """What may be done with a snapshot."""

    VIEW = "view"
    ACTIVE = "active"
    COMMITTED = "committed"


class Origin(enum.Enum):
    """Where the content of a snapshot comes from."""

    ORDINARY = "ordinary"  # written by containerd or a container into a directory of ours
    UNPACKED = "unpacked"  # a layer that cannot be loaded lazily, downloaded and unpacked by us
    LAZY = "lazy"  # a layer that the loader serves


@dataclass(frozen=True, slots=True)
class Info:
    """What containerd knows about a snapshot."""

    name: str  # the key of an active snapshot or view, the name of a committed one
    parent: str  # name of the parent, "" for none
    kind: Kind
    created_ns: int  # wall clock, nanoseconds since the epoch
    updated_ns: int
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Record:
    """What we know about a snapshot."""

    id: SnapshotId
    info: Info
    parent_id: SnapshotId | None = None
    origin: Origin = Origin.ORDINARY
    layer: Digest | None = None  # set if and only if the origin is LAZY
    reason: str = ""  # why a layer of an image is not lazy, for people
    usage: Usage | None = None  # of a committed directory; None: not measured yet


@dataclass(frozen=True, slots=True)
class Mount:
    """One mount(2) that containerd performs. Several are performed in order on the same target."""

    type: str
    source: str
    options: tuple[str, ...] = ()
