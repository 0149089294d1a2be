"""A layer's bytes depend on its source and the options, and on nothing else."""

from __future__ import annotations

import io
import json
import os
import tarfile
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.support.images import build_layer, pattern
from tests.support.tarball import file
from tests.support.torture import torture_layer
from tests.unit.convert.helpers import gunzip, spooled, written

from apparate.convert.ordered import in_order
from apparate.convert.pieces import digest_of, resolve
from apparate.convert.spool import read_layer
from apparate.errors import FailedPrecondition, FormatError, IntegrityError
from apparate.format.embedding import IndexLocation
from apparate.format.formats import layer_format_for
from apparate.format.toc import Compression
from apparate.format.writer import LayerOptions, MemberPlan, Span, Zeros
from apparate.oci import names
from apparate.oci.digest import Digest
from apparate.oci.manifest import Descriptor


@pytest.mark.parametrize("compression", list(Compression))
def test_threads_do_not_show_in_the_result(tmp_path: Path, compression: Compression) -> None:
    digests = set()
    for threads in (1, 7):
        chosen = layer_format_for(compression, LayerOptions())
        with written(torture_layer(), tmp_path, layer_format=chosen, threads=threads) as (layer, _pool):
            digests.add(layer.descriptor.digest)
    assert len(digests) == 1


@pytest.mark.parametrize(
    "options",
    [LayerOptions(level=1), LayerOptions(member_bytes=16_384), LayerOptions(chunk_bytes=4096)],
)
def test_options_show_in_the_result(tmp_path: Path, options: LayerOptions) -> None:
    entries = {"file": pattern(100_000)}
    with (
        written(entries, tmp_path) as (one, _),
        written(entries, tmp_path, layer_format=layer_format_for(Compression.GZIP, options)) as (other, _),
    ):
        assert one.descriptor.digest != other.descriptor.digest


def test_the_annotations_of_a_layer(tmp_path: Path) -> None:
    with written(torture_layer(), tmp_path) as (layer, _pool):
        annotations = layer.descriptor.annotations
        assert annotations[names.TOC_DIGEST] == str(layer.toc_digest)
        assert int(annotations[names.UNCOMPRESSED_SIZE]) > 5_000_000
        assert annotations[names.CODEC] == "deflate/0.9.0/6"
        location = IndexLocation.from_annotation(annotations[names.INDEX])
        assert location == layer.index
        assert sum(len(key) + len(value) for key, value in annotations.items()) < 1024


def test_a_layer_read_in_small_pieces_is_the_same(tmp_path: Path) -> None:
    layer = build_layer(torture_layer())
    whole = spooled(layer, tmp_path)
    chunks = (layer.blob[at : at + 777] for at in range(0, len(layer.blob), 777))
    descriptor = Descriptor.of(layer.blob, layer.media_type)
    told: list[int] = []
    pieces = read_layer(chunks, descriptor, Digest.parse(layer.diff_id), str(tmp_path), 1 << 30, told.append)
    assert pieces.entries == whole.entries
    assert told[-1] == len(layer.blob)
    whole.close()
    pieces.close()


def read(blob: bytes, descriptor: Descriptor, diff_id: str, where: Path, size_max: int = 1 << 30) -> None:
    read_layer([blob], descriptor, Digest.parse(diff_id), str(where), size_max, lambda _done: None).close()


