"""Bodies that are resumed where they broke."""

import pytest

from apparate.errors import Unavailable
from apparate.registry.streams import RESUMES_MAX, RangeStream

DATA = bytes(range(200)) * 50


class Pieces:
    """A connection that brings *pieces* and then breaks, or ends."""

    def __init__(self, pieces: list[bytes], *, breaks: bool) -> None:
        self._pieces = pieces
        self._breaks = breaks
        self.closed = False

    def read1(self, size: int, /) -> bytes:
        if not self._pieces:
            if self._breaks:
                raise Unavailable("broke")
            return b""
        piece = self._pieces.pop(0)
        if len(piece) > size:
            self._pieces.insert(0, piece[size:])
        return piece[:size]

    def close(self) -> None:
        self.closed = True


class Sender:
    """Sends DATA again from where it broke, *each* bytes per connection."""

    def __init__(self, each: int, *, breaks: bool = True) -> None:
        self._each = each
        self._breaks = breaks
        self.reopened: list[int] = []
        self.connections: list[Pieces] = []
        self.complete = 0
        self.distrusted: list[str] = []

    def begin(self) -> RangeStream:
        return RangeStream(self._connection(0), 7, len(DATA), 100_000, self)

    def reopen(self, done: int, error: Unavailable) -> Pieces:
        del error
        self.reopened.append(done)
        return self._connection(done)

    def finished(self) -> None:
        self.complete += 1

    def distrust(self, reason: str) -> None:
        self.distrusted.append(reason)

    def _connection(self, at: int) -> Pieces:
        made = Pieces([DATA[at : at + self._each]] if self._each else [], breaks=self._breaks)
        self.connections.append(made)
        return made


@pytest.mark.parametrize("breaks", [True, False])
def test_stream_goes_on_at_the_byte_where_it_broke(breaks: bool) -> None:
    sender = Sender(3000, breaks=breaks)
    with sender.begin() as stream:
        assert b"".join(stream) == DATA
    assert sender.reopened == [3000, 6000, 9000]
    assert all(connection.closed for connection in sender.connections)
    assert sender.complete == 1


@pytest.mark.parametrize("each", [0, 1])
def test_stream_that_hardly_moves_is_given_up(each: int) -> None:
    sender = Sender(each)
    with sender.begin() as stream, pytest.raises(Unavailable, match="broke"):
        stream.read()
    assert len(sender.reopened) == RESUMES_MAX
    assert sender.complete == 0


def test_read_gives_what_was_asked_for() -> None:
    with Sender(4001).begin() as stream:
        assert stream.read(0) == b""
        assert stream.read(4000) == DATA[:4000]
        assert stream.read(10) == DATA[4000:4010]
        buffer = bytearray(100)
        assert stream.readinto(memoryview(buffer)[:50]) == 50
        assert buffer[:50] == DATA[4010:4060]
        assert stream.read() == DATA[4060:]
        assert stream.read() == b""
        assert stream.readinto(buffer) == 0


def test_distrust_is_passed_on() -> None:
    sender = Sender(len(DATA))
    with sender.begin() as stream:
        stream.distrust("digest differs")
    assert sender.distrusted == ["digest differs"]
