"""Checking an image file against its index."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support import erofs

from apparate.format.erofs import writer
from apparate.format.index import LayerIndex, build_local
from apparate.format.toc import Entry, EntryType
from apparate.format.tree import build_tree
from apparate.layer.verify import MAX_PROBLEMS, verify_image

HOLE = 10_000_000


@pytest.fixture
def made() -> erofs.Sample:
    contents = {b"a": b"a" * 5000, b"b/c": b"c" * 100, b"b/large": bytes(range(256)) * 1000}
    entries = [Entry(path, EntryType.REG, 0o644) for path in contents]
    entries.append(Entry(b"hole", EntryType.REG, 0o644, size=HOLE))
    return erofs.sample(entries, contents, chunk_bytes=65536)


@pytest.fixture
def image(tmp_path: Path, made: erofs.Sample) -> Path:
    tree = build_tree(made.toc)
    path = tmp_path / "image"
    layout = writer.build(tree)
    contents = {**made.contents, b"hole": b""}
    erofs.write_image(path, erofs.Sample(made.toc, contents), tree, layout)
    return path


def index_of(made: erofs.Sample) -> LayerIndex:
    return LayerIndex(build_local(made.toc))


def flip(path: Path, address: int) -> None:
    with path.open("r+b") as file:
        file.seek(address)
        byte = file.read(1)
        file.seek(address)
        file.write(bytes([byte[0] ^ 0x10]))


def test_a_complete_image_is_sound(image: Path, made: erofs.Sample) -> None:
    index = index_of(made)
    seen: list[int] = []
    with image.open("rb") as file:
        report = verify_image(file.fileno(), index, progress=seen.append)
    assert report.is_complete
    assert report.problems == []
    assert report.members_checked == index.member_count == 6
    assert seen[-1] == report.bytes_checked >= index.metadata_size + sum(map(len, made.contents.values()))


def test_every_changed_byte_is_found_and_named(image: Path, made: erofs.Sample) -> None:
    index = index_of(made)
    second = index.pieces(1)[0]
    places = {
        "metadata": 2000,
        "member 0": index.pieces(0)[0].address + 4999,
        "member 1": second.address,
        "padding": second.address + second.length,
    }
    for what, address in places.items():
        flip(image, address)
        with image.open("rb") as file:
            report = verify_image(file.fileno(), index)
        assert [problem.what for problem in report.problems] == [what]
        assert not report.is_sound
        flip(image, address)


def test_a_byte_in_a_large_hole_is_found(image: Path, made: erofs.Sample) -> None:
    flip(image, index_of(made).image_size - HOLE // 2)
    with image.open("rb") as file:
        report = verify_image(file.fileno(), index_of(made))
    assert [problem.what for problem in report.problems] == ["padding"]


def test_missing_members_are_not_read(image: Path, made: erofs.Sample) -> None:
    index = index_of(made)
    flip(image, index.pieces(3)[0].address)
    with image.open("rb") as file:
        report = verify_image(file.fileno(), index, present=lambda number: number != 3)
    assert report.is_sound
    assert not report.is_complete
    assert (report.members_checked, report.members_missing) == (5, 1)


def test_a_cut_file_is_reported(image: Path, made: erofs.Sample) -> None:
    index = index_of(made)
    with image.open("r+b") as file:
        file.truncate(index.metadata_size + 10)
        report = verify_image(file.fileno(), index)
    assert {"size", "member 0", "member 1"} <= {problem.what for problem in report.problems}


def test_problems_are_bounded(tmp_path: Path) -> None:
    contents = {b"%d" % number: b"x" for number in range(MAX_PROBLEMS + 50)}
    made = erofs.sample([Entry(path, EntryType.REG) for path in contents], contents)
    index = LayerIndex(build_local(made.toc))
    path = tmp_path / "image"
    with path.open("w+b") as file:
        file.write(index.metadata())
        file.truncate(index.image_size)
        report = verify_image(file.fileno(), index)
    assert len(report.problems) == MAX_PROBLEMS
    assert report.problem_count == MAX_PROBLEMS + 50
