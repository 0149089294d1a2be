"""Bounds on what a layer may make us hold in memory; beyond them it is refused, and pulled as an ordinary layer."""

from __future__ import annotations

from typing import Final

#: Compressed table of contents; a million chunks make about 100 MiB.
MAX_TOC_BYTES: Final = 128 << 20
#: Its JSON, inflated.
MAX_TOC_JSON_BYTES: Final = 512 << 20
#: Inflated bytes of one member that have to be held to serve a read. Our own members have 64 KiB, common foreign ones 4 MiB.
MAX_MEMBER_RAW_BYTES: Final = 128 << 20
#: Compressed bytes of one member that are not fetched in one piece any more.
MAX_MEMBER_BYTES: Final = 256 << 20
