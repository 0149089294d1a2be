"""What every test node finds on its own registry: a sandbox image, an ordinary image, and an image in both forms."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.support.busybox import busybox_entries, pause_image
from tests.support.distribution import Registry
from tests.support.images import build_image, push, push_blob
from tests.support.services import apparate

ADDRESS = "127.0.0.1:5000"
"""Where a node's registry listens, as tests/molecule/images says."""
PAUSE = f"{ADDRESS}/test/pause:1"
FILES = 16
FILE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Fixtures:
    """What the registry has, by reference, and what is in it."""

    pause: str
    tool: str
    plain: str
    lazy: str
    last_file: str
    last_file_sha256: str
    data_bytes: int
    """Size of the layer's data, which no compression makes smaller."""
    files: dict[str, dict[str, str]]
    """By name: files that the registry has as blobs, so that they have an address; with `url`, `path` on this machine, `checksum`."""

    @classmethod
    def load(cls, folder: Path) -> Fixtures:
        return cls(**json.loads((folder / "fixtures.json").read_text()))


def write_fixtures(folder: Path, files: Mapping[str, Path]) -> None:
    """Fill `folder/registry`, which nodes mount read-only, also with *files*, and describe it in `folder/fixtures.json`."""
    contents = {f"data/{number:02}": _noise(number) for number in range(FILES)}
    with Registry(folder / "registry-run") as registry:
        push(registry, "test/pause", pause_image(), tag="1")
        push(registry, "test/tool", build_image([busybox_entries(), {"etc/tool": b"ordinary\n"}]), tag="1")
        plain = push(registry, "test/app", build_image([busybox_entries(), {"data/": None, **contents}]), tag="1")
        apparate("convert", plain, f"{plain}-apparate")
        served = {name: _served(registry.address, path) for name, path in files.items()}
    (folder / "registry-run" / "data").rename(folder / "registry")
    name, data = max(contents.items())
    described = Fixtures(
        pause=PAUSE,
        tool=f"{ADDRESS}/test/tool:1",
        plain=f"{ADDRESS}/test/app:1",
        lazy=f"{ADDRESS}/test/app:1-apparate",
        last_file=f"/{name}",
        last_file_sha256=hashlib.sha256(data).hexdigest(),
        data_bytes=FILES * FILE_BYTES,
        files=served,
    )
    (folder / "fixtures.json").write_text(json.dumps(asdict(described), indent=2))


def _served(address: str, path: Path) -> dict[str, str]:
    data = path.read_bytes()
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    push_blob(address, "test/files", digest, data)
    return {"url": f"http://{ADDRESS}/v2/test/files/blobs/{digest}", "path": str(path), "checksum": digest}


def _noise(seed: int) -> bytes:
    return hashlib.shake_128(b"node fixture %d" % seed).digest(FILE_BYTES)
