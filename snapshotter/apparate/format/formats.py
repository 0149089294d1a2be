"""The layer formats by name: the one place that knows which there are."""

from __future__ import annotations

from apparate.format.estargz.writer import EstargzFormat
from apparate.format.toc import Compression
from apparate.format.writer import LayerFormat, LayerOptions
from apparate.format.zstd_chunked.writer import ZstdChunkedFormat


def layer_format_for(compression: Compression, options: LayerOptions) -> LayerFormat:
    """Return the format that writes layers of *compression*.

    Raises:
        InvalidArgument: an option is out of its range.
    """
    if compression is Compression.ZSTD:
        return ZstdChunkedFormat(options)
    return EstargzFormat(options)
