"""Puts verified bytes into the page cache of a layer's FUSE file before anyone asks for them (FUSE_NOTIFY_STORE).

Called by the threads that receive data, which must never wait: a push waits for the lock of a page, whose holder may be a read
that waits for what the same thread would receive next. So the notification goes into the buffer of the courier's socket, and
into the void if that is full; the kernel asks for what was dropped.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from apparate.loader import courier, nodes
from apparate.loader.handshake import OUT_HEADER
from apparate.telemetry import metrics

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from apparate.loader.courier_client import Courier
    from apparate.loader.images import Image

PAGE_BYTES: Final = 4096
_NOTIFY_INVAL_INODE: Final = 2
_NOTIFY_STORE: Final = 4
# fuse_notify_store_out: nodeid, offset, size, padding
_STORE_OUT: Final = struct.Struct("<QQI4x")
# fuse_notify_inval_inode_out: ino, off, len; off 0 and len 0: all of it
_INVAL_OUT: Final = struct.Struct("<Qqq")
_HEAD_BYTES: Final = OUT_HEADER.size + _STORE_OUT.size
_DATA_BYTES_MAX: Final = (courier.PUSH_BYTES_MAX - _HEAD_BYTES) // PAGE_BYTES * PAGE_BYTES


class Pusher:
    """Pushes what has arrived. Thread-safe, never waits."""

    def __init__(self, courier_: Courier) -> None:
        self._courier = courier_

    def filled(self, image: Image, address: int, data: Buffer) -> None:
        """Push the whole pages among the bytes *data* at *address* of the image.

        A page that the data only begin or end is pushed too if the rest of it is there.
        """
        node = nodes.flat_node(image.layer_id)
        view = memoryview(data).cast("B")
        start, end = address, address + len(view)
        first, last = -(-start // PAGE_BYTES) * PAGE_BYTES, end // PAGE_BYTES * PAGE_BYTES
        if first != start:
            self._push_page(image, node, first - PAGE_BYTES)
        for offset in range(first, last, _DATA_BYTES_MAX):
            stop = min(offset + _DATA_BYTES_MAX, last)
            self._push(node, offset, view[offset - start : stop - start])
        if last != end and last >= first:
            self._push_page(image, node, last)

    def _push_page(self, image: Image, node: int, address: int) -> None:
        page = image.read_cached(address, PAGE_BYTES, record=False)
        if page is not None:
            self._push(node, address, memoryview(page))

    def _push(self, node: int, offset: int, data: memoryview) -> None:
        total = _HEAD_BYTES + len(data)
        head = OUT_HEADER.pack(total, _NOTIFY_STORE, 0) + _STORE_OUT.pack(node, offset, len(data))
        if self._courier.push([head, data]):
            metrics.PUSHED_BYTES.inc(len(data))
        else:
            metrics.PUSHES_DROPPED.inc()

    def drop_pages(self, image: Image) -> None:
        """Give back the page cache of the FUSE file of a layer that is mounted from its local file from now on."""
        total = OUT_HEADER.size + _INVAL_OUT.size
        head = OUT_HEADER.pack(total, _NOTIFY_INVAL_INODE, 0) + _INVAL_OUT.pack(nodes.flat_node(image.layer_id), 0, 0)
        self._courier.push([head])
