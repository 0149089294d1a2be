"""`apparate profile REF`: what containers of an image have touched, as the list that `convert --prefetch` reads."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import click

from apparate.cli.inventory import client, gather, one
from apparate.cli.output import print_json
from apparate.cli.settings import config_option, json_option, load_settings
from apparate.format.prefetch import PrefetchRange, format_list


@click.command()
@click.argument("reference", metavar="REF")
@config_option
@json_option
def command(reference: str, config_path: Path | None, as_json: bool) -> None:
    """Print, in order, what containers of an image have touched since it was mounted."""
    settings = load_settings(config_path)
    image = one(gather(settings), reference)
    with closing(client(settings)) as loader:
        touches = [touch for digest in image.lazy_layers for touch in loader.profile(digest)]
    if as_json:
        print_json(
            [
                {"path": touch.path.decode(errors="surrogateescape"), "offset": touch.offset, "length": touch.length}
                for touch in touches
            ]
        )
        return
    ranges = [PrefetchRange(touch.path, touch.offset, touch.length) for touch in touches]
    click.echo(format_list(ranges), nl=False)
