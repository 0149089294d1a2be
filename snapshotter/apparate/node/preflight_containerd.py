"""The findings about containerd: its version, its configuration, and whether ours would fit in."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from apparate.errors import ApparateError
from apparate.node import files, program
from apparate.node.containerd_config import ConfigPlanner
from apparate.node.effective import DEFAULT_SNAPSHOTTER, Effective
from apparate.node.preflight import Finding, Level
from apparate.node.program import Program
from apparate.node.restart import serves
from apparate.node.settings import NAME, NodeSettings


def run(settings: NodeSettings, find: Callable[[str], Program] = program.find) -> list[Finding]:
    """Return the findings about containerd; the later ones only where the earlier ones allow to look."""
    try:
        found = find(settings.containerd)
        version = program.text(found.supported_version())
    except ApparateError as error:
        return [Finding("containerd", Level.FAILED, str(error), "install containerd 1.4.3 or later")]
    findings = [Finding("containerd", Level.OK, f"{version}, {found.path}")]
    try:
        planner = ConfigPlanner(found, settings)
        main = files.read(settings.config)
        on_disk = {settings.config: main}
        drop_in = planner.drop_in(main)
        if drop_in is not None:
            on_disk[drop_in] = files.read(drop_in)
        effective = planner.effective(on_disk)
    except ApparateError as error:
        return [*findings, Finding("containerd config", Level.FAILED, str(error), "mend the file")]
    return [*findings, *_configuration(settings, effective, is_there=main is not None)]


def _configuration(settings: NodeSettings, effective: Effective, *, is_there: bool) -> Iterator[Finding]:
    shown = f"{settings.config}, version {effective.version} in force" if is_there else "no file: containerd's defaults"
    yield Finding("containerd config", Level.OK, shown)
    yield _cri(settings, effective)
    yield _snapshotter(settings, effective)
    yield _proxy(settings, effective)
    yield _place(settings, effective)
    address = settings.address or effective.address
    if serves(address):
        yield Finding("containerd socket", Level.OK, str(address))
    else:
        yield Finding("containerd socket", Level.WARNING, f"nothing serves {address}", "start containerd")


def _cri(settings: NodeSettings, effective: Effective) -> Finding:
    if effective.cri_disabled:
        return Finding(
            "cri", Level.FAILED, "the CRI plugin is disabled", f"take it out of disabled_plugins in {settings.config}"
        )
    return Finding("cri", Level.OK, f"enabled, sandbox image {effective.sandbox_image or 'not set'}")


def _snapshotter(settings: NodeSettings, effective: Effective) -> Finding:
    name = effective.snapshotter
    if name not in {NAME, DEFAULT_SNAPSHOTTER, settings.replaces}:
        detail = f"{name} is the default, set by somebody else"
        return Finding("default snapshotter", Level.FAILED, detail, f"take it out, or agree with --replace {name}")
    if name != NAME:
        return Finding("default snapshotter", Level.OK, f"{name}; `apparate node configure` replaces it")
    if not effective.annotations:
        detail = f"{NAME}, but annotations are disabled: no image is lazy"
        return Finding("default snapshotter", Level.WARNING, detail, "apparate node configure")
    return Finding("default snapshotter", Level.OK, name)


def _place(settings: NodeSettings, effective: Effective) -> Finding:
    """containerd before 1.6.32 and 1.7.16 tells kubelet the disk usage of exactly this directory, whatever the plugin says."""
    wanted = effective.root / f"io.containerd.snapshotter.v1.{NAME}"
    if settings.root == wanted:
        return Finding("image file system", Level.OK, str(wanted))
    detail = f"{settings.root} is not where older containerds look for the usage of images"
    return Finding("image file system", Level.WARNING, detail, f'set snapshotter.root = "{wanted}"')


def _proxy(settings: NodeSettings, effective: Effective) -> Finding:
    proxy = effective.proxies.get(NAME)
    if proxy is None:
        return Finding("proxy plugin", Level.OK, "not there yet")
    if proxy.address != str(settings.socket):
        detail = f"{NAME} belongs to somebody else, at {proxy.address}"
        return Finding(
            "proxy plugin", Level.FAILED, detail, "rename or remove it, or set snapshotter.socket to that address"
        )
    if not serves(settings.socket):
        return Finding("proxy plugin", Level.WARNING, f"nothing serves {proxy.address}", "start apparate-snapshotter")
    return Finding("proxy plugin", Level.OK, proxy.address)
