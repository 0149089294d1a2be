"""`apparate node`: check this host, configure its containerd, give it back, say how it is."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click

import apparate
from apparate.cli.inventory import records
from apparate.cli.output import print_json, print_table
from apparate.cli.settings import Settings, config_option, json_option, load_settings
from apparate.cli.signals import interruptible
from apparate.errors import FailedPrecondition, InvalidArgument, NotFound
from apparate.grpcapi.containerd_client import connect
from apparate.loader import drivers
from apparate.node import preflight, preflight_containerd, preflight_registry, program
from apparate.node.configure import Configurator
from apparate.node.restart import Command, Systemd
from apparate.node.restore import Restorer
from apparate.node.settings import CONTAINERD_CONFIG, STATE_DIR, NodeSettings
from apparate.node.state import StateStore
from apparate.node.status import Sources, Status, gather, lazy_containers
from apparate.node.switch import Report, Switch, Tools
from apparate.snapshot.settings import mode_of
from apparate.telemetry import logging

LAZY_CONTAINERS_RUN: Final = FailedPrecondition.exit_code
"""Exit code of `status --running-lazy` that tells a package manager not to remove anything."""


_F = TypeVar("_F", bound=Callable[..., Any])


def _containerd_options(command: _F) -> _F:
    options = (
        click.option("--containerd", default="containerd", show_default=True, help="containerd's program."),
        click.option(
            "--containerd-config",
            type=click.Path(path_type=Path, dir_okay=False),
            default=CONTAINERD_CONFIG,
            show_default=True,
            help="Its main configuration file.",
        ),
        click.option(
            "--containerd-address",
            type=click.Path(path_type=Path),
            default=None,
            help="Its socket.  [default: what the configuration says]",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def _change_options(command: _F) -> _F:
    options = (
        click.option("--check", is_flag=True, help="Change nothing; say what would be changed."),
        click.option(
            "--state-dir",
            type=click.Path(path_type=Path, file_okay=False),
            default=STATE_DIR,
            show_default=True,
            help="What is remembered of the changes.",
        ),
        click.option("--unit", default="containerd.service", show_default=True, help="systemd's unit of containerd."),
        click.option("--restart-command", default="", help="Restarts containerd, in place of systemd."),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.group()
def command() -> None:
    """This node: what it can do, and whether its containerd uses it."""


@command.command()
@config_option
@_containerd_options
@click.option("--replace", default="", help="A default snapshotter, set by somebody else, that may be replaced.")
@click.option("--image", "images", multiple=True, help="An image that must be loadable from here; may be repeated.")
@json_option
def check(
    config_path: Path | None,
    containerd: str,
    containerd_config: Path,
    containerd_address: Path | None,
    replace: str,
    images: tuple[str, ...],
    as_json: bool,
) -> None:
    """Say what on-demand loading needs and whether it is here; exit code 5 if something that it needs is missing."""
    settings = load_settings(config_path)
    node = _node(settings, containerd, containerd_config, containerd_address, replaces=replace)
    findings = [
        *_preflight(settings),
        *preflight_containerd.run(node),
        *preflight_registry.run(settings.registry, images),
    ]
    if as_json:
        print_json([{**dataclasses.asdict(finding), "level": finding.level.value} for finding in findings])
    else:
        rows = [(finding.name, finding.level.value, finding.detail, finding.fix) for finding in findings]
        print_table(("what", "state", "detail", "fix"), rows)
    if preflight.worst(findings) is preflight.Level.FAILED:
        sys.exit(FailedPrecondition.exit_code)


@command.command()
@config_option
@_containerd_options
@click.option("--replace", default="", help="A default snapshotter, set by somebody else, that may be replaced.")
@_change_options
@json_option
def configure(
    config_path: Path | None,
    containerd: str,
    containerd_config: Path,
    containerd_address: Path | None,
    replace: str,
    check: bool,
    state_dir: Path,
    unit: str,
    restart_command: str,
    as_json: bool,
) -> None:
    """Let containerd use this snapshotter by default; every image and pod of the node goes on.

    containerd is restarted once. If it does not work within 60 seconds, everything is as it was again.
    """
    settings = _logged(config_path)
    node = _node(settings, containerd, containerd_config, containerd_address, state_dir=state_dir, replaces=replace)
    switch = _switch(settings, node, unit, restart_command)
    with interruptible():
        report = Configurator(switch, apparate.__version__).configure(check=check)
    _print(report, check=check, as_json=as_json)


@command.command()
@config_option
@_containerd_options
@_change_options
@click.option("--default-only", is_flag=True, help="Give new pods back, keep the plugin for containers that use it.")
@click.option("--force", is_flag=True, help="Ask containerd nothing: it is broken or gone.")
@json_option
def restore(
    config_path: Path | None,
    containerd: str,
    containerd_config: Path,
    containerd_address: Path | None,
    check: bool,
    state_dir: Path,
    unit: str,
    restart_command: str,
    default_only: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Take back what `configure` did: the file as it was, byte for byte if nobody has edited it, else without our settings."""
    if default_only and force:
        raise InvalidArgument("--default-only and --force exclude each other")
    settings = _logged(config_path)
    node = _node(settings, containerd, containerd_config, containerd_address, state_dir=state_dir)
    switch = _switch(settings, node, unit, restart_command)
    with interruptible():
        report = Restorer(switch).restore(check=check, default_only=default_only, force=force)
    _print(report, check=check, as_json=as_json)


