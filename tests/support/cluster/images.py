"""What the private registry of a cluster has: ordinary images, the same ones accelerated, and the agent's."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.support.busybox import busybox_entries
from tests.support.cluster.layout import REGISTRY_HOST
from tests.support.distribution import Registry
from tests.support.images import build_image, push
from tests.support.processes import run
from tests.support.services import apparate

FILES: Final = 16
FILE_BYTES: Final = 1 << 20
LAZY_SHARE_MAX: Final = 0.6
"""Of an image's data that a start which reads one file of sixteen may fetch; all of it would be 1."""
AGENT: Final = "apparate/apparate"
"""Repository of the agent's image."""
PUSH_TIMEOUT_S: Final = 300.0
_ARCHIVE_END: Final = "-x86_64.oci.tar"


@dataclass(frozen=True, slots=True)
class App:
    """An image of `FILES` files that no compression makes smaller, plain and accelerated, in a repository of its own."""

    repository: str

    @property
    def plain(self) -> str:
        return f"{REGISTRY_HOST}/{self.repository}:1"

    @property
    def lazy(self) -> str:
        return f"{self.plain}-apparate"

    @property
    def data_bytes(self) -> int:
        return FILES * FILE_BYTES

    @property
    def contents(self) -> dict[str, bytes]:
        return {f"data/{number:02}": self._noise(number) for number in range(FILES)}

    @property
    def last_file(self) -> str:
        return f"/data/{FILES - 1:02}"

    @property
    def last_digest(self) -> str:
        """sha256 of `last_file`."""
        return hashlib.sha256(self._noise(FILES - 1)).hexdigest()

    @property
    def all_digest(self) -> str:
        """sha256 of all files, one after the other."""
        return hashlib.sha256(b"".join(self.contents.values())).hexdigest()

    def _noise(self, number: int) -> bytes:
        return hashlib.shake_128(f"{self.repository} {number}".encode()).digest(FILE_BYTES)


APPS: Final = tuple(App(f"test/app-{letter}") for letter in "abcdef")
"""Images that share nothing but the layer with busybox; a test that counts bytes takes one that no other uses on its nodes."""
TOOL: Final = f"{REGISTRY_HOST}/test/tool:1"
"""A small ordinary image."""


def fill(registry: Registry) -> None:
    """Push `APPS`, converted too, and `TOOL`."""
    tools = busybox_entries()
    push(registry, "test/tool", build_image([tools, {"etc/tool": b"ordinary\n"}]), tag="1")
    for app in APPS:
        plain = push(registry, app.repository, build_image([tools, {"data/": None, **app.contents}]), tag="1")
        apparate("convert", plain, f"{plain}-apparate")


def push_package(registry: Registry, folder: Path) -> None:
    """Push the OCI image that `make package` left in *folder* as `AGENT`, tagged with its version."""
    command = ["skopeo", "copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false"]
    source = f"oci-archive:{_archive(folder)}"
    run([*command, source, f"docker://{registry.address}/{AGENT}:{version_in(folder)}"], timeout_s=PUSH_TIMEOUT_S)


def version_in(folder: Path) -> str:
    """Version of the packages in *folder*."""
    return _archive(folder).name.removeprefix("apparate-").removesuffix(_ARCHIVE_END)


def _archive(folder: Path) -> Path:
    found = list(folder.glob(f"apparate-*{_ARCHIVE_END}"))
    if len(found) != 1:
        raise AssertionError(f"{folder} holds {len(found)} images of the agent, not one; `make package` builds it")
    return found[0]
