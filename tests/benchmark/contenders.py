"""The systems that `make bench` compares, each as a way to have a fresh node and the name of its image."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.busybox import pause_image, write_archive
from tests.support.containerd import PAUSE, Containerd, Plug, Settings, release
from tests.support.leftovers import mounts_below
from tests.support.node import Node, node
from tests.support.peers import peer
from tests.support.processes import Process, processes_mentioning, run
from tests.support.services import NAME, answers, apparate

CONTAINERD = "2.4.2"
CLIENT_NAMESPACE = "k8s.io"
CONVERT_TIMEOUT_S = 1800.0


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


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU seconds, user and system, and how long it took."""

    cpu_s: float
    wall_s: float


def contenders(images: Images, registry: str) -> list[Contender]:
    """All contenders, for images in *registry*, a host without TLS."""
    ours = _node(registry, NAME)
    return [
        Contender("containerd", _node(registry, "overlayfs"), images.plain),
        Contender("stargz", _stargz(registry), images.stargz),
        Contender("apparate", ours, images.accelerated),
        Contender("apparate_profile", ours, images.profiled),
    ]


def profile_of(recorder: Node, reference: str) -> str:
    """What containers of *reference* have touched on a node of ours, as the list that conversions read."""
    return apparate("profile", reference, "--config", recorder.ours.config).stdout


def convert_for_stargz(folder: Path, registry: str, source: str, target: str, profile: Path) -> Usage:
    """Convert *source* with the estargz library's converter, the files of *profile* first, and push it.

    Returned is what the converter itself has used, without pull, push and containerd.
    """
    files = folder / "prioritized"
    paths = dict.fromkeys(line.split(" ")[0] for line in profile.read_text().splitlines() if line)
    files.write_text("".join(f"{path}\n" for path in paths))
    with Containerd(release(CONTAINERD), folder / "converter", Settings(plain_http=[registry])) as daemon:
        daemon.pull_with_ctr(source, "overlayfs")
        program = peer("estargz-convert") / "estargz-convert"
        line: list[str | Path] = [program, "-prioritized", files, daemon.socket, CLIENT_NAMESPACE, source, target]
        used = measured(lambda: run(line, timeout_s=CONVERT_TIMEOUT_S))
        daemon.ctr("images", "push", "--local", "--plain-http", target)
    return used


def measured(work: Callable[[], object]) -> Usage:
    """What the child processes that *work* starts and waits for have used. Nothing else may wait for children meanwhile."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    work()
    after, wall_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic() - began
    return Usage(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall_s)


def daemons_of(place: Path) -> list[int]:
    """The processes of a lazy snapshotter on the node at *place*: all of ours, or stargz-snapshotter."""
    found = processes_mentioning(f"{place}/")
    return [pid for pid, line in found.items() if "-m apparate" in line or "/stargz-snapshotter " in line]


def _node(registry: str, snapshotter: str) -> Callable[[Path], AbstractContextManager[Containerd]]:
    @contextmanager
    def make(folder: Path) -> Iterator[Containerd]:
        with node(folder, CONTAINERD, snapshotter=snapshotter, plain_http=[registry]) as made:
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
