"""A real containerd with its own root, state and socket, CRI on, our snapshotter plugged in as a site would do it."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.support import leftovers
from tests.support.cri import CriClient, CriError
from tests.support.peers import peer
from tests.support.processes import Process, run, wait_until

NAMESPACE = "k8s.io"
PAUSE = "registry.test/pause:1"
CGROUPS = Path("/sys/fs/cgroup")
_PLATFORM = "linux/" + {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())


@dataclass(frozen=True, slots=True)
class Release:
    """Programs of one containerd version and what differs in using it."""

    name: str
    folder: Path
    version: tuple[int, int]

    @property
    def api(self) -> str:
        """The CRI version that kubelets of its time speak."""
        return "v1" if self.version >= (1, 6) else "v1alpha2"


@dataclass(frozen=True, slots=True)
class Plug:
    """A proxy snapshotter in containerd's configuration."""

    name: str
    socket: Path


@dataclass(frozen=True, slots=True)
class Settings:
    """What a test decides about its containerd.

    Attributes:
        default: the snapshotter of every pod.
        plugs: proxy snapshotters.
        plain_http: registry hosts without TLS; loopback ones need not be listed.
    """

    default: str = "overlayfs"
    plugs: Sequence[Plug] = ()
    plain_http: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict)


def release(name: str) -> Release:
    """The release *name*: "debian", or "2.4.2", "1.7.35", "1.4.3" (built as peers)."""
    if name == "debian":
        found = shutil.which("containerd")
        if found is None:
            raise AssertionError("Debian's containerd is not installed")
        folder = Path(found).parent
    else:
        folder = peer(f"containerd-{name}")
    printed = run([folder / "containerd", "--version"])
    numbers = re.search(r"\bv?(\d+)\.(\d+)\.\d+", printed)
    if numbers is None:
        raise AssertionError(f"containerd prints no version: {printed}")
    return Release(name, folder, (int(numbers[1]), int(numbers[2])))


class Containerd:
    """One running containerd below *base* (short: socket paths end at 107 bytes). Leaving the context removes its pods."""

    def __init__(self, chosen: Release, base: Path, settings: Settings) -> None:
        self.release = chosen
        self.base = base
        self.root = base / "root"
        self.state = base / "state"
        self.socket = base / "containerd.sock"
        self.settings = settings
        self.cgroup_parent = f"/apparate-test-{os.getpid()}-{base.name}"
        self.cri = CriClient(self.socket, chosen.api, base / "pods", self.cgroup_parent)
        config = base / "config.toml"
        base.mkdir(parents=True, exist_ok=True)
        config.write_text(configuration(self))
        self.process = Process(
            f"containerd {chosen.name}",
            [chosen.folder / "containerd", "--config", config],
            base / "containerd.log",
            env={**settings.env, "PATH": f"{chosen.folder}:{os.environ['PATH']}"},
        )

    def start(self) -> None:
        self.process.start(self._serves)

    def restart(self, *, kill: bool) -> None:
        """End containerd, by SIGKILL or in good order, and start it again; pods keep running."""
        if kill:
            self.process.kill()
        else:
            self.process.stop()
        self.start()

    def ctr(self, *arguments: str | Path) -> str:
        """Run `ctr` in the namespace of CRI."""
        command = [self.release.folder / "ctr", "--address", self.socket, "--namespace", NAMESPACE, *arguments]
        return run(command)

    def snapshots(self, snapshotter: str) -> list[str]:
        """Keys of the snapshots that containerd knows in *snapshotter*."""
        lines = self.ctr("snapshots", "--snapshotter", snapshotter, "ls").splitlines()[1:]
        return [line.split()[0] for line in lines if line.strip()]

    def import_image(self, archive: Path) -> None:
        """Load and unpack an image archive, as a node is prepared without a registry; wait until CRI knows it."""
        local = ["--local"] if self.release.version >= (2, 0) else []
        self.ctr("images", "import", "--snapshotter", self.settings.default, *local, archive)
        wait_until(self.cri.images, "CRI knows the imported image")

    def pull_with_ctr(self, reference: str, snapshotter: str) -> None:
        """Pull and unpack in full with `ctr`, from a registry without TLS, as any client of containerd does."""
        local = ["--local"] if self.release.version >= (2, 0) else []
        self.ctr("images", "pull", "--plain-http", "--snapshotter", snapshotter, *local, reference)

    @contextlib.contextmanager
    def mounted(self, reference: str, snapshotter: str, where: Path) -> Iterator[Path]:
        """The file system of an unpacked image, read-only at *where*."""
        where.mkdir(exist_ok=True)
        self.ctr("images", "mount", "--snapshotter", snapshotter, reference, where)
        try:
            yield where
        finally:
            self.ctr("images", "unmount", "--snapshotter", snapshotter, "--rm", where)

    def remove_all(self) -> None:
        """Remove every pod and image, and wait until containerd has collected what they held."""
        self.cri.remove_all()
        names = {"overlayfs", self.settings.default, *(plug.name for plug in self.settings.plugs)}
        for name in names:
            self._wait_collected(name)

    def _wait_collected(self, snapshotter: str) -> None:
        wait_until(lambda: not self.snapshots(snapshotter), f"the snapshots of {snapshotter} are collected")

    def stop(self) -> None:
        """Stop containerd and what it left: shims end with their pods, the cgroups of pods go here."""
        try:
            self.process.stop()
        finally:
            self.cri.close()
            leftovers.remove_cgroups(self.cgroup_parent)

    def __enter__(self) -> Containerd:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if self.process.running:
                with contextlib.suppress(CriError) if kind else contextlib.nullcontext():
                    self.cri.remove_all()
        finally:
            self.stop()

    def _serves(self) -> bool:
        if not self.socket.exists():
            return False
        try:
            self.cri.version()
        except CriError:
            return False
        return True


