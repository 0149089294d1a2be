"""The forms of the package: the same files in each, the same bytes each time, and what foreign judges say of them."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from tests.support.host_package import PACKAGING, Host, build
from tests.support.leftovers import clean_folder
from tests.support.processes import run
from tests.support.services import REPOSITORY

Tree = dict[str, str]


def tree_of(root: Path) -> Tree:
    """Return kind, mode and content of everything below *root*."""
    found = {}
    for path in sorted(root.rglob("*")):
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            what = f"link {path.readlink()}"
        elif stat.S_ISDIR(mode):
            what = f"folder {stat.S_IMODE(mode):o}"
        else:
            what = f"{stat.S_IMODE(mode):o} {hashlib.sha256(path.read_bytes()).hexdigest()}"
        found[str(path.relative_to(root))] = what
    return found


@pytest.fixture
def scratch() -> Iterator[Path]:
    with clean_folder("forms") as folder:
        yield folder


def _deb(packages: Path, scratch: Path) -> Path:
    run(["dpkg-deb", "-x", *packages.glob("*.deb"), scratch])
    return scratch / "opt/apparate/dist"


def _rpm(packages: Path, scratch: Path) -> Path:
    (package,) = packages.glob("*.rpm")
    run(["sh", "-c", 'rpm2cpio "$1" | (cd "$2" && cpio -idm --quiet --no-absolute-filenames)', "sh", package, scratch])
    return scratch / "opt/apparate/dist"


def _image(packages: Path, scratch: Path) -> Path:
    (archive,) = packages.glob("*.oci.tar")
    run(["skopeo", "copy", "--quiet", f"oci-archive:{archive}", f"dir:{scratch}/image"])
    manifest = json.loads((scratch / "image/manifest.json").read_text())
    (layer,) = manifest["layers"]
    with tarfile.open(scratch / "image" / layer["digest"].removeprefix("sha256:")) as tar:
        tar.extractall(scratch / "root", filter="fully_trusted")
    return (scratch / "root/opt/apparate/current").resolve()


@pytest.mark.root
@pytest.mark.parametrize("form", [_deb, _rpm, _image], ids=["deb", "rpm", "image"])
def test_every_form_holds_the_same_files(
    packages: Path, tree: Path, scratch: Path, form: Callable[[Path, Path], Path]
) -> None:
    assert tree_of(form(packages, scratch)) == tree_of(tree)


@pytest.mark.root
def test_the_image_runs(packages: Path, scratch: Path, tree: Path) -> None:
    root = _image(packages, scratch).parents[2]
    for name in ("proc", "sys", "dev"):  # as a runtime does
        (root / name).mkdir()
    assert Host(root, tree.name).run("/usr/bin/apparate", "--version").strip() == f"apparate, version {tree.name}"


def test_checksums_are_right(packages: Path) -> None:
    run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=packages)
    listed = {line.split()[1] for line in (packages / "SHA256SUMS").read_text().splitlines()}
    assert listed | {"SHA256SUMS"} == {path.name for path in packages.iterdir()}


def test_the_parts_list_is_valid_and_complete(packages: Path, tree: Path) -> None:
    (path,) = packages.glob("*.cdx.json")
    text = path.read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    listed = {component["name"] for component in json.loads(text)["components"]}
    carried = {folder.name.split("-")[0] for folder in tree.glob("lib/python3.11/site-packages/*.dist-info")}
    assert {name.lower().replace("-", "_") for name in carried} <= {name.lower().replace("-", "_") for name in listed}
    assert {"libc6", "libfuse3-3", "libssl3", "python3.11-minimal"} <= listed


def test_lintian_finds_no_error(packages: Path) -> None:
    (deb,) = packages.glob("*.deb")
    run(["lintian", "--fail-on", "error", "--tag-display-limit", "0", deb])


def test_rpmlint_finds_no_error(packages: Path) -> None:
    (rpm,) = packages.glob("*.rpm")
    printed = run(["rpmlint", "-c", PACKAGING / "rpmlint.toml", rpm])
    assert " 0 errors," in printed, printed


def test_units_are_what_systemd_understands(tree: Path, scratch: Path) -> None:
    # An interpreter of the package lies elsewhere here, so a program that is there stands in for it.
    for unit in (tree / "share/systemd").iterdir():
        text = unit.read_text().replace("/opt/apparate/current/bin/apparate", "/bin/true")
        (scratch / unit.name).write_text(text)
    units = sorted(path for path in scratch.iterdir() if path.suffix in {".service", ".slice"})
    assert len(units) == 3
    run(["systemd-analyze", "verify", "--man=no", *units])


def test_a_build_from_nothing_gives_the_same_bytes(packages: Path, scratch: Path) -> None:
    again = build(scratch / "again", "--fresh")
    assert (again / "SHA256SUMS").read_text() == (packages / "SHA256SUMS").read_text()


def test_nothing_of_the_build_machine_is_in_the_tree(tree: Path) -> None:
    home = os.fsencode(REPOSITORY)
    for path in tree.rglob("*"):
        if path.is_file() and not path.is_symlink():
            assert home not in path.read_bytes(), path
