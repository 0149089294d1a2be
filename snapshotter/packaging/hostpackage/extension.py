"""pyfuse3 has no wheels: its published C source is compiled here, against Debian's headers and libraries.

The same compiler gives the same bytes on any machine: it sees the pinned headers alone, no path of the build, no time.
"""

from __future__ import annotations

import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import Final

from hostpackage.failure import BuildError, run
from hostpackage.inputs import COMPILED_HERE

MODULE: Final = "__init__.cpython-311-x86_64-linux-gnu.so"
_FLAGS: Final = (
    *("-O2", "-g0", "-fPIC", "-shared", "-pthread", "-fstack-protector-strong", "-D_FORTIFY_SOURCE=2", "-DNDEBUG"),
    *("-D_FILE_OFFSET_BITS=64", "-DFUSE_USE_VERSION=32", "-fno-strict-aliasing", "-w"),
    *("-Wl,--build-id=none", "-Wl,-z,relro,-z,now", "-Wl,-O1"),
)
_COPIED: Final = ("*.py", "py.typed")


def compile_pyfuse3(archive: Path, system: Path, site_packages: Path) -> None:
    """Build the extension of *archive* and put the package into *site_packages*.

    Args:
        archive: the source archive.
        system: Debian's packages, unpacked: libc, libfuse3, Python, with their headers.
        site_packages: of the tree.

    Raises:
        BuildError: there is no compiler, or it refuses.
    """
    with tempfile.TemporaryDirectory() as scratch:
        with tarfile.open(archive) as tar:
            tar.extractall(scratch, filter="data")
        source = next(Path(scratch).glob(f"{COMPILED_HERE}-*"))
        code = source / "src" / COMPILED_HERE
        if not (code / "__init__.c").is_file():
            raise BuildError(f"{archive.name} does not hold the generated C source")
        target = site_packages / COMPILED_HERE
        target.mkdir(parents=True)
        headers = (f"{system}/usr/include/python3.11", f"{system}/usr/include/fuse3", f"{source}/Include", str(code))
        compiler = ["gcc", f"--sysroot={system}", *_FLAGS, f"-ffile-prefix-map={source}=."]
        files = ["-o", str(target / MODULE), str(code / "__init__.c"), "-lfuse3"]
        run([*compiler, *(f"-I{folder}" for folder in headers), *files])
        for pattern in _COPIED:
            for path in sorted(code.glob(pattern)):
                shutil.copy(path, target / path.name)
        _write_metadata(source, site_packages)


def _write_metadata(source: Path, site_packages: Path) -> None:
    """pyfuse3 reads its own version there."""
    folder = site_packages / f"{source.name}.dist-info"
    (folder / "licenses").mkdir(parents=True)
    shutil.copy(source / "PKG-INFO", folder / "METADATA")
    shutil.copy(source / "LICENSE", folder / "licenses" / "LICENSE")
