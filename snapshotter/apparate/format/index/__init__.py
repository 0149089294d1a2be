"""The binary index of a layer: all that a node needs to mount it and to fill it (docs/formats/index.md)."""

from apparate.format.index.build import build_index, build_local, build_tables
from apparate.format.index.local import LayerIndex, MemberRef, Piece, member_digest
from apparate.format.index.wire import unpack

__all__ = [
    "LayerIndex",
    "MemberRef",
    "Piece",
    "build_index",
    "build_local",
    "build_tables",
    "member_digest",
    "unpack",
]
