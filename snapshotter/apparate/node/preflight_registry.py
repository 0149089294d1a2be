"""The findings about registries: whether an image can be had from here, and in parts."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from typing import Final

from apparate.errors import ApparateError, Unsupported
from apparate.node.preflight import Finding, Level
from apparate.oci.manifest import Index, parse_manifest
from apparate.oci.reference import Reference
from apparate.registry.client import RegistryClient
from apparate.registry.deadline import Deadline
from apparate.registry.settings import RegistrySettings

ANSWER_S: Final = 15.0
"""For one image; a registry that needs longer is no good for reads that containers wait for."""


def run(settings: RegistrySettings, references: Iterable[str]) -> list[Finding]:
    """Return one finding for each of *references*: images that this node should be able to load."""
    with closing(RegistryClient(settings)) as client:
        return [_finding(client, text) for text in references]


def _finding(client: RegistryClient, text: str) -> Finding:
    name = f"image {text}"
    try:
        reference = Reference.parse(text)
        _read_a_byte(client, reference, Deadline.after(ANSWER_S))
    except Unsupported as error:
        detail = f"the registry answers, but gives no parts of layers: {error}"
        return Finding(
            name,
            Level.WARNING,
            detail,
            "let it, or the proxy before it, serve HTTP ranges; else layers are downloaded whole",
        )
    except ApparateError as error:
        return Finding(name, Level.FAILED, str(error), "see docs/debug.md for credentials, certificates and proxies")
    return Finding(name, Level.OK, f"{reference.registry} answers, with ranges")


def _read_a_byte(client: RegistryClient, reference: Reference, deadline: Deadline) -> None:
    """Read the first byte of a layer of *reference*. Raises Unsupported: the registry would send all of it."""
    fetched = client.manifest(reference, deadline=deadline)
    parsed = parse_manifest(fetched.body, fetched.descriptor.media_type)
    while isinstance(parsed, Index) and parsed.manifests:
        fetched = client.manifest(reference.with_digest(parsed.manifests[0].digest), deadline=deadline)
        parsed = parse_manifest(fetched.body, fetched.descriptor.media_type)
    if isinstance(parsed, Index) or not parsed.layers:
        return
    with client.blob_range(reference, parsed.layers[0].digest, 0, 1, deadline=deadline) as stream:
        for _ in stream:
            return
