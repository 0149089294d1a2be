"""Parsers of layers: tar, tables of contents, footers, the index, EROFS images, and what the node keeps of a layer."""

from __future__ import annotations

import gzip
import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any, Final

import zstandard
from isal import isal_zlib
from tests.support import tarball
from tests.support.fuzz.target import Target, deep
from tests.support.written import write_layer

from apparate.format.embedding import embed, extract
from apparate.format.erofs import ondisk
from apparate.format.erofs.reader import ErofsReader
from apparate.format.estargz import reader as estargz
from apparate.format.index import LayerIndex, build_index, local, unpack, wire
from apparate.format.inflate import inflate_bounded, inflate_member
from apparate.format.prefetch import PrefetchRange, format_list, parse_list
from apparate.format.tar import TarParser
from apparate.format.toc import Compression, TocLocation
from apparate.format.tocjson import parse_toc_json
from apparate.format.zstd_chunked import reader as zstd_chunked
from apparate.layer import bitmap
from apparate.layer.profile import Profile

BLOB_BYTES: Final = 1 << 30  # how large the blobs pretend to be in which tables of contents lie
SMALL_BLOB_BYTES: Final = 1 << 16
OUTPUT_BYTES: Final = 1 << 20
DIGEST: Final = "sha256:" + hashlib.sha256(b"content").hexdigest()
GZIP_MAGIC: Final = b"\x1f\x8b"
BITS: Final = 77
INODE: Final = 4711
WIRE_HEAD_BYTES: Final = 168


def layer() -> tarball.LayerPairs:
    """A little of everything that a tar can hold."""
    return [
        ("dir/", None),
        ("dir/file", tarball.file(b"content", xattrs={"user.note": b"\0\xff"}, mtime_ns=1_500_000_000_123_456_789)),
        ("dir/large", b"0123456789abcdef" * 700),
        ("n" * 120, tarball.symlink("t" * 130, form="gnu")),
        ("same", tarball.hardlink("dir/file")),
        ("dev", tarball.char(1, 3)),
        ("disk", tarball.block(8, 0, uid=70_000)),
        ("pipe", tarball.fifo()),
        ("dir/.wh.gone", b""),
        ("dir/.wh..wh..opq", b""),
    ]


def sparse_layer(form: str) -> tarball.LayerPairs:
    return [("sparse", tarball.sparse(100_000, [(4096, b"a" * 512), (90_000, b"b" * 1024)], form=form))]


def tars() -> Sequence[bytes]:
    forms = ("gnu", "pax-0.0", "pax-0.1", "pax-1.0")
    return [tarball.tar_bytes(made, end=False) for made in (layer(), *map(sparse_layer, forms))]


def blobs() -> Sequence[bytes]:
    tar = tarball.tar_bytes(layer())
    return [write_layer(tar, compression).blob for compression in Compression]


def documents() -> Sequence[bytes]:
    tar = tarball.tar_bytes(layer())
    return [write_layer(tar, compression).document.json for compression in Compression] + [
        b'{"version":1,"entries":' + deep(b"[", b"]"),
        b'{"version":1,"entries":[{"name":"a","type":"dir","xattrs":' + deep(b'{"a":', b"}"),
    ]


def indexes() -> Sequence[bytes]:
    tar = tarball.tar_bytes(layer())
    profile = [PrefetchRange(b"dir/large", 100, 5000)]
    return [build_index(write_layer(tar, compression).toc, profile=profile) for compression in Compression]


def images() -> Sequence[bytes]:
    return [bytes(LayerIndex(unpack(packed)).metadata()) for packed in indexes()]


def read_tar(data: bytes) -> None:
    """Parse *data* in one piece and in many, which must be the same."""
    whole, pieces = TarParser(), TarParser()
    count = len(whole.feed(data))
    for start in range(0, len(data), 100):
        pieces.feed(data[start : start + 100])
    assert count >= 0
    whole.finish()
    pieces.finish()


