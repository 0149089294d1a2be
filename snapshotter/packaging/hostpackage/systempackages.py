"""The deb and the rpm, made by the tools of Debian and of RPM themselves.

Not by a packer for both: nfpm names the files of an rpm from the root on, so that whoever unpacks one with cpio, as rpmlint does,
overwrites the running system.
"""

from __future__ import annotations

import gzip
import hashlib
import shutil
import string
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path
from typing import Final

from hostpackage.failure import run
from hostpackage.inputs import PACKAGING
from hostpackage.tree import set_times

MAINTAINER: Final = "apparate <apparate@example.org>"
RELEASE: Final = "1"
DEB_UNITS: Final = "lib/systemd/system"
RPM_UNITS: Final = "usr/lib/systemd/system"
_CONFIG: Final = "etc/apparate/config.toml"
_XZ_LEVEL: Final = "1"
"""What rpm reads from 4.11 on (CentOS 7), and every dpkg."""


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
    _write_control(root, version)
    set_times(root, epoch)
    target = out / f"apparate_{version}_amd64.deb"
    options = (
        "--root-owner-group",
        "-Zxz",
        f"-z{_XZ_LEVEL}",
        "--threads-max=1",
    )  # with more, blocks follow their number
    run(["dpkg-deb", *options, "--build", str(root), str(target)], env={"SOURCE_DATE_EPOCH": str(epoch)})
    return target


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


def _write_control(root: Path, version: str) -> None:
    files = sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    sums = [f"{hashlib.md5(path.read_bytes()).hexdigest()}  {path.relative_to(root)}\n" for path in files]  # noqa: S324
    kib = sum(path.stat().st_size for path in files) // 1024
    control = root / "DEBIAN"
    control.mkdir()
    template = string.Template((PACKAGING / "control").read_text())
    values = {"VERSION": f"{version}-{RELEASE}", "MAINTAINER": MAINTAINER, "KIB": kib}
    (control / "control").write_text(template.substitute(values))
    (control / "conffiles").write_text(f"/{_CONFIG}\n")
    (control / "md5sums").write_text("".join(sums))
    for name, script in (("postinst", "postinstall"), ("prerm", "preremove"), ("postrm", "postremove")):
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
