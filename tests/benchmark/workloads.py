"""Real application images, built from package registries and kept in the cache by the content of their recipe.

    python -m tests.benchmark.workloads python

An image is an OCI layout of gzip layers, as `docker build` would have pushed it.
"""

from __future__ import annotations

import argparse
import fcntl
import gzip
import hashlib
import inspect
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.benchmark import recipes
from tests.benchmark.entries import entry_layers
from tests.support.images import Image, Layer, build_image, write_layout
from tests.support.peers import cache_root

GZIP_LEVEL = 6
_LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True, slots=True)
class Workload:
    """An image and what a container of it does first.

    Attributes:
        build: fills a folder with one folder per layer, base first, and returns them.
        command: what the container runs.
        ready: the beginning of the line by which the application says that it has started.
    """

    name: str
    build: Callable[[Path], Sequence[Path]]
    command: Sequence[str]
    ready: str


def layout(workload: Workload) -> Path:
    """Return the OCI layout of *workload*'s image, built first if it is not in the cache (some minutes)."""
    root = cache_root() / "images"
    root.mkdir(parents=True, exist_ok=True)
    target = root / f"{workload.name}-{key(workload)}"
    with _lock(root / f".{workload.name}.lock"):
        if not target.is_dir():
            with tempfile.TemporaryDirectory(dir=root, prefix=f".{workload.name}-") as scratch:
                layers = [_layer(folder) for folder in workload.build(Path(scratch))]
                config = {"Cmd": list(workload.command), "Env": ["PATH=/usr/local/bin:/usr/bin:/bin"]}
                image = build_image(layers, platform=f"linux/{_architecture()}", config=config)
                write_layout(Path(scratch) / "layout", image)
                (Path(scratch) / "layout").rename(target)
    return target


def load(folder: Path) -> Image:
    """Read the single image of the OCI layout *folder*."""
    index = json.loads((folder / "index.json").read_text())
    entry = index["manifests"][0]
    blobs = {f"sha256:{path.name}": path.read_bytes() for path in (folder / "blobs" / "sha256").iterdir()}
    manifest = blobs.pop(entry["digest"])
    return Image(entry["mediaType"], manifest, blobs, platform=f"linux/{_architecture()}")


_SHELL = "/bin/sh"
_EACH_LAYER = "cat /data/*/wanted | md5sum && echo ready"
WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("python", recipes.python_layers, ["python3", "/srv/app.py"], "ready"),
        Workload("java", recipes.java_layers, ["/usr/bin/java", "-cp", "/srv", "Hello"], "ready"),
        Workload("layers", recipes.stacked_layers, [_SHELL, "-c", _EACH_LAYER], "ready"),
        Workload("node", recipes.node_layers, ["node", "/srv/app.js"], "ready"),
        Workload("debian", recipes.debian_layers, [_SHELL, "-c", "true && echo ready"], "ready"),
    )
}
PYTHON = WORKLOADS["python"]
ENTRIES = Workload("entries", entry_layers, [_SHELL, "-c", "cat /tree/7/7 && echo ready"], "ready")


def _layer(folder: Path) -> Layer:
    """The gzip layer of everything below *folder*."""
    command = ["tar", "--numeric-owner", "--sort=name", "--xattrs", "--xattrs-include=*", "--format=posix"]
    with tempfile.TemporaryFile(dir=folder.parent) as spool:
        subprocess.run([*command, "-C", str(folder), "-c", "."], stdout=spool, check=True)
        spool.seek(0)
        tar = spool.read()
    diff_id = "sha256:" + hashlib.sha256(tar).hexdigest()
    return Layer(gzip.compress(tar, GZIP_LEVEL, mtime=0), _LAYER_TYPE, diff_id)


def key(workload: Workload) -> str:
    """What its image is kept by: the module of its recipe as a whole, for recipes share their helpers."""
    hasher = hashlib.sha256(f"{workload.name} {workload.command} {platform.machine()}".encode())
    for source in (
        Path(inspect.getfile(workload.build)).read_bytes(),
        recipes.REQUIREMENTS.read_bytes(),
        inspect.getsource(_layer).encode(),
    ):
        hasher.update(source)
    return hasher.hexdigest()[:16]


def _architecture() -> str:
    return _MACHINES.get(platform.machine(), platform.machine())


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="+", choices=list(WORKLOADS))
    for name in parser.parse_args().name:
        print(f"{name}: {layout(WORKLOADS[name])}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
