"""`apparate complete REF`: download the rest of an image."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from apparate.cli.inventory import client, gather, one
from apparate.cli.output import bytes_text, print_json
from apparate.cli.settings import config_option, json_option, load_settings

if TYPE_CHECKING:
    from apparate.grpcapi.loader_client import LoaderClient
    from apparate.oci.digest import Digest


@click.command()
@click.argument("reference", metavar="REF")
@config_option
@json_option
def command(reference: str, config_path: Path | None, as_json: bool) -> None:
    """Download the rest of an image, so that its containers need no registry any more."""
    settings = load_settings(config_path)
    image = one(gather(settings), reference)
    with closing(client(settings)) as loader:
        sizes = _complete(loader, image.lazy_layers)
    if as_json:
        print_json({"reference": image.reference, "layers": {str(digest): size for digest, size in sizes.items()}})
    else:
        click.echo(f"{image.reference}: {len(sizes)} layers complete, {bytes_text(sum(sizes.values()))} on this node")


def _complete(loader: LoaderClient, layers: list[Digest]) -> dict[Digest, int]:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    console = Console(stderr=True)
    sizes = {}
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        for digest in layers:
            task = bars.add_task(str(digest)[:19], total=None)
            sizes[digest] = 0
            for step in loader.complete(digest):
                bars.update(task, completed=step.present_bytes, total=step.total_bytes)
                sizes[digest] = step.total_bytes
    return sizes
