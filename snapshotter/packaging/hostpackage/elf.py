"""ELF files of the tree: what they need, where they look, and the gate that nothing leads to the host."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hostpackage.failure import BuildError, run

LOADER: Final = "ld-linux-x86-64.so.2"

_MAGIC: Final = b"\x7fELF"
_DYNAMIC_LINE: Final = re.compile(r"^ 0x[0-9a-f]+ \((\w+)\)\s+(.*)$", re.MULTILINE)
_BRACKETED: Final = re.compile(r"\[(.*)\]")
_INTERPRETER: Final = re.compile(r"\[Requesting program interpreter: (.*)\]")


@dataclass(frozen=True, slots=True)
class Dynamic:
    """What the dynamic section and the program headers of one file say."""

    needed: tuple[str, ...]
    soname: str
    rpath: tuple[str, ...]
    runpath: tuple[str, ...]
    is_closed: bool
    """DF_1_NODEFLIB: the default directories of the host are not searched."""
    interpreter: str


def elf_files(root: Path) -> Iterator[Path]:
    """Return every ELF file below *root*, in the order of the names."""
    for path in sorted(root.rglob("*")):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                if file.read(len(_MAGIC)) == _MAGIC:
                    yield path


def inspect(path: Path) -> Dynamic:
    """Return what *path* needs of others.

    Raises:
        BuildError: readelf is missing or cannot read it.
    """
    printed = run(["readelf", "-dlW", str(path)])
    found: dict[str, list[str]] = {}
    for tag, value in _DYNAMIC_LINE.findall(printed):
        bracketed = _BRACKETED.search(value)
        found.setdefault(tag, []).append(bracketed[1] if bracketed else value)
    interpreter = _INTERPRETER.search(printed)
    return Dynamic(
        needed=tuple(found.get("NEEDED", ())),
        soname=found.get("SONAME", [""])[0],
        rpath=_folders(found, "RPATH"),
        runpath=_folders(found, "RUNPATH"),
        is_closed="NODEFLIB" in found.get("FLAGS_1", [""])[0],
        interpreter=interpreter[1] if interpreter else "",
    )


def _folders(found: dict[str, list[str]], tag: str) -> tuple[str, ...]:
    return tuple(part for value in found.get(tag, ()) for part in value.split(":") if part)


def close(path: Path, libraries: Path, interpreter: str) -> None:
    """Make *path* look for what it needs beside it and in *libraries*, and nowhere else.

    DT_RPATH, not DT_RUNPATH: LD_LIBRARY_PATH of a caller must not win. Folders that the file already names relative
    to itself, those of a wheel's own libraries, stay in front.

    Args:
        path: a shared library or a program; not the dynamic loader itself.
        libraries: the tree's folder of libraries.
        interpreter: what the dynamic loader is called on the host that runs this.
    """
    before = inspect(path)
    own = [folder for folder in (*before.rpath, *before.runpath) if folder.startswith("$ORIGIN")]
    away = os.path.relpath(libraries, path.parent)
    folder = "$ORIGIN" if away == "." else f"$ORIGIN/{away}"
    run(["patchelf", "--force-rpath", "--set-rpath", ":".join([*own, folder]), str(path)])
    run(["patchelf", "--no-default-lib", str(path)])
    if before.interpreter:
        run(["patchelf", "--set-interpreter", interpreter, str(path)])


def gate(root: Path, interpreter: str) -> int:
    """Return how many ELF files there are below *root*, each proven to need nothing from outside.

    Args:
        root: the tree; links of RPATH are followed inside it.
        interpreter: the only dynamic loader that a program may name.

    Raises:
        BuildError: names each file that would look at the host, and for what.
    """
    faults: list[str] = []
    count = 0
    for path in elf_files(root):
        count += 1
        if path.name != LOADER:
            faults += [f"{path.relative_to(root)}: {fault}" for fault in _faults(path, root, interpreter)]
    if faults:
        raise BuildError("the tree needs the host:\n  " + "\n  ".join(faults))
    return count


def _faults(path: Path, root: Path, interpreter: str) -> Iterator[str]:
    found = inspect(path)
    if not found.rpath:
        yield "no RPATH"
    if found.runpath:
        yield f"RUNPATH {':'.join(found.runpath)}"
    if not found.is_closed:
        yield "the host's default directories are searched"
    if found.interpreter and found.interpreter != interpreter:
        yield f"interpreter {found.interpreter}"
    folders = [Path(os.path.normpath(folder.replace("$ORIGIN", str(path.parent)))) for folder in found.rpath]
    for folder in folders:
        if not folder.is_relative_to(root):
            yield f"RPATH leads to {folder}"
    for name in found.needed:
        if not any((folder / name).is_file() for folder in folders):
            yield f"{name} is not in the tree"
