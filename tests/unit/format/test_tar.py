"""The tar parser against foreign tars: Python's tarfile and GNU tar write, we read what they meant."""

from __future__ import annotations

import contextlib
import io
import os
import random
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support import tarball

from apparate.errors import FormatError
from apparate.format import tar_header
from apparate.format.tar import EntryEnd, EntryHeader, Payload, TarParser
from apparate.format.toc import Entry, EntryType


def parse(data: bytes, cuts: Iterator[int] | None = None) -> list[tuple[Entry, bytes]]:
    """Return each entry with its content, the bytes fed in pieces of the given lengths."""
    parser = TarParser()
    found: list[tuple[Entry, bytearray]] = []
    open_entries = 0
    at = 0
    while at < len(data):
        step = next(cuts) if cuts else len(data)
        for event in parser.feed(data[at : at + step]):
            if isinstance(event, EntryHeader):
                found.append((event.entry, bytearray(event.entry.size)))
                assert data[event.offset : event.offset + len(event.raw)] == event.raw
                open_entries += 1
            elif isinstance(event, Payload):
                found[-1][1][event.offset : event.offset + len(event.data)] = event.data
            else:
                assert isinstance(event, EntryEnd)
                open_entries -= 1
        at += step
    parser.finish()
    assert open_entries == 0
    return [(entry, bytes(content)) for entry, content in found]


def steps(seed: int) -> Iterator[int]:
    chooser = random.Random(seed)
    while True:
        yield chooser.choice((1, 7, 511, 512, 513, 4096))


NAMES = st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1, max_size=120).filter(
    lambda name: name.strip("/") not in (".", "..") and name == name.strip()
)
PATHS = st.lists(NAMES, min_size=1, max_size=4).map("/".join)
KINDS = [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE]


@st.composite
def tar_infos(draw: st.DrawFn) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(draw(PATHS))
    info.type = draw(st.sampled_from(KINDS))
    info.mode = draw(st.integers(0, 0o7777))
    info.uid = draw(st.integers(0, 2**32 - 1))
    info.gid = draw(st.integers(0, 2**32 - 1))
    info.mtime = draw(st.integers(-(2**40), 2**40))
    data = b""
    if info.type == tarfile.REGTYPE:
        data = draw(st.binary(max_size=2000))
        info.size = len(data)
    elif info.type in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        info.linkname = draw(PATHS)
    elif info.type == tarfile.CHRTYPE:
        info.devmajor = draw(st.integers(0, 4095))
        info.devminor = draw(st.integers(0, 2**20 - 1))
    return info, data


@given(st.lists(tar_infos(), max_size=4), st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]), st.integers(0, 99))
def test_what_tarfile_writes_is_read_as_it_was_meant(
    items: list[tuple[tarfile.TarInfo, bytes]], form: int, seed: int
) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for info, data in items:
            archive.addfile(info, io.BytesIO(data))
    entries = parse(out.getvalue(), steps(seed))
    assert len(entries) == len(items)
    for (entry, content), (info, data) in zip(entries, items, strict=True):
        assert entry.path == info.name.strip("/").encode()
        assert (entry.mode, entry.uid, entry.gid) == (info.mode, info.uid, info.gid)
        assert entry.mtime_ns == int(info.mtime) * 10**9
        assert content == data
        if info.issym() or info.islnk():
            assert entry.link == info.linkname.encode()
        if info.ischr():
            assert (entry.devmajor, entry.devminor) == (info.devmajor, info.devminor)


ENTRIES = st.builds(
    Entry,
    path=PATHS.map(str.encode),
    type=st.just(EntryType.REG),
    mode=st.integers(0, 0o7777),
    uid=st.integers(0, 2**32 - 1),
    gid=st.integers(0, 2**32 - 1),
    size=st.just(0),
    mtime_ns=st.integers(-(2**62), 2**63),
    xattrs=st.dictionaries(
        st.binary(min_size=1, max_size=20).filter(lambda key: b"=" not in key and b"\0" not in key),
        st.binary(max_size=300),
        max_size=3,
    ),
)


@given(ENTRIES)
def test_a_header_that_is_built_says_the_entry(entry: Entry) -> None:
    [(read, _)] = parse(tar_header.build_header(entry))
    assert read == entry


@given(ENTRIES)
def test_tarfile_reads_a_header_that_is_built(entry: Entry) -> None:
    with tarfile.open(fileobj=io.BytesIO(tar_header.build_header(entry))) as archive:
        info = archive.getmembers()[0]
    assert info.name.encode("utf-8", "surrogateescape") == entry.path
    assert (info.mode, info.uid, info.gid) == (entry.mode, entry.uid, entry.gid)


def test_names_that_are_not_utf8_keep_their_bytes() -> None:
    data = tarball.tar_bytes([(b"caf\xe9", b"1"), (b"d\xff" * 60, b"2"), (b"l", tarball.symlink(b"\xfe\xff"))])
    assert [(entry.path, entry.link) for entry, _ in parse(data)] == [
        (b"caf\xe9", b""),
        (b"d\xff" * 60, b""),
        (b"l", b"\xfe\xff"),
    ]


