"""A user's commands as they stand: pull, edit, package, install."""

from __future__ import annotations

import functools
import http.server
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.chart_readme import CHART
from tests.support.helm import HELMS, documents, helm

program_of = pytest.mark.parametrize("program", HELMS)


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[str]:
    """A chart repository with our chart on loopback; yields its URL."""
    folder = tmp_path / "repository"
    folder.mkdir()
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        assert helm("helm-4", "package", CHART, "--destination", folder).code == 0
        assert helm("helm-4", "repo", "index", folder, "--url", url).code == 0
        yield url
        server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the base class's
        """Say nothing."""


@program_of
def test_pull_edit_package_install(program: str, repository: str, tmp_path: Path) -> None:
    pulled = helm(program, "pull", "apparate", "--repo", repository, "--version", "1.0.0", "--untar", folder=tmp_path)
    assert pulled.code == 0, pulled.errors
    values = tmp_path / "apparate/values.yaml"
    text = values.read_text()
    for name, value in {"dockerUsername": "me", "dockerPassword": "secret", "dockerServer": "r.internal"}.items():
        assert text.count(f'{name}: ""') == 1
        text = text.replace(f'{name}: ""', f"{name}: {value}")
    before, _, after = text.partition("\nimage:\n")
    after = after[after.index("\n# -- Names of Secrets") :]
    values.write_text(f"{before}\nimage: r.internal/apparate/apparate:1.0.0\n{after}")
    packaged = helm(program, "package", "apparate/", folder=tmp_path)
    assert packaged.code == 0, packaged.errors
    assert (tmp_path / "apparate-1.0.0.tgz").is_file()
    answer = helm(program, "template", "apparate", "apparate-1.0.0.tgz", folder=tmp_path)
    kinds = {each["kind"]: each for each in documents(answer)}
    assert (
        kinds["DaemonSet"]["spec"]["template"]["spec"]["containers"][0]["image"] == "r.internal/apparate/apparate:1.0.0"
    )
    assert kinds["Secret"]["type"] == "kubernetes.io/dockerconfigjson"


@program_of
def test_the_archive_holds_what_a_user_needs_and_no_more(program: str, tmp_path: Path) -> None:
    answer = helm(program, "package", CHART, "--destination", tmp_path)
    assert answer.code == 0, answer.errors
    with tarfile.open(tmp_path / "apparate-1.0.0.tgz") as archive:
        names = {name.removeprefix("apparate/") for name in archive.getnames()}
    assert {"Chart.yaml", "README.md", "values.yaml", "values.schema.json", "files/dashboard.json"} <= names
    assert not [name for name in names if name.startswith("ci/")]


@program_of
def test_values_and_readme_can_be_shown(program: str) -> None:
    for what, known in {"values": "imagePullSecretsCrs:", "readme": "## Remove it", "chart": "version: 1.0.0"}.items():
        assert known in helm(program, "show", what, CHART).output
