"""What the commands about images have in common: the snapshotter's metadata and the loader's answer, joined by layer."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from apparate.errors import NotFound, Unavailable
from apparate.grpcapi.loader_client import LoaderClient, LoaderDeadlines
from apparate.snapshot.inventory import Image, ImageLayer, find, images
from apparate.snapshot.metastore import METADATA_NAME
from apparate.snapshot.model import Origin
from apparate.snapshot.rows import RECORDS_PAGE, from_json, read_records
from apparate.telemetry.client import get_page

if TYPE_CHECKING:
    from collections.abc import Mapping

    from apparate.cli.settings import Settings
    from apparate.oci.digest import Digest
    from apparate.snapshot.model import Record
    from apparate.snapshot.remote import LayerState


@dataclass(frozen=True, slots=True)
class Inventory:
    """The images of this node, and what the loader says of their layers; `loader_error` says why it says nothing."""

    images: tuple[Image, ...]
    states: Mapping[Digest, LayerState]
    loader_error: str = ""

    def state(self, layer: ImageLayer) -> LayerState | None:
        """Return what the loader says of *layer*; None if it is not the loader's, or nobody can tell."""
        if layer.layer_digest is None or layer.origin is not Origin.LAZY:
            return None
        return self.states.get(layer.layer_digest)

    def mode(self, image: Image, layer: ImageLayer) -> str:
        """Return one word for how *layer* of *image* is here: lazy, complete, failed, ordinary or fallback.

        `unknown` is a layer that only the loader could tell of, which does not answer.
        """
        if layer.origin is not Origin.LAZY:
            return "fallback" if image.is_fallback(layer) else "ordinary"
        state = self.state(layer)
        return state.phase.value if state else "unknown"


def client(settings: Settings) -> LoaderClient:
    """Return a client of this node's loader that says at once when it is away: a person is waiting."""
    return LoaderClient(str(settings.snapshotter.loader_socket), LoaderDeadlines(outage_s=0.0))


def gather(settings: Settings) -> Inventory:
    """Return the node's images and layers as they are now.

    Raises:
        FailedPrecondition: the metadata cannot be read.
    """
    found = tuple(images(records(settings)))
    try:
        with closing(client(settings)) as loader:
            states = {state.layer_digest: state for state in loader.status()}
    except Unavailable as error:
        return Inventory(found, {}, str(error))
    return Inventory(found, states)


def records(settings: Settings) -> list[Record]:
    """Ask the snapshotter, which keeps its store to itself; read the store if it does not run."""
    try:
        page = get_page(settings.snapshotter.telemetry_socket, RECORDS_PAGE)
    except Unavailable:
        return read_records(settings.snapshotter.root / METADATA_NAME)
    return from_json(page)


def one(inventory: Inventory, reference: str) -> Image:
    """Return the image *reference* of this node.

    Raises:
        NotFound: it was not pulled here with this snapshotter.
    """
    found = find(inventory.images, reference)
    if not found:
        known = ", ".join(image.reference for image in inventory.images if image.reference) or "none"
        raise NotFound(f"image {reference} is not on this node under this snapshotter; here are: {known}")
    return found[0]
