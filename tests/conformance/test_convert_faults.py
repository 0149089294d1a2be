"""Conversion over a registry that misbehaves: it recovers where it can, and never publishes half an image."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.support.content import stored
from tests.support.distribution import Registry
from tests.support.faulty import Action, Front, cut, flip_bit, html, ignore_range, reset, status, truncate
from tests.support.images import Image, build_image, pattern, push

from apparate.convert.converter import Converter
from apparate.convert.result import ConvertResult
from apparate.convert.settings import ConvertOptions, ConvertSettings
from apparate.convert.stores import RegistryImage
from apparate.errors import ApparateError, IntegrityError, RegistryError, Unavailable
from apparate.oci.reference import Reference
from apparate.registry.client import RegistryClient
from apparate.registry.settings import RegistrySettings

SIZE = 2_000_000
PATIENCE_S = 5.0


@pytest.fixture
def front(registry: Registry) -> Iterator[Front]:
    with Front(upstream=registry.address) as made:
        yield made


@pytest.fixture
def image() -> Image:
    return build_image([{"data": pattern(SIZE)}])


@pytest.fixture
def layer(image: Image) -> str:
    """The path of the layer's blob."""
    (digest,) = (digest for digest, data in image.blobs.items() if len(data) > SIZE // 4)
    return f"/blobs/{digest}"


def convert(source: str, target: str) -> ConvertResult:
    client = RegistryClient(RegistrySettings(hosts_dirs=(), idle_timeout_s=2.0))
    read_from, write_to = (RegistryImage(Reference.parse(text)) for text in (source, target))
    try:
        return Converter(client, ConvertSettings(patience_s=PATIENCE_S)).convert(read_from, write_to, ConvertOptions())
    finally:
        client.close()


def through(front: Front, registry: Registry, reference: str) -> str:
    return reference.replace(registry.address, front.host)


def has(registry: Registry, repository: str, tag: str) -> bool:
    base = registry.directory / "data/docker/registry/v2/repositories"
    return (base / repository / "_manifests/tags" / tag).exists()


@pytest.mark.parametrize(
    ("number", "fault"), list(enumerate([truncate(SIZE // 4), flip_bit(10_000), reset(), html(502), status(503)]))
)
def test_a_fault_while_reading_is_survived(
    registry: Registry, front: Front, image: Image, layer: str, number: int, fault: Action
) -> None:
    source = push(registry, f"faults/read-{number}", image)
    front.on("GET", layer, fault, times=1)
    result = convert(through(front, registry, source), f"{source}-apparate")
    assert result.changed
    assert front.count("GET", layer) == 2
    assert stored(f"{source}-apparate").layers


def test_a_body_that_ends_early_is_resumed_not_repeated(
    registry: Registry, front: Front, image: Image, layer: str
) -> None:
    source = push(registry, "faults/resume", image)
    front.on("GET", layer, truncate(300_000), times=1)
    convert(through(front, registry, source), f"{source}-apparate")
    asked = [seen.headers.get("range") for seen in front.requests("GET", layer)]
    assert asked[0] is None
    assert str(asked[1]).startswith("bytes=")
    assert not str(asked[1]).startswith("bytes=0-")


@pytest.mark.parametrize(
    ("number", "faults", "error"),
    [
        (0, [flip_bit(10_000)], IntegrityError),
        (1, [truncate(300_000), ignore_range()], Unavailable),
        (2, [cut(300_000)], ApparateError),
        (3, [status(403)], RegistryError),
    ],
)
def test_what_does_not_get_better_is_an_error_and_no_tag(
    registry: Registry,
    front: Front,
    image: Image,
    layer: str,
    number: int,
    faults: list[Action],
    error: type[ApparateError],
) -> None:
    source = push(registry, f"faults/lasting-{number}", image)
    for fault in faults[:-1]:
        front.on("GET", layer, fault, times=1)
    front.on("GET", layer, faults[-1])
    with pytest.raises(error):
        convert(through(front, registry, source), f"{source}-apparate")
    assert not has(registry, f"faults/lasting-{number}", "latest-apparate")


@pytest.mark.parametrize(
    ("number", "fault"), list(enumerate([reset(), status(500), status(429, {"Retry-After": "0"})]))
)
@pytest.mark.parametrize("part", ["/blobs/uploads/", "/manifests/"])
def test_a_fault_while_writing_is_survived(
    registry: Registry, front: Front, image: Image, number: int, fault: Action, part: str
) -> None:
    repository = f"faults/write-{part.split('/')[1]}-{number}"
    source = push(registry, repository, image)
    front.on("PUT", part, fault, times=1)
    assert convert(source, f"{through(front, registry, source)}-apparate").changed
    assert has(registry, repository, "latest-apparate")


def test_a_registry_that_refuses_the_last_layer_gets_no_tag(registry: Registry, front: Front) -> None:
    source = push(registry, "faults/refused", build_image([{"data": pattern(100_000, seed=n)} for n in range(4)]))
    front.on("PUT", "/blobs/uploads/", lambda _seen, forward: forward(), times=2)
    front.on("PUT", "/blobs/uploads/", status(403, codes=("DENIED",)))
    with pytest.raises(RegistryError, match="DENIED"):
        convert(source, f"{through(front, registry, source)}-apparate")
    assert front.count("PUT", "/manifests/") == 0
    assert not has(registry, "faults/refused", "latest-apparate")
