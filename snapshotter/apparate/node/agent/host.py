"""The host below a pod: its files by way of a mount of its root, its programs by way of its namespaces."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from apparate.errors import ApparateError, FailedPrecondition, InvalidArgument, Unavailable, Unsupported
from apparate.node.agent import enter

END_S: Final = 100.0
"""A program that is told to end may roll back first: `apparate node configure` restarts containerd within 60 s."""
SAID_CHARS_MAX: Final = 500
LINKS_MAX: Final = 40
"""As many as Linux follows (path_resolution(7))."""
OUTPUT_CHARS_MAX: Final = 1024 * 1024

_BY_EXIT_CODE: Final = {
    error.exit_code: error for error in (ApparateError, InvalidArgument, FailedPrecondition, Unsupported, Unavailable)
}
# ELF header: bytes 0-3 magic, 18-19 e_machine (System V ABI, "ELF Header"); the low byte comes first on all that run us.
_ELF_MAGIC: Final = b"\x7fELF"
_MACHINE: Final = slice(18, 20)


@dataclass(frozen=True, slots=True)
class Done:
    """A program that has ended."""

    argv: tuple[str, ...]
    code: int
    out: str
    err: str

    def require_success(self, what: str) -> Done:
        """Return self. Raises the error of our exit codes: the program failed; *what* says what it was to do."""
        if self.code == 0:
            return self
        raise _BY_EXIT_CODE.get(self.code, ApparateError)(f"{what}: {self.said}")

    @property
    def said(self) -> str:
        """Why it failed: the sentence of a program of ours, else its last words."""
        lines = [line.strip() for line in self.err.splitlines() if line.strip()]
        ours = [line.removeprefix("apparate: ") for line in lines if line.startswith("apparate: ")]
        text = ours[-1] if ours else " ".join(line for line in lines if not line.startswith("{"))
        return text[-SAID_CHARS_MAX:] or f"{self.argv[0]} ended with exit code {self.code} and said nothing"


class Host:
    """One host. Nothing else here starts a program on it."""

    def __init__(self, root: Path) -> None:
        """Args: root: where the root of the host is mounted."""
        self.root = root

    def path(self, path: str | Path) -> Path:
        """Return where *path* of the host is seen from here. Its links are followed as the host would: below its own root.

        Raises:
            FailedPrecondition: they lead in a circle.
        """
        return self._follow(Path(path), last=True)

    def link(self, path: str | Path) -> Path:
        """As `path`, but the last component is not followed if it is a link itself."""
        return self._follow(Path(path), last=False)

    def _follow(self, path: Path, *, last: bool) -> Path:
        left = list(path.relative_to("/").parts)
        done = self.root
        links = 0
        while left:
            name = left.pop(0)
            if name == "..":
                done = done.parent if done != self.root else done
                continue
            step = done / name
            if not step.is_symlink() or not (left or last):
                done = step
                continue
            links += 1
            if links > LINKS_MAX:
                raise FailedPrecondition(f"{path} of the node: too many symbolic links")
            target = step.readlink()
            if target.is_absolute():
                done = self.root
            left[:0] = [part for part in target.parts if part != "/"]
        return done

    def run(self, argv: Sequence[str], timeout_s: float) -> Done:
        """Run a program of the host to its end. Whatever interrupts us ends the program first, which may take `END_S`.

        Raises:
            Unavailable: it ran longer than *timeout_s*.
            FailedPrecondition: the host cannot be entered.
        """
        command = [sys.executable, "-m", enter.__name__, *argv]
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as child:
            try:
                out, err = child.communicate(timeout=timeout_s)
            except BaseException as error:
                _end(child)
                if isinstance(error, subprocess.TimeoutExpired):
                    raise Unavailable(f"{' '.join(argv)} did not end within {timeout_s:.0f} s on the host") from error
                raise
        done = Done(tuple(argv), child.returncode, _text(out), _text(err))
        if done.code == enter.CANNOT_ENTER:
            raise FailedPrecondition(done.said)
        return done

    def require_same_architecture(self) -> None:
        """Raise Unsupported: this program runs in an emulator, what it would install could not."""
        host = _machine(self.root / "proc/1/exe") or _machine(Path("/proc/1/exe"))
        mine = _machine(Path("/proc/self/exe"))
        if host and mine and host != mine:
            raise Unsupported(
                f"this image is for {os.uname().machine}, the node is of another architecture (ELF machine {host}): use an "
                "image for it, or do not label this node"
            )


def _end(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.communicate(timeout=END_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()


def _machine(path: Path) -> int:
    """Return the machine that the program *path* is for, 0 if that cannot be told."""
    try:
        with path.open("rb") as file:
            head = file.read(20)
    except OSError:
        return 0
    return int.from_bytes(head[_MACHINE], "little") if head.startswith(_ELF_MAGIC) else 0


def _text(data: bytes) -> str:
    return data.decode(errors="replace")[-OUTPUT_CHARS_MAX:]
