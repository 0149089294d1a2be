"""The metadata that we write, judged by the kernel and by erofs-utils."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from tests.support import erofs
from tests.support.processes import run

from apparate.format.erofs import writer
from apparate.format.erofs.reader import ErofsReader
from apparate.format.index import LayerIndex, build_index, unpack
from apparate.format.toc import Entry, EntryType
from apparate.format.tree import Tree, build_tree

pytestmark = pytest.mark.root

MANY = 100_000


@pytest.fixture(scope="module")
def made() -> erofs.Sample:
    return erofs.torture()


def image_of(folder: Path, made: erofs.Sample) -> tuple[Path, Tree]:
    tree = build_tree(made.toc)
    path = folder / "image"
    erofs.write_image(path, made, tree, writer.build(tree))
    return path, tree


def crowd(entries: int) -> erofs.Sample:
    names = [b"crowd/%07d" % number for number in range(entries)]
    contents = {name: name for name in names[:: entries // 10]}
    return erofs.sample(
        [Entry(name, EntryType.REG, 0o600, mtime_ns=erofs.TIME_NS + 123_456_789) for name in names], contents
    )


@pytest.mark.parametrize("how", [erofs.file_backed, erofs.by_loop])
def test_the_kernel_shows_the_tree_that_was_asked_for(folder: Path, made: erofs.Sample, how: object) -> None:
    assert callable(how)
    image, tree = image_of(folder, made)
    with how(image, folder / "mnt") as point:
        assert erofs.problems(point, made, tree) == []


def test_the_tools_of_erofs_accept_the_image(folder: Path, made: erofs.Sample) -> None:
    image, tree = image_of(folder, made)
    run(["fsck.erofs", image])
    run(["fsck.erofs", f"--extract={folder / 'out'}", "--no-preserve", image])
    assert f"inode count:                       {tree.inode_count}" in run(["dump.erofs", "-s", image])
    for path, content in made.contents.items():
        with open(os.fsencode(folder / "out") + b"/" + path, "rb") as file:  # noqa: PTH123  # names are no UTF-8
            assert file.read() == content


def test_a_directory_of_100_000_names_is_found_name_by_name(folder: Path) -> None:
    made = crowd(MANY)
    image, tree = image_of(folder, made)
    run(["fsck.erofs", image])
    with erofs.file_backed(image, folder / "mnt") as point:
        assert len(os.listdir(point / "crowd")) == MANY  # a list of names is all that is wanted
        assert erofs.problems(point, made, tree) == []
        assert not (point / "crowd" / "0000000x").exists()


def test_an_empty_layer_mounts(folder: Path) -> None:
    made = erofs.sample([], {})
    image, tree = image_of(folder, made)
    run(["fsck.erofs", image])
    with erofs.file_backed(image, folder / "mnt") as point:
        assert erofs.problems(point, made, tree) == []


def test_our_reader_numbers_inodes_as_the_kernel_does(folder: Path, made: erofs.Sample) -> None:
    image, _ = image_of(folder, made)
    reader = ErofsReader(image.read_bytes())
    with erofs.file_backed(image, folder / "mnt") as point:
        for path, inode in reader.walk():
            status = os.lstat(os.fsencode(point) + b"/" + path)
            assert (status.st_ino, status.st_mode, status.st_size) == (inode.nid, inode.mode, inode.size)


def test_an_image_filled_from_its_index_is_the_same_image(folder: Path, made: erofs.Sample) -> None:
    image, _ = image_of(folder, made)
    index = LayerIndex(unpack(build_index(made.toc)))
    blob = b"".join(made.contents[entry.path] for entry in made.toc.entries if entry.chunks)
    filled = folder / "filled"
    with filled.open("wb") as file:
        file.write(index.metadata())
        for number in range(index.member_count):
            member = index.member(number)
            raw = blob[member.offset : member.offset + member.length]
            index.verify(number, raw)
            for piece in index.pieces(number):
                file.seek(piece.address)
                file.write(raw[piece.inner_offset : piece.inner_offset + piece.length])
        file.truncate(index.image_size)
    assert filled.read_bytes() == image.read_bytes()


def test_overlay_over_our_image_hides_what_the_layer_deletes(folder: Path, made: erofs.Sample) -> None:
    image, _ = image_of(folder, made)
    lower = folder / "lower"
    for name in ("gone", "opaque"):
        (lower / name).mkdir(parents=True)
        (lower / name / "file").write_text("lower\n")
    merged = folder / "merged"
    merged.mkdir()
    with erofs.file_backed(image, folder / "mnt") as point:
        run(["mount", "-t", "overlay", "overlay", "-o", f"ro,lowerdir={point}:{lower}", merged])
        try:
            assert not (merged / "gone" / "file").exists()
            assert [path.name for path in (merged / "opaque").iterdir()] == ["new"]
        finally:
            run(["umount", merged])
    shutil.rmtree(lower)


def test_a_damaged_superblock_is_refused_by_kernel_and_reader(folder: Path, made: erofs.Sample) -> None:
    image, _ = image_of(folder, made)
    content = bytearray(image.read_bytes())
    content[1024 + 16] ^= 1
    image.write_bytes(content)
    with pytest.raises(OSError), erofs.file_backed(image, folder / "mnt"):
        pass
    with pytest.raises(Exception, match="checksum"):
        ErofsReader(bytes(content))
