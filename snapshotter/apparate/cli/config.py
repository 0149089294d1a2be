"""`apparate config`: the shipped settings, and a check of a file."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from apparate.cli.output import print_json
from apparate.cli.settings import config_option, default_text, load_settings


@click.group()
def command() -> None:
    """Settings: defaults, and what is in force."""


@command.command()
def default() -> None:
    """Print the commented settings file with every default."""
    click.echo(default_text(), nl=False)


@command.command()
@config_option
def show(config_path: Path | None) -> None:
    """Check the settings file and print what is in force, as JSON."""
    print_json(_plain(dataclasses.asdict(load_settings(config_path))))


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
