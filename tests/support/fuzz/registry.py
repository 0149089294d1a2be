"""Parsers of what a registry, a token server or a helper answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Final

from tests.support.fuzz.target import Target, deep, text_of

from apparate.format.embedding import IndexLocation
from apparate.format.zstd_chunked import reader as zstd_chunked
from apparate.oci import names
from apparate.oci.digest import Digest
from apparate.oci.manifest import ImageConfig, Platform, parse_manifest
from apparate.oci.reference import Reference
from apparate.registry.answers import redirected, refusal, retry_after_s
from apparate.registry.challenge import parse_challenges
from apparate.registry.deadline import Deadline
from apparate.registry.endpoint import TlsConfig
from apparate.registry.ranges import check_blob, ranged, ranged_tail
from apparate.registry.tokens import Realm, fetch_token
from apparate.registry.transport import Request, Response, Route

URL: Final = "https://registry.test/v2/team/app/blobs/x"
DIGEST: Final = "sha256:" + "ab" * 32
WANTED: Final = (100, 50)  # offset and length of the range that was asked for
STEP_BYTES: Final = 100


class Bytes:
    """The body of an answer, which comes in small pieces."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read1(self, amt: int | None = None, /) -> bytes:
        size = STEP_BYTES if amt is None else min(amt, STEP_BYTES)
        piece, self._data = self._data[:size], self._data[size:]
        return piece

    def close(self) -> None:
        self._data = b""


class Answering:
    """A server that gives one answer to everything."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def send(self, request: Request, route: Route, deadline: Deadline) -> Response:
        return answer(200, {}, self._body)

    def close(self) -> None:
        """Nothing is open."""


def answer(status: int, headers: Mapping[str, str], body: bytes = b"") -> Response:
    return Response(Request("GET", URL), status, headers, Bytes(body))


def header_of(data: bytes) -> str:
    """A header's value as the HTTP client hands it on."""
    return data.decode("latin-1")


def read_manifest(data: bytes) -> None:
    """Parse a manifest or an index; what is accepted can be written."""
    for media_type in (None, names.OCI_INDEX, names.DOCKER_MANIFEST):
        parsed = parse_manifest(data, media_type)
        assert parse_manifest(parsed.to_json()) == parsed
        str(parsed)


def read_image_config(data: bytes) -> None:
    config = ImageConfig.parse(data)
    str(config.platform)


def read_reference(data: bytes) -> None:
    reference = Reference.parse(text_of(data))
    assert Reference.parse(str(reference)) == reference


def read_digest(data: bytes) -> None:
    digest = Digest.parse(text_of(data))
    assert Digest.parse(str(digest)) == digest
    assert len(digest.raw) * 2 == len(digest.hex)


def read_platform(data: bytes) -> None:
    str(Platform.parse(text_of(data)))


def read_toc_position(data: bytes) -> None:
    """The annotation of a zstd:chunked layer."""
    zstd_chunked.locate_annotated({names.ZSTD_CHUNKED_POSITION: text_of(data)}, 1 << 40)


def read_index_location(data: bytes) -> None:
    """The annotation of a layer with an embedded index."""
    location = IndexLocation.from_annotation(text_of(data))
    if location is not None:
        assert location.to_annotation() == text_of(data)


def read_challenges(data: bytes) -> None:
    for challenge in parse_challenges(header_of(data)):
        assert challenge.scheme == challenge.scheme.lower()


def read_range(data: bytes) -> None:
    """A 206 whose Content-Range and, behind a line break, Content-Length are given."""
    content_range, _, length = header_of(data).partition("\n")
    headers = {"Content-Range": content_range, "Content-Length": length}
    for piece in (ranged(answer(206, headers), *WANTED), ranged_tail(answer(206, headers), WANTED[1])):
        assert 0 < piece.length <= WANTED[1]
        assert piece.offset + piece.length <= piece.total


def read_multipart(data: bytes) -> None:
    """A 206 of the Content-Type in the first line, the rest is the body."""
    kind, _, body = data.partition(b"\n")
    ranged(answer(206, {"Content-Type": header_of(kind)}, body), *WANTED)


def read_whole(data: bytes) -> None:
    """A 200 of the Content-Type in the first line and the Content-Length in the second."""
    kind, _, length = header_of(data).partition("\n")
    response = answer(200, {"Content-Type": kind, "Content-Length": length})
    check_blob(response)
    ranged(response, 0, WANTED[1])


def read_retry_after(data: bytes) -> None:
    wait_s = retry_after_s(answer(503, {"Retry-After": header_of(data)}))
    assert wait_s is None or 0 <= wait_s <= 3600


def read_location(data: bytes) -> None:
    assert redirected(URL, header_of(data)).startswith("https://")


def read_error(data: bytes) -> None:
    for status in (400, 404, 503):
        str(refusal(answer(status, {}, data)))


def read_token(data: bytes) -> None:
    realm = Realm("https://auth.test/token", "registry.test", ("repository:team/app:pull",))
    token = fetch_token(Answering(data), realm, None, Route(TlsConfig()), Deadline.never())
    assert token.value.isprintable()
    assert token.use_until > 0


