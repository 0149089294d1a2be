"""TOC JSON: what other tools write is understood, what lies is refused by the name of its field."""

from __future__ import annotations

import base64
import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apparate.errors import FormatError, Unsupported
from apparate.format.toc import Chunk, Compression, Entry, EntryType, Member, TableOfContents
from apparate.format.tocjson import parse_toc_json
from apparate.format.tocwrite import write_toc_json
from apparate.format.tree import build_tree

DIGEST = "sha256:" + "ab" * 32
END = 10_000


def reg(name: str = "f", **fields: object) -> dict[str, object]:
    return {"name": name, "type": "reg", "size": 10, "offset": 100, "chunkDigest": DIGEST, **fields}


def chunk(**fields: object) -> dict[str, object]:
    return {"name": "f", "type": "chunk", "chunkDigest": DIGEST, **fields}


def parse(*rows: object, end: int = END, **top: object) -> TableOfContents:
    document = json.dumps({"version": 1, "entries": rows, **top}).encode()
    return parse_toc_json(document, Compression.GZIP, "estargz", end)


def test_a_toc_as_the_reference_writes_it_is_read() -> None:
    document = b"""{
\t"version": 1,
\t"entries": [
\t\t{"name": "./", "type": "dir", "modtime": "2020-01-02T03:04:05Z", "mode": 16877, "NumLink": 0},
\t\t{"name": "etc/", "type": "dir", "mode": 493, "userName": "root", "NumLink": 0},
\t\t{"name": "etc/big", "type": "reg", "size": 25, "mode": 33188, "offset": 100, "chunkSize": 10,
\t\t "digest": "%(d)s", "chunkDigest": "%(d)s", "xattrs": {"user.a": "AAE="}},
\t\t{"name": "etc/big", "type": "chunk", "offset": 200, "chunkOffset": 10, "chunkSize": 10, "chunkDigest": "%(d)s"},
\t\t{"name": "etc/big", "type": "chunk", "offset": 300, "chunkOffset": 20, "chunkDigest": "%(d)s"},
\t\t{"name": "etc/small", "type": "reg", "size": 5, "offset": 300, "innerOffset": 512, "chunkDigest": "%(d)s"},
\t\t{"name": "/etc/link", "type": "hardlink", "linkName": "./etc/small"},
\t\t{"name": "dev", "type": "char", "devMajor": 1, "devMinor": 3, "uid": 5, "gid": 6}
\t]
}""" % {b"d": DIGEST.encode()}
    toc = parse_toc_json(document, Compression.GZIP, "estargz", END)
    digest = bytes.fromhex("ab" * 32)
    time = 1_577_934_245 * 10**9
    assert toc.members == [Member(100, 100), Member(200, 100), Member(300, END - 300)]
    assert toc.entries == [
        Entry(b"", EntryType.DIR, 0o755, mtime_ns=time),
        Entry(b"etc", EntryType.DIR, 0o755),
        Entry(
            b"etc/big",
            EntryType.REG,
            0o644,
            size=25,
            xattrs={b"user.a": b"\0\1"},
            chunks=(Chunk(0, 10, digest, 0), Chunk(10, 10, digest, 1), Chunk(20, 5, digest, 2)),
        ),
        Entry(b"etc/small", EntryType.REG, size=5, chunks=(Chunk(0, 5, digest, 2, 512),)),
        Entry(b"etc/link", EntryType.HARDLINK, link=b"etc/small"),
        Entry(b"dev", EntryType.CHAR, uid=5, gid=6, devmajor=1, devminor=3),
    ]


def test_a_manifest_as_containers_storage_writes_it_is_read() -> None:
    rows = [
        reg("one", chunkDigest="", digest=DIGEST, endOffset=150),
        {"name": "empty", "type": "reg", "accesstime": "0001-01-01T00:00:00Z"},
        reg("many", size=3000, offset=200, chunkSize=1000, digest=DIGEST, endOffset=900),
        chunk(name="many", offset=300, chunkOffset=1000, chunkSize=1500, chunkType="zeros"),
        chunk(name="many", offset=400, chunkOffset=2500, chunkSize=500),
    ]
    toc = parse(*rows, tarSplitDigest=DIGEST)
    digest = bytes.fromhex("ab" * 32)
    assert toc.members == [Member(100, 50), Member(200, 200), Member(400, 500)]
    assert toc.entries[0].chunks == (Chunk(0, 10, digest, 0),)
    assert toc.entries[2].chunks == (Chunk(0, 1000, digest, 1), Chunk(2500, 500, digest, 2))


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("2020-01-02T03:04:05.5Z", 1_577_934_245_500_000_000),
        ("2020-01-02T03:04:05.123456789123+02:00", 1_577_927_045_123_456_789),
        ("2020-01-02T03:04:05-00:30", 1_577_936_045_000_000_000),
        ("1969-12-31T23:59:59Z", -1_000_000_000),
        ("0001-01-01T00:00:00Z", -62_135_596_800_000_000_000),
        ("9999-12-31T23:59:59Z", 253_402_300_799_000_000_000),
        ("2016-12-31T23:59:60Z", 1_483_228_800_000_000_000),
    ],
)
def test_times_of_rfc_3339_are_read(text: str, time: int) -> None:
    assert parse(reg(modtime=text)).entries[0].mtime_ns == time