def use_index(index: LayerIndex) -> None:
    """Ask for everything that a node asks for."""
    for number in range(index.member_count):
        member = index.member(number)
        assert member.offset + member.length <= index.blob_end
        for piece in index.pieces(number):
            assert number in index.members_in(piece.address, piece.length)
        index.digest(number)
    assert all(length > 0 for _, length in index.prefetch)
    read_image(ErofsReader(index.metadata()))


def read_image(reader: ErofsReader) -> None:
    """Follow everything there is."""
    for path, inode in reader.walk():
        reader.xattrs(inode)
        reader.address(inode)
        if inode.kind == 0o120000:
            reader.symlink(inode)
        elif inode.kind == 0o040000:
            reader.lookup(inode, path.rpartition(b"/")[2] or b"file")


def read_document(data: bytes) -> None:
    """Parse a table of contents; what is accepted makes an index and an image that can be read."""
    toc = parse_toc_json(data, Compression.GZIP, "estargz", SMALL_BLOB_BYTES)
    use_index(LayerIndex(unpack(build_index(toc))))


def read_blob(data: bytes) -> None:
    """Find the table of contents of a layer as a node does."""
    for reader in (estargz, zstd_chunked):
        found: Any = reader
        location = found.locate(data[-found.TAIL_BYTES :], len(data))
        if location is not None:
            found.parse_toc(data[location.offset :][: location.length], location, None)


def read_footer(data: bytes) -> None:
    estargz.locate(data, SMALL_BLOB_BYTES)
    zstd_chunked.locate(data, SMALL_BLOB_BYTES)


def read_compressed_toc(data: bytes) -> None:
    location = TocLocation(BLOB_BYTES, len(data), 0)
    reader = zstd_chunked if data.startswith(b"\x28\xb5\x2f\xfd") else estargz
    reader.parse_toc(data, location, None)


def inflate(data: bytes) -> None:
    compression = Compression.GZIP if data.startswith(GZIP_MAGIC) else Compression.ZSTD
    assert len(inflate_bounded(compression, data, OUTPUT_BYTES)) <= OUTPUT_BYTES
    assert len(inflate_member(compression, data, 0, 100)) >= 100
    assert len(inflate_member(compression, data, 1000, 10)) == 1000


def read_embedded(data: bytes) -> None:
    compression = Compression.GZIP if data.startswith(GZIP_MAGIC) else Compression.ZSTD
    packed = extract(data, compression)
    assert extract(embed(packed, compression), compression) == packed


def read_wire(data: bytes) -> None:
    """Unpack an index whose header's checksum is right, whatever it says."""
    head = data[:WIRE_HEAD_BYTES]
    use_index(LayerIndex(unpack(head + struct.pack("<I", isal_zlib.crc32(head)) + data[WIRE_HEAD_BYTES + 4 :])))


def read_local(data: bytes) -> None:
    """Open a stored index whose checksums are right, whatever it says."""
    made = bytearray(data)
    if len(made) >= local.PAGE_BYTES:
        struct.pack_into("=I", made, 36, isal_zlib.crc32(made[local.PAGE_BYTES :]))
        struct.pack_into("=I", made, 124, isal_zlib.crc32(made[:124]))
    use_index(LayerIndex(bytes(made)))


def read_metadata(data: bytes) -> None:
    """Read an EROFS image whose checksum is right, whatever it says."""
    made = bytearray(data)
    if len(made) >= ondisk.BLOCK_BYTES:
        ondisk.seal(made)
    read_image(ErofsReader(bytes(made)))


def read_bitmap(data: bytes) -> None:
    found = bitmap.load(data, BITS, INODE, bytes(32))
    if found is not None:
        assert found.count == BITS - len(found.missing(range(BITS)))


def read_profile(data: bytes) -> None:
    profile = Profile(10, 1000, 50)
    profile.load(data)
    for address, length in profile.ranges():
        assert address >= 10 << 12
        assert address + length <= 1010 << 12


def read_prefetch_list(data: bytes) -> None:
    ranges = parse_list(data)
    assert parse_list(format_list(ranges)) == ranges


