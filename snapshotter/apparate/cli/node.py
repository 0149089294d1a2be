"""`apparate node check`: the preflight report of this host."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import click

from apparate.cli.output import print_json, print_table
from apparate.cli.settings import config_option, json_option, load_settings
from apparate.errors import FailedPrecondition
from apparate.loader import drivers
from apparate.node import preflight


@click.group()
def command() -> None:
    """This node: what it can do."""


@command.command()
@config_option
@json_option
def check(config_path: Path | None, as_json: bool) -> None:
    """Say what on-demand loading needs and whether it is here; exit code 5 if something that it needs is missing."""
    settings = load_settings(config_path)
    findings = preflight.run(settings.snapshotter.root, driver=lambda: drivers.choose(settings.loader))
    if as_json:
        print_json([{**dataclasses.asdict(finding), "level": finding.level.value} for finding in findings])
    else:
        rows = [(finding.name, finding.level.value, finding.detail, finding.fix) for finding in findings]
        print_table(("what", "state", "detail", "fix"), rows)
    if preflight.worst(findings) is preflight.Level.FAILED:
        sys.exit(FailedPrecondition.exit_code)
