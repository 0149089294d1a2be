"""What the numbers of FUSE nodes mean.

A number means the same in every process that ever serves the session, because it is made of the layer's persistent id and of
the node's place in the layer; nothing is remembered for an open file, and a file handle is the node's number.

    bits 40 to 63: layer id, 0 for the session's own nodes
    bits  0 to 39: 0 for the flat file of the layer, else the number of the inode in its EROFS metadata (never 0 there)
"""

from __future__ import annotations

import re
from typing import Final, NewType

from apparate.errors import Unsupported
from apparate.layer.model import LayerId
from apparate.oci.digest import Digest

Node = NewType("Node", int)

NID_BITS: Final = 40
LAYER_ID_MAX: Final = (1 << (63 - NID_BITS)) - 1

ROOT: Final = Node(1)
TREES: Final = Node(2)
PROBE: Final = Node(3)

TREES_NAME: Final = b"trees"
PROBE_NAME: Final = b".probe"

_NAME: Final = re.compile(rb"[0-9a-f]{64}|[0-9a-f]{128}")
_ALGORITHMS: Final = {64: "sha256", 128: "sha512"}


def flat_node(layer_id: int) -> Node:
    """Return the node of the flat file of a layer.

    Raises:
        Unsupported: more layers were ever known here than nodes can be numbered.
    """
    if not 0 < layer_id <= LAYER_ID_MAX:
        raise Unsupported(f"layer id {layer_id} does not fit a node number; empty the layer store")
    return Node(layer_id << NID_BITS)


def tree_node(layer_id: int, nid: int) -> Node:
    """Return the node of inode *nid* of a layer's tree."""
    return Node(flat_node(layer_id) | nid)


def layer_of(node: int) -> LayerId:
    """Return the layer a node belongs to, 0 if to none."""
    return LayerId(node >> NID_BITS)


def nid_of(node: int) -> int:
    """Return the inode number in the layer's metadata, 0 for its flat file."""
    return node & ((1 << NID_BITS) - 1)


def name_of(digest: Digest) -> str:
    """Return the name of a layer in the flat directory and below `trees`."""
    return digest.hex


def digest_of(name: bytes) -> Digest | None:
    """Return the layer that *name* stands for, None if it is no such name."""
    return Digest(_ALGORITHMS[len(name)], name.decode()) if _NAME.fullmatch(name) else None
