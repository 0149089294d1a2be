"""What a conversion is asked for, and what it may use of the machine."""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from apparate.errors import InvalidArgument
from apparate.format.formats import layer_format_for
from apparate.format.prefetch import PrefetchRange, format_list
from apparate.format.toc import Compression
from apparate.format.writer import DEFAULT_COLD_BYTES, DEFAULT_LEVEL, DEFAULT_MEMBER_BYTES, LayerOptions

if TYPE_CHECKING:
    from apparate.oci.manifest import Platform

THREADS_MAX: Final = 256


@dataclass(frozen=True, slots=True)
class ConvertSettings:
    """What a converter may use of the machine; nothing here changes its output. The table `[convert]` of a configuration."""

    threads: int = 0
    """Threads that compress and check; 0: one for each core this process may run on."""
    layers_in_flight: int = 2
    """Layers converted at once, besides those that are read ahead (`convert.reading`): bounds memory and temporary disk."""
    spool_dir: str = ""
    """Directory for temporary files: `layers_in_flight + 1` uncompressed layers, the results of the former, and what is read ahead; empty: $TMPDIR, else /tmp."""
    layer_bytes_max: int = 256 * 1024**3
    """A layer that unpacks to more is refused: a decompression bomb, or more than the disk takes."""

    patience_s: float = 15.0
    """How long a registry that does not answer is tried; a transfer has the time it takes at 64 KiB/s on top."""

    def __post_init__(self) -> None:
        if not 0 <= self.threads <= THREADS_MAX:
            raise InvalidArgument(f"threads is {self.threads}, must be 0 (all cores) to {THREADS_MAX}")
        if self.layers_in_flight < 1:
            raise InvalidArgument(f"layers_in_flight is {self.layers_in_flight}, must be at least 1")

    @property
    def worker_count(self) -> int:
        """How many threads compress."""
        return self.threads or len(os.sched_getaffinity(0))

    @property
    def directory(self) -> str:
        """Where temporary files go."""
        return self.spool_dir or tempfile.gettempdir()


@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """What the result shall be. Same source and same options: same digests."""

    platforms: tuple[Platform, ...] = ()
    """Convert these alone; empty: every platform of the source."""
    compression: Compression = Compression.GZIP
    """gzip makes eStargz layers, zstd makes zstd:chunked layers."""
    level: int = DEFAULT_LEVEL
    member_bytes: int = DEFAULT_MEMBER_BYTES
    cold_bytes: int = DEFAULT_COLD_BYTES
    chunk_bytes: int = 0
    prefetch: tuple[PrefetchRange, ...] | None = None
    """What a start touches, in order; None: unknown."""
    replace: bool = False
    """Let the result take a tag that holds something else."""
    reconvert: bool = False
    """Convert an image whose layers can be loaded on demand already."""

    def __post_init__(self) -> None:
        layer_format_for(self.compression, self.layer_options)  # refuses what it cannot do

    @property
    def layer_options(self) -> LayerOptions:
        """The options of a single layer."""
        return LayerOptions(self.member_bytes, self.cold_bytes, self.chunk_bytes, self.level)

    @property
    def identity(self) -> str:
        """What tells two results of one source apart, besides the codec's version; goes into an annotation."""
        listed = "none" if self.prefetch is None else hashlib.sha256(format_list(self.prefetch)).hexdigest()
        chosen = ",".join(sorted(str(platform) for platform in self.platforms)) or "all"
        return (
            f"{self.compression.value} level={self.level} member={self.member_bytes} cold={self.cold_bytes} "
            f"chunk={self.chunk_bytes} prefetch={listed} platforms={chosen}"
        )
