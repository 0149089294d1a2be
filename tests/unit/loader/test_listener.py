"""What is passed on, and to whom."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

from tests.unit.loader.fakes import MemoryImage

from apparate.layer.model import LayerId
from apparate.loader.listener import LoaderListener
from apparate.loader.mounts import LayerMounts
from apparate.loader.push import Pusher
from apparate.oci.digest import Digest

IMAGE = MemoryImage(bytes(8192))


@dataclass
class Notes:
    """A pusher and mounts that take notes."""

    on_fuse: bool = True
    events: list[str] = field(default_factory=list)

    def filled(self, _image: MemoryImage, _address: int, _data: bytes) -> None:
        self.events.append("push")

    def drop_pages(self, _image: MemoryImage) -> None:
        self.events.append("drop")

    def completed(self, _image: MemoryImage) -> None:
        self.events.append("completed")

    def is_on_fuse(self, digest: Digest) -> bool:
        assert digest == IMAGE.digest
        return self.on_fuse

    def forget(self, layer_id: LayerId) -> None:
        self.events.append(f"forget {layer_id}")


def events(notes: Notes, *, pushes: bool = True) -> list[str]:
    """Return what comes of everything that can happen to a layer."""
    listener = LoaderListener()
    listener.filled(IMAGE, 0, b"too early")
    listener.connect(cast("Pusher", notes) if pushes else None, cast("LayerMounts", notes), notes.forget)
    listener.filled(IMAGE, 0, b"data")
    listener.completed(IMAGE)
    listener.removed(IMAGE)
    return notes.events


def test_a_layer_on_fuse_is_pushed_and_its_pages_given_back_when_it_is_complete() -> None:
    assert events(Notes()) == ["push", "completed", "drop", "forget 5"]


def test_a_layer_that_is_not_mounted_through_fuse_is_not_pushed() -> None:
    assert events(Notes(on_fuse=False)) == ["completed", "drop", "forget 5"]


def test_where_trees_are_served_nothing_is_pushed() -> None:
    assert events(Notes(), pushes=False) == ["completed", "forget 5"]
