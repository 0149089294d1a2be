"""What in containerd's configuration is in the way of apparate, judged by its own dump before anything is on the host.

`apparate node configure --check` says the same and more, once the package is there.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from typing import Any

NAME = "apparate"
DEFAULT_SNAPSHOTTER = "overlayfs"
CONFIG = "/etc/containerd/config.toml"
CRI_1 = "io.containerd.grpc.v1.cri"
CRI_IMAGES = "io.containerd.cri.v1.images"
CRI_NAMES = frozenset({"cri", CRI_1, CRI_IMAGES, "io.containerd.cri.v1.runtime"})


def containerd_objections(dump: str, socket: str, replaces: str = "") -> list[str]:
    """Return a sentence with the fix for each setting that apparate would not change.

    Args:
        dump: what `containerd config dump` printed.
        socket: where our snapshotter will serve.
        replaces: a default snapshotter, set by somebody else, that may be replaced.
    """
    try:
        values: Mapping[str, Any] = tomllib.loads(dump.replace("\r\n", "\n"))
    except tomllib.TOMLDecodeError as error:
        return [f"`containerd config dump` prints what is no TOML ({error}): use a containerd of your distribution"]
    found = []
    if CRI_NAMES & set(values.get("disabled_plugins") or ()):
        found.append(f"{CONFIG} disables containerd's CRI plugin: take it out of disabled_plugins")
    proxy = (values.get("proxy_plugins") or {}).get(NAME)
    if proxy is not None and proxy.get("address") != socket:
        found.append(
            f"containerd has a proxy plugin {NAME} at {proxy.get('address')}, which is not ours: rename or remove it, "
            "or set snapshotter.socket in apparate_settings_values to that address"
        )
    snapshotter = _snapshotter(values.get("plugins") or {})
    if snapshotter not in {DEFAULT_SNAPSHOTTER, NAME, replaces}:
        found.append(
            f"the default snapshotter of this node is {snapshotter}, set by somebody else: take it out of {CONFIG}, "
            f"or agree with apparate_node_replace={snapshotter}"
        )
    return found


def _snapshotter(plugins: Mapping[str, Any]) -> str:
    images = plugins.get(CRI_IMAGES)
    if images is None:
        images = (plugins.get(CRI_1) or plugins.get("cri") or {}).get("containerd") or {}
    return str(images.get("snapshotter") or DEFAULT_SNAPSHOTTER)


class FilterModule:
    """How Ansible finds it."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"containerd_objections": containerd_objections}
