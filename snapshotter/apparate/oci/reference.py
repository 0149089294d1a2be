"""Image references and their normal form.

Source: the grammar of the distribution project's `reference` package, with Docker's normalisation: a name without a
registry is Docker Hub's, and there a name without a namespace is in `library/`.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Self

from apparate.errors import InvalidArgument
from apparate.oci.digest import Digest

DEFAULT_REGISTRY = "docker.io"
DEFAULT_NAMESPACE = "library"
DEFAULT_TAG = "latest"
NAME_LENGTH_MAX = 255
"""Characters of registry and repository together."""

_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_REGISTRY = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:]+\])(?::[0-9]+)?\Z")
_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*\Z")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}\Z")


@dataclass(frozen=True, slots=True)
class Reference:
    """`registry/repository[:tag][@digest]` in normal form."""

    registry: str
    repository: str
    tag: str | None = None
    digest: Digest | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the reference written as *text*; neither tag nor digest means the tag `latest`.

        Raises:
            InvalidArgument: the text does not follow the grammar; the message names the part.
        """
        if not text or text != text.strip():
            raise _refused(text, "it is empty or has spaces around it")
        if "://" in text:
            raise _refused(text, "a reference has no scheme; leave out what stands before and with ://")
        rest, at, digest_text = text.partition("@")
        digest = Digest.parse(digest_text) if at else None
        rest, tag = _split_tag(rest)
        registry, repository = _split_registry(rest)
        if tag is not None and not _TAG.match(tag):
            raise _refused(
                text, f"the tag {tag!r} may have up to 128 letters, digits and _ . -, and begins with none of . -"
            )
        if not _REGISTRY.match(registry):
            raise _refused(text, f"{registry!r} is no host[:port]")
        for component in repository.split("/"):
            if not _COMPONENT.match(component):
                raise _refused(
                    text,
                    f"the repository part {component!r} may have lower-case letters, digits and single . _ - between them",
                )
        if len(registry) + 1 + len(repository) > NAME_LENGTH_MAX:
            raise _refused(text, f"the name is longer than {NAME_LENGTH_MAX} characters")
        if tag is None and digest is None:
            tag = DEFAULT_TAG
        return cls(registry, repository, tag, digest)

    @property
    def name(self) -> str:
        """`registry/repository`."""
        return f"{self.registry}/{self.repository}"

    def with_tag(self, tag: str) -> Reference:
        """Return this name with *tag* alone."""
        if not _TAG.match(tag):
            raise _refused(f"{self.name}:{tag}", f"the tag {tag!r} is not allowed")
        return dataclasses.replace(self, tag=tag, digest=None)

    def with_digest(self, digest: Digest) -> Reference:
        """Return this name with *digest* alone."""
        return dataclasses.replace(self, tag=None, digest=digest)

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.name}{tag}{digest}"


def _refused(text: str, why: str) -> InvalidArgument:
    return InvalidArgument(f"image reference {text[:NAME_LENGTH_MAX]!r}: {why}")


def _split_tag(text: str) -> tuple[str, str | None]:
    head, colon, tail = text.rpartition(":")
    if not colon or "/" in tail or ("[" in text and "]" in tail):
        return text, None
    return head, tail


def _split_registry(text: str) -> tuple[str, str]:
    first, slash, rest = text.partition("/")
    is_host = bool(slash) and (any(c in first for c in ".:[") or first == "localhost" or first != first.lower())
    registry, repository = (first, rest) if is_host else (DEFAULT_REGISTRY, text)
    if registry == "index.docker.io":
        registry = DEFAULT_REGISTRY
    if registry == DEFAULT_REGISTRY and "/" not in repository:
        repository = f"{DEFAULT_NAMESPACE}/{repository}"
    return registry, repository