@command.command()
@config_option
@_containerd_options
@click.option(
    "--state-dir", type=click.Path(path_type=Path, file_okay=False), default=STATE_DIR, help="As for configure."
)
@click.option(
    "--running-lazy",
    is_flag=True,
    help="Only list running containers on layers that are loaded on demand; exit code 5 if there are any, 0 if none.",
)
@json_option
def status(
    config_path: Path | None,
    containerd: str,
    containerd_config: Path,
    containerd_address: Path | None,
    state_dir: Path,
    running_lazy: bool,
    as_json: bool,
) -> None:
    """Say how this node is: mode, driver, versions, whether it is configured, running lazy containers, the last error."""
    settings = load_settings(config_path)
    if running_lazy:
        _running_lazy(settings, as_json=as_json)
        return
    node = _node(settings, containerd, containerd_config, containerd_address, state_dir=state_dir)
    own = settings.snapshotter
    sources = Sources(
        version=apparate.__version__,
        mode=lambda: mode_of(own),
        driver=lambda: drivers.choose(settings.loader),
        records=lambda: records(settings),
        loader_socket=own.loader_socket,
    )
    found = gather(_switch(settings, node, "", ""), sources)
    if as_json:
        print_json(dataclasses.asdict(found))
    else:
        _print_status(found)


def _running_lazy(settings: Settings, *, as_json: bool) -> None:
    found = lazy_containers(settings.snapshotter.root, lambda: records(settings))
    if as_json:
        print_json([dataclasses.asdict(container) for container in found])
    else:
        for container in found:
            print(container.name or f"snapshot {container.snapshot_id}")
    if found:
        sys.exit(LAZY_CONTAINERS_RUN)


def _logged(config_path: Path | None) -> Settings:
    settings = load_settings(config_path)
    logging.configure(settings.log.level, settings.log.format)
    return settings


def _node(
    settings: Settings,
    containerd: str,
    config: Path,
    address: Path | None,
    *,
    state_dir: Path = STATE_DIR,
    replaces: str = "",
) -> NodeSettings:
    return NodeSettings(
        socket=settings.snapshotter.socket,
        root=settings.snapshotter.root,
        containerd=containerd,
        config=config.absolute(),
        address=address,
        state_dir=state_dir,
        replaces=replaces,
    )


def _preflight(settings: Settings) -> list[preflight.Finding]:
    return preflight.run(settings.snapshotter.root, driver=lambda: drivers.choose(settings.loader))


def _switch(settings: Settings, node: NodeSettings, unit: str, restart_command: str) -> Switch:
    tools = Tools(
        program=_program(node.containerd),
        connect=connect,
        restarter=Command(restart_command) if restart_command else Systemd(unit),
        preflight=lambda: _preflight(settings),
    )
    return Switch(node, tools, StateStore(node.state_dir))


def _program(name: str) -> program.Program:
    """Return containerd's program, or one that fails when it is run: a node may be given back whose containerd is gone."""
    try:
        return program.find(name)
    except NotFound:
        return program.Program(Path(name))


def _print(report: Report, *, check: bool, as_json: bool) -> None:
    if as_json:
        print(json.dumps({**dataclasses.asdict(report), "check": check}))
        return
    if not report.changed:
        print("nothing to do")
        return
    print(report.diff, end="")
    for step in report.steps:
        print(f"would: {step}" if check else f"done: {step}")


def _print_status(found: Status) -> None:
    daemon = found.containerd
    standing = "unknown" if found.standing is None else str(len(found.standing))
    rows = [
        ("apparate", found.version),
        ("kernel", found.kernel),
        ("containerd", f"{daemon.program} installed, {daemon.running} running"),
        ("configuration", f"{daemon.config}, default snapshotter {daemon.default_snapshotter}"),
        ("configured", found.configured),
        ("mode", found.mode),
        ("driver", found.driver),
        ("snapshotter", "serves" if found.snapshotter_serves else "does not answer"),
        ("loader", "serves" if found.loader_serves else "does not answer"),
        ("containers on it", standing),
        ("lazy and running", ", ".join(one.name or f"snapshot {one.snapshot_id}" for one in found.lazy) or "none"),
        ("last error", found.last_error or daemon.error or "none"),
    ]
    print_table(("what", "is"), rows)
