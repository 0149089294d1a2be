"""Roles say what they take, and the README says the same."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.role_tables import README, ROLES, readme, specs

NAMES = sorted(path.name for path in ROLES.iterdir() if path.is_dir())


def _defaults(role: str) -> dict[str, Any]:
    path = ROLES / role / "defaults" / "main.yml"
    return yaml.safe_load(path.read_text()) or {} if path.exists() else {}


def test_readme_is_made_from_the_argument_specs() -> None:
    assert README.read_text() == readme()
    assert all(f"## {name}\n" in readme() for name in NAMES)


@pytest.mark.parametrize("role", NAMES)
def test_every_variable_has_the_roles_prefix_and_is_described(role: str) -> None:
    options = specs(role).get("options", {})
    assert set(_defaults(role)) == {name for name, option in options.items() if not option.get("required")}
    assert [name for name in options if not name.startswith(f"{role}_")] == []


@pytest.mark.parametrize("role", NAMES)
def test_described_defaults_are_the_real_ones(role: str) -> None:
    options = specs(role).get("options", {})
    templated = {name: value for name, value in _defaults(role).items() if isinstance(value, str) and "{{" in value}
    real = {name: value for name, value in _defaults(role).items() if name not in templated}
    assert {name: options[name].get("default") for name in real} == real


def test_every_playbook_stops_after_the_first_bad_batch() -> None:
    for name in ("prepare", "upgrade", "remove"):
        (play,) = yaml.safe_load((Path(ROLES.parent) / "playbooks" / f"{name}.yml").read_text())
        assert play["max_fail_percentage"] == "{{ apparate_max_fail_percentage | default(0) }}"
        assert "serial" in play