def test_a_damaged_blob_is_told_by_its_digest_not_by_what_it_broke(tmp_path: Path) -> None:
    layer = build_layer({"a": pattern(100_000)})
    descriptor = Descriptor.of(layer.blob, layer.media_type)
    damaged = bytearray(layer.blob)
    damaged[len(damaged) // 2] ^= 0xFF
    with pytest.raises(IntegrityError, match=descriptor.digest.hex):
        read(bytes(damaged), descriptor, layer.diff_id, tmp_path)


@pytest.mark.parametrize("change", [-1, 1])
def test_a_blob_of_another_size_is_refused(tmp_path: Path, change: int) -> None:
    layer = build_layer({"a": b"data"})
    body = Descriptor.of(layer.blob, layer.media_type)
    wrong = Descriptor(body.media_type, body.digest, body.size + change)
    with pytest.raises(FormatError, match="size"):
        read(layer.blob, wrong, layer.diff_id, tmp_path)


def test_a_wrong_diff_id_is_refused(tmp_path: Path) -> None:
    layer = build_layer({"a": b"data"})
    with pytest.raises(IntegrityError, match="DiffID"):
        read(layer.blob, Descriptor.of(layer.blob, layer.media_type), str(Digest.of(b"other")), tmp_path)


def test_a_blob_that_is_no_tar_is_refused(tmp_path: Path) -> None:
    layer = build_layer(pattern(5000))
    with pytest.raises(FormatError, match="tar"):
        read(layer.blob, Descriptor.of(layer.blob, layer.media_type), layer.diff_id, tmp_path)


def test_a_decompression_bomb_is_refused(tmp_path: Path) -> None:
    layer = build_layer({"bomb": bytes(20_000_000)})
    with pytest.raises(FormatError, match="layer_bytes_max"):
        read(layer.blob, Descriptor.of(layer.blob, layer.media_type), layer.diff_id, tmp_path, size_max=10_000_000)


def test_a_spool_directory_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    layer = build_layer({"a": b"data"})
    with pytest.raises(FailedPrecondition, match="missing"):
        read(layer.blob, Descriptor.of(layer.blob, layer.media_type), layer.diff_id, tmp_path / "missing")


def test_nothing_is_left_in_the_spool_directory(tmp_path: Path) -> None:
    with written(torture_layer(), tmp_path):
        assert list(tmp_path.iterdir()) == []


def test_pieces_are_read_wherever_they_lie(tmp_path: Path) -> None:
    data = pattern(300_000)
    (tmp_path / "spool").write_bytes(data)
    pieces = (Span(0, 10), b"literal", Span(10, 0), Zeros(5), Span(5, 20), Span(250_000, 100), Span(40, 3), Zeros(0))
    expected = data[:10] + b"literal" + bytes(5) + data[5:25] + data[250_000:250_100] + data[40:43]
    with (tmp_path / "spool").open("rb") as file_:
        assert resolve(file_.fileno(), pieces) == expected
        assert digest_of(file_.fileno(), pieces) == Digest.of(expected).raw
        with pytest.raises(FormatError, match="ends at 300000"):
            resolve(file_.fileno(), (Span(299_999, 2),))


def test_results_come_in_order_and_no_more_than_asked_are_begun() -> None:
    begun = 0

    def jobs(pool: ThreadPoolExecutor) -> Iterator[Future[int]]:
        nonlocal begun
        for number in range(50):
            begun += 1
            yield pool.submit(int, number)

    with ThreadPoolExecutor(4) as pool:
        results = in_order(jobs(pool), 3)
        for number in range(50):
            assert next(results) == number
            assert begun <= number + 4


def test_after_an_error_nothing_is_left_running() -> None:
    running, release = threading.Event(), threading.Event()

    def slow() -> int:
        running.set()
        assert release.wait(30)
        return 1

    def broken() -> int:
        assert running.wait(30)
        release.set()
        raise FormatError("test", "job", "broke")

    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(broken), pool.submit(slow), pool.submit(slow)]
        with pytest.raises(FormatError, match="broke"):
            list(in_order(iter(futures), 5))
        assert all(future.done() for future in futures)


def test_the_toc_has_the_digest_of_a_file_of_several_members(tmp_path: Path) -> None:
    content = pattern(300_000)
    with written({"big": file(content)}, tmp_path) as (layer, _pool):
        tar = gunzip(os.pread(layer.fd, layer.descriptor.size, 0))
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        document = archive.extractfile("stargz.index.json")
        assert document is not None
        rows = [row for row in json.load(document)["entries"] if row["name"] == "big"]
    assert len(rows) == 5
    assert rows[0]["digest"] == str(Digest.of(content))


@pytest.mark.parametrize(
    ("compression", "expected"),
    [
        (Compression.GZIP, "2196bf62f4f3e08e835f7dfefa6c36f227c5df78b87104865a187e15128c39da"),
        (Compression.ZSTD, "42b0b72ce31a5a76b69a0bf95bda20b3d4eb8a117024282d3ea38c6100b93c89"),
    ],
)
def test_the_codecs_give_these_bytes_on_every_machine(compression: Compression, expected: str) -> None:
    """A digest that changes here changes every converted layer: it belongs to a new version of a codec, in a release of its own."""
    raw = pattern(200_000, seed=1)
    member = MemberPlan((raw,), len(raw), ())
    data = layer_format_for(compression, LayerOptions()).encode(member, raw).data
    assert Digest.of(data).hex == expected
