"""Digests (OCI image specification, descriptor.md, "Digests") and the check of bytes that arrive in pieces."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from apparate.errors import IntegrityError, InvalidArgument

if TYPE_CHECKING:
    from typing_extensions import Buffer

_HEX_LENGTH = {"sha256": 64, "sha384": 96, "sha512": 128}
_HEX = re.compile(r"[0-9a-f]+\Z")


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """A content digest, `algorithm:hex`."""

    algorithm: str
    hex: str

    def __post_init__(self) -> None:
        length = _HEX_LENGTH.get(self.algorithm)
        if length is None:
            raise InvalidArgument(
                f"digest algorithm {self.algorithm!r} is unknown; use one of {', '.join(_HEX_LENGTH)}"
            )
        if len(self.hex) != length or not _HEX.match(self.hex):
            raise InvalidArgument(
                f"digest {self.algorithm}:{self.hex[:140]} needs {length} lower-case hexadecimal digits"
            )

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the digest written as *text*.

        Raises:
            InvalidArgument: no known algorithm, or not the right number of lower-case hexadecimal digits.
        """
        algorithm, colon, digits = text.partition(":")
        if not colon:
            raise InvalidArgument(f"digest {text[:140]!r} has no algorithm; write sha256:<64 hexadecimal digits>")
        return cls(algorithm, digits)

    @classmethod
    def of(cls, data: Buffer) -> Self:
        """Return the SHA-256 digest of *data*."""
        return cls("sha256", hashlib.sha256(data).hexdigest())

    @property
    def raw(self) -> bytes:
        """The digest's bytes, 32 of them for SHA-256."""
        return bytes.fromhex(self.hex)

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"


class Verifier:
    """Hashes bytes as they pass and says at the end whether they were the promised ones."""

    def __init__(self, expected: Digest, what: str = "blob") -> None:
        self._expected = expected
        self._what = what
        self._hash = hashlib.new(expected.algorithm)
        self.length = 0
        """Bytes seen so far."""

    def update(self, data: Buffer) -> None:
        """Take the next bytes."""
        self._hash.update(data)
        self.length += memoryview(data).nbytes

    def finish(self) -> None:
        """Raise IntegrityError unless the bytes hash to the expected digest."""
        actual = self._hash.hexdigest()
        if actual != self._expected.hex:
            raise IntegrityError(self._what, str(self._expected), f"{self._expected.algorithm}:{actual}")
