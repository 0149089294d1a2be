"""What reaches the page cache: whole pages, verified, at the right place, and nothing that is not there."""

from __future__ import annotations

import random
import struct

from hypothesis import given
from hypothesis import strategies as st
from tests.unit.loader.fakes import PAGE, MemoryImage

from apparate.loader import courier, nodes
from apparate.loader.push import Pusher

PAGES = 160
DATA = random.Random(3).randbytes(PAGES * PAGE)


class NotingCourier:
    """Keeps what was pushed."""

    def __init__(self, *, has_room: bool = True) -> None:
        self.sent: list[bytes] = []
        self.has_room = has_room

    def push(self, notification: list[bytes | memoryview]) -> bool:
        self.sent.append(b"".join(notification))
        return self.has_room


def pushed(sent: list[bytes], image: MemoryImage) -> dict[int, bytes]:
    """Return the pages that the kernel would have, by number."""
    pages: dict[int, bytes] = {}
    for message in sent:
        length, code, unique, node, offset, size = struct.unpack_from("<IiQQQI", message)
        body = message[40:]
        assert (length, code, unique, size) == (len(message), 4, 0, len(body))
        assert len(message) <= courier.PUSH_BYTES_MAX
        assert node == nodes.flat_node(image.layer_id)
        assert offset % PAGE == len(body) % PAGE == 0
        for start in range(0, len(body), PAGE):
            pages[(offset + start) // PAGE] = body[start : start + PAGE]
    return pages


@given(st.integers(0, len(DATA) - 1), st.integers(1, 90 * PAGE), st.sets(st.integers(0, PAGES - 1), max_size=40))
def test_only_whole_pages_that_are_there_are_pushed(address: int, length: int, present: set[int]) -> None:
    image = MemoryImage(DATA)
    image.present = present
    end = min(address + length, len(DATA))
    courier_ = NotingCourier()
    Pusher(courier_).filled(image, address, DATA[address:end])  # type: ignore[arg-type]  # takes notes only
    pages = pushed(courier_.sent, image)
    inside = set(range(-(-address // PAGE), end // PAGE))
    edges = {address // PAGE, (end - 1) // PAGE}
    assert pages.keys() == inside | (edges & present)
    assert all(page == DATA[number * PAGE : (number + 1) * PAGE] for number, page in pages.items())


def test_pushing_is_no_read_of_a_container() -> None:
    image = MemoryImage(DATA)
    image.present = {0, 1}
    Pusher(NotingCourier()).filled(image, 100, DATA[100 : PAGE + 100])  # type: ignore[arg-type]  # takes notes only
    assert image.recorded == []


def test_what_finds_no_room_is_dropped_and_nobody_waits() -> None:
    courier_ = NotingCourier(has_room=False)
    Pusher(courier_).filled(MemoryImage(DATA), 0, DATA)  # type: ignore[arg-type]  # takes notes only
    assert courier_.sent


def test_pages_of_a_complete_layer_are_given_back() -> None:
    courier_, image = NotingCourier(), MemoryImage(DATA)
    Pusher(courier_).drop_pages(image)  # type: ignore[arg-type]  # takes notes only
    node = nodes.flat_node(image.layer_id)
    assert courier_.sent == [struct.pack("<IiQQqq", 40, 2, 0, node, 0, 0)]
