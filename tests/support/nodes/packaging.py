"""Small deb and rpm packages for the repositories of test nodes."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from tests.support.processes import run

PACK_TIMEOUT_S = 600.0


def rpm(
    folder: Path,
    *,
    name: str,
    version: str,
    files: Path | None,
    provides: Sequence[str] = (),
    requires: Sequence[str] = (),
    config: Sequence[str] = (),
    scripts: str = "",
) -> Path:
    """Build an RPM of the tree *files* in *folder* and return it. *config* are files an upgrade does not replace.

    Nothing is found out by rpmbuild itself: the RPM database of a test node knows no glibc.
    """
    top = folder / f"rpmbuild-{name}-{version}"
    top.mkdir(parents=True)
    lines = [f"Name: {name}", f"Version: {version}", "Release: 1", f"Summary: {name}", "License: none"]
    lines += ["BuildArch: x86_64", "AutoReqProv: no"]
    lines += [f"Provides: {what}" for what in provides] + [f"Requires: {what}" for what in requires]
    lines += ["%description", name, "%install", "mkdir -p %{buildroot}"]
    if files is not None:
        lines.append(f"cp -a {files}/. %{{buildroot}}/")
    lines += [scripts, "%files", *(_listed(path, files, config) for path in _leaves(files))]
    spec = top / f"{name}.spec"
    spec.write_text("\n".join(lines) + "\n")
    defines = {"_topdir": top, "__os_install_post": "%{nil}", "_build_id_links": "none", "_binary_payload": "w1.gzdio"}
    options = [word for key, value in defines.items() for word in ("--define", f"{key} {value}")]
    run(["rpmbuild", "-bb", "--quiet", *options, spec], timeout_s=PACK_TIMEOUT_S)
    (built,) = top.glob("RPMS/*/*.rpm")
    target = folder / built.name
    shutil.move(built, target)
    shutil.rmtree(top)
    return target


def _leaves(files: Path | None) -> list[Path]:
    """What a package owns: every file and link, and no folder, for those are shared."""
    if files is None:
        return []
    return sorted(path for path in files.rglob("*") if path.is_symlink() or not path.is_dir())


def _listed(path: Path, files: Path | None, config: Sequence[str]) -> str:
    inside = "/" + str(path.relative_to(files or path))
    return f"%config(noreplace) {inside}" if inside in config else inside


def deb(
    folder: Path, *, name: str, version: str, files: Path, depends: Sequence[str] = (), config: Sequence[str] = ()
) -> Path:
    """Build a deb of the tree *files* in *folder* and return it. *config* are files an upgrade does not replace."""
    tree = folder / f"deb-{name}-{version}"
    shutil.copytree(files, tree, symlinks=True)
    control = tree / "DEBIAN"
    control.mkdir()
    fields = {"Package": name, "Version": version, "Architecture": "amd64", "Maintainer": "tests", "Description": name}
    if depends:
        fields["Depends"] = ", ".join(depends)
    (control / "control").write_text("".join(f"{key}: {value}\n" for key, value in fields.items()))
    if config:
        (control / "conffiles").write_text("".join(f"{path}\n" for path in config))
    target = folder / f"{name}_{version}_amd64.deb"
    run(["dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "--build", tree, target], timeout_s=PACK_TIMEOUT_S)
    shutil.rmtree(tree)
    return target
