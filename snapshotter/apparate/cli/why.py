"""`apparate why REF`: one image explained, node side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from apparate.cli.images import image_json, image_rows, warn
from apparate.cli.inventory import Inventory, gather, one
from apparate.cli.output import print_json, print_table
from apparate.cli.settings import config_option, json_option, load_settings
from apparate.errors import FailedPrecondition

if TYPE_CHECKING:
    from apparate.snapshot.inventory import Image

EXPECTATIONS = ("lazy", "ordinary")


@click.command()
@click.argument("reference", metavar="REF")
@click.option("--expect", type=click.Choice(EXPECTATIONS), help="Exit with code 5 unless the image is here like this.")
@config_option
@json_option
def command(reference: str, expect: str | None, config_path: Path | None, as_json: bool) -> None:
    """Explain one image: why it is loaded on demand, or why not."""
    inventory = gather(load_settings(config_path))
    image = one(inventory, reference)
    sentence = explain(inventory, image)
    if as_json:
        print_json({**image_json(inventory, image), "explanation": sentence})
        judge(inventory, image, expect)
        return
    click.echo(f"{image.reference}: {sentence}")
    columns = ("", "layer", "state", "present", "fetched", "size", "driver", "why, last error")
    rows = [("", *row[1:]) for row in image_rows(inventory, image)]
    print_table(columns, rows, right=("present", "fetched", "size"))
    warn(inventory)
    judge(inventory, image, expect)


def judge(inventory: Inventory, image: Image, expect: str | None) -> None:
    """Do nothing if *image* came to this node as somebody expects of it.

    Raises:
        FailedPrecondition: it did not.
    """
    as_expected = {
        None: True,
        "lazy": image.is_lazy,
        "ordinary": all(inventory.mode(image, layer) == "ordinary" for layer in image.layers),
    }
    if not as_expected[expect]:
        raise FailedPrecondition(f"image {image.reference} is not {expect} on this node: {explain(inventory, image)}")


def explain(inventory: Inventory, image: Image) -> str:
    """Return one sentence about *image*."""
    modes = [inventory.mode(image, layer) for layer in image.layers]
    total, lazy, complete = len(modes), modes.count("lazy"), modes.count("complete")
    if modes.count("ordinary") == total:
        reasons = {layer.reason for layer in image.layers}
        why = reasons.pop() if len(reasons) == 1 else "the reason stands beside each layer"
        return (
            f"an ordinary image, unpacked by containerd as usual: {why or 'nobody asked for it to be loaded on demand'}"
        )
    if "unknown" in modes:
        return f"{modes.count('unknown')} of {total} layers are loaded on demand, but the loader does not answer"
    if lazy + complete == total:
        if not lazy:
            return f"all {total} layers are complete on this node; the registry is out of the path"
        return f"loaded on demand: {lazy} of {total} layers still have bytes in the registry, {complete} are complete"
    others = total - lazy - complete
    return f"{lazy + complete} of {total} layers are loaded on demand or were, {others} are not: the reason stands beside each"
