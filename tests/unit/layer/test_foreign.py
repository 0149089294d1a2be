"""Layers without an index of ours: it is built from their table of contents."""

from __future__ import annotations

from hashlib import sha256

import pytest
from tests.support.layers import BuiltLayer, FakeRegistry, incompressible
from tests.support.tarball import Node, symlink, tar_bytes
from tests.support.written import WrittenLayer, write_layer
from tests.unit.layer.helpers import REFERENCE, files_in, sample_layer, whole_image

from apparate.errors import FormatError, IntegrityError, Unsupported
from apparate.format.embedding import IndexLocation
from apparate.format.toc import Compression
from apparate.format.zstd_chunked import reader as zstd_chunked
from apparate.layer.attach import TAIL_BYTES
from apparate.layer.manager import LayerManager
from apparate.layer.model import IndexSource, LayerRequest
from apparate.oci import names
from apparate.oci.digest import Digest

FILES = {"etc/motd": b"hello\n", "data/large": incompressible(300_000, 1), "data/empty": b""}
MANY = FILES | {f"many/{number:05d}": b"%d" % number for number in range(4000)}


def written(compression: Compression, files: dict[str, bytes] = FILES) -> WrittenLayer:
    return write_layer(tar_bytes(files), compression)


def toc_annotations(layer: WrittenLayer) -> dict[str, str]:
    return {names.TOC_DIGEST: f"sha256:{layer.document.digest.hex()}"}


def add(registry: FakeRegistry, blob: bytes) -> Digest:
    return registry.add(BuiltLayer(blob, {}, {}, sample_layer(small=0, large=1).toc))


@pytest.mark.parametrize("compression", Compression)
@pytest.mark.parametrize("files", [FILES, MANY], ids=["small", "many"])
def test_a_layer_with_a_table_of_contents_is_loaded_lazily(
    manager: LayerManager, registry: FakeRegistry, compression: Compression, files: dict[str, bytes]
) -> None:
    layer = written(compression, files)
    digest = add(registry, layer.blob)
    info = manager.resolve(LayerRequest(REFERENCE, digest, toc_annotations(layer)))
    assert info.index_source is IndexSource.TOC
    assert info.blob_size == len(layer.blob)
    assert len(registry.requests) <= 2
    image = manager.attach(digest)
    assert files_in(whole_image(image)) == {name.encode(): data for name, data in files.items()}


def test_a_small_table_of_contents_costs_one_request(manager: LayerManager, registry: FakeRegistry) -> None:
    layer = written(Compression.GZIP)
    manager.resolve(LayerRequest(REFERENCE, add(registry, layer.blob), toc_annotations(layer)))
    assert registry.requests == [(len(layer.blob) - TAIL_BYTES, TAIL_BYTES)]


def test_a_zstd_layer_known_by_its_compressed_checksum_is_loaded_lazily(
    manager: LayerManager, registry: FakeRegistry
) -> None:
    layer = written(Compression.ZSTD)
    location = zstd_chunked.locate(layer.blob[-zstd_chunked.TAIL_BYTES :], len(layer.blob))
    assert location is not None
    compressed = layer.blob[location.offset : location.offset + location.length]
    annotations = {
        names.ZSTD_CHUNKED_CHECKSUM: f"sha256:{sha256(compressed).hexdigest()}",
        names.ZSTD_CHUNKED_POSITION: f"{location.offset}:{location.length}:{location.raw_length}:1",
    }
    digest = add(registry, layer.blob)
    manager.resolve(LayerRequest(REFERENCE, digest, annotations))
    assert files_in(whole_image(manager.attach(digest)))[b"etc/motd"] == b"hello\n"


@pytest.mark.parametrize("compression", Compression)
def test_a_table_of_contents_with_another_digest_is_refused(
    manager: LayerManager, registry: FakeRegistry, compression: Compression
) -> None:
    layer = written(compression)
    wrong = {names.TOC_DIGEST: str(Digest.of(b"another"))}
    with pytest.raises(IntegrityError):
        manager.resolve(LayerRequest(REFERENCE, add(registry, layer.blob), wrong))
    assert manager.layers() == []


def test_a_plain_layer_with_the_annotation_is_recognised_as_plain(
    manager: LayerManager, registry: FakeRegistry
) -> None:
    annotations = {names.TOC_DIGEST: str(Digest.of(b"something"))}
    with pytest.raises(Unsupported, match="footer"):
        manager.resolve(LayerRequest(REFERENCE, add(registry, incompressible(100_000, 3)), annotations))


def test_an_estargz_layer_needs_the_digest_of_its_table(manager: LayerManager, registry: FakeRegistry) -> None:
    layer = written(Compression.GZIP)
    annotations = {names.ZSTD_CHUNKED_CHECKSUM: str(Digest.of(b"something"))}
    with pytest.raises(Unsupported, match="TOC digest"):
        manager.resolve(LayerRequest(REFERENCE, add(registry, layer.blob), annotations))


@pytest.mark.parametrize(
    "entries",
    [{"names/\ufffd\ufffd": b"1"}, {"link": symlink("over/\ufffd")}],
    ids=["name", "target"],
)
def test_a_layer_with_a_name_that_its_table_may_have_damaged_is_not_loaded_lazily(
    manager: LayerManager, registry: FakeRegistry, entries: dict[str, Node | bytes | None]
) -> None:
    layer = write_layer(tar_bytes(entries), Compression.GZIP)
    with pytest.raises(Unsupported, match="no UTF-8"):
        manager.resolve(LayerRequest(REFERENCE, add(registry, layer.blob), toc_annotations(layer)))


def test_an_embedded_index_that_cannot_be_used_is_replaced_by_the_table(
    manager: LayerManager, registry: FakeRegistry
) -> None:
    layer = written(Compression.GZIP)
    nonsense = IndexLocation.of(layer.blob[:100], 0).to_annotation()
    digest = add(registry, layer.blob)
    info = manager.resolve(LayerRequest(REFERENCE, digest, {names.INDEX: nonsense, **toc_annotations(layer)}))
    assert info.index_source is IndexSource.TOC


def test_an_embedded_index_that_cannot_be_used_and_no_table_is_an_error(
    manager: LayerManager, registry: FakeRegistry
) -> None:
    layer = written(Compression.GZIP)
    nonsense = IndexLocation.of(layer.blob[:100], 0).to_annotation()
    with pytest.raises(FormatError):
        manager.resolve(LayerRequest(REFERENCE, add(registry, layer.blob), {names.INDEX: nonsense}))
