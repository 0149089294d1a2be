"""The systems that `make bench` compares, each as a way to have a fresh node and the name of its image."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.busybox import pause_image, write_archive
from tests.support.containerd import PAUSE, Containerd, Plug, Settings, release
from tests.support.leftovers import mounts_below
from tests.support.node import Node, node
from tests.support.peers import peer
from tests.support.processes import Process, run
from tests.support.services import answers, apparate

CONTAINERD = "2.4.2"
CLIENT_NAMESPACE = "k8s.io"


@dataclass(frozen=True, slots=True)
class Contender:
    """A system under comparison: *node* makes a fresh node below a folder, *reference* is the image made for it."""

    name: str
    node: Callable[[Path], AbstractContextManager[Containerd]]
    reference: str


@dataclass(frozen=True, slots=True)
class Images:
    """One application in the forms that the contenders want."""

    plain: str
    stargz: str
    accelerated: str
    profiled: str


def contenders(images: Images, registry: str) -> list[Contender]:
    """All contenders, for images in *registry*, a host without TLS."""
    ours = _ours(registry)
    return [
        Contender("containerd", _ordinary(registry), images.plain),
        Contender("stargz", _stargz(registry), images.stargz),
        Contender("apparate", ours, images.accelerated),
        Contender("apparate_profile", ours, images.profiled),
    ]


def record_profile(folder: Path, registry: str, reference: str, start: Callable[[Node], None], target: Path) -> None:
    """Run an application once on a node of ours and write to *target* what it touched."""
    with node(folder, CONTAINERD, plain_http=[registry]) as recorder:
        start(recorder)
        target.write_text(apparate("profile", reference, "--config", recorder.ours.config).stdout)


def convert_for_stargz(folder: Path, registry: str, source: str, target: str, prefetch: Path) -> None:
    """Convert *source* with the estargz library's converter, the files of the list *prefetch* first, and push it."""
    files = folder / "prioritized"
    paths = dict.fromkeys(line.split(" ")[0] for line in prefetch.read_text().splitlines() if line)
    files.write_text("".join(f"{path}\n" for path in paths))
    with Containerd(release(CONTAINERD), folder / "converter", Settings(plain_http=[registry])) as daemon:
        daemon.pull_with_ctr(source, "overlayfs")
        program = peer("estargz-convert") / "estargz-convert"
        run([program, "-prioritized", files, daemon.socket, CLIENT_NAMESPACE, source, target], timeout_s=1800)
        daemon.ctr("images", "push", "--local", "--plain-http", target)


def _ordinary(registry: str) -> Callable[[Path], AbstractContextManager[Containerd]]:
    @contextmanager
    def make(folder: Path) -> Iterator[Containerd]:
        with node(folder, CONTAINERD, snapshotter="overlayfs", plain_http=[registry]) as made:
            yield made.containerd

    return make


def _ours(registry: str) -> Callable[[Path], AbstractContextManager[Containerd]]:
    @contextmanager
    def make(folder: Path) -> Iterator[Containerd]:
        with node(folder, CONTAINERD, plain_http=[registry]) as made:
            yield made.containerd

    return make


def _stargz(registry: str) -> Callable[[Path], AbstractContextManager[Containerd]]:
    @contextmanager
    def make(folder: Path) -> Iterator[Containerd]:
        socket, root = folder / "stargz.sock", folder / "stargz"
        config = folder / "stargz.toml"
        config.write_text(f'[[resolver.host."{registry}".mirrors]]\nhost = "{registry}"\ninsecure = true\n')
        program = peer("stargz-snapshotter") / "stargz-snapshotter"
        snapshotter = Process("stargz-snapshotter", [program, config, root, socket], folder / "stargz.log")
        plugs = [Plug("stargz", socket)]
        daemon = Containerd(release(CONTAINERD), folder / "node", Settings("stargz", plugs, [registry]))
        with ExitStack() as stack:
            stack.callback(_unmount, root)
            stack.enter_context(snapshotter)
            snapshotter.start(lambda: answers(socket))
            stack.enter_context(daemon)
            daemon.import_image(write_archive(folder / "pause.tar", pause_image(), PAUSE))
            yield daemon

    return make


def _unmount(root: Path) -> None:
    for point in reversed(mounts_below(root)):
        run(["umount", "-l", point])
