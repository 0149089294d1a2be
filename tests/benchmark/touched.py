"""The least that a start needs: the pages that it really touches, compressed, and the start of an image that is on the node."""

from __future__ import annotations

import ctypes
import mmap
import os
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.benchmark.cells import Cell, Round
from tests.benchmark.contenders import CONTAINERD
from tests.benchmark.measure import START_TIMEOUT_S
from tests.benchmark.stage import Stage
from tests.support.containerd import Containerd
from tests.support.node import Node, node
from tests.support.processes import run
from tests.support.trees import drop_caches

PAGE = mmap.PAGESIZE
LEVEL = 6  # as the layers of the images are compressed
DISK_BYTES = 8 << 30  # sparse
Pages = dict[Path, bytes]
"""Of each file, one byte for each page; odd where it is in the page cache."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]


def limit_round(stage: Stage, cell: Cell, number: int) -> Round:
    """What a start touches on a disk without read-ahead, and how long it takes when everything is here already."""
    place = stage.place("limit")
    registries = [stage.registry.address]
    with (
        disk_without_read_ahead(place / "disk") as disk,
        node(disk, CONTAINERD, snapshotter="overlayfs", plain_http=registries) as made,
    ):
        touched, compressed = _touched(stage, made)
        made.containerd.remove_all()
    with node(place / "local", CONTAINERD, snapshotter="overlayfs", plain_http=registries) as made:
        made.containerd.cri.pull(stage.images.plain)
        drop_caches()
        cold_s = _start_s(stage, made.containerd)
        warm_s = _start_s(stage, made.containerd)
        made.containerd.remove_all()
    sample = {"touched_bytes": touched, "compressed_bytes": compressed, "cold_s": cold_s, "warm_s": warm_s}
    return Round({"containerd": sample}, {})


def _touched(stage: Stage, made: Node) -> tuple[int, int]:
    """Bytes of the pages of layers that a start brings into memory, and what they are compressed."""
    made.containerd.cri.pull(stage.images.plain)
    layers = made.containerd.root / "io.containerd.snapshotter.v1.overlayfs" / "snapshots"
    pod = made.containerd.cri.run_pod("touched")
    files = list(_files(layers))
    drop_caches()
    before = resident(files)  # what a running program holds cannot be dropped: the sandbox's
    container = made.containerd.cri.start(pod, stage.images.plain, stage.workload.command)
    container.wait_output(stage.workload.ready, START_TIMEOUT_S)
    return weigh(resident(files), before)


def resident(files: list[Path]) -> Pages:
    """Which pages of *files* are in the page cache; files without any are left out."""
    found = {path: _resident(path) for path in files}
    return {path: pages for path, pages in found.items() if any(page & 1 for page in pages)}


def weigh(pages: Pages, before: Pages) -> tuple[int, int]:
    """Bytes of those of *pages* that are not in *before*, and of all of them compressed in one stream."""
    total, compressed = 0, 0
    packer = zlib.compressobj(LEVEL)
    for path in sorted(pages):
        known = before.get(path, bytes(len(pages[path])))
        with path.open("rb") as file:
            for number, (now, then) in enumerate(zip(pages[path], known, strict=True)):
                if now & 1 and not then & 1:
                    file.seek(number * PAGE)
                    data = file.read(PAGE)
                    total += len(data)
                    compressed += len(packer.compress(data))
    return total, compressed + len(packer.flush())


def _files(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent) / name
            if path.is_file() and not path.is_symlink() and path.stat().st_size:
                yield path


def _resident(path: Path) -> bytes:
    """One byte for each page of *path*, by mincore(2)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(descriptor).st_size
        address = _libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
        if address in (None, ctypes.c_void_p(-1).value):
            raise OSError(ctypes.get_errno(), f"{path} cannot be mapped")
        try:
            pages = ctypes.create_string_buffer((size + PAGE - 1) // PAGE)
            if _libc.mincore(address, size, pages):
                raise OSError(ctypes.get_errno(), f"mincore of {path}")
            return pages.raw
        finally:
            _libc.munmap(address, size)
    finally:
        os.close(descriptor)


def _start_s(stage: Stage, daemon: Containerd) -> float:
    """From the request for a container until its first line."""
    pod = daemon.cri.run_pod("local")
    began = time.time_ns()
    container = daemon.cri.start(pod, stage.images.plain, stage.workload.command)
    container.wait_output(stage.workload.ready, START_TIMEOUT_S)
    return round((container.line_wall_ns(stage.workload.ready) - began) / 1e9, 3)


@contextmanager
def disk_without_read_ahead(mountpoint: Path) -> Iterator[Path]:
    """An ext4 of its own, on a loop device, from which the kernel reads no page that nobody asked for."""
    mountpoint.mkdir()
    image = mountpoint.with_suffix(".ext4")
    with image.open("wb") as file:
        file.truncate(DISK_BYTES)
    run(["mkfs.ext4", "-q", image])
    device = run(["losetup", "--find", "--show", image]).strip()
    try:
        run(["blockdev", "--setra", "0", device])
        run(["mount", device, mountpoint])
        try:
            yield mountpoint
        finally:
            run(["umount", mountpoint])
    finally:
        run(["losetup", "--detach", device])
        image.unlink()