TEXT = st.text(st.characters(exclude_characters="/\0"), min_size=1, max_size=10).filter(
    lambda text: text not in (".", "..")
)
TOC_ENTRIES = st.builds(
    Entry,
    path=st.one_of(
        TEXT.map(lambda text: text.encode("utf-8", "surrogatepass")), st.binary(min_size=1, max_size=9)
    ).filter(lambda path: b"/" not in path and b"\0" not in path and path not in (b".", b"..")),
    type=st.sampled_from([EntryType.DIR, EntryType.FIFO, EntryType.REG]),
    mode=st.integers(0, 0o7777),
    uid=st.integers(0, 2**32 - 1),
    gid=st.integers(0, 2**32 - 1),
    mtime_ns=st.integers(-62_135_596_800 * 10**9, 253_402_300_799 * 10**9),
    xattrs=st.dictionaries(st.binary(min_size=1, max_size=9), st.binary(max_size=99), max_size=2),
)


@given(st.lists(TOC_ENTRIES, max_size=5))
def test_what_is_written_is_read_back(entries: list[Entry]) -> None:
    document = write_toc_json(TableOfContents(entries, [], Compression.GZIP), {})
    assert parse_toc_json(document, Compression.GZIP, "estargz", END).entries == entries


@pytest.mark.parametrize(
    ("rows", "field"),
    [
        ([reg("../up")], "name"),
        ([reg("a/../../b")], "name"),
        ([reg("a\0b")], "name"),
        ([reg("x" * 5000)], "name"),
        ([{"name": 5, "type": "reg"}], "name"),
        ([reg("\ud800")], "name"),
        ([{"name": "h", "type": "hardlink", "linkName": "../../etc/shadow"}], "linkName"),
        ([{"name": "s", "type": "symlink", "linkName": 7}], "linkName"),
        ([reg(type="socket")], "type"),
        ([reg(type=None)], "type"),
        ([chunk(offset=100)], "type"),
        ([{"name": "d", "type": "dir"}, chunk(offset=100)], "type"),
        ([reg(size=-1)], "size"),
        ([reg(size="10")], "size"),
        ([reg(size=1.5)], "size"),
        ([reg(size=2**63)], "size"),
        ([reg(mode=-1)], "mode"),
        ([reg(uid=2**70)], "uid"),
        ([reg(gid=[1])], "gid"),
        ([reg(modtime="yesterday")], "modtime"),
        ([reg(modtime="2020-13-02T03:04:05Z")], "modtime"),
        ([reg(modtime="2020-02-30T03:04:05")], "modtime"),
        ([reg(modtime=5)], "modtime"),
        ([reg(xattrs=[1])], "xattrs"),
        ([reg(xattrs={"user.a": "no base64!"})], "xattrs"),
        ([reg(xattrs={"user.a": 5})], "xattrs"),
        ([reg(chunkDigest="sha512:" + "ab" * 64)], "chunkDigest"),
        ([reg(chunkDigest="sha256:" + "zz" * 32)], "chunkDigest"),
        ([reg(chunkDigest="sha256:" + "ab" * 31)], "chunkDigest"),
        ([reg(chunkDigest=5)], "chunkDigest"),
        ([reg(offset=END)], "offset"),
        ([reg(offset=10**15)], "offset"),
        ([reg(offset=-5)], "offset"),
        ([reg(), reg("g", offset=50)], "offset"),
        ([reg(), reg("g", offset=200), reg("h", offset=150)], "offset"),
        ([reg(), reg("g")], "innerOffset"),
        ([reg(), reg("g", innerOffset=9)], "innerOffset"),
        ([reg(innerOffset=-1)], "innerOffset"),
        ([reg(innerOffset=2**40)], "chunkSize"),
        ([reg(size=2**40)], "chunkSize"),
        ([reg(chunkSize=11)], "chunkSize"),
        ([reg(chunkSize=9)], "size"),
        ([reg(chunkSize=5), chunk(offset=200, chunkOffset=5, chunkSize=6)], "chunkSize"),
        ([reg(chunkSize=5), chunk(offset=200, chunkOffset=5, chunkSize=4)], "size"),
        ([reg(chunkSize=5), chunk(offset=200, chunkOffset=4)], "chunkOffset"),
        ([reg(chunkSize=5), chunk(offset=200, chunkOffset=6)], "chunkOffset"),
        ([reg(), chunk(offset=200, chunkOffset=5), chunk(offset=300, chunkOffset=5)], "chunkSize"),
        ([reg(chunkOffset=5)], "chunkOffset"),
        ([reg(endOffset=100)], "endOffset"),
        ([reg(endOffset=END + 1)], "endOffset"),
        ([reg(endOffset=300), reg("g", offset=200)], "offset"),
        (["text"], "TOC"),
        ([None], "TOC"),
        ([[]], "TOC"),
    ],
)
def test_a_row_that_lies_is_refused_by_the_name_of_its_field(rows: list[object], field: str) -> None:
    with pytest.raises(FormatError) as caught:
        parse(*rows)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("document", "field"),
    [
        (b"", "TOC"),
        (b"[]", "TOC"),
        (b"null", "TOC"),
        (b"{}", "version"),
        (b'{"version":1}', "entries"),
        (b'{"version":2,"entries":[]}', "version"),
        (b'{"version":true,"entries":[]}', "version"),
        (b'{"entries":[]}', "version"),
        (b'{"version":1,"entries":{}}', "entries"),
        (b'{"version":1,"entries":[', "TOC"),
        (b'{"version":1,"entries":[{"name":"d","type":"dir"}', "TOC"),
        (b'{"version":1,"entries":[{"name":"d","type":"dir"}{}]}', "TOC"),
        (b'{"version":1,"entries":[{}]}', "type"),
        (b'{"version":1,"entries":[,]}', "TOC"),
        (b'{"version":1,"entries":' + b"[" * 100_000, "TOC"),
        (b'{"version":' + b"9" * 5000 + b',"entries":[]}', "TOC"),
        (b'{"version":1 "entries":[]}', "TOC"),
        (b'{"version":1,"entries":[]', "TOC"),
        (b"\xff\xfe", "TOC"),
    ],
)
def test_a_document_that_is_no_toc_is_refused(document: bytes, field: str) -> None:
    with pytest.raises(FormatError) as caught:
        parse_toc_json(document, Compression.GZIP, "estargz", END)
    assert caught.value.field == field


