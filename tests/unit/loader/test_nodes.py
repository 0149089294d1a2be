"""Node numbers mean the same in every process."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apparate.errors import Unsupported
from apparate.loader import nodes
from apparate.oci.digest import Digest


@given(st.integers(1, nodes.LAYER_ID_MAX), st.integers(1, (1 << nodes.NID_BITS) - 1))
def test_a_tree_node_names_its_layer_and_inode(layer_id: int, nid: int) -> None:
    node = nodes.tree_node(layer_id, nid)
    assert (nodes.layer_of(node), nodes.nid_of(node)) == (layer_id, nid)
    assert node < 1 << 63


@given(st.integers(1, nodes.LAYER_ID_MAX))
def test_a_flat_node_is_no_tree_node_and_none_of_the_sessions_own(layer_id: int) -> None:
    node = nodes.flat_node(layer_id)
    assert nodes.nid_of(node) == 0
    assert nodes.layer_of(node) == layer_id
    assert node not in {nodes.ROOT, nodes.TREES, nodes.PROBE}


@pytest.mark.parametrize("layer_id", [0, -1, nodes.LAYER_ID_MAX + 1])
def test_a_layer_id_that_does_not_fit_is_refused(layer_id: int) -> None:
    with pytest.raises(Unsupported, match="layer id"):
        nodes.flat_node(layer_id)


@pytest.mark.parametrize("text", ["sha256:" + "0f" * 32, "sha512:" + "a1" * 64])
def test_a_name_leads_back_to_its_digest(text: str) -> None:
    digest = Digest.parse(text)
    assert nodes.digest_of(nodes.name_of(digest).encode()) == digest


@pytest.mark.parametrize("name", [b"", b"x" * 64, b"A" * 64, b"0" * 63, b"0" * 64 + b"\n", b"..", nodes.TREES_NAME])
def test_other_names_are_no_layers(name: bytes) -> None:
    assert nodes.digest_of(name) is None
