"""The node's own containerd program: its version, and what it makes of a configuration file.

containerd itself is the judge of its files. `config dump` reads a file as the daemon would, with its imports and defaults, and prints
what is in force; nothing is started.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from apparate.errors import InvalidArgument, NotFound, Unsupported

RUN_TIMEOUT_S: Final = 20.0
"""Version and dump answer at once, or the program is broken."""
OLDEST: Final = (1, 4, 3)
"""The oldest containerd whose annotations and CRI behave as ours needs them."""

_VERSION: Final = re.compile(r"\bv?(\d+)\.(\d+)\.(\d+)")
_LOG_LINE: Final = re.compile(r"^time=\S+ level=(info|warning)")

Version = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Program:
    """A containerd program."""

    path: Path

    def version(self) -> Version:
        """Return its version. Raises Unsupported: it does not tell one."""
        done = self._run("--version")
        match = _VERSION.search(done.stdout)
        if match is None:
            raise Unsupported(f"{self.path} does not tell its version: reinstall containerd")
        return int(match[1]), int(match[2]), int(match[3])

    def supported_version(self) -> Version:
        """Return its version. Raises Unsupported: it is older than `OLDEST`."""
        found = self.version()
        if found < OLDEST:
            raise Unsupported(f"containerd {text(found)} is too old: upgrade it to {text(OLDEST)} or later")
        return found

    def defaults(self) -> dict[str, Any]:
        """Return what is in force without a configuration file."""
        return self._parsed(self._run("config", "default"), "containerd's defaults")

    def dump(self, config: Path, shown: Path | None = None) -> dict[str, Any]:
        """Return what is in force with the file *config*; *shown* is what an error calls it.

        Raises:
            InvalidArgument: containerd would refuse to start with it; the message has its words.
        """
        return self._parsed(self._run("--config", str(config), "config", "dump"), str(shown or config), str(config))

    def _parsed(self, done: subprocess.CompletedProcess[str], name: str, real: str = "") -> dict[str, Any]:
        if done.returncode:
            said = " ".join(line for line in done.stderr.splitlines() if not _LOG_LINE.match(line))
            said = said.replace(real, name) if real else said
            raise InvalidArgument(
                f"containerd refuses {name}: {said.strip() or 'it says nothing'}; mend the file first"
            )
        try:
            return tomllib.loads(done.stdout)
        except tomllib.TOMLDecodeError as error:
            raise InvalidArgument(f"containerd prints no TOML for {name}: {error}") from error

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        # containerd up to 1.6 takes relative imports from its working directory, which is / under a service manager.
        try:
            return subprocess.run(
                [str(self.path), *arguments],
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
                timeout=RUN_TIMEOUT_S,
                cwd="/",
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Unsupported(f"{self.path} cannot be run: {error}") from error


def find(name: str = "containerd") -> Program:
    """Return the containerd program *name*, found on PATH or given as a path.

    Raises:
        NotFound: there is none.
    """
    found = shutil.which(name) or shutil.which(name, path="/usr/local/bin:/usr/bin:/bin:/usr/sbin:/opt/bin")
    if found is None:
        raise NotFound(f"no program {name} here: install containerd {text(OLDEST)} or later, or say where it is")
    return Program(Path(found))


def text(version: Version) -> str:
    """Return *version* as people write it."""
    return ".".join(map(str, version))
