"""The variables of each role as a table, made from its argument_specs.

python -m tests.support.role_tables      # writes roles/README.md anew
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

ROLES = Path(__file__).resolve().parents[2] / "roles"
README = ROLES / "README.md"
_ORDER = (
    "host_check", "fuse", "containerd", "apparate_package", "apparate_settings", "apparate_services", "apparate_node",
    "node_verify", "node_label", "system_package", "host_download",
)  # fmt: skip
_HEAD = """\
# Roles

What [playbooks/prepare.yml](../playbooks/prepare.yml) does, in this order; each role has one concern, works in check mode, and changes
nothing in a second run. Made from each role's `meta/argument_specs.yml` by `python -m tests.support.role_tables`.
"""
_CODE = re.compile(r"C\(([^)]*)\)")


def readme() -> str:
    """Return the text of roles/README.md."""
    return "\n".join([_HEAD, *(_section(name) for name in _ORDER)])


def specs(role: str) -> dict[str, Any]:
    """Return what the main entry of *role* takes."""
    loaded = yaml.safe_load((ROLES / role / "meta" / "argument_specs.yml").read_text())
    main: dict[str, Any] = loaded["argument_specs"]["main"]
    return main


def _section(role: str) -> str:
    main = specs(role)
    lines = [f"## {role}", "", f"{main['short_description']}. " + " ".join(map(_text, main.get("description", [])))]
    options = main.get("options", {})
    if options:
        lines += ["", "| variable | type | default | what |", "|---|---|---|---|"]
    lines += [_row(name, option) for name, option in options.items()]
    return "\n".join([*lines, ""])


def _row(name: str, option: dict[str, Any]) -> str:
    kind = option["type"] + (f" of {option['elements']}" if "elements" in option else "")
    default = "needed" if option.get("required") else f"`{_value(option.get('default'))}`"
    text = option["description"] if isinstance(option["description"], str) else " ".join(option["description"])
    if "choices" in option:
        text += " One of " + ", ".join(f"`{choice}`" for choice in option["choices"]) + "."
    for inner, about in option.get("options", {}).items():
        text += f" `{inner}`: {about['description']}"
    return f"| `{name}` | {kind} | {default} | {_text(text)} |"


def _value(value: object) -> str:
    return value if isinstance(value, str) and value else json.dumps(value)


def _text(text: str) -> str:
    return _CODE.sub(r"`\1`", text).replace("|", "\\|")


if __name__ == "__main__":
    README.write_text(readme())
