"""A container that reads its whole image over and over while something is done to our processes, and others that start."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import grpc
from tests.support.busybox import busybox_entries
from tests.support.content import stored
from tests.support.cri import Container, CriClient, CriError, Pod
from tests.support.images import HasAddress, build_image, pattern, plain_layer, push
from tests.support.node import Node
from tests.support.processes import wait_until
from tests.support.services import apparate
from tests.support.tarball import Node as Entry
from tests.support.trees import drop_caches

PAUSE_S = (0.02, 0.6)
START_EVERY = 5
END_TIMEOUT_S = 300.0
_HASH = "find /bin /data -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum"
# Reads every file, over and over, until it is told to stop.
_READ_ON = f"echo up; while [ ! -e /stop/now ]; do {_HASH}; echo round $?; done; echo done"
READ_ONCE = f"{_HASH}; echo round $?; echo done"

Layers = Sequence[Mapping[str, Entry | bytes | None]]


@dataclass(frozen=True, slots=True)
class Readable:
    """A converted image, and the hash of all that a container of it reads."""

    reference: str
    content: str


def large_layers() -> Layers:
    """Layers with large and small files, about 26 MB in all."""
    return [
        busybox_entries(),
        {"data/": None, **{f"data/large-{number}": pattern(3_000_000, seed=number) for number in range(8)}},
        {"data/": None, **{f"data/small/{path}": entry for path, entry in plain_layer(2000, 900).items()}},
    ]


def small_layers(number: int) -> Layers:
    """Layers of an image that differs from others in all but the programs."""
    return [busybox_entries(), {"data/": None, "data/own": pattern(2_000_000, seed=1000 + number)}]


def push_readable(registry: HasAddress, name: str, layers: Layers) -> Readable:
    """Push and convert an image of *layers*, none of which replaces or removes a file of another."""
    source = push(registry, name, build_image(layers))
    apparate("convert", source, f"{source}-apparate")
    return Readable(f"{source}-apparate", _content_hash(layers))


def _content_hash(layers: Layers) -> str:
    """What `_HASH` prints in a container."""
    files: dict[str, bytes] = {}
    for layer in layers:
        for path, entry in layer.items():
            if isinstance(entry, bytes):
                files[f"/{path}"] = entry
            elif entry is not None and entry.data:
                files[f"/{path}"] = entry.data
    read = sorted(path for path in files if path.startswith(("/bin/", "/data/")))
    lines = "".join(f"{sha256(files[path]).hexdigest()}  {path}\n" for path in read)
    return sha256(lines.encode()).hexdigest()


def survive(
    running: Node,
    folder: Path,
    image: Readable,
    others: Sequence[Readable],
    strike: Callable[[], object],
    count: int,
    chance: random.Random,
) -> None:
    """Do *strike* *count* times while a container reads *image*, and start one of *others*, each in its turn, now and then.

    Raises:
        AssertionError: a container saw an error or wrong content, or a snapshot is lost.
    """
    cri = running.containerd.cri
    cri.pull(image.reference)
    pod = cri.run_pod()
    stop = folder / "stop"
    stop.mkdir()
    reader = cri.start(pod, image.reference, ["sh", "-c", _READ_ON], mounts={"/stop": stop})
    reader.wait_output("up")
    pause = threading.Event()
    for number in range(count):
        drop_caches()
        pause.wait(chance.uniform(*PAUSE_S))
        strike()
        if number % START_EVERY == 0:
            _start_and_read(cri, pod, others[number // START_EVERY % len(others)])
    (stop / "now").touch()
    reader.wait_output("done", timeout_s=END_TIMEOUT_S)
    assert_read(reader, image)
    _assert_nothing_lost(running, [image, *others[: -(-count // START_EVERY)]])
    for each in (image, others[0]):
        _start_and_read(cri, pod, each)
    running.containerd.remove_all()
    running.assert_empty()


def _start_and_read(cri: CriClient, pod: Pod, image: Readable) -> None:
    """Pull and start as kubelet does: what containerd calls unavailable for the moment is tried again.

    containerd's own connection to a restarted snapshotter waits up to three seconds before it dials again.
    """

    def attempt() -> Container | None:
        try:
            cri.pull(image.reference)
            return cri.start(pod, image.reference, ["sh", "-c", READ_ONCE])
        except CriError as error:
            if error.code is not grpc.StatusCode.UNAVAILABLE:
                raise
            return None

    started = wait_until(attempt, f"a container of {image.reference} is started")
    assert started is not None
    started.wait_output("done")
    assert_read(started, image)


def assert_read(container: Container, image: Readable, besides: Collection[str] = ()) -> None:
    """Assert that *container* has read *image*, each time as a whole, and printed nothing else but *besides*."""
    lines = [line for line in container.output().splitlines() if line not in {"up", "done", *besides}]
    assert set(lines) == {f"{image.content}  -", "round 0"}, lines


def _assert_nothing_lost(running: Node, images: Sequence[Readable]) -> None:
    """Every layer was prepared remotely, and containerd finds every snapshot that it knows."""
    wanted = {digest for image in images for digest in stored(image.reference).digests}
    assert wanted == set(running.remote_layers())

    def known() -> list[str]:
        try:
            return running.containerd.snapshots(running.snapshotter)
        except AssertionError as error:
            if "connection error" not in str(error):
                raise
            return []

    for key in wait_until(known, "containerd has found the snapshotter again"):
        running.containerd.ctr("snapshots", "--snapshotter", running.snapshotter, "info", key)
