"""Layers that hold everything a tar stream of a layer can hold, for tests of fidelity."""

from __future__ import annotations

import struct

from tests.support.images import Image, Layer, build_image, build_layer, pattern
from tests.support.tarball import (
    EPOCH_NS,
    Node,
    block,
    char,
    directory,
    fifo,
    file,
    hardlink,
    sparse,
    symlink,
)

Entries = dict[bytes, "Node | bytes | None"]

MANY = 100_000
DEEP = 120
NAME_MAX = 255
LINK_MAX = 4095

# struct vfs_ns_cap_data, revision 2, effective: cap_net_raw permitted
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)
# posix_acl_xattr: version 2, then (tag, permissions, id): owner, user 1000, group, mask, other
ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", tag, permissions, number)
    for tag, permissions, number in (
        (0x01, 6, 0xFFFFFFFF),
        (0x02, 6, 1000),
        (0x04, 4, 0xFFFFFFFF),
        (0x10, 6, 0xFFFFFFFF),
        (0x20, 4, 0xFFFFFFFF),
    )
)


def base_layer() -> Entries:
    """The lower layer: one thing of each type for `torture_layer` to delete, replace or hide."""
    entries: Entries = {b"gone/": None, b"replaced/": None, b"opaque/": None, b"kept/": None}
    for where in (b"gone/", b"replaced/", b"opaque/", b"kept/"):
        entries |= _one_of_each(where)
    entries[b"was-directory/"] = None
    entries[b"was-directory/child"] = b"lower\n"
    entries[b"was-file"] = b"lower\n"
    return entries


def _one_of_each(where: bytes) -> Entries:
    return {
        where + b"file": b"lower\n",
        where + b"directory/": None,
        where + b"directory/child": b"lower\n",
        where + b"symlink": symlink("file"),
        where + b"hardlink": hardlink(where + b"file"),
        where + b"char": char(1, 3),
        where + b"block": block(7, 0),
        where + b"fifo": fifo(),
    }


def torture_layer() -> Entries:
    """The upper layer: every kind of entry and attribute, and whiteouts over every type."""
    entries: Entries = {}
    entries |= _attributes()
    entries |= _names()
    entries |= _times_and_owners()
    entries |= _sparse_files()
    entries |= _whiteouts()
    return entries


def _attributes() -> Entries:
    return {
        b"bin/": None,
        b"bin/setuid": file(b"#!/bin/sh\n", mode=0o4755),
        b"bin/setgid": file(b"#!/bin/sh\n", mode=0o2755),
        b"bin/ping": file(b"\x7fELF", mode=0o755, xattrs={"security.capability": CAPABILITY}),
        b"bin/ping-too": hardlink("bin/ping", mode=0o755, xattrs={"security.capability": CAPABILITY}),
        b"bin/ping-three": hardlink("bin/ping-too", mode=0o755, xattrs={"security.capability": CAPABILITY}),
        b"bin/odd": file(b"odd", mode=0o755),
        b"bin/odd-link": hardlink("bin/odd", mode=0o600, uid=7),  # containerd applies these to both names
        b"tmp/": directory(mode=0o1777),
        b"acl": file(b"acl\n", mode=0o664, xattrs={"system.posix_acl_access": ACL}),
        b"acl-directory/": directory(xattrs={"system.posix_acl_access": ACL, "system.posix_acl_default": ACL}),
        b"xattrs": file(
            b"x\n",
            xattrs={
                "user.empty": b"",
                "user.text": b"value",
                "user.binary": bytes(range(256)),
                "user.newlines": b"a\n=b\n",
                "trusted.one": b"1",
                "user.long": b"v" * 3000,
            },
        ),
        b"dev/": None,
        b"dev/null": char(1, 3, mode=0o666),
        b"dev/large": char(4095, 1_048_575),
        b"dev/loop0": block(7, 0),
        b"dev/pipe": fifo(),
        b"empty": b"",
        b"one-byte": b"1",
        b"page": pattern(4096, seed=1),
        b"page-and-one": pattern(4097, seed=2),
        b"large": pattern(5_000_001, seed=3),
        b"zeros": bytes(300_000),
        b"unreadable": file(b"secret", mode=0),
    }