@pytest.mark.parametrize("form", ["gnu", "pax-0.0", "pax-0.1", "pax-1.0"])
@pytest.mark.parametrize(
    ("size", "pieces"),
    [
        (100_000, [(0, b"a" * 700), (50_000, b"b" * 512), (99_990, b"c" * 10)]),
        (5000, [(4096, b"x" * 904)]),
        (3000, [(0, b"x" * 512)]),
        (70_000, [(65_536, b"y")]),
    ],
)
def test_sparse_files_of_every_form_are_read(form: str, size: int, pieces: list[tuple[int, bytes]]) -> None:
    node = tarball.sparse(size, pieces, form=form)
    data = tarball.tar_bytes([("before", b"1"), ("holes", node), ("after", b"2")])
    entries = parse(data, steps(1))
    assert [(entry.path, content) for entry, content in entries] == [
        (b"before", b"1"),
        (b"holes", node.content),
        (b"after", b"2"),
    ]


GNU_TAR = shutil.which("tar")


@pytest.mark.skipif(GNU_TAR is None, reason="no tar command")
@pytest.mark.parametrize(
    "options",
    [
        ["--format=gnu"],
        ["--format=posix", "--sparse-version=0.0"],
        ["--format=posix", "--sparse-version=0.1"],
        ["--format=posix", "--sparse-version=1.0"],
        ["--format=v7"],
        ["--format=ustar"],
    ],
)
def test_what_gnu_tar_writes_is_read_as_it_was_meant(options: list[str], tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "d" / "e").mkdir(parents=True)
    (root / "d" / "plain").write_bytes(os.urandom(3000))
    (root / "link").symlink_to("d/plain")
    os.link(root / "d" / "plain", root / "zhard")
    if "v7" not in options[0] and "ustar" not in options[0]:
        with (root / "holes").open("wb") as file:
            for offset in range(0, 3_000_000, 100_000):
                file.seek(offset)
                file.write(b"data" * 300)
            file.truncate(4_000_000)
        (root / ("n" * 200)).write_bytes(b"long")
    command = [str(GNU_TAR), "-C", str(root), "--sort=name", *options, "--sparse", "-cf", "-", "."]
    if "v7" in options[0] or "ustar" in options[0]:
        command.remove("--sparse")
    data = subprocess.run(command, check=True, capture_output=True).stdout
    entries = {entry.path: (entry, content) for entry, content in parse(data, steps(3))}
    for path in root.rglob("*"):
        entry, content = entries[os.fsencode(path.relative_to(root))]
        assert entry.mode == path.lstat().st_mode & 0o7777
        if path.is_symlink():
            assert (entry.type, entry.link) == (EntryType.SYMLINK, b"d/plain")
        elif entry.type is EntryType.REG:
            assert content == path.read_bytes()
    assert entries[b"zhard"][0].type is EntryType.HARDLINK
    assert entries[b"zhard"][0].link == b"d/plain"


def with_checksum(block: bytearray) -> bytes:
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def header(**fields: bytes) -> bytes:
    """Return a ustar header block with raw field values."""
    places = {"name": 0, "mode": 100, "uid": 108, "size": 124, "mtime": 136, "typeflag": 156, "linkname": 157}
    block = bytearray(tar_header.build_header(Entry(b"file", EntryType.REG, 0o644)))
    for name, value in fields.items():
        block[places[name] : places[name] + len(value)] = value
    return with_checksum(block)


def pax(*records: bytes) -> bytes:
    body = b"".join(records)
    return header(typeflag=b"x", size=b"%011o" % len(body)) + body + bytes(-len(body) % 512)


@pytest.mark.parametrize(
    ("data", "field"),
    [
        (header()[:-1] + b"x", "checksum"),
        (header(size=b"00000000009"), "size"),
        (header(size=b"\xff" * 12), "size"),
        (header(size=b"\x80" + b"\xff" * 11), "size"),
        (header(uid=b"12 34567"), "uid"),
        (header(mode=b"rwxr-xr\0"), "mode"),
        (header(typeflag=b"7"), "typeflag"),
        (header(typeflag=b"D"), "typeflag"),
        (header(typeflag=b"S"), "typeflag"),
        (header(name=b"a/../../b\0"), "name"),
        (header(typeflag=b"1", linkname=b"../outside\0"), "linkname"),
        (header(typeflag=b"x", size=b"%011o" % (2 << 20)), "size"),
        (header(typeflag=b"L", size=b"%011o" % (2 << 20)), "size"),
        (pax(b"99999 path=x\n"), "pax record"),
        (pax(b"9 path=xx"), "pax record"),
        (pax(b"7 path=x"), "pax record"),
        (pax(b"11 path=x\0y\n"), "pax record"),
        (pax(b"6 abc\n"), "pax record"),
        (pax(b"11 mtime=x\n") + header(), "mtime"),
        (pax(b"13 mtime=1.x\n") + header(), "mtime"),
        (pax(b"11 uid=1_1\n") + header(), "uid"),
        (pax(b"11 size=-5\n") + header(), "size"),
        (pax(b"16 path=a/../b\n") + header(), "pax record"),
        (pax(b"15 path=a/../b\n") + header(), "name"),
        (pax(b"22 GNU.sparse.major=1\n", b"22 GNU.sparse.minor=0\n") + header() + bytes(512), "sparse"),
        (pax(b"25 GNU.sparse.numbytes=5\n"), "GNU.sparse.offset"),
        (pax(b"21 GNU.sparse.map=0,1\n", b"27 GNU.sparse.numblocks=99\n") + header(), "pax record"),
        (pax(b"22 GNU.sparse.map=0,1\n", b"26 GNU.sparse.numblocks=9\n") + header(), "GNU.sparse.numblocks"),
        (pax(b"22 GNU.sparse.map=0,1\n", b"26 GNU.sparse.numblocks=1\n") + header(), "sparse"),
        (bytes(512) + header(), "header"),
        (header(size=b"00000001000") + b"short", "stream"),
        (header()[:100], "stream"),
        (b"PK\x03\x04" + os.urandom(600), "checksum"),
    ],
)
def test_what_containerd_would_refuse_is_refused(data: bytes, field: str) -> None:
    with pytest.raises(FormatError) as caught:
        parse(data)
    assert caught.value.field == field


