"""One blob under several references."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

import pytest

from apparate.errors import ApparateError, NotFound, Unavailable
from apparate.layer.source import RegistrySource
from apparate.oci.digest import Digest
from apparate.oci.reference import Reference
from apparate.registry.client import RegistryClient
from apparate.registry.deadline import Deadline
from apparate.registry.ranges import RangesUnsupported

DEAD = "dead.test/a/b:v1"
GOOD = "good.test/a/b:v1"


class Client:
    """Gives a blob from each registry that no failure is set for."""

    def __init__(self, **failures: ApparateError) -> None:
        self.failures = failures
        self.asked: list[str] = []
        self.seconds: list[float] = []

    @contextmanager
    def blob_range(
        self, ref: Reference, _digest: Digest, _offset: int, _length: int, *, deadline: Deadline
    ) -> Iterator[str]:
        name = ref.registry.removesuffix(".test")
        self.asked.append(name)
        self.seconds.append(deadline.remaining())
        if name in self.failures:
            raise self.failures[name]
        yield name


def read(source: RegistrySource) -> object:
    with source.range(0, 1, deadline=Deadline.after(8)) as body:
        return body


@pytest.fixture
def make() -> Callable[..., RegistrySource]:
    def source(client: Client, *references: str) -> RegistrySource:
        return RegistrySource(cast("RegistryClient", client), lambda: references, Digest.of(b"x"))

    return source


@pytest.mark.parametrize("failure", [Unavailable("cannot connect"), NotFound("no"), RangesUnsupported("whole")])
def test_a_reference_that_does_not_give_it_leaves_time_for_the_next(
    make: Callable[..., RegistrySource], failure: ApparateError
) -> None:
    client = Client(dead=failure)
    source = make(client, DEAD, GOOD)
    assert read(source) == "good"
    assert client.asked == ["dead", "good"]
    assert client.seconds[0] <= 4 < client.seconds[1]


def test_the_reference_that_gave_it_is_asked_first_and_has_all_the_time(make: Callable[..., RegistrySource]) -> None:
    client = Client(dead=Unavailable("cannot connect"))
    source = make(client, DEAD, GOOD)
    for _ in range(3):
        read(source)
    assert client.asked == ["dead", "good", "good", "good"]
    assert min(client.seconds[1:]) > 4
    assert source.host == "good.test"


def test_a_reference_whose_answer_breaks_off_is_asked_last(make: Callable[..., RegistrySource]) -> None:
    client = Client()
    source = make(client, DEAD, GOOD)
    with pytest.raises(Unavailable), source.range(0, 1, deadline=Deadline.after(8)):
        raise Unavailable("the registry gave less")
    assert read(source) == "good"


@pytest.mark.parametrize("other", [RangesUnsupported("whole"), Unavailable("cannot connect")])
def test_the_error_is_the_one_with_most_hope(make: Callable[..., RegistrySource], other: ApparateError) -> None:
    for failures in ({"dead": other, "good": NotFound("no")}, {"dead": NotFound("no"), "good": other}):
        with pytest.raises(type(other)):
            read(make(Client(**failures), DEAD, GOOD))


def test_no_reference_is_an_error(make: Callable[..., RegistrySource]) -> None:
    with pytest.raises(NotFound, match="no reference"):
        read(make(Client()))