def _names() -> Entries:
    long_name = b"n" * NAME_MAX
    return {
        b"names/": None,
        b"names/" + long_name: b"long\n",
        b"names/g" + long_name[1:]: file(b"long, gnu\n", form="gnu"),
        b"names/" + "grün-日本語".encode(): b"utf-8\n",
        b"names/\xff\xfe-latin": file(b"not utf-8\n", form="gnu"),
        b"names/\xe9" + b"x" * 150: file(b"not utf-8, long, gnu\n", form="gnu"),
        b"names/\xe8" + b"y" * 150: b"not utf-8, long, pax\n",
        b"names/new\nline\ttab \\ \"quote'": b"control characters\n",
        b"names/ leading and trailing ": b"spaces\n",
        b"names/...": b"three dots\n",
        b"names/link": symlink(b"t" * 90),
        b"names/long-link": symlink(b"/".join([b"l" * 127] * 32)[:LINK_MAX]),
        b"names/long-link-gnu": symlink(b"/".join([b"k" * 127] * 32)[:LINK_MAX], form="gnu"),
        b"names/link-not-utf-8": symlink(b"\xff/\xfe"),
        b"names/dangling": symlink("/does/not/exist"),
        b"implied/parents/of/file": b"no entry for its directories\n",
        b"/".join([b"deep"] * 60) + b"/leaf": b"deep\n",
    }


def _times_and_owners() -> Entries:
    return {
        b"times/": directory(mtime_ns=-(10**9)),
        b"times/negative": file(b"n", mtime_ns=-86_400 * 10**9),
        b"times/negative-nanoseconds": file(b"n", mtime_ns=-1_500_000_001),
        b"times/epoch": file(b"e", mtime_ns=0),
        b"times/nanoseconds": file(b"n", mtime_ns=EPOCH_NS + 123_456_789),
        b"times/almost": file(b"a", mtime_ns=EPOCH_NS + 999_999_999),
        b"times/after-2038": file(b"f", mtime_ns=2**32 * 10**9),
        b"times/far-future": file(b"f", mtime_ns=9_000_000_000 * 10**9 + 7),
        b"owner-65536": file(b"o", uid=65_536, gid=65_537),
        b"owner-huge": file(b"o", uid=4_000_000_000, gid=3_000_000_000),
        b"owner-directory/": directory(uid=100_000, gid=100_000, mode=0o2750),
    }


def _sparse_files() -> Entries:
    pieces = [(0, b"head"), (1_000_000, pattern(5000, seed=9)), (2_999_000, b"tail")]
    forms = ("gnu", "pax-0.0", "pax-0.1", "pax-1.0")
    entries: Entries = {b"sparse/": None}
    for form in forms:
        entries[b"sparse/" + form.encode()] = sparse(3_000_000, pieces, form=form)
    entries[b"sparse/only-hole"] = sparse(1_000_000, [(1_000_000, b"")])
    return entries


def _whiteouts() -> Entries:
    entries: Entries = {b"gone/": None}
    for name in (b"file", b"directory", b"symlink", b"hardlink", b"char", b"block", b"fifo"):
        entries[b"gone/.wh." + name] = b""
    entries[b"replaced/file"] = symlink("elsewhere")
    entries[b"replaced/.wh.directory"] = b""
    entries[b"replaced/directory"] = b"now a file\n"
    entries[b"replaced/symlink"] = b"now a file\n"
    entries[b"replaced/fifo"] = b"now a file\n"
    entries[b"opaque/"] = None
    entries[b"opaque/.wh..wh..opq"] = b""
    entries[b"opaque/new"] = b"upper\n"
    entries[b"was-directory"] = b"a file over a directory\n"
    entries[b"was-file/"] = None
    entries[b"was-file/child"] = b"a directory over a file\n"
    entries[b".wh.never-existed"] = b""
    return entries


def crowded_layer(entries: int = MANY) -> Layer:
    """One directory of *entries* files, every hundredth with content."""
    crowd: Entries = {b"crowd/": None}
    for number in range(entries):
        crowd[b"crowd/%06d" % number] = b"%d\n" % number if number % 100 == 0 else b""
    return build_layer(crowd)


def empty_layer() -> Layer:
    """A layer without entries: two zero blocks and padding."""
    return build_layer({})


def torture_image(**options: object) -> Image:
    """base_layer, torture_layer, an empty layer."""
    layers = [base_layer(), torture_layer(), {}]
    return build_image(layers, **options)  # type: ignore[arg-type]  # forwarded to build_image


def deep_image(layers: int = DEEP) -> Image:
    """An image of *layers* layers; each replaces `top`, adds one file and deletes its neighbour's."""
    stack: list[Entries] = []
    for number in range(layers):
        entries: Entries = {b"top": b"%d\n" % number, b"layer/": None}
        entries[b"layer/%03d" % number] = pattern(200, seed=number)
        if number % 3 == 2:
            entries[b"layer/.wh.%03d" % (number - 1)] = b""
        stack.append(entries)
    return build_image(stack)
