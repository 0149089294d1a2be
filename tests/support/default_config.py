"""Write `config.default.toml` from the settings classes: field, default, and the docstring below the field as its comment.

python -m tests.support.default_config >snapshotter/apparate/config.default.toml
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import sys
import textwrap
from pathlib import Path

from apparate.cli.settings import Settings

_HEAD = """\
# Settings of apparate with their defaults. `apparate config default` prints this file, `apparate config show` what is in force.
# Sizes are bytes, times are seconds, paths are absolute. A key that is not known here is refused.
"""
_WIDTH = 118


def comments(cls: type) -> dict[str, str]:
    """Return the text below each field of *cls*."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(tree, ast.ClassDef)
    out: dict[str, str] = {}
    for node, following in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and isinstance(following, ast.Expr):
            value = following.value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                out[node.target.id] = " ".join(value.value.split())
    return out


def literal(value: object) -> str:
    """Return *value* as TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str | Path):
        return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, tuple):
        return "[" + ", ".join(literal(item) for item in value) + "]"
    raise TypeError(f"no TOML for {value!r}")


def text() -> str:
    """Return the whole file."""
    lines = [_HEAD]
    settings = Settings()
    for section in dataclasses.fields(settings):
        table = getattr(settings, section.name)
        lines.append(f"[{section.name}]")
        said = comments(type(table))
        for field in dataclasses.fields(table):
            comment = said.get(field.name)
            if comment:
                lines += textwrap.wrap(comment, _WIDTH, initial_indent="# ", subsequent_indent="# ")
            value = getattr(table, field.name)
            lines.append(f"# {field.name} = (not set)" if value is None else f"{field.name} = {literal(value)}")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(text())
