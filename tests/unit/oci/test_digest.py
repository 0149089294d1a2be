import hashlib

import pytest

from apparate.errors import IntegrityError, InvalidArgument
from apparate.oci.digest import Digest, Verifier


def test_text_and_value_are_the_same() -> None:
    text = "sha256:" + "0a" * 32
    digest = Digest.parse(text)
    assert str(digest) == text
    assert digest.raw == bytes([0x0A]) * 32


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sha256",
        "sha256:",
        "sha256:" + "a" * 63,
        "sha256:" + "A" * 64,
        "sha256:" + "g" * 64,
        "md5:" + "a" * 32,
        "sha256:" + "a" * 64 + "\n",
        "sha256:" + "a" * 65,
    ],
)
def test_malformed_digest_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="digest"):
        Digest.parse(text)


def test_verifier_accepts_the_promised_bytes() -> None:
    verifier = Verifier(Digest("sha512", hashlib.sha512(b"hello").hexdigest()))
    verifier.update(b"hel")
    verifier.update(memoryview(b"lo"))
    verifier.finish()
    assert verifier.length == 5


def test_verifier_refuses_other_bytes_and_names_both_digests() -> None:
    verifier = Verifier(Digest.of(b"hello"), "layer")
    verifier.update(b"hellO")
    with pytest.raises(IntegrityError, match="layer") as caught:
        verifier.finish()
    assert caught.value.expected == str(Digest.of(b"hello"))
    assert caught.value.actual == str(Digest.of(b"hellO"))
