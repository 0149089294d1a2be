"""FUSE_INIT as kernels send it, and the one that no kernel sent."""

import os
import struct

import pytest

from apparate.errors import Unsupported
from apparate.loader import handshake

INIT = 26
UNIQUE = 2
OFFERED_BY_6_18 = 0x5FD73FFFFFB
PASSTHROUGH = 1 << 37
RESEND = 1 << 39


def init_request(minor: int, flags: int, *, major: int = 7, opcode: int = INIT) -> bytes:
    body = struct.pack("<IIII", major, minor, 131072, flags & 0xFFFFFFFF)
    if minor >= 36:
        body += struct.pack("<I44x", flags >> 32)
    return struct.pack("<IIQQIIIHH", 40 + len(body), opcode, UNIQUE, 0, 0, 0, 0, 0, 0) + body


def answered_flags(reply: bytes) -> int:
    fields = struct.unpack_from("<IIIIHHIIHHI", reply, 16)
    return int(fields[3] | fields[10] << 32)


def test_a_new_kernel_gets_a_long_answer_with_only_what_it_offered() -> None:
    reply, negotiated = handshake.answer_init(init_request(45, OFFERED_BY_6_18), 64)
    length, error, unique, major, minor = struct.unpack_from("<IiQII", reply)
    assert (length, error, unique, major, minor) == (len(reply), 0, UNIQUE, 7, handshake.FUSE_MINOR)
    assert len(reply) == 16 + 64
    assert answered_flags(reply) & ~OFFERED_BY_6_18 == 0
    assert negotiated.resend


def test_passthrough_is_never_agreed_on_for_erofs_would_refuse_the_file() -> None:
    reply, _ = handshake.answer_init(init_request(45, OFFERED_BY_6_18), 64)
    assert not answered_flags(reply) & PASSTHROUGH


def test_a_kernel_without_resend_is_known_as_such() -> None:
    _, negotiated = handshake.answer_init(init_request(39, OFFERED_BY_6_18 & ~RESEND), 64)
    assert not negotiated.resend
    assert negotiated.minor == 38


def test_a_kernel_of_centos_7_gets_the_short_answer() -> None:
    reply, negotiated = handshake.answer_init(init_request(22, 0x3FFFF), 64)
    assert len(reply) == 16 + 24
    assert negotiated == handshake.Negotiated(22, resend=False)


def test_the_background_limit_is_the_one_that_was_set() -> None:
    reply, _ = handshake.answer_init(init_request(38, OFFERED_BY_6_18), 48)
    assert struct.unpack_from("<HH", reply, 16 + 16) == (48, 36)


def test_another_major_version_is_refused() -> None:
    with pytest.raises(Unsupported, match="version 8"):
        handshake.answer_init(init_request(0, 0, major=8), 64)


def test_a_request_that_is_no_init_is_refused() -> None:
    with pytest.raises(Unsupported, match="opcode 15"):
        handshake.answer_init(init_request(38, 0, opcode=15), 64)


def test_the_synthetic_socket_gives_one_init_and_nothing_more() -> None:
    with handshake.synthetic_socket() as sock:
        request = os.read(sock.fileno(), 65536)
        length, opcode, unique = struct.unpack_from("<IIQ", request)
        assert (length, opcode) == (len(request), INIT)
        assert unique > 1 << 62
        assert os.read(sock.fileno(), 65536) == b""


def test_a_kernel_that_cannot_repeat_requests_is_told_apart() -> None:
    reading, writing = os.pipe()
    try:
        assert handshake.resend(writing)
        assert os.read(reading, 100) == struct.pack("<IiQ", 16, 7, 0)
    finally:
        os.close(reading)
        os.close(writing)
