"""A network namespace behind a shaped link: the far end of a test's registry.

    here 10.x.y.1 ── veth ── 10.x.y.2 in the namespace

Both directions are shaped by a token bucket; the kernel's own counters tell what crossed the link. Everything in the
namespace must be reachable by its address alone; nothing leaves the machine.

A round trip is made longer on the way to the namespace alone, by its whole length: for both ends this is the same as half
of it each way with the far clock set back by the other half, and what comes back in bulk never leaves the kernel.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.processes import Process, run

REPOSITORY = Path(__file__).resolve().parents[2]

MEGABIT = 1_000_000
BURST_S = 0.005  # how long the bucket lets traffic pass unshaped
BURST_MIN_BYTES = 64 << 10  # one GSO packet must fit
QUEUE_MS = 100
DELAY_DEVICE = "delay0"
_MTU = 1500
_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Link:
    """A namespace and the pair of interfaces that leads to it."""

    namespace: str
    device: str
    near: str
    far: str

    def received_bytes(self) -> int:
        """Bytes that came from the namespace since the link was made, headers included."""
        return int(Path(f"/sys/class/net/{self.device}/statistics/rx_bytes").read_text())

    def shape(self, rate_bits: int | None) -> None:
        """Set the rate of both directions; None: as fast as the machine."""
        far = ["ip", "netns", "exec", self.namespace]
        for prefix, device in (([], self.device), (far, "eth0")):
            if rate_bits is None:
                with contextlib.suppress(AssertionError):
                    run([*prefix, "tc", "qdisc", "del", "dev", device, "root"])
                continue
            burst = max(BURST_MIN_BYTES, int(rate_bits / 8 * BURST_S))
            bucket = ["rate", f"{rate_bits}bit", "burst", str(burst), "latency", f"{QUEUE_MS}ms"]
            run([*prefix, "tc", "qdisc", "replace", "dev", device, "root", "tbf", *bucket])

    @contextlib.contextmanager
    def delayed(self, round_trip_s: float) -> Iterator[None]:
        """Make every round trip longer by *round_trip_s* while the context is open; 0 leaves the link as it is."""
        if not round_trip_s:
            yield
            return
        far = ["ip", "netns", "exec", self.namespace]
        command = [sys.executable, "-m", "tests.support.delay", DELAY_DEVICE, str(round_trip_s)]
        every_packet = ["protocol", "ip", "u32", "match", "u32", "0", "0"]
        with tempfile.NamedTemporaryFile(prefix="apparate-delay-") as log:
            process = Process(
                "delay", command, Path(log.name), netns=self.namespace, env={"PYTHONPATH": str(REPOSITORY)}
            )
            try:
                process.start(self._has_delay)
                run([*far, "ip", "link", "set", DELAY_DEVICE, "up"])
                run([*far, "tc", "qdisc", "add", "dev", "eth0", "ingress"])
                redirect = ["action", "mirred", "egress", "redirect", "dev", DELAY_DEVICE]
                run([*far, "tc", "filter", "add", "dev", "eth0", "ingress", *every_packet, *redirect])
                yield
            finally:
                with contextlib.suppress(AssertionError):
                    run([*far, "tc", "qdisc", "del", "dev", "eth0", "ingress"])
                process.kill()

    def _has_delay(self) -> bool:
        priority = f"/proc/sys/net/ipv4/conf/{DELAY_DEVICE}/rp_filter"
        return run(["ip", "netns", "exec", self.namespace, "sh", "-c", f"cat {priority} 2>&1 || true"]).strip() == "0"

    def set_up(self, *, up: bool) -> None:
        """Plug the cable in or out."""
        run(["ip", "link", "set", self.device, "up" if up else "down"])


@contextlib.contextmanager
def link(rate_bits: int | None = None) -> Iterator[Link]:
    """A new namespace behind a link of *rate_bits* per second; removed at the end, with all that runs in it stopped before."""
    number = next(_numbers)
    name = f"apparate-{os.getpid()}-{number}"
    device = f"ap{os.getpid() % 100_000_000}.{number}"
    subnet = f"10.{200 + os.getpid() % 50}.{number % 256}"
    made = Link(name, device, f"{subnet}.1", f"{subnet}.2")
    run(["ip", "netns", "add", name])
    try:
        run(["ip", "link", "add", device, "type", "veth", "peer", "name", "eth0", "netns", name])
        run(["ip", "address", "add", f"{made.near}/24", "dev", device])
        run(["ip", "link", "set", device, "mtu", str(_MTU), "up"])
        inside = ["ip", "-n", name]
        run([*inside, "address", "add", f"{made.far}/24", "dev", "eth0"])
        run([*inside, "link", "set", "eth0", "up"])
        run([*inside, "link", "set", "lo", "up"])
        # No connection may profit from what an earlier one has learnt of the path.
        run(["ip", "netns", "exec", name, "sysctl", "-qw", "net.ipv4.tcp_no_metrics_save=1"])
        if rate_bits is not None:
            made.shape(rate_bits)
        yield made
    finally:
        with contextlib.suppress(AssertionError):
            run(["ip", "link", "del", device])
        run(["ip", "netns", "del", name])
