import json
from pathlib import Path

import pytest
from tests.support import default_config

from apparate.cli.main import run
from apparate.cli.settings import Settings, default_text
from apparate.config import from_toml


def test_shipped_file_equals_the_defaults() -> None:
    assert from_toml(Settings, default_text()) == Settings()


def test_shipped_file_tells_every_setting_and_is_current() -> None:
    assert default_text() == default_config.text()


def test_config_default_prints_the_shipped_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["config", "default"]) == 0
    assert capsys.readouterr().out == default_text()


def test_config_show_prints_what_is_in_force(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.toml"
    path.write_text('[loader]\ndriver = "tree"\n')
    assert run(["config", "show", "--config", str(path)]) == 0
    assert json.loads(capsys.readouterr().out)["loader"]["driver"] == "tree"


def test_wrong_key_is_one_line_with_the_nearest_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.toml"
    path.write_text('[loader]\ndrivr = "tree"\n')
    assert run(["config", "show", "--config", str(path)]) == 2
    err = capsys.readouterr().err
    assert "did you mean loader.driver?" in err
    assert err.count("\n") == 1
