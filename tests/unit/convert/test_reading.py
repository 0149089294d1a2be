"""Layers are read ahead: several at once, a bounded number, handed out in the order in which they are wanted."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.support.images import Layer, build_layer

from apparate.convert import reading
from apparate.convert.progress import Silent, Stage
from apparate.convert.reading import READS_AT_ONCE, LayerReader, SourceLayer
from apparate.convert.settings import ConvertSettings
from apparate.convert.stores import StoredManifest
from apparate.errors import NotFound, Unavailable
from apparate.oci.digest import Digest
from apparate.oci.manifest import Descriptor

PATIENCE_S = 30


class Gated:
    """A source whose blobs come only when they are let through."""

    name = recorded_name = "gated"

    def __init__(self, layers: list[Layer]) -> None:
        self.blobs = {Digest.of(layer.blob): layer.blob for layer in layers}
        self.gates = {digest: threading.Event() for digest in self.blobs}
        self.asked = {digest: threading.Event() for digest in self.blobs}
        self.order: list[Digest] = []

    def root(self) -> StoredManifest:
        raise NotFound("no manifest here")

    def manifest(self, descriptor: Descriptor) -> StoredManifest:
        raise NotFound(f"no manifest {descriptor.digest}")

    @contextmanager
    def blob(self, descriptor: Descriptor) -> Iterator[Iterator[bytes]]:
        self.order.append(descriptor.digest)
        self.asked[descriptor.digest].set()
        if not self.gates[descriptor.digest].wait(PATIENCE_S):
            raise Unavailable("nobody opened the gate")
        yield iter((self.blobs[descriptor.digest],))


class Reads:
    """A reader of *count* small layers and what it asks its source for."""

    def __init__(self, directory: Path, count: int, *, claimed_size: int | None = None) -> None:
        self.built = [build_layer({"file": b"%d" % number}) for number in range(count)]
        self.source = Gated(self.built)
        self.layers = [
            SourceLayer(
                Descriptor(layer.media_type, Digest.of(layer.blob), claimed_size or len(layer.blob)),
                Digest.parse(layer.diff_id),
            )
            for layer in self.built
        ]
        self.stopping = threading.Event()
        self.reader = LayerReader(self.source, ConvertSettings(spool_dir=str(directory)), Silent(), self.ticker)

    def ticker(self, _layer: Descriptor, _stage: Stage) -> Callable[[int, int], None]:
        def tick(_done: int, _total: int) -> None:
            if self.stopping.is_set():
                raise Unavailable("stopped")

        return tick

    def open(self, *numbers: int) -> None:
        for number in numbers:
            self.source.gates[self.layers[number].descriptor.digest].set()

    def asked(self, number: int) -> bool:
        return self.source.asked[self.layers[number].descriptor.digest].wait(PATIENCE_S)

    @property
    def begun(self) -> int:
        return len(self.source.order)


def test_several_layers_are_read_at_once_and_taken_in_order(tmp_path: Path) -> None:
    reads = Reads(tmp_path, READS_AT_ONCE + 2)
    with reads.reader as reader:
        reader.want(reads.layers)
        assert all(reads.asked(number) for number in range(READS_AT_ONCE))
        assert reads.begun == READS_AT_ONCE
        reads.open(*reversed(range(len(reads.layers))))
        taken = [reader.take() for _ in reads.layers]
    assert [spool.diff_id for spool in taken] == [layer.diff_id for layer in reads.layers]
    assert set(reads.source.order) == {layer.descriptor.digest for layer in reads.layers}
    for spool in taken:
        spool.close()


@pytest.mark.parametrize(("limit", "value"), [("AHEAD_BYTES", 0), ("AHEAD_ENTRIES", -1)])
def test_nothing_is_read_ahead_without_room_but_what_is_wanted_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    monkeypatch.setattr(reading, limit, value)
    reads = Reads(tmp_path, 3)
    with reads.reader as reader:
        reader.want(reads.layers)
        for number in range(3):
            assert reads.asked(number)
            assert reads.begun == number + 1
            reads.open(number)
            reader.take().close()


def test_damaged_layer_is_the_error_of_the_one_who_takes_it(tmp_path: Path) -> None:
    reads = Reads(tmp_path, 2)
    reads.source.blobs[reads.layers[0].descriptor.digest] = b"\x1f\x8bnonsense"
    with reads.reader as reader:
        reads.open(0, 1)
        reader.want(reads.layers)
        with pytest.raises(Exception, match=str(reads.layers[0].descriptor.digest)):
            reader.take()
        reader.take().close()


def test_leaving_gives_back_what_was_read_and_ends_what_is_being_read(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    reads = Reads(tmp_path, READS_AT_ONCE + 1)
    with reads.reader as reader:
        reader.want(reads.layers)
        assert all(reads.asked(number) for number in range(READS_AT_ONCE))
        reads.open(0)
        reader.take().close()
        reads.open(1)
        assert reads.asked(READS_AT_ONCE)
        reads.stopping.set()
        reads.open(*range(len(reads.layers)))
    assert reads.begun == READS_AT_ONCE + 1
    assert len(os.listdir("/proc/self/fd")) == before
