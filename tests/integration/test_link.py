"""The link of benchmarks: what it claims about round trips, rates and counts, measured by its ends."""

from __future__ import annotations

import socket
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.distribution import Registry
from tests.support.images import build_image, pattern, push
from tests.support.link import BURST_MIN_BYTES, MEGABIT, Link, link

ROUND_TRIP_S = 0.02
TRIALS = 10
PORT = 5000
BODY = pattern(3_000_000)

pytestmark = pytest.mark.root


@pytest.fixture
def wire() -> Iterator[Link]:
    with link() as made:
        yield made


@pytest.fixture
def far(folder: Path, wire: Link) -> Iterator[Registry]:
    with Registry(folder, listen=wire.far, port=PORT, netns=wire.namespace) as server:
        yield server


def connect_s(wire: Link) -> float:
    """How long the shortest of some connections took to be made: exactly one round trip."""
    taken = []
    for _ in range(TRIALS):
        began = time.monotonic()
        with socket.create_connection((wire.far, PORT)):
            taken.append(time.monotonic() - began)
    return min(taken)


def body(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=60) as answer:
        return bytes(answer.read())


def test_a_round_trip_takes_what_was_asked_for(wire: Link, far: Registry) -> None:
    plain_s = connect_s(wire)
    assert plain_s < ROUND_TRIP_S
    with wire.delayed(ROUND_TRIP_S):
        assert ROUND_TRIP_S <= connect_s(wire) < 2 * ROUND_TRIP_S + plain_s
    assert connect_s(wire) < ROUND_TRIP_S


def test_an_answer_comes_a_round_trip_after_its_request(wire: Link, far: Registry) -> None:
    with wire.delayed(ROUND_TRIP_S), socket.create_connection((wire.far, PORT)) as connection:
        began = time.monotonic()
        connection.sendall(b"GET /v2/ HTTP/1.0\r\n\r\n")
        assert connection.recv(1) == b"H"
        assert time.monotonic() - began >= ROUND_TRIP_S


def test_what_is_delayed_arrives_whole_and_in_order(wire: Link, far: Registry) -> None:
    image = build_image([{"file": BODY}])
    with wire.delayed(ROUND_TRIP_S):
        push(far, "link/app", image)  # the registry verifies what it is given
        for digest, data in image.blobs.items():
            assert body(f"{far.url}/v2/link/app/blobs/{digest}") == data


def test_a_transfer_takes_at_least_its_bytes_over_the_rate(wire: Link, far: Registry) -> None:
    image = build_image([{"file": BODY}])
    push(far, "link/app", image)
    digest = max(image.blobs, key=lambda each: len(image.blobs[each]))
    wire.shape(20 * MEGABIT)
    before, began = wire.received_bytes(), time.monotonic()
    got = body(f"{far.url}/v2/link/app/blobs/{digest}")
    seconds, counted = time.monotonic() - began, wire.received_bytes() - before
    assert seconds >= (len(got) - BURST_MIN_BYTES) * 8 / (20 * MEGABIT)
    assert len(got) <= counted < len(got) * 1.1 + 10_000
