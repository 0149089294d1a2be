"""`apparate fsck`: every layer on this node against its digests."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import click

from apparate.cli.output import bytes_text, print_json, print_table
from apparate.cli.settings import config_option, json_option, load_settings
from apparate.errors import FormatError, NotFound
from apparate.layer.offline import check_layer, layers_on_disk
from apparate.layer.verify import VerifyReport
from apparate.oci.digest import Digest


@click.command()
@click.argument("digests", metavar="[DIGEST]...", nargs=-1)
@config_option
@json_option
def command(digests: tuple[str, ...], config_path: Path | None, as_json: bool) -> None:
    """Check the layers on this node (or those named) against their digests. Repairs nothing; exit code 7 if something is wrong."""
    wanted = {Digest.parse(text) for text in digests}
    found = dict(layers_on_disk(load_settings(config_path).layers.root))
    missing = wanted - set(found)
    if missing:
        raise NotFound(f"layer {min(missing)} is not on this node")
    reports = {digest: check_layer(path) for digest, path in found.items() if not wanted or digest in wanted}
    if as_json:
        print_json(
            {
                str(digest): {**dataclasses.asdict(report), "sound": report.is_sound}
                for digest, report in reports.items()
            }
        )
    else:
        print_table(
            ("layer", "state", "members", "missing", "read", "problems"), [_row(*item) for item in reports.items()]
        )
        for digest, report in reports.items():
            for problem in report.problems:
                print(f"{digest}: {problem.what} at {problem.address}: {problem.reason}", file=sys.stderr)
    if not all(report.is_sound for report in reports.values()):
        sys.exit(FormatError.exit_code)


def _row(digest: Digest, report: VerifyReport) -> tuple[str, ...]:
    state = "damaged" if not report.is_sound else "complete" if report.is_complete else "sound"
    counts = (str(report.members_checked), str(report.members_missing))
    return (str(digest), state, *counts, bytes_text(report.bytes_checked), str(report.problem_count))
