"""zstd:chunked: a tar.zst of many frames with a table of contents in a skippable frame (docs/formats/zstd-chunked.md)."""
