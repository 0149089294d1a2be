"""`apparate images`: images and layers of this node."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from apparate.cli.inventory import Inventory, gather
from apparate.cli.output import bytes_text, print_json, print_table
from apparate.cli.settings import config_option, json_option, load_settings

if TYPE_CHECKING:
    from apparate.snapshot.inventory import Image, ImageLayer

_COLUMNS = ("image", "layer", "state", "present", "fetched", "size", "driver", "why, last error")
_DIGEST_SHOWN = 19


@click.command()
@config_option
@json_option
def command(config_path: Path | None, as_json: bool) -> None:
    """List images and layers of this node: lazy, complete, ordinary or fallback, and why."""
    inventory = gather(load_settings(config_path))
    if as_json:
        print_json(
            {
                "images": [image_json(inventory, image) for image in inventory.images],
                "loader_error": inventory.loader_error,
            }
        )
        return
    rows = [row for image in inventory.images for row in image_rows(inventory, image)]
    print_table(_COLUMNS, rows, right=("present", "fetched", "size"))
    warn(inventory)


def warn(inventory: Inventory) -> None:
    """Say on standard error why the loader's part is missing."""
    if inventory.loader_error:
        print(f"apparate: {inventory.loader_error}; states of lazy layers are unknown", file=sys.stderr)


def image_rows(inventory: Inventory, image: Image) -> list[tuple[str, ...]]:
    """Return the lines of a table for *image*."""
    rows: list[tuple[str, ...]] = []
    for number, layer in enumerate(image.layers):
        state = inventory.state(layer)
        rows.append(
            (
                (image.reference or "(no name)") if number == 0 else "",
                str(layer.layer_digest)[:_DIGEST_SHOWN] if layer.layer_digest else "-",
                inventory.mode(image, layer),
                f"{state.percent:.0f} %" if state else "-",
                bytes_text(state.fetched_bytes) if state else "-",
                bytes_text(state.image_size) if state else "-",
                (state.driver or "-") if state else "-",
                layer.reason or (state.last_error if state else ""),
            )
        )
    return rows


def image_json(inventory: Inventory, image: Image) -> dict[str, object]:
    """Return *image* for machines."""
    return {
        "reference": image.reference,
        "lazy": image.is_lazy,
        "accelerated": image.is_accelerated,
        "containers": image.containers,
        "layers": [_layer_json(inventory, image, layer) for layer in image.layers],
    }


def _layer_json(inventory: Inventory, image: Image, layer: ImageLayer) -> dict[str, object]:
    state = inventory.state(layer)
    out: dict[str, object] = {
        "digest": str(layer.layer_digest) if layer.layer_digest else None,
        "mode": inventory.mode(image, layer),
        "reason": layer.reason,
    }
    if state is not None:
        out |= {
            "percent": round(state.percent, 2),
            "present_bytes": state.present_bytes,
            "image_bytes": state.image_size,
            "fetched_bytes": state.fetched_bytes,
            "driver": state.driver,
            "mounted": state.mounted,
            "last_error": state.last_error,
            "last_error_wall_s": state.last_error_wall_s,
        }
    return out