def test_data_without_chunk_digests_cannot_be_loaded_lazily() -> None:
    with pytest.raises(Unsupported, match="no chunk digests"):
        parse(reg(chunkDigest=""))


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=9)),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(st.text(max_size=3), inner, max_size=2)),
    max_leaves=4,
)
INTEGERS = [
    "size",
    "mode",
    "uid",
    "gid",
    "offset",
    "innerOffset",
    "devMajor",
    "devMinor",
    "chunkOffset",
    "chunkSize",
    "endOffset",
]
STRINGS = ["name", "type", "modtime", "linkName", "digest", "chunkDigest", "chunkType"]
KEYS = st.sampled_from([*INTEGERS, *STRINGS, "xattrs"])


@given(st.lists(st.dictionaries(KEYS, VALUES, max_size=4).map(lambda odd: {**reg(), **odd}), min_size=1, max_size=3))
def test_odd_values_raise_nothing_but_our_errors(rows: list[dict[str, Any]]) -> None:
    with contextlib.suppress(FormatError, Unsupported):
        build_tree(parse(*rows))


@given(st.binary(max_size=200))
def test_random_documents_raise_nothing_but_our_errors(document: bytes) -> None:
    with contextlib.suppress(FormatError, Unsupported):
        parse_toc_json(b'{"version":1,"entries":[' + document + b"]}", Compression.GZIP, "estargz", END)


def test_xattr_values_survive_the_json() -> None:
    value = bytes(range(256))
    toc = parse(reg(xattrs={"user.all": base64.b64encode(value).decode()}))
    assert toc.entries[0].xattrs == {b"user.all": value}
