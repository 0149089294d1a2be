"""The deb, which is three members in an ar archive, and the rpm, made by rpmbuild.

Not by a packer for both: nfpm names the files of an rpm from the root on, so that whoever unpacks one with cpio, as rpmlint does,
overwrites the running system.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import shutil
import string
import tarfile
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path
from typing import Final

from hostpackage.archives import add_entry, tar_writer
from hostpackage.failure import run
from hostpackage.inputs import PACKAGING
from hostpackage.tree import set_times

MAINTAINER: Final = "apparate <apparate@example.org>"
RELEASE: Final = "1"
DEB_UNITS: Final = "lib/systemd/system"
RPM_UNITS: Final = "usr/lib/systemd/system"
_CONFIG: Final = "etc/apparate/config.toml"
_XZ_LEVEL: Final = 1
"""What rpm reads from 4.11 on (CentOS 7), and every dpkg; higher levels take minutes for a tenth less."""
_AR_MAGIC: Final = b"!<arch>\n"
_DEB_SCRIPTS: Final = {"preinst": "preinstall", "postinst": "postinstall", "prerm": "preremove", "postrm": "postremove"}


def write_deb(tree: Path, version: str, epoch: int, scratch: Path, out: Path) -> Path:
    """Pack *tree* as a deb, by way of the folder *scratch*, and return the file."""
    root = scratch / "deb"
    _lay_out(tree, root, DEB_UNITS)
    documents = root / "usr/share/doc/apparate"
    documents.mkdir(parents=True)
    shutil.copy(PACKAGING / "files" / "copyright", documents / "copyright")
    moment = format_datetime(datetime.fromtimestamp(epoch, UTC))
    entry = f"apparate ({version}-{RELEASE}) stable; urgency=medium\n\n  * Version {version}.\n\n -- {MAINTAINER}  {moment}\n"
    (documents / "changelog.Debian.gz").write_bytes(gzip.compress(entry.encode(), 9, mtime=0))
    overrides = root / "usr/share/lintian/overrides/apparate"
    overrides.parent.mkdir(parents=True)
    shutil.copy(PACKAGING / "files" / "lintian-overrides", overrides)
    control = scratch / "control"
    _write_control(root, control, version)
    target = out / f"apparate_{version}_amd64.deb"
    members = {
        "debian-binary": b"2.0\n",
        "control.tar.xz": _packed(control, epoch),
        "data.tar.xz": _packed(root, epoch, without=root / "opt"),
    }
    target.write_bytes(_AR_MAGIC + b"".join(_ar_member(name, content, epoch) for name, content in members.items()))
    return target


def _packed(root: Path, epoch: int, without: Path | None = None) -> bytes:
    """Return everything below *root* as dpkg reads it (deb(5)); long names in GNU's form, for it refuses those of POSIX.

    The entry *without* is left out, what is below it is not: dpkg removes a listed folder that becomes empty.
    """
    file = io.BytesIO()
    with lzma.open(file, "w", preset=_XZ_LEVEL) as compressed, tar_writer(compressed, tarfile.GNU_FORMAT) as tar:
        add_entry(tar, "./", root, epoch)
        for path in sorted(root.rglob("*")):
            if path != without:
                add_entry(tar, f"./{path.relative_to(root)}", path, epoch)
    return file.getvalue()


# Member of an ar archive (deb(5)), in ASCII, padded with blanks:
#   16 name   12 time   6 owner   6 group   8 mode, octal   10 size   2 end; content at an even offset
def _ar_member(name: str, content: bytes, epoch: int) -> bytes:
    head = f"{name:<16}{epoch:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode()
    return head + content + b"\n" * (len(content) % 2)


def _lay_out(tree: Path, root: Path, units: str) -> None:
    """Make *root* what the package puts on a host."""
    (root / "opt/apparate").mkdir(parents=True)
    shutil.copytree(tree, root / "opt/apparate/dist", symlinks=True)
    (root / "etc/apparate/credentials").mkdir(parents=True)
    (root / "etc/apparate/credentials").chmod(0o700)
    (root / "usr/bin").mkdir(parents=True)
    (root / "usr/bin/apparate").symlink_to("/opt/apparate/current/bin/apparate")
    host, files = PACKAGING / "host", PACKAGING / "files"
    copies = {
        files / "config.toml": _CONFIG,
        host / "tmpfiles/apparate.conf": "usr/lib/tmpfiles.d/apparate.conf",
        host / "systemd/apparate.preset": "usr/lib/systemd/system-preset/80-apparate.preset",
        **{
            unit: f"{units}/{unit.name}"
            for pattern in ("*.service", "*.slice")
            for unit in host.glob(f"systemd/{pattern}")
        },
    }
    for source, name in copies.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, root / name)
        (root / name).chmod(0o644)


def _write_control(root: Path, control: Path, version: str) -> None:
    files = sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    sums = [f"{hashlib.md5(path.read_bytes()).hexdigest()}  {path.relative_to(root)}\n" for path in files]  # noqa: S324
    kib = sum(path.stat().st_size for path in files) // 1024
    control.mkdir(mode=0o755)
    template = string.Template((PACKAGING / "control").read_text())
    values = {"VERSION": f"{version}-{RELEASE}", "MAINTAINER": MAINTAINER, "KIB": kib}
    (control / "control").write_text(template.substitute(values))
    (control / "conffiles").write_text(f"/{_CONFIG}\n")
    (control / "md5sums").write_text("".join(sums))
    for path in control.iterdir():
        path.chmod(0o644)
    for name, script in _DEB_SCRIPTS.items():
        shutil.copyfile(PACKAGING / "scripts" / f"{script}.sh", control / name)
        (control / name).chmod(0o755)


def write_rpm(tree: Path, version: str, epoch: int, scratch: Path, out: Path) -> Path:
    """Pack *tree* as an rpm, by way of the folder *scratch*, and return the file."""
    root = scratch / "rpm-root"
    _lay_out(tree, root, RPM_UNITS)
    set_times(root, epoch)
    day = datetime.fromtimestamp(epoch, UTC).strftime("%a %b %d %Y")
    values = {"VERSION": version, "RELEASE": RELEASE, "MAINTAINER": MAINTAINER, "DAY": day, "ROOT": root}
    top = scratch / "rpmbuild"
    top.mkdir()
    spec = top / "apparate.spec"
    template = string.Template((PACKAGING / "apparate.spec").read_text())
    spec.write_text(template.substitute(values, SCRIPTS=PACKAGING / "scripts", UNITS=RPM_UNITS))
    macros = {
        "_topdir": top,
        "_binary_payload": f"w{_XZ_LEVEL}.xzdio",
        "_buildhost": "localhost",
        "_build_id_links": "none",
        "__os_install_post": "%{nil}",
        "debug_package": "%{nil}",
        "use_source_date_epoch_as_buildtime": "1",
        "clamp_mtime_to_source_date_epoch": "1",
    }
    defines = [word for name, value in macros.items() for word in ("--define", f"{name} {value}")]
    command = ["rpmbuild", "-bb", "--quiet", "--target", "x86_64-linux", *defines, str(spec)]
    run(command, env={"SOURCE_DATE_EPOCH": str(epoch)})
    (built,) = top.glob("RPMS/*/*.rpm")
    return Path(shutil.move(built, out / built.name))
