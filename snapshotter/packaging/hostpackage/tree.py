"""Assembles `/opt/apparate/<version>`: Python, libraries and the program, nothing of the host.

The order matters: stripping after patchelf breaks libraries whose sections patchelf has moved, and the compiler of byte code
runs on the finished interpreter before that learns where it will live.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hostpackage import elf
from hostpackage.extension import compile_pyfuse3
from hostpackage.failure import BuildError, run
from hostpackage.inputs import DEBS_LOCK, PACKAGING, SOURCES, fetch_debs, fetch_source, install_wheels, read_lock
from hostpackage.overwrite import overwrite
from hostpackage.sbom import write_sbom

HOME: Final = "/opt/apparate"
PYTHON: Final = "python3.11"
VERSION_NAME: Final = "VERSION"
BUILD_ID_NAME: Final = "BUILD-ID"

_LIBRARY_FOLDERS: Final = ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu")
_OPENED_AT_RUN_TIME: Final = (
    "libdl.so.2",
    "libpthread.so.0",
    "librt.so.1",
    "libresolv.so.2",
    "libgcc_s.so.1",
    elf.LOADER,
)
_NOT_SHIPPED: Final = (
    *("test", "idlelib", "tkinter", "turtledemo", "turtle.py", "ensurepip", "lib2to3", "pydoc_data", "config-3.11-*"),
    *(
        "sitecustomize.py",
        "LICENSE.txt",
        "EXTERNALLY-MANAGED",
        "__phello__",
        "venv",
        "msilib",
        "curses",
        "dbm",
        "cgi.py",
        "cgitb.py",
    ),
)
_MODULES_NOT_SHIPPED: Final = (
    "_tkinter",
    "_test*",
    "xx*",
    "_xx*",
    "nis",
    "_dbm",
    "_gdbm",
    "readline",
    "_curses*",
    "_crypt",
)
_NOT_RUN: Final = (
    *("**/tests", "**/*.pyx", "**/*.pxd", "**/*.pxi", "**/*.pyi", "**/*.c", "**/*.h", "**/*.proto", "bin"),
    *("*.dist-info/RECORD", "*.dist-info/REQUESTED", "*.dist-info/INSTALLER", "*.dist-info/direct_url.json"),
    *("*.dist-info/uv_*.json", ".lock", "zstandard/_cffi*.so"),
)
_DOCUMENTS: Final = ("debug.md", "metrics.md", "restart.md")
_VERSION_LINE: Final = re.compile(r'^__version__ = ".*"$', re.MULTILINE)
_LAUNCHER: Final = """\
#!{python}
from apparate.cli.main import main

main()
"""


@dataclass(frozen=True, slots=True)
class Place:
    """Where things lie in the tree that is built at *root*, and where the tree will live."""

    root: Path
    version: str

    @property
    def home(self) -> str:
        """The tree's path on the host."""
        return f"{HOME}/{self.version}"

    @property
    def interpreter(self) -> str:
        """The dynamic loader on the host."""
        return f"{self.home}/lib/{elf.LOADER}"

    @property
    def libraries(self) -> Path:
        """The folder of shared libraries."""
        return self.root / "lib"

    @property
    def stdlib(self) -> Path:
        """Python's library."""
        return self.libraries / PYTHON

    @property
    def site_packages(self) -> Path:
        """Of others, and our own program."""
        return self.stdlib / "site-packages"

    @property
    def python(self) -> Path:
        """The interpreter."""
        return self.root / "bin" / PYTHON


def build_tree(place: Place, scratch: Path, epoch: int, say: Callable[[str], None]) -> None:
    """Build the tree of *place*, whose root must not exist.

    Args:
        place: where.
        scratch: an empty folder for what is unpacked meanwhile.
        epoch: time of every file.
        say: told what is done.

    Raises:
        BuildError: an input is missing or differs from its hash, or the result would need the host.
    """
    say("fetch and unpack")
    debs = read_lock(DEBS_LOCK.read_text())
    system = _unpack(debs_of=fetch_debs(debs), system=scratch / "system")
    _copy_python(system, place)
    say("install Python packages")
    install_wheels(place.site_packages)
    compile_pyfuse3(fetch_source(), system, place.site_packages)
    _remove(place.site_packages, _NOT_RUN)
    _copy_program(place)
    _unmark_scripts(place.stdlib)
    say("close the tree")
    _copy_libraries(system, place)
    _close(place)
    carried = [deb for deb in debs if deb.use == "run"]
    _copy_licences(system, [deb.name for deb in carried], place)
    write_sbom(place.root / "share" / "sbom.cdx.json", place.version, epoch, carried, place.site_packages)
    say("compile to byte code")
    _compile(place)
    _finish(place, epoch)
    say(f"{elf.gate(place.root, place.interpreter)} ELF files need nothing of the host")


def _unpack(debs_of: dict[str, Path], system: Path) -> Path:
    system.mkdir(parents=True)
    for file in debs_of.values():
        run(["dpkg-deb", "-x", str(file), str(system)])
    return system


def _copy_python(system: Path, place: Place) -> None:
    place.python.parent.mkdir(parents=True)
    shutil.copy(system / "usr" / "bin" / PYTHON, place.python)
    skipped = shutil.ignore_patterns(*_NOT_SHIPPED, "__pycache__")
    shutil.copytree(system / "usr" / "lib" / PYTHON, place.stdlib, ignore=skipped)
    _remove(place.stdlib / "lib-dynload", [f"{name}.cpython-*" for name in _MODULES_NOT_SHIPPED])
    shutil.copy(PACKAGING / "files" / "ctypes_util.py", place.stdlib / "ctypes" / "util.py")


