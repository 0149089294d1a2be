"""What the tree is made of: Debian packages and Python packages, each pinned by its hash, kept outside the checkout.

`debs.lock` holds lines of `use name version sha256`; use is `run` (goes into the tree) or `build` (headers for the one
extension that is compiled here). `uv.lock` at the root of the sources holds the Python packages.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hostpackage.failure import BuildError, run

PACKAGING: Final = Path(__file__).resolve().parent.parent
SOURCES: Final = PACKAGING.parent.parent
DEBS_LOCK: Final = PACKAGING / "debs.lock"

COMPILED_HERE: Final = "pyfuse3"
"""Published as source alone."""
SUITE: Final = "bookworm"
PLATFORM: Final = "x86_64-manylinux_2_36"
"""The glibc of `SUITE`, which comes along."""
MIRROR_VARIABLE: Final = "DEBIAN_MIRROR"

_HEADER: Final = "# use name version sha256; made by `make package-lock`\n"


@dataclass(frozen=True, slots=True)
class Deb:
    """One pinned package of Debian. *use* is `run` or `build`."""

    use: str
    name: str
    version: str
    sha256: str


def cache_root() -> Path:
    """Where downloads are kept between runs; safe to delete."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "apparate" / "package"


def read_lock(text: str) -> list[Deb]:
    """Return the packages that the lock file *text* names.

    Raises:
        BuildError: a line has another form.
    """
    debs: list[Deb] = []
    for line in text.splitlines():
        if line.startswith("#") or not line.strip():
            continue
        fields = line.split()
        if len(fields) != 4 or fields[0] not in {"run", "build"} or len(fields[3]) != 64:
            raise BuildError(f"{DEBS_LOCK.name}: not `run|build name version sha256`: {line}")
        debs.append(Deb(*fields))
    return debs


def digest_of(path: Path) -> str:
    """Return the SHA-256 of the file *path*, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch_debs(debs: Sequence[Deb]) -> dict[str, Path]:
    """Return the file of each of *debs* by name, downloaded with apt where the cache does not have it.

    Raises:
        BuildError: a version is no longer offered, or its content is not the pinned one.
    """
    kept = cache_root() / "debs"
    kept.mkdir(parents=True, exist_ok=True)
    files = {deb.name: kept / f"{deb.name}-{deb.sha256[:16]}.deb" for deb in debs}
    missing = [deb for deb in debs if not files[deb.name].exists()]
    if missing:
        with _apt() as download, tempfile.TemporaryDirectory(dir=kept, prefix=".new-") as scratch:
            for deb in missing:
                got = download(f"{deb.name}={deb.version}", Path(scratch))
                actual = digest_of(got)
                if actual != deb.sha256:
                    raise BuildError(f"{deb.name} {deb.version}: SHA-256 is {actual}, pinned is {deb.sha256}")
                got.rename(files[deb.name])
    return files


def lock_anew(debs: Sequence[Deb]) -> str:
    """Return the text of a lock file with the same packages in the versions that are offered now."""
    lines = []
    with _apt() as download, tempfile.TemporaryDirectory() as scratch:
        for deb in debs:
            got = download(deb.name, Path(scratch))
            version = run(["dpkg-deb", "-f", str(got), "Version"]).strip()
            lines.append(f"{deb.use:<5} {deb.name} {version} {digest_of(got)}\n")
    return _HEADER + "".join(lines)


class _Download:
    """Fetches one package with apt, of the host's own sources or of a mirror's."""

    def __init__(self, options: Sequence[str]) -> None:
        self._options = ("-o", "APT::Architecture=amd64", "-o", "APT::Sandbox::User=root", *options)

    def update(self) -> None:
        run(["apt-get", *self._options, "update", "-qq"])

    def __call__(self, package: str, folder: Path) -> Path:
        """Return the file of *package*, `name` or `name=version`."""
        before = set(folder.iterdir())
        try:
            run(["apt-get", *self._options, "download", "-qq", package], cwd=folder)
        except BuildError as error:
            raise BuildError(
                f"{package} is not to be had ({error}).\n"
                "Debian keeps one version of each package: `make package-lock` pins those of today"
            ) from error
        return (set(folder.iterdir()) - before).pop()


@contextmanager
def _apt() -> Iterator[_Download]:
    mirror = os.environ.get(MIRROR_VARIABLE, "")
    if not mirror:
        if f"VERSION_CODENAME={SUITE}" not in Path("/etc/os-release").read_text():
            raise BuildError(f"the tree is made of Debian {SUITE}'s packages: set {MIRROR_VARIABLE} to a Debian mirror")
        download = _Download(())
        if not any(Path("/var/lib/apt/lists").glob("*_Packages*")):
            download.update()
        yield download
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "lists").mkdir()
        (root / "cache" / "archives").mkdir(parents=True)
        key = "[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]"
        (root / "sources.list").write_text(
            f"deb {key} {mirror} {SUITE} main\n"
            f"deb {key} {mirror} {SUITE}-updates main\n"
            f"deb {key} {mirror}-security {SUITE}-security main\n"
        )
        places = {
            "Dir::State::Lists": root / "lists",
            "Dir::Cache": root / "cache",
            "Dir::Etc::SourceList": root / "sources.list",
            "Dir::Etc::SourceParts": "-",
        }
        download = _Download([part for name, value in places.items() for part in ("-o", f"{name}={value}")])
        download.update()
        yield download


def requirements(*, without: Sequence[str] = ()) -> str:
    """Return what uv.lock pins for the running program, with hashes, as a requirements file.

    Raises:
        BuildError: uv is not in this environment, or uv.lock does not fit pyproject.toml.
    """
    skipped = [part for name in without for part in ("--no-emit-package", name)]
    command = [sys.executable, "-m", "uv", "export", "-q", "--frozen", "--no-dev", "--no-emit-project", *skipped]
    return run([*command, "--no-header", "--no-annotate", "--format", "requirements-txt"], cwd=SOURCES)


def install_wheels(target: Path) -> None:
    """Install every pinned Python package but `COMPILED_HERE` into *target*, none built, each proven by its hash."""
    with tempfile.TemporaryDirectory() as scratch:
        wanted = Path(scratch) / "requirements.txt"
        wanted.write_text(requirements(without=[COMPILED_HERE]))
        strict = ("--no-deps", "--require-hashes", "--only-binary", ":all:", "--link-mode", "copy")
        foreign = ("--python-version", "3.11", "--python-platform", PLATFORM, "--target", str(target))
        run([sys.executable, "-m", "uv", "pip", "install", "-q", *strict, *foreign, "-r", str(wanted)])


def fetch_source() -> Path:
    """Return the source archive of `COMPILED_HERE`, with the hash that uv.lock pins."""
    text = requirements()
    start = text.index(f"{COMPILED_HERE}==")
    entry: list[str] = []
    for line in text[start:].splitlines():
        entry.append(line)
        if not line.endswith("\\"):
            break
    version = entry[0].split()[0]
    kept = cache_root() / "sources"
    kept.mkdir(parents=True, exist_ok=True)
    archive = kept / f"{version.replace('==', '-')}.tar.gz"
    if not archive.exists():
        with tempfile.TemporaryDirectory(dir=kept, prefix=".new-") as scratch:
            wanted = Path(scratch) / "requirements.txt"
            wanted.write_text("\n".join(entry) + "\n")
            strict = ("--no-deps", "--no-build-isolation", "--require-hashes", "--no-binary", ":all:")
            run([sys.executable, "-m", "pip", "download", "-q", *strict, "-d", scratch, "-r", str(wanted)])
            next(Path(scratch).glob("*.tar.gz")).rename(archive)
    return archive
