"""One step of containerd from one configuration to another: write, restart, see that it works, or go back by itself."""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from apparate.containerd.client import Containerd, Cri
from apparate.errors import ApparateError
from apparate.node import files
from apparate.node.containerd_config import ConfigPlanner, Files
from apparate.node.preflight import Finding
from apparate.node.program import Program
from apparate.node.restart import HEALTH_S, Restarter, wait_for_cri
from apparate.node.settings import NodeSettings
from apparate.node.state import GivenBack, State, StateStore
from apparate.telemetry.logging import get_logger

_log = get_logger("node.switch")

CONFIG_WRITTEN = "containerd's configuration written"
CONFIG_ROLLED_BACK = "containerd's configuration rolled back"
UNFINISHED_TAKEN_BACK = "unfinished change of containerd's configuration taken back"

Connector = Callable[[Path], AbstractContextManager[tuple[Containerd, Cri]]]


@dataclass(frozen=True, slots=True)
class Tools:
    """What acts on the node for us.

    Attributes:
        program: containerd's program.
        connect: opens a connection to containerd's socket.
        restarter: restarts containerd.
        preflight: what on-demand loading needs and whether it is here.
    """

    program: Program
    connect: Connector
    restarter: Restarter
    preflight: Callable[[], Sequence[Finding]] = tuple


@dataclass(frozen=True, slots=True)
class Report:
    """What a run did, or would do.

    Attributes:
        changed: whether anything was, or has to be, changed.
        diff: of the files, unified.
        steps: what was, or would be, done, in order, in words.
    """

    changed: bool
    diff: str = ""
    steps: tuple[str, ...] = ()


class Switch:
    """Writes configuration files of one node and moves containerd to them."""

    def __init__(self, settings: NodeSettings, tools: Tools, store: StateStore) -> None:
        self.settings = settings
        self.tools = tools
        self.store = store
        self.planner = ConfigPlanner(tools.program, settings)

    def address(self) -> Path:
        """Return the socket of the containerd that runs."""
        if self.settings.address is not None:
            return self.settings.address
        return self.planner.effective(self.on_disk()).address

    def connect(self) -> AbstractContextManager[tuple[Containerd, Cri]]:
        """Open a connection to containerd."""
        return self.tools.connect(self.address())

    def on_disk(self) -> Files:
        """Return the files that concern us as they are."""
        main = self.settings.config
        found = {main: files.read(main)}
        drop_in = self.planner.drop_in(found[main])
        if drop_in is not None:
            found[drop_in] = files.read(drop_in)
        return found

    def without_us(self, state: State | None) -> Files:
        """Return the files as they would be after a restore."""
        if state is None:
            return self.on_disk()
        given = self.store.give_back(state)
        return {**self.on_disk(), given.path: given.body}

    def restart(self, deadline: float | None = None) -> None:
        """Restart containerd and return when its CRI plugin answers. Raises Unavailable: it does not."""
        deadline = deadline or time.monotonic() + HEALTH_S
        self.tools.restarter.restart()
        with self.connect() as (_, cri):
            wait_for_cri(cri, deadline)

    def move(self, path: Path, body: bytes | None, proof: Callable[[float], None]) -> None:
        """Replace *path*, restart containerd and call *proof* with the deadline until which it may wait.

        Whatever fails, or interrupts, puts the old file back, restarts containerd with it, and is raised again.

        Raises:
            ApparateError: what failed; the message says that the old configuration is in force again, or that it is not.
        """
        with files.spare(path) as put_back:
            try:
                files.replace(path, body)
                self.planner.in_force()  # containerd has read the real files before anything depends on them
            except BaseException:
                put_back()
                raise
            _log.info(CONFIG_WRITTEN, path=str(path))
            try:
                deadline = time.monotonic() + HEALTH_S
                self.restart(deadline)
                proof(deadline)
            except BaseException as error:
                put_back()
                self._roll_back(path, error)
                raise

    def repair(self, state: State) -> GivenBack:
        """Take back a change that a killed run had begun: its file, and the containerd that may run with it."""
        given = self.store.give_back(state)
        files.replace(given.path, given.body)
        files.remove_leftovers(given.path)
        self.restart()
        self.store.forget()
        _log.warning(UNFINISHED_TAKEN_BACK, path=str(given.path))
        return given

    def _roll_back(self, path: Path, cause: BaseException) -> None:
        try:
            self.restart()
        except ApparateError as error:
            _log.error(CONFIG_ROLLED_BACK, path=str(path), error=str(cause), containerd=str(error))
            raise ApparateError(
                f"{cause}; the old configuration is back in {path}, but containerd does not work with it either: {error}; see "
                "its journal"
            ) from cause
        _log.warning(CONFIG_ROLLED_BACK, path=str(path), error=str(cause))
        if isinstance(cause, ApparateError):
            raise ApparateError(f"{cause}; the old configuration is back in force") from cause


def diff_of(before: Files, after: Files) -> str:
    """Return what differs between two sets of files, unified."""
    parts: list[str] = []
    for path, body in after.items():
        old = before.get(path)
        if old == body:
            continue
        parts += difflib.unified_diff(
            (old or b"").decode(errors="replace").splitlines(keepends=True),
            (body or b"").decode(errors="replace").splitlines(keepends=True),
            fromfile=str(path) if old is not None else "/dev/null",
            tofile=str(path) if body is not None else "/dev/null",
        )
    return "".join(part if part.endswith("\n") else f"{part}\n\\ No newline at end of file\n" for part in parts)
