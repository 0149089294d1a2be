"""The build refuses inputs and libraries that are not what was looked at."""

from __future__ import annotations

from pathlib import Path

import pytest

from hostpackage import elf
from hostpackage.failure import BuildError, run
from hostpackage.inputs import DEBS_LOCK, Deb, read_lock
from hostpackage.overwrite import STRINGS, overwrite
from hostpackage.tree import build_id

LIBRARY = "ld-linux-x86-64.so.2"


def test_a_path_of_the_host_is_replaced_in_the_same_length(tmp_path: Path) -> None:
    library = tmp_path / LIBRARY
    library.write_bytes(b"head\0/etc/ld.so.cache\0/etc/ld.so.preload\0tail")

    overwrite(library)

    assert library.read_bytes() == b"head\0/dev/null/.cache\0/dev/null/.preload\0tail"


@pytest.mark.parametrize(
    "content", [b"\0/etc/ld.so.cache\0", b"\0/etc/ld.so.cache\0/etc/ld.so.preload\0\0/etc/ld.so.preload\0"]
)
def test_a_path_that_is_not_there_exactly_once_fails(tmp_path: Path, content: bytes) -> None:
    library = tmp_path / LIBRARY
    library.write_bytes(content)

    with pytest.raises(BuildError, match="not once"):
        overwrite(library)


def test_other_libraries_are_left_alone(tmp_path: Path) -> None:
    library = tmp_path / "libother.so.1"
    library.write_bytes(b"\0/etc/ld.so.cache\0")

    overwrite(library)

    assert library.read_bytes() == b"\0/etc/ld.so.cache\0"
    assert library.name not in STRINGS


def test_the_lock_file_names_what_runs_and_what_builds() -> None:
    debs = read_lock(DEBS_LOCK.read_text())

    assert {deb.use for deb in debs} == {"run", "build"}
    assert {"libc6", "libfuse3-3", "python3.11-minimal"} <= {deb.name for deb in debs if deb.use == "run"}


@pytest.mark.parametrize(
    "line", ["run libc6 2.36", f"keep libc6 2.36 {'0' * 64}", "run libc6 2.36 abc", f"run libc6 2.36 {'0' * 64} more"]
)
def test_a_line_of_another_form_is_refused(line: str) -> None:
    with pytest.raises(BuildError, match="libc6"):
        read_lock(line)


def test_comments_and_empty_lines_of_the_lock_file_say_nothing() -> None:
    assert read_lock(f"# why\n\nrun libc6 2.36 {'0' * 64}\n") == [Deb("run", "libc6", "2.36", "0" * 64)]


def _library(path: Path, *options: str) -> None:
    source = path.with_suffix(".c")
    source.write_text("int answer(void) { return 42; }\n")
    run(["gcc", "-shared", "-fPIC", "-nostdlib", "-o", str(path), str(source), *options])
    source.unlink()


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (("-Wl,-z,nodefaultlib",), "no RPATH"),
        (("-Wl,-z,nodefaultlib", "-Wl,--enable-new-dtags", "-Wl,-rpath,$ORIGIN"), "RUNPATH"),
        (("-Wl,--disable-new-dtags", "-Wl,-rpath,$ORIGIN"), "default directories"),
        (("-Wl,-z,nodefaultlib", "-Wl,--disable-new-dtags", "-Wl,-rpath,/usr/lib"), "leads to /usr/lib"),
        (
            ("-Wl,-z,nodefaultlib", "-Wl,--disable-new-dtags", "-Wl,-rpath,$ORIGIN", "-Wl,--no-as-needed", "-lc"),
            "libc.so.6 is not in the tree",
        ),
    ],
)
def test_the_gate_names_what_would_look_at_the_host(tmp_path: Path, options: tuple[str, ...], fault: str) -> None:
    _library(tmp_path / "libanswer.so", *options)

    with pytest.raises(BuildError, match=fault):
        elf.gate(tmp_path, "/opt/ld.so")


def test_a_closed_library_passes_the_gate(tmp_path: Path) -> None:
    _library(tmp_path / "libanswer.so", "-Wl,-z,nodefaultlib", "-Wl,--disable-new-dtags", "-Wl,-rpath,$ORIGIN")

    assert elf.gate(tmp_path, "/opt/ld.so") == 1


def test_a_build_is_known_by_names_modes_and_contents(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("one")
    seen = {build_id(tmp_path)}
    file.chmod(0o755)
    seen.add(build_id(tmp_path))
    file.write_text("two")
    seen.add(build_id(tmp_path))
    file.rename(tmp_path / "other")
    seen.add(build_id(tmp_path))
    (tmp_path / "link").symlink_to("other")
    seen.add(build_id(tmp_path))

    assert len(seen) == 5
