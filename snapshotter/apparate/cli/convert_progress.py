"""How `apparate convert` shows what it is doing: bars on a terminal, a line per event elsewhere."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Final, TextIO

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from apparate.cli.output import bytes_text, printable
from apparate.convert.progress import Stage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.progress import TaskID

    from apparate.convert.progress import Progress as Report
    from apparate.convert.result import LayerResult
    from apparate.oci.digest import Digest

DIGEST_SHOWN: Final = 12
_VERBS: Final = {Stage.READ: "read", Stage.COMPRESS: "compress", Stage.CHECK: "prove", Stage.UPLOAD: "upload"}


@contextlib.contextmanager
def progress_for(stream: TextIO) -> Iterator[Report]:
    """Give the display that fits *stream*; on leaving, a terminal is as it was."""
    console = Console(file=stream, highlight=False)
    if not console.is_terminal:
        yield _Lines(console)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        yield _Bars(bars)


class _Lines:
    """One line for each finished layer."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lock = threading.Lock()
        self._count = 0
        self._done = 0

    def layers(self, count: int) -> None:
        self._count = count

    def advance(self, layer: Digest, stage: Stage, done: int, total: int) -> None:
        """Say nothing: a log wants events, not percentages."""

    def finished(self, layer: LayerResult) -> None:
        with self._lock:
            self._done += 1
            self._print(f"layer {self._done} of {self._count}: {finished_text(layer)}")

    def note(self, sentence: str) -> None:
        self._print(sentence)

    def _print(self, line: str) -> None:
        self._console.print(Text(printable(line)), soft_wrap=True)


class _Bars:
    """A bar for all layers, and one for each that is being worked on."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._lock = threading.Lock()
        self._all: TaskID | None = None
        self._tasks: dict[tuple[Digest, Stage], TaskID] = {}

    def layers(self, count: int) -> None:
        self._bars.console.print(f"{count} layers")

    def advance(self, layer: Digest, stage: Stage, done: int, total: int) -> None:
        with self._lock:
            key = (layer, stage)
            if key not in self._tasks:
                label = f"{layer.hex[:DIGEST_SHOWN]} {_VERBS[stage]:8}"
                self._tasks[key] = self._bars.add_task(label, total=total)
            self._bars.update(self._tasks[key], completed=done, total=total)
            if done >= total:
                self._bars.remove_task(self._tasks.pop(key))

    def finished(self, layer: LayerResult) -> None:
        self._bars.console.print(Text(finished_text(layer)))

    def note(self, sentence: str) -> None:
        self._bars.console.print(Text(printable(sentence)))


def finished_text(layer: LayerResult) -> str:
    """Return one line about a finished layer."""
    stored = "uploaded" if layer.uploaded else "was there"
    sizes = f"{bytes_text(layer.source.size)} -> {bytes_text(layer.layer.size)}"
    return f"{layer.source.digest.hex[:DIGEST_SHOWN]} -> {layer.layer.digest.hex[:DIGEST_SHOWN]}  {sizes}, {stored}"
