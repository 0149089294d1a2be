"""What `apparate convert` says: to a person, to a machine, to a terminal."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from tests.support.images import build_image, plain_layer, write_layout

from apparate.cli.convert_progress import progress_for
from apparate.cli.main import run
from apparate.convert.progress import Stage
from apparate.convert.result import LayerResult
from apparate.oci.digest import Digest
from apparate.oci.manifest import Descriptor

DIGEST = Digest.of(b"layer")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_layout(tmp_path / "source", build_image([plain_layer(), {}]), tag="v1")


def convert(source: Path, target: Path, *options: str) -> int:
    layouts = ["--from-oci-layout", "--to-oci-layout"]
    return run(["convert", *layouts, *options, f"{source}:v1", f"{target}:v1-apparate"])


def test_a_person_gets_a_table_and_is_told_when_there_is_nothing_to_do(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert(source, tmp_path / "target") == 0
    captured = capsys.readouterr()
    assert "linux/amd64" in captured.out
    assert captured.err.count("layer ") == 2
    assert convert(source, tmp_path / "target") == 0
    assert "is up to date" in capsys.readouterr().out


def test_a_machine_gets_one_json_document(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert(source, tmp_path / "target", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["changed"]
    assert result["target"] == f"{tmp_path}/target:v1-apparate"
    assert [layer["uploaded"] for layer in result["images"][0]["layers"]] == [True, True]


@pytest.mark.parametrize(
    ("text", "members"), [("4096", 4096), ("64k", 65_536), ("64KiB", 65_536), ("1M", 1 << 20), ("8192b", 8192)]
)
def test_sizes(source: Path, tmp_path: Path, text: str, members: int) -> None:
    assert convert(source, tmp_path / "one", "--member-size", text) == 0
    assert convert(source, tmp_path / "two", "--member-size", str(members)) == 0
    assert (tmp_path / "one/index.json").read_bytes() == (tmp_path / "two/index.json").read_bytes()


@pytest.mark.parametrize("text", ["", "64x", "-1", "1.5M", "64KiBB"])
def test_a_size_that_is_none_is_refused(
    source: Path, tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert(source, tmp_path / "target", "--member-size", text) == 2
    assert "is no size" in capsys.readouterr().err
    assert not (tmp_path / "target").exists()


def test_a_prefetch_list_is_read(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = tmp_path / "list"
    listed.write_text("# comment\ndata/file-00001\ndata/file-00000 0 10\n")
    assert convert(source, tmp_path / "target", "--json", "--prefetch", str(listed)) == 0
    layers = json.loads(capsys.readouterr().out)["images"][0]["layers"]
    assert [bool(layer["prefetch_size"]) for layer in layers] == [True, False]
    listed.write_text("data/file-00001 x y\n")
    assert convert(source, tmp_path / "target", "--prefetch", str(listed)) == 2
    assert "line 1" in capsys.readouterr().err


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def layer_result() -> LayerResult:
    described = Descriptor("x", DIGEST, 1000)
    return LayerResult(described, described, DIGEST, DIGEST, 2000, 3, 1, 0, uploaded=True)


@pytest.mark.parametrize("stream", [io.StringIO(), _Terminal()])
def test_progress_is_shown_on_a_terminal_and_told_elsewhere(
    stream: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    with progress_for(stream) as progress:
        progress.layers(1)
        for stage in Stage:
            for done in (0, 500, 1000):
                progress.advance(DIGEST, stage, done, 1000)
        progress.advance(DIGEST, Stage.READ, 0, 0)
        progress.note("left out windows/amd64: [bold]why[/bold] \x1b[2J")
        progress.finished(layer_result())
    shown = stream.getvalue()
    assert DIGEST.hex[:12] in shown
    assert "[bold]why[/bold]" in shown
    assert "\x1b[2J" not in shown
    if stream.isatty():
        assert shown.rstrip("\n").endswith("\x1b[?25h") or "\x1b[?25h" in shown  # the cursor is there again
