"""A loopback HTTP server that misbehaves on demand, by itself or in front of a real registry.

    with Front(upstream=registry.host) as front:
        front.on("GET", "/blobs/", flip_bit(17), times=1)       # the next blob is damaged, those after it are not
        Reference.parse(f"{front.host}/app:v1") ...             # as if it were the registry
        assert front.count("GET", "/blobs/") == 2

Rules are tried in the order in which they were added; the first that fits answers. What no rule fits is passed on, or answered
with 404 where there is no upstream.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace

from tests.support.front import Action, Answer, Forward, Front, Rule, Seen

__all__ = ["Action", "Answer", "Forward", "Front", "Rule", "Seen"]


def status(code: int, headers: Mapping[str, str] | None = None, *, codes: tuple[str, ...] = ()) -> Action:
    """Answer *code* with an error body of the distribution specification."""
    body = json.dumps({"errors": [{"code": name, "message": f"said {name}"} for name in codes]}).encode()
    return lambda _seen, _forward: Answer(code, {"Content-Type": "application/json", **(headers or {})}, body)


def redirect(to: str, code: int = 307) -> Action:
    """Send the client to *to*, or, where that ends in a slash, to the same path below it."""
    return lambda seen, _forward: Answer(code, {"Location": to.rstrip("/") + seen.path if to.endswith("/") else to})


def html(code: int = 200) -> Action:
    """Answer with a page, as captive portals and confused proxies do."""
    page = b"<!doctype html><title>Please log in</title><h1>Welcome to the guest network</h1>"
    return lambda _seen, _forward: Answer(code, {"Content-Type": "text/html; charset=utf-8"}, page)


def reset() -> Action:
    """Close the connection without an answer."""
    return lambda _seen, _forward: Answer(0)


def flip_bit(at: int) -> Action:
    """Damage byte *at* of the body; its length stays."""

    def action(_seen: Seen, forward: Forward) -> Answer:
        answer = forward()
        body = bytearray(answer.whole())
        if at < len(body):
            body[at] ^= 0x10
        return replace(answer, body=bytes(body))

    return action


def truncate(after: int) -> Action:
    """Close the connection after *after* bytes of the body."""

    def action(_seen: Seen, forward: Forward) -> Answer:
        answer = forward()
        return replace(answer, body=answer.whole()[:after])

    return action


def cut(after: int) -> Action:
    """Send *after* bytes as if they were the whole body."""

    def action(_seen: Seen, forward: Forward) -> Answer:
        answer = forward()
        body = answer.whole()[:after]
        return replace(answer, headers=_with(answer.headers, "Content-Length", str(len(body))), body=body)

    return action


def ignore_range() -> Action:
    """Answer a ranged request with 200 and everything."""
    return lambda _seen, forward: forward(range=None)


def shift_range(by: int) -> Action:
    """Send other bytes than asked for, and say so in Content-Range."""

    def action(seen: Seen, forward: Forward) -> Answer:
        first, _, last = seen.headers["range"].removeprefix("bytes=").partition("-")
        return forward(range=f"bytes={int(first) + by}-{int(last) + by}")

    return action


def lie_in_content_range(text: str) -> Action:
    """Send the right bytes with *text* as Content-Range."""

    def action(_seen: Seen, forward: Forward) -> Answer:
        answer = forward()
        return replace(answer, headers=_with(answer.headers, "Content-Range", text))

    return action


def multipart(boundary: str = "3d6b6a416f9b5") -> Action:
    """Answer a ranged request with a multipart/byteranges body of one part."""

    def action(_seen: Seen, forward: Forward) -> Answer:
        answer = forward()
        if answer.status != 206:
            return answer
        found = {name.lower(): value for name, value in answer.headers.items()}
        head = (
            f"--{boundary}\r\nContent-Type: application/octet-stream\r\nContent-Range: {found['content-range']}\r\n\r\n"
        )
        body = head.encode() + answer.whole() + f"\r\n--{boundary}--\r\n".encode()
        kind = f'multipart/byteranges; boundary="{boundary}"'
        return Answer(206, {"Content-Type": kind, "Content-Length": str(len(body))}, body)

    return action


def slow(front: Front, piece_bytes: int, every_s: float) -> Action:
    """Send the body *piece_bytes* at a time with pauses of *every_s* between; ends when the front closes."""

    def action(_seen: Seen, forward: Forward) -> Answer:
        answer = forward()
        body = answer.whole()

        def pieces() -> Iterator[bytes]:
            for begin in range(0, len(body), piece_bytes):
                yield body[begin : begin + piece_bytes]
                if front.closing.wait(every_s):
                    return

        return replace(answer, body=pieces())

    return action


def stall(front: Front, after: int) -> Action:
    """Send *after* bytes of the body and then nothing, the connection left open until the front closes."""

    def action(_seen: Seen, forward: Forward) -> Answer:
        answer = forward()
        body = answer.whole()

        def pieces() -> Iterator[bytes]:
            yield body[:after]
            front.closing.wait()

        return replace(answer, body=pieces())

    return action


def mute(front: Front) -> Action:
    """Say nothing at all until the front closes."""

    def action(_seen: Seen, _forward: Forward) -> Answer:
        front.closing.wait()
        return Answer(0)

    return action


def trickle_headers(front: Front, every_s: float) -> Action:
    """Send one byte of a header now and then, for ever."""

    def action(_seen: Seen, _forward: Forward) -> Answer:
        def pieces() -> Iterator[bytes]:
            yield b"HTTP/1.1 200 OK\r\nX-Slow: "
            while not front.closing.wait(every_s):
                yield b"x"

        return Answer(-1, body=pieces())

    return action


def _with(headers: Mapping[str, str], name: str, value: str) -> dict[str, str]:
    return {key: old for key, old in headers.items() if key.lower() != name.lower()} | {name: value}