def configuration(daemon: Containerd) -> str:
    """The whole config.toml of *daemon*, in the layout of its version."""
    base, settings = daemon.base, daemon.settings
    version = 3 if daemon.release.version >= (2, 0) else 2
    lines = [
        f"version = {version}",
        f'root = "{daemon.root}"',
        f'state = "{daemon.state}"',
        "oom_score = 0",
        "[grpc]",
        f'address = "{daemon.socket}"',
        "[ttrpc]",
        f'address = "{daemon.socket}.ttrpc"',
        "[plugins.'io.containerd.internal.v1.opt']",
        f'path = "{base / "opt"}"',
        "[plugins.'io.containerd.nri.v1.nri']",
        "disable = true",
    ]
    for plug in settings.plugs:
        lines += [
            f"[proxy_plugins.{plug.name}]",
            'type = "snapshot"',
            f'address = "{plug.socket}"',
            f"[proxy_plugins.{plug.name}.exports]",
            f'root = "{daemon.root / f"io.containerd.snapshotter.v1.{plug.name}"}"',
            'enable_remote_snapshot_annotations = "true"',
        ]
    lines += _cri_2(daemon) if version == 3 else _cri_1(daemon)
    return "\n".join(lines) + "\n"


def _cri_1(daemon: Containerd) -> list[str]:
    cri = "plugins.'io.containerd.grpc.v1.cri'"
    lines = [
        f"[{cri}]",
        f'sandbox_image = "{PAUSE}"',
        "restrict_oom_score_adj = true",
        f"[{cri}.cni]",
        f'bin_dir = "{daemon.base / "cni/bin"}"',
        f'conf_dir = "{daemon.base / "cni/net.d"}"',
        f"[{cri}.containerd]",
        f'snapshotter = "{daemon.settings.default}"',
        "disable_snapshot_annotations = false",
        "discard_unpacked_layers = false",
        'default_runtime_name = "runc"',
        f"[{cri}.containerd.runtimes.runc]",
        'runtime_type = "io.containerd.runc.v2"',
    ]
    if daemon.release.version < (1, 5):
        for host in daemon.settings.plain_http:
            lines += [f"[{cri}.registry.mirrors.'{host}']", f'endpoint = ["http://{host}"]']
        return lines
    return [*lines, f"[{cri}.registry]", f'config_path = "{_hosts(daemon)}"']


def _cri_2(daemon: Containerd) -> list[str]:
    images, runtime = "plugins.'io.containerd.cri.v1.images'", "plugins.'io.containerd.cri.v1.runtime'"
    lines = [
        f"[{images}]",
        f'snapshotter = "{daemon.settings.default}"',
        "disable_snapshot_annotations = false",
        "discard_unpacked_layers = false",
        "use_local_image_pull = true",
        f"[{images}.pinned_images]",
        f'sandbox = "{PAUSE}"',
        f"[{images}.registry]",
        f'config_path = "{_hosts(daemon)}"',
        f"[{runtime}]",
        "restrict_oom_score_adj = true",
        f"[{runtime}.cni]",
        f'bin_dirs = ["{daemon.base / "cni/bin"}"]',
        f'conf_dir = "{daemon.base / "cni/net.d"}"',
        f"[{runtime}.containerd]",
        'default_runtime_name = "runc"',
        f"[{runtime}.containerd.runtimes.runc]",
        'runtime_type = "io.containerd.runc.v2"',
    ]
    for name in dict.fromkeys(("overlayfs", daemon.settings.default)):
        lines += [
            "[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]",
            f'platform = "{_PLATFORM}"',
            f'snapshotter = "{name}"',
        ]
    return lines


def _hosts(daemon: Containerd) -> Path:
    """Write certs.d for the hosts that speak plain HTTP."""
    folder = daemon.base / "certs.d"
    write_hosts(folder, daemon.settings.plain_http)
    return folder


def write_hosts(folder: Path, plain_http: Sequence[str]) -> None:
    """Write *folder* in containerd's certs.d form: each of *plain_http* is a registry without TLS."""
    folder.mkdir(parents=True, exist_ok=True)
    for host in plain_http:
        place = folder / host
        place.mkdir(exist_ok=True)
        (place / "hosts.toml").write_text(
            f'server = "http://{host}"\n[host."http://{host}"]\ncapabilities = ["pull", "resolve"]\n'
        )
