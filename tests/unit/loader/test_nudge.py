"""A loop that is stuck in a read of the FUSE descriptor comes back."""

import ctypes
import errno
import os

import trio

from apparate.loader.nudge import Nudger


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
    async def main() -> None:
        nudger = Nudger()
        try:
            with nudger:
                await trio.sleep(0.6)
        finally:
            nudger.close()

    trio.run(main)
