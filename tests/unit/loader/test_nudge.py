"""A loop that is stuck in a read of the FUSE descriptor comes back."""

import ctypes
import errno
import os
import signal

import trio

from apparate.loader import nudge
from apparate.loader.nudge import Nudger

INTERVAL_S, POLL_S, DEADLINE_S = 2.0, 0.02, 60.0  # a loop of a busy machine has to live too


def test_a_stuck_system_call_returns_while_reads_are_waiting() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    reading, writing = os.pipe()

    async def main() -> int:
        nudger = Nudger()
        try:
            with nudger:
                libc.read(
                    reading, ctypes.create_string_buffer(1), 1
                )  # as libfuse reads: blocking, in the loop's thread
                return ctypes.get_errno()
        finally:
            nudger.close()

    try:
        assert trio.run(main) == errno.EINTR
    finally:
        os.close(reading)
        os.close(writing)


def test_a_loop_that_lives_is_left_alone() -> None:
    nudges: list[int] = []

    async def main() -> None:
        nudger = Nudger(INTERVAL_S)
        before = signal.signal(nudge.SIGNAL, lambda number, _frame: nudges.append(number))
        try:
            with nudger, trio.fail_after(DEADLINE_S):
                while nudger.beats < 2:  # the second comes when what followed the first has been judged
                    await trio.sleep(POLL_S)
        finally:
            nudger.close()
            signal.signal(nudge.SIGNAL, before)

    trio.run(main)
    assert nudges == []
