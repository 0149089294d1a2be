"""Every implementation of `Loader`, with the same small image behind it."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.support.content import with_layer_of
from tests.support.distribution import Registry
from tests.support.fake_loader import FakeLayer, FakeLoader
from tests.support.images import build_image, pattern, push
from tests.support.leftovers import clean_folder, mounts_below
from tests.support.processes import run
from tests.support.services import Services, apparate

from apparate.grpcapi.loader import loader_handler
from apparate.grpcapi.loader_client import LoaderClient
from apparate.grpcapi.server import serving
from apparate.oci import names
from apparate.oci.digest import Digest
from apparate.snapshot.remote import Loader, ManifestLayer

LAZY_FILES: Mapping[str, bytes] = {"dir/file": b"content\n", "large": pattern(700_000)}
ORDINARY_FILES: Mapping[str, bytes] = {"plain": b"ordinary\n"}


@dataclass(frozen=True, slots=True)
class Provider:
    """A loader that can reach an image of two layers: the first can be loaded lazily, the second cannot."""

    loader: Loader
    reference: str
    manifest: Digest
    lazy: ManifestLayer
    ordinary: ManifestLayer


@pytest.fixture(params=["fake", "fake over a socket", "the loader"])
def provider(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Provider]:
    if request.param == "the loader":
        made = request.getfixturevalue("real_provider")
        yield made
        for state in made.loader.status():
            made.loader.unmount(state.layer_digest)
            made.loader.forget(state.layer_digest)
        return
    fake = FakeLoader(tmp_path / "layers")
    made = _fake(fake)
    if request.param == "fake":
        yield made
        return
    with (
        clean_folder("provider") as folder,
        serving(folder / "s", [loader_handler(fake)], 4),
        LoaderClient(str(folder / "s")) as client,
    ):
        yield Provider(client, made.reference, made.manifest, made.lazy, made.ordinary)


def _fake(fake: FakeLoader) -> Provider:
    layers = []
    for name, files, lazy in (("lazy", LAZY_FILES, True), ("ordinary", ORDINARY_FILES, False)):
        digest = fake.add(FakeLayer(f"blob of {name}".encode(), files, lazy=lazy))
        annotations = {names.TOC_DIGEST: str(Digest.of(b"toc"))} if lazy else {}
        layers.append(ManifestLayer(digest, names.OCI_LAYER_GZIP, len(fake.blobs[digest].blob), annotations))
    manifest = Digest.of(b"manifest")
    fake.manifests[manifest] = layers
    return Provider(fake, "registry/app:1", manifest, *layers)


@pytest.fixture(scope="module")
def real_provider(registry: Registry) -> Iterator[Provider]:
    """The loader as a process, for one module; each test finds it without layers."""
    source = push(registry, "provider/app", build_image([dict(LAZY_FILES), dict(ORDINARY_FILES)]))
    apparate("convert", source, f"{source}-converted")
    reference = with_layer_of(registry, f"{source}-converted", source, 1, "provider/mixed")
    manifest = _manifest_digest(reference)
    with clean_folder("loader") as folder:
        services = Services(folder / "s", folder / "root")
        services.start_loader()
        try:
            with LoaderClient(str(services.run_dir / "loader.sock")) as client:
                lazy, ordinary = client.layers(reference, manifest)
                yield Provider(client, reference, manifest, lazy, ordinary)
        finally:
            services.loader.stop()
            for point in reversed(mounts_below(services.run_dir)):  # stopping never unmounts
                run(["umount", point])
        assert services.unexpected() == []


def _manifest_digest(reference: str) -> Digest:
    address, _, rest = reference.partition("/")
    repository, _, tag = rest.rpartition(":")
    url = f"http://{address}/v2/{repository}/manifests/{tag}"
    request = urllib.request.Request(url, headers={"Accept": names.OCI_MANIFEST}, method="HEAD")
    with urllib.request.urlopen(request, timeout=60) as answer:
        return Digest.parse(str(answer.headers["Docker-Content-Digest"]))