def footers() -> Sequence[bytes]:
    return [blob[-200:] for blob in blobs()]


def compressed_tocs() -> Sequence[bytes]:
    document = json.dumps({"version": 1, "entries": [{"name": "a/", "type": "dir"}]}).encode()
    return [
        gzip.compress(tarball.tar_bytes([("stargz.index.json", document)]), mtime=0),
        zstandard.compress(document),
    ]


def packed_bytes() -> Sequence[bytes]:
    return [gzip.compress(bytes(1000), mtime=0) * 2, zstandard.compress(bytes(1000)) * 2]


def embedded() -> Sequence[bytes]:
    return [embed(packed, compression) for packed in indexes() for compression in Compression]


def bitmaps() -> Sequence[bytes]:
    made = bitmap.Bitmap(BITS)
    made.add(3)
    return [made.dump(INODE, bytes(32))]


def profiles() -> Sequence[bytes]:
    profile = Profile(10, 1000, 50)
    profile.touch(20 << 12, 30_000)
    profile.touch(100 << 12, 1)
    return [profile.dump()]


PAX_WORDS: Final = (
    b"GNU.sparse.major=", b"GNU.sparse.minor=", b"GNU.sparse.map=", b"GNU.sparse.realsize=", b"GNU.sparse.numblocks=",
    b"SCHILY.xattr.", b"path=", b"linkpath=", b"size=", b"mtime=", b"uid=", b"././@LongLink", b"ustar\x0000", b"ustar  \0",
    b"\xff" * 12, b"\x80\0\0\0\0\0\0\0\0\0\0\1", b"x", b"L", b"K", b"S", b"g",
)  # fmt: skip
TOC_WORDS: Final = (
    *(b'"%s"' % word.encode() for word in (
        "name", "type", "size", "modtime", "linkName", "mode", "uid", "gid", "offset", "innerOffset", "devMajor", "devMinor",
        "xattrs", "digest", "chunkDigest", "chunkOffset", "chunkSize", "chunkType", "endOffset", "reg", "dir", "chunk",
        "hardlink", "symlink", "char", "fifo", "zeros", ".wh.a", "a/..", "2020-01-02T03:04:05Z", DIGEST,
    )),
    b"9223372036854775807", b"-1", b"1e400", b"null", b"\\ud800", b"\\u0000",
)  # fmt: skip

LAYER_TARGETS: Final[Mapping[str, Target]] = {
    "tar": Target(read_tar, tars, PAX_WORDS, 16_384),
    "toc": Target(read_document, documents, TOC_WORDS, 16_384),
    "layer-blob": Target(read_blob, blobs, (b"STARGZ", b"GnUlInUx", b"stargz.index.json")),
    "footer": Target(read_footer, footers, (b"STARGZ", b"GnUlInUx", b"\x50\x2a\x4d\x18")),
    "compressed-toc": Target(read_compressed_toc, compressed_tocs, (b"\x28\xb5\x2f\xfd", b"\x1f\x8b\x08")),
    "member": Target(inflate, packed_bytes, (b"\x28\xb5\x2f\xfd", b"\x1f\x8b\x08", b"\x50\x2a\x4d\x18")),
    "embedded-index": Target(read_embedded, embedded, (b"AP", b"\x1f\x8b\x08\x04")),
    "index": Target(read_wire, indexes, (wire.MAGIC,)),
    "stored-index": Target(read_local, lambda: [unpack(packed) for packed in indexes()], (local.MAGIC,), 16_384),
    "erofs": Target(read_metadata, images, (b"\x00\x40", b".", b".."), 16_384),
    "bitmap": Target(read_bitmap, bitmaps, (b"APPRPRS1",)),
    "profile": Target(read_profile, profiles, (b"APPRTCH1",)),
    "prefetch-list": Target(
        read_prefetch_list,
        lambda: [format_list([PrefetchRange(b"a b\\\xff", 5, 9), PrefetchRange(b"#x"), PrefetchRange(b"c", 1)])],
        (b"\\040", b" 0 -1", b"#"),
    ),
}
