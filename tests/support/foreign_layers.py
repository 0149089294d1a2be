"""The tar from which the layers in tests/corpus/foreign were made by other tools: small, with most kinds of entries."""

from __future__ import annotations

import random

from tests.support import tarball


def foreign_source() -> bytes:
    """Return the source tar; the same bytes for ever, the corpus depends on them."""
    words = random.Random(4).randbytes(997)
    capability = bytes.fromhex("0100000200040000") + bytes(12)
    return tarball.tar_bytes(
        [
            ("./", tarball.directory(mode=0o700)),
            ("etc", tarball.directory(mode=0o751, uid=7, xattrs={"user.d": b"\0\xff"})),
            ("etc/passwd", tarball.file(b"root", xattrs={"security.capability": capability})),
            ("etc/empty", b""),
            ("etc/link", tarball.symlink("/absolute/../target")),
            ("etc/hard", tarball.hardlink("etc/passwd", xattrs={})),
            ("dev/null", tarball.char(1, 3)),
            ("dev/sda", tarball.block(8, 1)),
            ("run/pipe", tarball.fifo()),
            ("big", words * 300),
            ("zeros", b"head" + bytes(200_000) + b"tail" * 500),
            ("setuid", tarball.file(b"s" * 5000, mode=0o6755, uid=100_000, gid=3_000_000_000)),
            ("old", tarball.file(b"o", mtime_ns=-1_500_000_000)),
            ("deep/" * 30 + "file", b"deep"),
            ("opaque/.wh..wh..opq", b""),
            ("gone/.wh.file", b""),
            *((f"many/{number}", words[number:]) for number in range(50)),
        ]
    )