def _remove(folder: Path, patterns: Iterable[str]) -> None:
    for pattern in patterns:
        for path in sorted(folder.glob(pattern)):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def _copy_program(place: Place) -> None:
    package = place.site_packages / "apparate"
    shutil.copytree(SOURCES / "snapshotter" / "apparate", package, ignore=shutil.ignore_patterns("__pycache__"))
    _remove(package, ("**/*.pyi", "**/proto"))
    init = package / "__init__.py"
    text, found = _VERSION_LINE.subn(f'__version__ = "{place.version}"', init.read_text())
    if found != 1:
        raise BuildError(f"{init.name} of apparate has no line with its version")
    init.write_text(text)
    launcher = place.root / "bin" / "apparate"
    launcher.write_text(_LAUNCHER.format(python=f"{place.home}/bin/{PYTHON}"))
    shutil.copytree(PACKAGING / "host", place.root / "share")
    (place.root / "share" / "doc").mkdir()
    for name in _DOCUMENTS:
        shutil.copy(SOURCES / "snapshotter" / "docs" / name, place.root / "share" / "doc" / name)


def _unmark_scripts(folder: Path) -> None:
    """Modules that begin as scripts are not executable, and name interpreters of other machines."""
    for path in sorted(folder.rglob("*.py")):
        text = path.read_bytes()
        if text.startswith(b"#!"):
            path.write_bytes(b"# " + text.removeprefix(b"#!"))


def _copy_libraries(system: Path, place: Place) -> None:
    """Copy what is needed, and needed by that, from *system* alone."""
    wanted = set(_OPENED_AT_RUN_TIME)
    for path in elf.elf_files(place.root):
        wanted.update(elf.inspect(path).needed)
    carried = {path.name for path in elf.elf_files(place.site_packages)}  # those of a wheel lie in its own folder
    while wanted:
        name = wanted.pop()
        target = place.libraries / name
        if target.exists() or name in carried:
            continue
        source = next(
            (system / folder / name for folder in _LIBRARY_FOLDERS if (system / folder / name).exists()), None
        )
        if source is None:
            raise BuildError(f"{name} is needed, and none of the packages in {DEBS_LOCK.name} has it")
        shutil.copy(source, target)
        wanted.update(elf.inspect(target).needed)


def _close(place: Place) -> None:
    for path in list(elf.elf_files(place.root)):
        path.chmod(0o755)
        if not path.parent.name.endswith(".libs"):  # patched by whoever built the wheel; strip would break them
            run(["strip", "--strip-unneeded", "-p", str(path)])
        overwrite(path)
        if path.name != elf.LOADER:
            elf.close(path, place.libraries, place.interpreter)


def _copy_licences(system: Path, packages: Iterable[str], place: Place) -> None:
    target = place.root / "share" / "licenses"
    target.mkdir()
    shutil.copy(SOURCES / "LICENSE", target / "apparate")
    for name in packages:
        copyright_ = system / "usr" / "share" / "doc" / name / "copyright"
        if copyright_.is_file():
            shutil.copy(copyright_, target / name)


def _compile(place: Place) -> None:
    """Byte code that is never checked against the sources: their times are all the same, and nobody edits them.

    -B: the compiler would leave what it imports itself as byte code of the other kind, with the time of the build in it.
    """
    loader = place.libraries / elf.LOADER
    named_as = ("-s", str(place.root), "-p", place.home)
    options = ("-q", "--invalidation-mode", "unchecked-hash", *named_as)
    run([str(loader), str(place.python), "-I", "-S", "-B", "-m", "compileall", *options, str(place.stdlib)])
    below = f"{place.home}/lib/{PYTHON}"
    lines = (below, f"{below}/lib-dynload", f"{below}/site-packages")
    for name in (PYTHON, "python3"):  # an interpreter looks for it beside the name it was called by
        (place.python.parent / f"{name}._pth").write_text("".join(f"{line}\n" for line in lines))
    (place.python.parent / "python3").symlink_to(PYTHON)


def _finish(place: Place, epoch: int) -> None:
    (place.root / VERSION_NAME).write_text(f"{place.version}\n")
    for path in (place.root, *place.root.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or _is_run(path, place) else 0o644)
    (place.root / BUILD_ID_NAME).write_text(f"{build_id(place.root)}\n")
    (place.root / BUILD_ID_NAME).chmod(0o644)
    set_times(place.root, epoch)


def _is_run(path: Path, place: Place) -> bool:
    if path.suffix == "._pth":
        return False
    return path.name == elf.LOADER or path.parent in {place.root / "bin", place.root / "share" / "libexec"}


def set_times(root: Path, epoch: int) -> None:
    """Give *root* and all below it the time *epoch*."""
    for path in (*root.rglob("*"), root):
        os.utime(path, (epoch, epoch), follow_symlinks=False)


def build_id(root: Path) -> str:
    """Return a digest of names, modes and contents below *root*."""
    hasher = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            hasher.update(f"link {name} {path.readlink()}\n".encode())
        elif path.is_file() and name != BUILD_ID_NAME:
            mode = stat.S_IMODE(path.stat().st_mode)
            hasher.update(f"{mode:o} {name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return hasher.hexdigest()
