"""The one tree of errors. Whatever leaves a public function of apparate is one of these.

An adapter (FUSE, gRPC, the command line) maps them by class in one table; whether trying again can help is a property of the
error (`temporary`), never something to search for in its text.
"""

from __future__ import annotations

from typing import ClassVar, Self


class ApparateError(Exception):
    """Something went wrong that we can name. `str(error)` is one line for a person and holds no secret."""

    exit_code: ClassVar[int] = 1
    temporary: bool = False

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def anew(self) -> Self:
        """Return an error that says the same and was never raised.

        One that is kept, or raised more than once, would keep every frame that it has passed and all that these hold.
        """
        other = type(self).__new__(type(self))
        other.args = self.args
        other.__dict__.update(self.__dict__)
        return other


class InvalidArgument(ApparateError):
    """The caller's input cannot be used: a reference, an option, a setting. The message names it and the fix."""

    exit_code = 2


class NotFound(ApparateError):
    """What was asked for does not exist."""

    exit_code = 3


class AlreadyExists(ApparateError):
    """What should be made exists. For a remote `Prepare` this is the successful answer."""

    exit_code = 4


class FailedPrecondition(ApparateError):
    """The request is sound, the state does not allow it: in use, locked by another instance, not committed."""

    exit_code = 5


class Unsupported(ApparateError):
    """Valid input that we do not handle."""

    exit_code = 6


class FormatError(ApparateError):
    """Bytes from outside do not follow their format.

    Args:
        fmt: the format's name, as `estargz` or `tar`.
        field: the field that is wrong, in the words of the format's specification.
        reason: what is wrong with it.
        offset: where it was met, in bytes, if known.
    """

    exit_code = 7

    def __init__(self, fmt: str, field: str, reason: str, offset: int | None = None) -> None:
        where = "" if offset is None else f" at offset {offset}"
        super().__init__(f"{fmt}: {field}: {reason}{where}")
        self.fmt = fmt
        self.field = field
        self.reason = reason
        self.offset = offset


class IntegrityError(FormatError):
    """The digest of *what* differs from what was promised. Nothing of these bytes may be used."""

    def __init__(self, what: str, expected: str, actual: str) -> None:
        super().__init__("digest", what, f"expected {expected}, got {actual}")
        self.what = what
        self.expected = expected
        self.actual = actual


class RegistryError(ApparateError):
    """A registry answered with an error.

    Args:
        method: the HTTP method.
        url: the URL without user information and with its query redacted.
        status: the HTTP status.
        codes: the codes of the distribution specification found in the body, as `MANIFEST_UNKNOWN`.
        detail: one more sentence for the reader, as what to do about it.
    """

    exit_code = 8

    def __init__(self, method: str, url: str, status: int, codes: tuple[str, ...] = (), detail: str = "") -> None:
        named = f" ({', '.join(codes)})" if codes else ""
        super().__init__(f"{method} {url}: HTTP status {status}{named}" + (f": {detail}" if detail else ""))
        self.method = method
        self.url = url
        self.status = status
        self.codes = codes


class Unavailable(ApparateError):
    """Not now: trying again later can succeed.

    Args:
        message: what could not be had.
        retry_after_s: how long the other side asked to wait, if it did.
    """

    exit_code = 9
    temporary = True

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
