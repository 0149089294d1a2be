"""The one configuration file of a node: every section, where it is, and what is in force without it."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Final

import click

from apparate.config import load
from apparate.layer.settings import LayerSettings
from apparate.loader.settings import LoaderSettings
from apparate.registry.settings import RegistrySettings
from apparate.snapshot.settings import SnapshotterSettings
from apparate.telemetry.logging import LogFormat, LogLevel

DEFAULT_PATH: Final = Path("/etc/apparate/config.toml")


@dataclass(frozen=True, slots=True)
class LogSettings:
    """Section `[log]`."""

    level: LogLevel = "info"
    format: LogFormat = "auto"


@dataclass(frozen=True, slots=True)
class Settings:
    """The whole file."""

    log: LogSettings = field(default_factory=LogSettings)
    snapshotter: SnapshotterSettings = field(default_factory=SnapshotterSettings)
    loader: LoaderSettings = field(default_factory=LoaderSettings)
    layers: LayerSettings = field(default_factory=LayerSettings)
    registry: RegistrySettings = field(default_factory=RegistrySettings)


config_option = click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    help=f"Settings file.  [default: {DEFAULT_PATH}, if it is there]",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def load_settings(path: Path | None) -> Settings:
    """Return the settings in *path*, or at the default place, or the defaults where no file is.

    Raises:
        InvalidArgument: the file cannot be read or holds what we do not know.
    """
    if path is None and not DEFAULT_PATH.exists():
        return Settings()
    return load(Settings, path or DEFAULT_PATH)


def default_text() -> str:
    """Return the shipped, commented file that equals the defaults (a test compares them)."""
    return resources.files("apparate").joinpath("config.default.toml").read_text()
