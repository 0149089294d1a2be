"""Hostile layers against the unpacker: nothing is written outside its directory, and only our own errors escape."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.tarball import Node, directory, file, hardlink, sparse, symlink, tar_bytes
from tests.support.trees import read_tree

from apparate.errors import ApparateError, FormatError
from apparate.layer.unpack import apply_tar
from apparate.oci.digest import Digest

pytestmark = pytest.mark.root

Pairs = list[tuple[str | bytes, Node | bytes | None]]


@pytest.fixture
def inside(tmp_path: Path) -> Path:
    made = tmp_path / "inside"
    made.mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("secret")
    return made


def unpack(pairs: Pairs, inside: Path, pieces: int = 1000) -> Digest:
    tar = tar_bytes(pairs)
    return apply_tar((tar[at : at + pieces] for at in range(0, len(tar), pieces)), inside, [])


@pytest.mark.parametrize(
    "pairs",
    [
        [("../outside/x", file(b"1"))],
        [("a/../../outside/x", file(b"1"))],
        [("link", symlink("../outside")), ("link/x", file(b"1"))],
        [("link", symlink("/")), ("link/etc/x", file(b"1"))],
        [("d/", directory()), ("d/link", symlink("../../outside")), ("d/link/x", directory())],
        [("hard", hardlink("../outside/secret"))],
        [("link", symlink("../outside")), ("hard", hardlink("link/secret"))],
        [("hard", hardlink("nowhere"))],
        [("hard", hardlink("hard"))],
        [("d/", directory()), ("hard", hardlink("d"))],
        [(".wh...", file())],
        [("d/.wh..", file())],
        [("link", symlink("../outside")), ("link/.wh.secret", file())],
        [("link", symlink("../outside")), ("link/.wh..wh..opq", file())],
        [("file", file(b"1")), ("file/below", file(b"1"))],
    ],
)
def test_a_layer_that_reaches_out_is_refused(pairs: Pairs, inside: Path) -> None:
    before = read_tree(inside.parent / "outside")
    with pytest.raises(FormatError):
        unpack(pairs, inside)
    assert read_tree(inside.parent / "outside") == before


def test_attributes_of_a_link_stay_off_its_target(inside: Path) -> None:
    target = inside.parent / "outside" / "secret"
    before = target.stat()
    unpack([("link", symlink(str(target), uid=1, gid=1, mode=0o777))], inside)
    assert target.stat() == before
    assert (inside / "link").lstat().st_uid == 1


def test_the_digest_is_that_of_the_whole_stream(inside: Path) -> None:
    pairs: Pairs = [("file", file(b"x" * 5000)), ("hole", sparse(1 << 30, [(1 << 20, b"data")]))]
    assert unpack(pairs, inside, pieces=7) == Digest.of(tar_bytes(pairs))
    assert (inside / "hole").stat().st_blocks < 1 << 10


def test_a_stream_that_ends_early_is_refused(inside: Path) -> None:
    tar = tar_bytes([("file", file(b"x" * 5000))])
    with pytest.raises(FormatError):
        apply_tar([tar[:2000]], inside, [])


def test_no_descriptor_is_left_open(inside: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(FormatError):
        unpack([("a/b/c", file(b"1")), ("a/b/c/d", file(b"1"))], inside)
    unpack([("x/y", file(b"1")), ("x/.wh.z", file()), ("x/y2", hardlink("x/y"))], inside)
    assert len(os.listdir("/proc/self/fd")) == before


NAMES = st.sampled_from(
    ["a", "b", "a/b", "a/b/c", "b/a", ".wh.a", "a/.wh.b", "a/.wh..wh..opq", "../outside/x", "/abs", "."]
)
NODES = st.one_of(
    st.builds(lambda data: file(data), st.binary(max_size=20)),
    st.builds(directory),
    st.builds(symlink, st.sampled_from(["a", "../outside", "/etc", "b/../.."])),
    st.builds(hardlink, st.sampled_from(["a", "b", "a/b", "../outside/secret"])),
)


@given(st.lists(st.tuples(NAMES, NODES), max_size=8))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_layer_stays_inside(tmp_path_factory: pytest.TempPathFactory, pairs: Pairs) -> None:
    top = tmp_path_factory.mktemp("any")
    (top / "inside").mkdir()
    (top / "outside").mkdir()
    (top / "outside" / "secret").write_text("secret")
    before = read_tree(top / "outside")
    with contextlib.suppress(ApparateError):
        unpack(pairs, top / "inside")
    assert read_tree(top / "outside") == before
    assert sorted(path.name for path in top.iterdir()) == ["inside", "outside"]
