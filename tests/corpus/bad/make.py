"""Writes this corpus of layers and tables of contents that must be refused: `python tests/corpus/bad/make.py`.

Each is small and has one thing wrong, named by the field in expected.json. Standard library only, so that nothing of the
product has a hand in it.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import struct
import tarfile
from pathlib import Path

HERE = Path(__file__).parent
DIGEST = "sha256:" + hashlib.sha256(b"content").hexdigest()


def reg(name: str, **fields: object) -> dict[str, object]:
    return {"name": name, "type": "reg", "size": 7, "mode": 420, "offset": 100, "chunkDigest": DIGEST, **fields}


def row(name: str, kind: str, **fields: object) -> dict[str, object]:
    return {"name": name, "type": kind, **fields}


#: File name -> (field that is wrong, rows).
TOCS: dict[str, tuple[str, list[object]]] = {
    "parent-dots.json": ("name", [reg("usr/../../etc/passwd")]),
    "parent-is-absolute-link.json": ("name", [row("lib", "symlink", linkName="/etc"), reg("lib/passwd")]),
    "parent-is-relative-link.json": ("name", [row("lib", "symlink", linkName="usr/lib"), reg("lib/x")]),
    "parent-is-file.json": ("name", [reg("a"), row("a/b", "dir")]),
    "name-with-nul.json": ("name", [reg("a\0b")]),
    "name-too-long.json": ("name", [reg("n" * 256)]),
    "whiteout-of-nothing.json": ("name", [row("d/.wh.", "reg")]),
    "whiteout-of-parent.json": ("name", [row("d/.wh...", "reg")]),
    "link-to-itself.json": ("linkName", [row("a", "hardlink", linkName="a")]),
    "link-cycle.json": ("linkName", [row("a", "hardlink", linkName="b"), row("b", "hardlink", linkName="a")]),
    "link-to-nothing.json": ("linkName", [row("a", "hardlink", linkName="b")]),
    "link-to-directory.json": ("linkName", [row("d", "dir"), row("a", "hardlink", linkName="d")]),
    "link-out-of-root.json": ("linkName", [row("a", "hardlink", linkName="../../shadow")]),
    "size-above-chunks.json": ("size", [reg("a", chunkSize=6)]),
    "size-negative.json": ("size", [reg("a", size=-7)]),
    "size-of-exabytes.json": ("chunkSize", [reg("a", size=2**62)]),
    "sum-of-sizes.json": (
        "size",
        [reg(str(number), size=2**43, offset=100 + number, chunkType="zeros") for number in range(3)],
    ),
    "chunks-overlap-in-file.json": (
        "chunkOffset",
        [reg("a", chunkSize=5), row("a", "chunk", offset=200, chunkOffset=3, chunkSize=4, chunkDigest=DIGEST)],
    ),
    "chunks-overlap-in-member.json": ("innerOffset", [reg("a"), reg("b", innerOffset=3)]),
    "chunks-share-data.json": ("innerOffset", [reg("a"), reg("b")]),
    "offsets-descend.json": ("offset", [reg("a", offset=500), reg("b", offset=100)]),
    "offset-beyond-blob.json": ("offset", [reg("a", offset=2**40)]),
    "offset-negative.json": ("offset", [reg("a", offset=-1)]),
    "bomb-by-inner-offset.json": ("chunkSize", [reg("a", innerOffset=2**40)]),
    "no-digest.json": ("unsupported", [reg("a", chunkDigest="")]),
    "weak-digest.json": ("chunkDigest", [reg("a", chunkDigest="md5:" + "0" * 32)]),
    "unknown-type.json": ("type", [row("a", "socket")]),
    "chunk-of-nothing.json": ("type", [row("a", "chunk", offset=100, chunkDigest=DIGEST)]),
    "owner-beyond-32-bits.json": ("uid", [reg("a", uid=2**32)]),
    "device-beyond-12-bits.json": ("devMajor", [row("a", "char", devMajor=4096)]),
    "xattr-not-base64.json": ("xattrs", [reg("a", xattrs={"user.a": "%%%"})]),
    "xattr-too-large.json": ("xattrs", [reg("a", xattrs={"user.a": "A" * 4 * 30_000})]),
    "time-of-thirteenth-month.json": ("modtime", [reg("a", modtime="2020-13-01T00:00:00Z")]),
}


def toc(rows: list[object]) -> bytes:
    return json.dumps({"version": 1, "entries": rows}, indent=1).encode()


def footer(offset: int) -> bytes:
    return (
        bytes.fromhex("1f8b08040000000000ff1a0053471600")
        + b"%016xSTARGZ" % offset
        + bytes.fromhex("010000ffff0000000000000000")
    )


def toc_member(document: bytes, name: str = "stargz.index.json") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        info = tarfile.TarInfo(name)
        info.size = len(document)
        archive.addfile(info, io.BytesIO(document))
    return gzip.compress(out.getvalue(), mtime=0)


def skippable(payload: bytes) -> bytes:
    return struct.pack("<II", 0x184D2A50, len(payload)) + payload


def zstd_footer(offset: int, length: int, raw_length: int, kind: int = 1) -> bytes:
    return skippable(struct.pack("<QQQQ8s", offset, length, raw_length, kind, b"GnUlInUx"))


def layers() -> dict[str, tuple[str, bytes]]:
    data = gzip.compress(b"content", mtime=0)
    good = toc_member(toc([]))
    junk = bytes(100)
    return {
        "footer-beyond-blob.gz": ("footer", data + good + footer(2**40)),
        "footer-at-zero.gz": ("footer", data + good + footer(0)),
        "footer-not-hexadecimal.gz": ("footer", data + good + footer(0).replace(b"0" * 16, b"zzzzzzzzzzzzzzzz")),
        "toc-not-gzip.gz": ("member", data + junk + footer(len(data))),
        "toc-cut.gz": ("member", data + good[:-20] + footer(len(data))),
        "toc-other-name.gz": ("TOC", data + toc_member(toc([]), "other.json") + footer(len(data))),
        "toc-not-json.gz": ("TOC", data + toc_member(b"<html>") + footer(len(data))),
        "toc-deep-json.gz": ("TOC", data + toc_member(b'{"version":1,"entries":' + b"[" * 50_000) + footer(len(data))),
        "toc-version-2.gz": ("version", data + toc_member(b'{"version":2,"entries":[]}') + footer(len(data))),
        "data-inside-toc.gz": ("offset", data + toc_member(toc([reg("a", offset=len(data) + 1)])) + footer(len(data))),
        "manifest-beyond-blob.zst": ("manifest-position", junk + zstd_footer(2**50, 10, 10)),
        "manifest-overlaps-footer.zst": ("manifest-position", junk + zstd_footer(50, 80, 10)),
        "manifest-of-10-gigabytes-inflated.zst": ("TOC", junk + zstd_footer(50, 20, 10 * 2**30)),
        "manifest-type-7.zst": ("footer", junk + zstd_footer(50, 20, 20, kind=7)),
        "manifest-not-zstd.zst": ("member", junk + zstd_footer(50, 20, 20)),
    }


#: Inputs that once raised something that is no error of ours: parser/name -> (error that refuses it, "" if none does; input).
INPUTS: dict[str, tuple[str, bytes]] = {
    "docker-config/auth-not-ascii": ("FormatError", b'{"auths":{"r":{"auth":"\xc3\xa9"}}}'),
    "hosts-toml/integer-of-5000-digits": ("FormatError", b"a = " + b"9" * 5000),
    "hosts-toml/proxy-with-a-bracket": ("FormatError", b'proxy = "http://proxy.t[est:3128"'),
    "manifest/media-type-no-string": ("FormatError", b'{"mediaType":{"a":1},"layers":[]}'),
    "manifest/half-a-surrogate-pair": (
        "FormatError",
        b'{"annotations":{"a":"\\ud800"},"layers":[],"config":{"digest":"sha256:' + b"0" * 64 + b'","size":1}}',
    ),
    "records/number-infinite": (
        "FormatError",
        b'{"version":1,"rows":[[Infinity,"n",null,"view","lazy",0,"",0,0,"{}",0,0]]}',
    ),
    "records/labels-deep": (
        "FormatError",
        b'{"version":1,"rows":[[1,"n",null,"view","lazy",null,"",0,0,"' + b"[" * 5000 + b'",0,0]]}',
    ),
    "retry-after/offset-of-a-million-years": ("", b"1 Jan 2000 0:0:0 +99999999999"),
    "retry-after/year-beyond-32-bits": ("", b"1 Jan 9999999999 0:0:0"),
    "session-state/deep": ("FormatError", b"[" * 100_000),
    "settings/deep": ("InvalidArgument", b"a = " + b"[" * 5000),
    "settings/integer-of-5000-digits": ("InvalidArgument", b"a = " + b"9" * 5000),
    "token/lifetime-beyond-floats": ("RegistryError", b'{"token":"t","expires_in":1' + b"0" * 400 + b"}"),
}


def main() -> None:
    expected: dict[str, dict[str, str]] = {"toc": {}, "layer": {}, "input": {}}
    sums = []
    files = {f"toc/{name}": (field, toc(rows)) for name, (field, rows) in TOCS.items()}
    files |= {f"layer/{name}": made for name, made in layers().items()}
    files |= {f"input/{path}": made for path, made in INPUTS.items()}
    for path, (field, content) in sorted(files.items()):
        (HERE / path).parent.mkdir(exist_ok=True, parents=True)
        (HERE / path).write_bytes(content)
        kind, _, name = path.partition("/")
        expected[kind][name] = field
        sums.append(f"{hashlib.sha256(content).hexdigest()}  {path}\n")
    (HERE / "expected.json").write_text(json.dumps(expected, indent=1, sort_keys=True) + "\n")
    (HERE / "SHA256SUMS").write_text("".join(sums))


if __name__ == "__main__":
    main()
