"""`apparate convert SRC DST`: make an accelerated image."""

from __future__ import annotations

import dataclasses
import re
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from apparate.cli.convert_progress import progress_for
from apparate.cli.output import bytes_text, print_json, print_table
from apparate.cli.settings import config_option, json_option, load_settings
from apparate.convert.converter import Converter
from apparate.convert.settings import ConvertOptions, ConvertSettings
from apparate.convert.stores import RegistryImage, parse_location
from apparate.errors import InvalidArgument
from apparate.format.prefetch import parse_list
from apparate.format.toc import Compression
from apparate.format.writer import DEFAULT_COLD_BYTES, DEFAULT_LEVEL, DEFAULT_MEMBER_BYTES
from apparate.oci.manifest import Platform
from apparate.registry.client import RegistryClient
from apparate.telemetry.logging import configure

if TYPE_CHECKING:
    from apparate.convert.result import ConvertResult
    from apparate.convert.stores import ImageLocation
    from apparate.format.prefetch import PrefetchRange
    from apparate.registry.settings import RegistrySettings

FORMATS: Final = {"estargz": Compression.GZIP, "zstd:chunked": Compression.ZSTD}
PREFETCH_BYTES_MAX: Final = 256 * 1024 * 1024
_SIZE: Final = re.compile(r"([0-9]{1,12})(?:(k|m)(?:i?b)?|b)?\Z", re.IGNORECASE)
_UNITS: Final = {"": 1, "k": 1024, "m": 1024 * 1024}


class _Size(click.ParamType[int]):
    """Bytes, also as 64k, 64KiB, 1M."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = _SIZE.match(str(value))
        if not match:
            self.fail(f"{value!r} is no size; write bytes, or as 64KiB", param, ctx)
        return int(match[1]) * _UNITS[(match[2] or "").lower()]


class _Platform(click.ParamType[Platform]):
    """os/architecture[/variant]."""

    name = "platform"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Platform:
        try:
            return Platform.parse(str(value))
        except InvalidArgument as error:
            self.fail(str(error), param, ctx)


@click.command("convert")
@click.argument("source", metavar="SRC")
@click.argument("target", metavar="DST")
@click.option(
    "--platform",
    "platforms",
    multiple=True,
    type=_Platform(),
    metavar="OS/ARCH[/VARIANT]",
    help="Convert this platform of an image for several; may be given again.  [default: all]",
)
@click.option(
    "--format",
    "format_name",
    type=click.Choice(list(FORMATS)),
    default="estargz",
    show_default=True,
    help="Layers that every containerd pulls, or zstd for newer fleets.",
)
@click.option(
    "--level",
    type=int,
    default=DEFAULT_LEVEL,
    show_default=True,
    help="Compression level: 1 is fast, 12 (zstd: 22) is small.",
)
@click.option(
    "--member-size",
    type=_Size(),
    default=DEFAULT_MEMBER_BYTES,
    show_default=True,
    help="Uncompressed bytes that are fetched together.",
)
@click.option(
    "--cold-size",
    type=_Size(),
    default=DEFAULT_COLD_BYTES,
    show_default=True,
    help="The same, for what a prefetch list does not name.",
)
@click.option(
    "--chunk-size",
    type=_Size(),
    default=0,
    show_default=True,
    help="Cut what has a digest of its own to this size; 0: as large as the member.",
)
@click.option(
    "--prefetch",
    "prefetch_file",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    metavar="FILE",
    help="What a start touches, in order: lines `path` or `path offset length`, as `apparate profile` prints them; - reads standard input.",
)
@click.option("--from-oci-layout", is_flag=True, help="SRC is a directory, DIR or DIR:TAG.")
@click.option("--to-oci-layout", is_flag=True, help="DST is a directory, DIR or DIR:TAG.")
@click.option("--replace", is_flag=True, help="Overwrite a tag that holds something else.")
@click.option("--reconvert", is_flag=True, help="Convert an image that another tool has accelerated.")
@click.option("--plain-http", is_flag=True, help="Speak plain HTTP to the registries of SRC and DST.")
@click.option(
    "--patience",
    type=click.FloatRange(min=0),
    default=15.0,
    show_default=True,
    help="Seconds for which a registry that does not answer is tried.",
)
@click.option("--threads", type=int, default=0, show_default=True, help="Compression threads; 0: all cores.")
@click.option(
    "--spool-dir",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    default=None,
    help="Directory for temporary files, about three uncompressed layers.  [default: $TMPDIR or /tmp]",
)
@config_option
@json_option
def command(source: str, target: str, **given: Any) -> None:
    """Make of the image SRC an image DST that starts before it is downloaded.

    DST is an ordinary image too: every runtime can pull and run it. It appears only when all of it is there; run the same
    command again after an interruption.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    read_from = parse_location(source, layout=given["from_oci_layout"])
    write_to = parse_location(target, layout=given["to_oci_layout"])
    options = ConvertOptions(
        platforms=given["platforms"],
        compression=FORMATS[given["format_name"]],
        level=given["level"],
        member_bytes=given["member_size"],
        cold_bytes=given["cold_size"],
        chunk_bytes=given["chunk_size"],
        prefetch=_read_prefetch(given["prefetch_file"]),
        replace=given["replace"],
        reconvert=given["reconvert"],
    )
    loaded = load_settings(given["config_path"])
    configure("error", loaded.log.format)  # what a person should know comes as an error or as progress
    registry = loaded.registry
    if given["plain_http"]:
        registry = _plain(registry, read_from, write_to)
    settings = ConvertSettings(
        threads=given["threads"], spool_dir=str(given["spool_dir"] or ""), patience_s=given["patience"]
    )
    client = RegistryClient(registry)
    try:
        with progress_for(sys.stderr) as progress:
            result = Converter(client, settings).convert(read_from, write_to, options, progress)
    finally:
        client.close()
    if given["as_json"]:
        print_json(result.to_json())
    else:
        _print_result(result)


def _read_prefetch(path: Path | None) -> tuple[PrefetchRange, ...] | None:
    if path is None:
        return None
    try:
        with click.open_file(str(path), "rb") as file:
            text = file.read(PREFETCH_BYTES_MAX + 1)
    except OSError as error:
        raise InvalidArgument(f"prefetch list {path}: {error.strerror}") from error
    if len(text) > PREFETCH_BYTES_MAX:
        raise InvalidArgument(f"prefetch list {path}: larger than {PREFETCH_BYTES_MAX} bytes")
    return tuple(parse_list(text))


def _plain(settings: RegistrySettings, *places: ImageLocation) -> RegistrySettings:
    hosts = tuple(place.reference.registry for place in places if isinstance(place, RegistryImage))
    return dataclasses.replace(settings, plain_http_hosts=(*settings.plain_http_hosts, *hosts))


def _print_result(result: ConvertResult) -> None:
    if not result.changed:
        print(f"{result.target} is up to date: {result.digest}")
        return
    rows = []
    for image in result.images:
        before = sum(layer.source.size for layer in image.layers)
        after = sum(layer.layer.size for layer in image.layers)
        raw = sum(layer.raw_size for layer in image.layers)
        rows.append(
            [
                str(image.platform),
                str(len(image.layers)),
                bytes_text(raw),
                bytes_text(before),
                bytes_text(after),
                str(image.digest),
            ]
        )
    print_table(
        ["platform", "layers", "unpacked", "before", "after", "digest"],
        rows,
        right=["layers", "unpacked", "before", "after"],
    )
    print(f"{result.target} {result.digest} in {result.duration_s:.1f} s")
