"""Hands on what happens to layers: arrived bytes to the page cache, completion to the mounts, removal to the file system."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from apparate.layer.model import LayerId
    from apparate.loader.images import Image
    from apparate.loader.mounts import LayerMounts
    from apparate.loader.push import Pusher


class LoaderListener:
    """A `LayerListener`. Called from fetching threads; nothing here waits or raises.

    It exists before the parts it serves: until they are connected, what happens is only not passed on.
    """

    def __init__(self) -> None:
        self._pusher: Pusher | None = None
        self._mounts: LayerMounts | None = None
        self._forget: Callable[[LayerId], None] = lambda _layer_id: None

    def connect(self, pusher: Pusher | None, mounts: LayerMounts, forget: Callable[[LayerId], None]) -> None:
        """Pass on from now on. *pusher* is None where nothing reads the flat files, so that pushing is in vain."""
        self._pusher, self._mounts, self._forget = pusher, mounts, forget

    def filled(self, image: Image, address: int, data: Buffer) -> None:
        """Push what has arrived, if there is a file to push it into."""
        if self._pusher is not None and self._mounts is not None and self._mounts.is_on_fuse(image.digest):
            self._pusher.filled(image, address, data)

    def completed(self, image: Image) -> None:
        """Let readers read ahead, and give the page cache of the flat file back: new mounts are of the local file."""
        if self._mounts is not None:
            self._mounts.completed(image)
        if self._pusher is not None:
            self._pusher.drop_pages(image)

    def removed(self, image: Image) -> None:
        """Forget the layer."""
        self._forget(image.layer_id)