def manifests() -> Sequence[bytes]:
    layer = {"mediaType": names.OCI_LAYER_GZIP, "digest": DIGEST, "size": 7, "annotations": {"a": "b"}, "urls": ["u"]}
    config = {"mediaType": names.OCI_CONFIG, "digest": DIGEST, "size": 2}
    platform = {"os": "linux", "architecture": "arm64", "variant": "v8", "os.version": "1"}
    image = {"schemaVersion": 2, "mediaType": names.OCI_MANIFEST, "config": config, "layers": [layer]}
    index = {
        "schemaVersion": 2, "mediaType": names.OCI_INDEX, "annotations": {"a": "b"},
        "manifests": [{**config, "mediaType": names.OCI_MANIFEST, "platform": platform, "artifactType": "t"}],
    }  # fmt: skip
    return [json.dumps(image).encode(), json.dumps(index).encode(), deep(b"["), deep(b'{"manifests":', b"}")]


def image_configs() -> Sequence[bytes]:
    config = {"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": [DIGEST]}}
    return [json.dumps(config).encode(), deep(b'{"rootfs":', b"}")]


def errors() -> Sequence[bytes]:
    return [b'{"errors":[{"code":"DENIED","message":"no","detail":null}]}', b'{"errors":' + deep(b"[", b"]") + b"}"]


def tokens() -> Sequence[bytes]:
    return [b'{"token":"abc","expires_in":300}', b'{"access_token":"abc","expires_in":' + b"9" * 400 + b"}", deep(b"[")]


JSON_WORDS: Final = (
    *(b'"%s"' % word.encode() for word in (
        "mediaType", "digest", "size", "annotations", "platform", "os", "architecture", "urls", "artifactType", "manifests",
        "layers", "config", "schemaVersion", "rootfs", "diff_ids", "\\ud800", DIGEST,
    )),
    b"null", b"1e400", b"9" * 30, b"-1", b"[[", b"{}",
)  # fmt: skip

REGISTRY_TARGETS: Final[Mapping[str, Target]] = {
    "manifest": Target(read_manifest, manifests, JSON_WORDS),
    "image-config": Target(read_image_config, image_configs, JSON_WORDS),
    "reference": Target(
        read_reference,
        lambda: [b"registry.test:5000/team/app:v1", b"app", b"[::1]:5000/a/b@" + DIGEST.encode(), b"A.b/c__d/e--f:T"],
        (b"docker.io", b"library/", b"@sha256:"),
        600,
    ),
    "digest": Target(read_digest, lambda: [DIGEST.encode(), b"sha512:" + b"0" * 128], (b"sha384:",), 300),
    "platform": Target(read_platform, lambda: [b"linux/arm64/v8", b"linux"], (b"linux", b"amd64"), 200),
    "toc-position": Target(read_toc_position, lambda: [b"500:300:900:1"], (b"9223372036854775807",), 100),
    "index-location": Target(
        read_index_location, lambda: [b"v1:4096:1000:" + b"ab" * 32], (b"v1:", b"v2:", b"9223372036854775807"), 200
    ),
    "www-authenticate": Target(
        read_challenges,
        lambda: [b'Bearer realm="https://auth.test/token",service="r\\"t",scope="a b", Basic realm=x, Negotiate YWJj='],
        (b"Bearer ", b"Basic ", b'realm="', b"scope="),
    ),
    "content-range": Target(
        read_range, lambda: [b"bytes 100-149/150\n50", b"bytes 100-149/150\n"], (b"bytes ", b"/*", b"9" * 19), 200
    ),
    "multipart": Target(
        read_multipart,
        lambda: [b'multipart/byteranges; boundary="b"\n--b\r\nContent-Range: bytes 100-149/1000\r\n\r\n' + bytes(50)],
        (b"multipart/byteranges", b"boundary=", b"Content-Range: bytes ", b"\r\n\r\n"),
    ),
    "whole-answer": Target(
        read_whole, lambda: [b"application/octet-stream\n50", b"text/html\n" + b"9" * 5000], (b"text/", b"\n"), 6000
    ),
    "retry-after": Target(
        read_retry_after,
        lambda: [
            b"120", b"Fri, 31 Dec 1999 23:59:59 GMT", b"Sun Nov  6 08:49:37 1994", b"Friday, 31-Dec-99 23:59:59 GMT",
            b"1 Jan 99999999999 0:0:0 +99999999", b"9" * 5000,
        ],
        (b"GMT", b"-0000", b"+9999", b"Dec", b"0001"),
        6000,
    ),
    "location": Target(
        read_location,
        lambda: [b"https://cdn.test/blob?sig=1", b"/v2/other", b"//h:99/", b"http://[::1", b"?x"],
        (b"https://", b"http://", b"[", b"]", b"@", b"\\", b"\t"),
        600,
    ),
    "error-body": Target(read_error, errors, (b'"errors"', b'"code"', b'"message"', b"null", b"[]")),
    "token": Target(read_token, tokens, (b'"token"', b'"access_token"', b'"expires_in"', b"NaN", b"Infinity", b"1e400")),
}  # fmt: skip