@pytest.mark.parametrize("count", [b"-1", b"2097152", b"99999999999999999999", b"x"])
def test_a_sparse_map_that_lies_about_its_length_is_refused(count: bytes) -> None:
    records = pax(b"22 GNU.sparse.major=1\n", b"22 GNU.sparse.minor=0\n")
    with pytest.raises(FormatError) as caught:
        parse(records + header(size=b"%011o" % 1024) + (count + b"\n").ljust(1024, b"\0"))
    assert caught.value.field == "sparse"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (b"0000644\0", 0o644),
        (b"644\0\0\0\0\0", 0o644),
        (b" 644    ", 0o644),
        (b"00000644", 0o644),
        (b"\0\0\0\0\0\0\0\0", 0),
        (b"        ", 0),
        (b"\x80\0\0\0\0\0\1\0", 256),
        (b"\xff\xff\xff\xff\xff\xff\xff\xfe", -2),
    ],
)
def test_numbers_of_every_writer_are_read(field: bytes, value: int) -> None:
    assert tar_header.number(field, "mode", 0) == value


@pytest.mark.parametrize(
    "text", [b"0o17\0\0\0\0", b"1_0\0\0\0\0\0", b"+17\0\0\0\0\0", b"-17\0\0\0\0\0", b"19\0\0\0\0\0\0"]
)
def test_numbers_that_only_python_would_take_are_refused(text: bytes) -> None:
    with pytest.raises(FormatError):
        tar_header.number(text, "mode", 0)


def test_a_signed_checksum_is_accepted() -> None:
    block = bytearray(header(name=b"caf\xe9\0"))
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % (sum(block) - 256)
    assert parse(bytes(block))[0][0].path == b"caf\xe9"


def test_a_global_header_changes_nothing() -> None:
    body = b"15 path=global\n"
    data = header(typeflag=b"g", size=b"%011o" % len(body)) + body + bytes(-len(body) % 512) + header()
    assert [entry.path for entry, _ in parse(data)] == [b"file"]


def test_an_archive_may_end_without_zero_blocks_or_padding() -> None:
    assert len(parse(header(size=b"00000000003") + b"abc")) == 1


def test_bytes_behind_the_end_of_the_archive_are_ignored() -> None:
    assert len(parse(header() + bytes(1024) + os.urandom(5000))) == 1


def test_an_old_archive_marks_directories_by_a_slash() -> None:
    [(entry, _)] = parse(header(name=b"old/\0", typeflag=b"\0"))
    assert (entry.path, entry.type) == (b"old", EntryType.DIR)


def test_a_gnu_long_name_wins_over_pax() -> None:
    name = b"n" * 150
    long_name = header(typeflag=b"L", size=b"%011o" % 151) + name + bytes(512 - 150)
    [(entry, _)] = parse(pax(b"12 path=pax\n") + long_name + header())
    assert entry.path == name


@given(st.binary(max_size=3000))
def test_random_bytes_raise_nothing_but_our_errors(data: bytes) -> None:
    with contextlib.suppress(FormatError):
        parse(data)


@given(st.integers(0, 10**6), st.binary(min_size=1, max_size=40))
def test_a_damaged_archive_raises_nothing_but_our_errors(place: int, damage: bytes) -> None:
    node = tarball.sparse(9000, [(0, b"a" * 700), (5000, b"b")], form="pax-1.0", xattrs={"user.a": b"b"})
    data = bytearray(
        tarball.tar_bytes([("d", None), ("d/holes", node), ("n" * 120, b"x"), ("l", tarball.symlink("d"))])
    )
    place %= len(data)
    data[place : place + len(damage)] = damage
    for at in range(0, len(data), 512):  # sums made right again, so that the fields themselves are reached
        if data[at + 257 : at + 262] == b"ustar":
            data[at : at + 512] = with_checksum(bytearray(data[at : at + 512].ljust(512, b"\0")))
    with contextlib.suppress(FormatError):
        parse(bytes(data))
