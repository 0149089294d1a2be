"""A delay for everything that enters a network namespace, for kernels without netem.

    ip netns exec NAMESPACE python -m tests.support.delay DEVICE SECONDS

Makes the TUN device DEVICE and gives every packet that is sent into it back to the namespace SECONDS later, in order, as if
it had just come. Which packets go there is up to traffic control (`Link.delay`). Runs until it is killed; then the device is gone.
"""

from __future__ import annotations

import fcntl
import os
import select
import struct
import sys
import time
from collections import deque
from pathlib import Path

# struct ifreq as TUNSETIFF reads it (linux/if.h, linux/if_tun.h): 16 bytes of name, 2 of flags, the rest unused
_REQUEST = struct.Struct("16sH22x")
_TUNSETIFF = 0x400454CA
_IFF_TUN = 0x0001
_IFF_NO_PI = 0x1000
PACKET_MAX_BYTES = 65_536
PRIORITY = 10  # a network does not wait for a processor, however busy the machine is


def open_device(name: str) -> int:
    """Make the TUN device *name* in the namespace of this process; it lives as long as the returned descriptor."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, _TUNSETIFF, _REQUEST.pack(name.encode(), _IFF_TUN | _IFF_NO_PI))
    return descriptor


def pass_on(descriptor: int, delay_s: float) -> None:
    """Write every packet read from *descriptor* back to it *delay_s* later, for ever."""
    waiting: deque[tuple[float, bytes]] = deque()
    while True:
        timeout_s = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        readable, _, _ = select.select([descriptor], [], [], timeout_s)
        if readable:
            _take(descriptor, waiting, delay_s)
        now = time.monotonic()
        while waiting and waiting[0][0] <= now:
            os.write(descriptor, waiting.popleft()[1])


def _take(descriptor: int, waiting: deque[tuple[float, bytes]], delay_s: float) -> None:
    """Read what is there."""
    due = time.monotonic() + delay_s
    while True:
        try:
            waiting.append((due, os.read(descriptor, PACKET_MAX_BYTES)))
        except BlockingIOError:
            return


def main() -> None:
    name, delay_s = sys.argv[1], float(sys.argv[2])
    descriptor = open_device(name)
    Path(f"/proc/sys/net/ipv4/conf/{name}/rp_filter").write_text("0")  # packets come from where no route leads back
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
    pass_on(descriptor, delay_s)


if __name__ == "__main__":
    main()
