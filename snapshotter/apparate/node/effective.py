"""What of containerd's configuration concerns us, read from its own dump, whatever version made it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

CRI_1: Final = "io.containerd.grpc.v1.cri"
"""The whole CRI plugin up to 1.7; from 2.0 on only its server."""
CRI_IMAGES: Final = "io.containerd.cri.v1.images"
CRI_RUNTIME: Final = "io.containerd.cri.v1.runtime"
GRPC_SERVER: Final = "io.containerd.server.v1.grpc"
"""Where configuration version 4 (containerd 2.3) keeps the socket's address."""
DEFAULT_SNAPSHOTTER: Final = "overlayfs"
DEFAULT_ADDRESS: Final = "/run/containerd/containerd.sock"
DEFAULT_ROOT: Final = "/var/lib/containerd"

_CRI_NAMES: Final = frozenset({"cri", CRI_1, CRI_IMAGES, CRI_RUNTIME})


@dataclass(frozen=True, slots=True)
class Proxy:
    """One proxy plugin."""

    type: str
    address: str


@dataclass(frozen=True, slots=True)
class Effective:
    """What is in force."""

    version: int
    """Of the configuration's format."""
    snapshotter: str
    annotations: bool
    """Whether layers reach the snapshotter with the names of their image and registry."""
    discards_layers: bool
    """Whether blobs are dropped once they are unpacked, which leaves nothing for another snapshotter."""
    cri_disabled: bool
    sandbox_image: str
    systemd_cgroup: bool
    address: Path
    root: Path
    proxies: Mapping[str, Proxy]

    @classmethod
    def of(cls, dump: Mapping[str, Any], file: Mapping[str, Any] | None = None) -> Effective:
        """Return what *dump*, the values that containerd printed, says; *file* are those of its main file.

        The file is looked at for options of runtimes alone, which containerd 1.4 leaves out of what it prints.
        """
        plugins = dump.get("plugins") or {}
        images = plugins.get(CRI_IMAGES)
        old = plugins.get(CRI_1) or {}
        source = images if images is not None else (old.get("containerd") or {})
        runtime = (plugins.get(CRI_RUNTIME) or {}).get("containerd") or old.get("containerd") or {}
        sandbox = (images.get("pinned_images") or {}).get("sandbox") if images is not None else old.get("sandbox_image")
        proxies = dump.get("proxy_plugins") or {}
        grpc = plugins.get(GRPC_SERVER) or dump.get("grpc") or {}
        return cls(
            version=int(dump.get("version") or 0),
            snapshotter=str(source.get("snapshotter") or DEFAULT_SNAPSHOTTER),
            annotations=not source.get("disable_snapshot_annotations", True),
            discards_layers=bool(source.get("discard_unpacked_layers", False)),
            cri_disabled=bool(_CRI_NAMES & set(dump.get("disabled_plugins") or ())),
            sandbox_image=str(sandbox or ""),
            systemd_cgroup=_systemd_cgroup(runtime, old) or _systemd_cgroup_in(file or {}, runtime),
            address=Path(grpc.get("address") or DEFAULT_ADDRESS),
            root=Path(dump.get("root") or DEFAULT_ROOT),
            proxies={
                name: Proxy(str(value.get("type", "")), str(value.get("address", "")))
                for name, value in proxies.items()
            },
        )


def _systemd_cgroup(runtime: Mapping[str, Any], old: Mapping[str, Any]) -> bool:
    return bool(old.get("systemd_cgroup")) or _option(runtime, _default_runtime(runtime))


def _systemd_cgroup_in(file: Mapping[str, Any], runtime: Mapping[str, Any]) -> bool:
    plugins = file.get("plugins")
    if not isinstance(plugins, Mapping):
        return False
    tables = [plugins.get(name) for name in (CRI_1, "cri")]
    return any(_option(table.get("containerd") or {}, _default_runtime(runtime)) for table in tables if table)


def _default_runtime(runtime: Mapping[str, Any]) -> str:
    return str(runtime.get("default_runtime_name") or "runc")


def _option(runtime: Mapping[str, Any], name: str) -> bool:
    default = (runtime.get("runtimes") or {}).get(name) or {}
    return bool((default.get("options") or {}).get("SystemdCgroup", False))
