"""The node's mode, as the snapshotter reads it at every layer: one word in a file."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Final

from apparate.node import files
from apparate.snapshot.settings import Mode
from apparate.telemetry.logging import get_logger

_log = get_logger("node.agent.mode")

MODE_SET: Final = "mode of the node is set"


class ModeFile:
    """The mode file of one node. Thread-safe."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()

    def set(self, mode: Mode) -> bool:
        """Let the mode be *mode*; return whether it was another, or none. Raises Unavailable: the disk does not take it."""
        body = f"{mode}\n".encode()
        with self._lock:
            if files.read(self._path) == body:
                return False
            files.replace(self._path, body)
        _log.info(MODE_SET, mode=mode, path=str(self._path))
        return True

    def remove(self) -> None:
        """Let the settings decide again. Raises Unavailable: the disk does not take it."""
        files.replace(self._path, None)
