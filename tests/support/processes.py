"""Child processes of the tests: start, wait until they serve, stop, kill; and waiting on conditions with a deadline."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0
POLL_S = 0.02
LOG_TAIL_BYTES = 6000

_T = TypeVar("_T")


def wait_until(
    condition: Callable[[], _T | None], what: str, timeout_s: float = START_TIMEOUT_S, poll_s: float = POLL_S
) -> _T:
    """Return the first true value of *condition*, asked again every *poll_s*.

    Raises:
        TimeoutError: it stayed false for *timeout_s*; *what* says what was waited for.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= deadline:
            raise TimeoutError(f"not within {timeout_s:g} s: {what}")
        time.sleep(poll_s)


def run(command: Sequence[str | Path], *, timeout_s: float = 600.0, **options: object) -> str:
    """Run *command* to its end and return what it printed on its standard output.

    Raises:
        AssertionError: it failed; the message has all its output.
    """
    done = subprocess.run(  # type: ignore[call-overload]  # the options are those of subprocess.run, passed through
        [str(word) for word in command],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=timeout_s,
        check=False,
        **options,
    )
    if done.returncode:
        raise AssertionError(f"{' '.join(map(str, command))} exited {done.returncode}:\n{done.stdout}{done.stderr}")
    return str(done.stdout)


def resident_of(pid: int) -> int:
    """Proportional set size of process *pid* in bytes."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"no Pss for process {pid}")


def cpu_used_s(pids: Sequence[int], during_s: float) -> float:
    """CPU seconds, user and system, that these processes use within the next *during_s* seconds; ended ones count no more."""
    before = _cpu_ticks(pids)
    threading.Event().wait(during_s)
    after = _cpu_ticks(pids)
    return sum(ticks - before[pid] for pid, ticks in after.items()) / os.sysconf("SC_CLK_TCK")


def _cpu_ticks(pids: Sequence[int]) -> dict[int, int]:
    found = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            found[pid] = int(fields[11]) + int(fields[12])  # utime and stime: fields 14 and 15 of proc(5)
    return found


def children_of(pid: int) -> list[int]:
    """Direct children of *pid*, oldest first; none when it is gone."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += [int(child) for child in (task / "children").read_text().split()]
    return sorted(found)


def processes_mentioning(text: str) -> dict[int, str]:
    """Running processes whose command line holds *text*: id to command line. The caller itself is left out."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            if text in line:
                found[int(folder.name)] = line
    return found


class Process:
    """A program that runs in the background, its output in one file. A context manager: leaving it stops the program."""

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        log: Path,
        *,
        env: Mapping[str, str] | None = None,
        netns: str | None = None,
    ) -> None:
        self.name = name
        self.log = log
        self._command = [str(word) for word in command]
        if netns:
            self._command = ["ip", "netns", "exec", netns, *self._command]
        self._env = {**os.environ, **(env or {})}
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        if self._child is None:
            raise AssertionError(f"{self.name} was not started")
        return self._child.pid

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.poll() is None

    def start(self, ready: Callable[[], object] | None = None, timeout_s: float = START_TIMEOUT_S) -> None:
        """Start the program and wait until *ready* is true; its early end is an error that shows the log's end."""
        with self.log.open("ab") as out:
            self._child = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=self._env, start_new_session=True
            )

        def is_ready() -> bool:
            if not self.running:
                raise AssertionError(f"{self.name} ended with {self.status} before it served:\n{self.log_tail()}")
            return ready is None or bool(ready())

        try:
            wait_until(is_ready, f"{self.name} serves", timeout_s)
        except TimeoutError as error:
            self.kill()
            raise AssertionError(f"{error}\n{self.log_tail()}") from error

    @property
    def status(self) -> int | None:
        return None if self._child is None else self._child.poll()

    def signal(self, number: signal.Signals) -> None:
        if self._child is not None and self.running:
            self._child.send_signal(number)

    def wait(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        if self._child is None:
            raise AssertionError(f"{self.name} was not started")
        return self._child.wait(timeout_s)

    def kill(self) -> None:
        """SIGKILL, and wait until the process is gone."""
        if self._child is not None:
            self._child.kill()
            self._child.wait(STOP_TIMEOUT_S)

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> int | None:
        """SIGTERM, then wait for a clean end.

        Raises:
            AssertionError: it had to be killed.
        """
        if self._child is None:
            return None
        self.signal(signal.SIGTERM)
        try:
            return self._child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.name} did not stop within {timeout_s:g} s:\n{self.log_tail()}") from None

    def log_tail(self) -> str:
        if not self.log.exists():
            return "(no log)"
        return self.log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace")

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


@contextlib.contextmanager
def started(process: Process, ready: Callable[[], object] | None = None) -> Iterator[Process]:
    process.start(ready)
    with process:
        yield process
