"""Where benchmarks happen: a registry behind a link, with an image in every form that a contender wants.

What is slow to make (three conversions and a recorded profile) is kept in the cache by the content of what made it.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.benchmark.contenders import CONTAINERD, Contender, Images, contenders, convert_for_stargz, profile_of
from tests.benchmark.measure import cold_start
from tests.benchmark.workloads import Workload, key, layout, load
from tests.support.content import stored
from tests.support.distribution import Registry
from tests.support.images import push
from tests.support.leftovers import clean_folder
from tests.support.link import Link, link
from tests.support.node import node
from tests.support.peers import SOURCES, cache_root
from tests.support.services import REPOSITORY, apparate

PORT = 5000
CONVERT_TIMEOUT_S = 1800.0
RECORDING = {"loader": {"record_profiles": True}}
SMALL_BYTES = 1 << 20  # files of the registry besides blobs: links, manifests, configurations
_PACKAGE = REPOSITORY / "snapshotter" / "apparate"
_MAKERS = (_PACKAGE / "convert", _PACKAGE / "format", _PACKAGE / "oci", SOURCES / "estargz-convert")


@dataclass(frozen=True, slots=True)
class Stage:
    """Images of *workload* in *registry*, behind *wire*; *folder* is for what runs on this side."""

    workload: Workload
    folder: Path
    wire: Link
    registry: Registry
    images: Images

    def place(self, name: str) -> Path:
        """A new folder for one node."""
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.folder))

    def contenders(self) -> list[Contender]:
        return contenders(self.images, self.registry.address)

    def served(self, reference: str) -> Sequence[Path]:
        """The files that the registry reads to serve *reference*."""
        data = self.registry.directory / "data"
        small = [path for path in data.rglob("*") if path.is_file() and path.stat().st_size < SMALL_BYTES]
        layers = [self.registry.blob_path(digest.removeprefix("sha256:")) for digest in stored(reference).digests]
        return [*small, *layers]


@contextmanager
def stage(workload: Workload) -> Iterator[Stage]:
    """A stage for *workload*, its images made first if the cache has none; the link is not shaped yet."""
    root = cache_root() / "bench"
    root.mkdir(parents=True, exist_ok=True)
    with (root / f".{workload.name}.lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # the registry works in the cached folder
        kept = root / f"{workload.name}-{_key(workload)}"
        if not kept.is_dir():
            with tempfile.TemporaryDirectory(dir=root, prefix=f".{workload.name}-") as scratch:
                with _registry(workload, Path(scratch) / "made" / "registry") as made:
                    _make(made)
                for old in root.glob(f"{workload.name}-*"):
                    shutil.rmtree(old)
                (Path(scratch) / "made").rename(kept)  # one step: a folder in the cache is a whole one
        with _registry(workload, kept / "registry") as ready:
            yield ready


@contextmanager
def empty_stage(workload: Workload) -> Iterator[Stage]:
    """A stage with nothing but the plain image."""
    with clean_folder("data") as data, _registry(workload, data / "registry") as made:
        _push(made)
        yield made


@contextmanager
def _registry(workload: Workload, data: Path) -> Iterator[Stage]:
    data.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        folder = stack.enter_context(clean_folder("bench"))
        wire = stack.enter_context(link())
        registry = stack.enter_context(Registry(data, listen=wire.far, port=PORT, netns=wire.namespace))
        source = f"{registry.address}/bench/{workload.name}:v1"
        images = Images(source, f"{source}-stargz", f"{source}-apparate", f"{source}-profiled")
        yield Stage(workload, folder, wire, registry, images)


def _push(empty: Stage) -> None:
    image = load(layout(empty.workload))
    pushed = push(empty.registry, f"bench/{empty.workload.name}", image, tag="v1")
    assert pushed == empty.images.plain


def _make(empty: Stage) -> None:
    """Fill the registry: convert, record what a start touches, and give the same list to both converters."""
    _push(empty)
    images, address = empty.images, empty.registry.address
    apparate("convert", "--plain-http", images.plain, images.accelerated, timeout_s=CONVERT_TIMEOUT_S)
    profile = empty.folder / "profile"
    recording = {"loader": {"record_profiles": True}}
    with node(empty.place("recorder"), CONTAINERD, plain_http=[address], sections=recording) as recorder:
        cold_start(recorder.containerd, empty.wire, images.accelerated, empty.workload)
        profile.write_text(profile_of(recorder, images.accelerated))
    options = ["--plain-http", "--prefetch", str(profile)]
    apparate("convert", *options, images.plain, images.profiled, timeout_s=CONVERT_TIMEOUT_S)
    convert_for_stargz(empty.place("stargz"), address, images.plain, images.stargz, profile)


def _key(workload: Workload) -> str:
    hasher = hashlib.sha256(f"{key(workload)} {CONTAINERD}\n".encode())
    for path in sorted(path for maker in _MAKERS for path in maker.rglob("*") if path.suffix in {".py", ".go", ".sum"}):
        hasher.update(str(path.relative_to(REPOSITORY)).encode() + path.read_bytes())
    return hasher.hexdigest()[:16]
