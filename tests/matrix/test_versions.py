"""The oldest containerd we promise to work with, and the last of 1.x: all that tests/integration asserts of two others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.test_containerd import (  # noqa: F401  # pytest collects them here too, with the nodes below
    converted,
    source,
    test_concurrent_pulls_of_images_that_share_layers,
    test_containerd_restart_keeps_images_and_containers,
    test_converted_image_runs_from_remote_layers_and_leaves_nothing,
    test_image_in_use_outlives_its_removal,
    test_images_of_both_kinds_run_side_by_side,
    test_one_ordinary_layer_does_not_make_the_others_download,
    test_ordinary_image_behaves_as_with_overlayfs,
)
from tests.support.node import Node, node

RELEASES = ("1.4.3", "1.7.35")  # the CRI v1alpha2 of old kubelets, and v1

pytestmark = [pytest.mark.root, pytest.mark.fuse]


@pytest.fixture(params=RELEASES)
def running(request: pytest.FixtureRequest, folder: Path) -> Iterator[Node]:
    with node(folder, str(request.param)) as made:
        yield made
