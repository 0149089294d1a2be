"""Converts an image: every layer read, verified, written anew, proven and stored; then the manifests; then the name.

Nothing is visible in the target before everything is there, and what is there already is not sent again, so a conversion
that was interrupted at any point is simply run again.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from apparate.convert.layout import LayoutSource, LayoutTarget
from apparate.convert.manifests import (
    check_target,
    converted_config,
    converted_entry,
    converted_index,
    converted_manifest,
    read_config,
    source_annotations,
)
from apparate.convert.pipeline import LayerPipeline, conversion_key
from apparate.convert.progress import Silent
from apparate.convert.registry_store import RegistrySource, RegistryTarget
from apparate.convert.result import ConvertResult, ImageResult
from apparate.convert.selection import check_layers, choose, refuse_accelerated, refuse_lazy, require_platform
from apparate.convert.stores import RegistryImage
from apparate.errors import AlreadyExists, FormatError
from apparate.oci import names
from apparate.oci.digest import Digest
from apparate.oci.manifest import Descriptor, Index, Manifest, parse_manifest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from apparate.convert.progress import Progress
    from apparate.convert.result import LayerResult
    from apparate.convert.settings import ConvertOptions, ConvertSettings
    from apparate.convert.stores import ImageLocation, ImageSource, ImageTarget, StoredManifest
    from apparate.oci.manifest import ImageConfig
    from apparate.registry.client import RegistryClient

NESTING_MAX: Final = 4
"""Indexes inside of indexes that are followed."""
IMAGES_MAX: Final = 256
"""Images in one index; more is no image for many platforms, but something else."""


@dataclass(frozen=True, slots=True)
class _Job:
    """One image to convert: its entry in the index (or the root), its manifest and configuration."""

    entry: Descriptor
    manifest: Manifest
    config: ImageConfig


@dataclass(frozen=True, slots=True)
class _Made:
    """What the annotations of all manifests of one conversion say alike."""

    recorded_name: str
    key: str

    def annotations(self, source: Descriptor) -> dict[str, str]:
        return source_annotations(self.recorded_name, source, self.key)


class Converter:
    """Converts images; thread-safe, every call has threads and files of its own."""

    def __init__(self, client: RegistryClient, settings: ConvertSettings) -> None:
        self._client = client
        self._settings = settings

    def convert(
        self,
        source: ImageLocation,
        target: ImageLocation,
        options: ConvertOptions,
        progress: Progress | None = None,
    ) -> ConvertResult:
        """Convert *source* and store the result as *target*.

        Raises:
            NotFound: the source, or a platform asked for, does not exist.
            FailedPrecondition: the source is accelerated already.
            AlreadyExists: the target's tag holds something else and `options.replace` is not set.
            Unsupported: a layer of an unknown type, or nothing for Linux.
            IntegrityError, FormatError: the source is damaged.
            Unavailable, RegistryError: a registry does not answer, or refuses. Nothing is visible under the target's name.
        """
        started = time.monotonic()
        report = progress or Silent()
        reader, writer = self._source(source), self._target(target)
        root = reader.root()
        parsed = parse_manifest(root.body, root.descriptor.media_type)
        if not options.reconvert:
            refuse_accelerated(parsed.annotations, reader.name)
        made = _Made(reader.recorded_name, conversion_key(options))
        before = writer.current()
        if before is not None and not check_target(before, made.annotations(root.descriptor), writer.name, options):
            return _result(reader, root, writer, before.descriptor.digest, started)
        jobs, left_out = self._jobs(reader, root, parsed, options)
        for platform, reason in left_out:
            report.note(f"left out {platform}: {reason}")
        report.layers(len({layer.digest for job in jobs for layer in job.manifest.layers}))
        with LayerPipeline(reader, writer, options, self._settings, report) as pipeline:
            begun = [pipeline.begin(job.manifest, job.config) for job in jobs]
            layers = [tuple(future.result() for future in futures) for futures in begun]
        images, bodies = [], []
        for job, results in zip(jobs, layers, strict=True):
            body = _store_image(writer, job, results, made)
            bodies.append(body)
            images.append(ImageResult(job.config.platform, job.entry.digest, Digest.of(body), results))
        body, media_type = _top(parsed, root, jobs, bodies, made)
        changed = _publish(writer, body, media_type, before)
        return _result(reader, root, writer, Digest.of(body), started, tuple(images), left_out, changed=changed)

    def _source(self, place: ImageLocation) -> ImageSource:
        if isinstance(place, RegistryImage):
            return RegistrySource(self._client, place.reference, self._settings.patience_s)
        return LayoutSource(place.directory, place.tag)

    def _target(self, place: ImageLocation) -> ImageTarget:
        if isinstance(place, RegistryImage):
            return RegistryTarget(self._client, place.reference, self._settings.patience_s)
        return LayoutTarget(place.directory, place.tag)

    def _jobs(
        self, reader: ImageSource, root: StoredManifest, parsed: Manifest | Index, options: ConvertOptions
    ) -> tuple[list[_Job], tuple[tuple[str, str], ...]]:
        """Return what is to be converted, every manifest and configuration read and found fit; no layer is read yet."""
        if isinstance(parsed, Manifest):
            job = _job(reader, root.descriptor, parsed, options)
            require_platform(job.config, options.platforms, reader.name)
            return [job], ()
        flat = Index(tuple(_flatten(reader, parsed, NESTING_MAX)))
        if len(flat.manifests) > IMAGES_MAX:
            raise FormatError("index", "manifests", f"{len(flat.manifests)} entries, at most {IMAGES_MAX} are read")
        choice = choose(flat, options.platforms, reader.name)
        jobs = []
        for entry in choice.chosen:
            stored = reader.manifest(entry)
            manifest = parse_manifest(stored.body, entry.media_type)
            if not isinstance(manifest, Manifest):
                raise FormatError(
                    "index", "manifests", f"{entry.digest} is an index where {entry.media_type} was promised"
                )
            jobs.append(_job(reader, entry, manifest, options))
        return jobs, choice.left_out


def _job(reader: ImageSource, entry: Descriptor, manifest: Manifest, options: ConvertOptions) -> _Job:
    if not options.reconvert:
        refuse_accelerated(manifest.annotations, reader.name)
        refuse_lazy(manifest, reader.name)
    config = read_config(reader, manifest.config, reader.name)
    check_layers(manifest, config, reader.name)
    return _Job(entry, manifest, config)


def _flatten(reader: ImageSource, index: Index, depth: int) -> Iterator[Descriptor]:
    """Yield the entries of *index*, those of indexes inside of it in their place."""
    for entry in index.manifests:
        if entry.media_type not in names.INDEX_TYPES:
            yield entry
            continue
        if not depth:
            raise FormatError("index", "manifests", f"indexes lie more than {NESTING_MAX} deep in one another")
        inner = parse_manifest(reader.manifest(entry).body, entry.media_type)
        if not isinstance(inner, Index):
            raise FormatError("index", "manifests", f"{entry.digest} is no index, as {entry.media_type} promised")
        yield from _flatten(reader, inner, depth - 1)


def _store_image(writer: ImageTarget, job: _Job, layers: Sequence[LayerResult], made: _Made) -> bytes:
    """Store configuration and, by its digest, manifest of an image; return the manifest."""
    config = converted_config(job.config, layers)
    descriptor = Descriptor.of(config, names.OCI_CONFIG)
    if not writer.has(descriptor):
        writer.put(descriptor, lambda: iter((config,)))
    body = converted_manifest(job.manifest, config, layers, made.annotations(job.entry)).to_json()
    writer.put_manifest(body, names.OCI_MANIFEST)
    return body


def _top(
    parsed: Manifest | Index, root: StoredManifest, jobs: Sequence[_Job], bodies: Sequence[bytes], made: _Made
) -> tuple[bytes, str]:
    """Return body and media type of what takes the target's name: a single image stays single, an index an index."""
    if isinstance(parsed, Manifest):
        return bodies[0], names.OCI_MANIFEST
    entries = [converted_entry(job.entry, body, job.config) for job, body in zip(jobs, bodies, strict=True)]
    return converted_index(parsed, entries, made.annotations(root.descriptor)).to_json(), names.OCI_INDEX


def _publish(writer: ImageTarget, body: bytes, media_type: str, before: StoredManifest | None) -> bool:
    """Let the target's name stand for *body*; False if it does so already."""
    now = writer.current()
    if now is not None and now.body == body:
        return False
    if (now and now.descriptor.digest) != (before and before.descriptor.digest):
        raise AlreadyExists(
            f"{writer.name} was changed by somebody else in the meantime; see what it holds and run again"
        )
    writer.publish(body, media_type)
    return True


def _result(
    reader: ImageSource,
    root: StoredManifest,
    writer: ImageTarget,
    digest: Digest,
    started: float,
    images: tuple[ImageResult, ...] = (),
    left_out: tuple[tuple[str, str], ...] = (),
    *,
    changed: bool = False,
) -> ConvertResult:
    duration_s = time.monotonic() - started
    return ConvertResult(
        reader.name, root.descriptor.digest, writer.name, digest, changed, images, left_out, duration_s
    )
