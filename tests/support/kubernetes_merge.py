"""JSON merge patch (RFC 7386) and the part of Kubernetes' strategic merge patch that concerns conditions of a status."""

from __future__ import annotations

from typing import Any

_MERGE_KEYS = {"conditions": "type"}


def merge(target: Any, patch: Any) -> Any:
    """Return *target* with *patch* applied, null removes."""
    if not isinstance(patch, dict):
        return patch
    out = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            out.pop(key, None)
        else:
            out[key] = merge(out.get(key), value)
    return out


def strategic_merge(target: Any, patch: Any, name: str = "") -> Any:
    """As `merge`, but lists with a merge key are merged item by item; `$patch: delete` removes an item."""
    if isinstance(patch, list) and name in _MERGE_KEYS:
        key = _MERGE_KEYS[name]
        items = {item[key]: item for item in target or ()}
        for item in patch:
            if item.get("$patch") == "delete":
                items.pop(item[key], None)
            else:
                items[item[key]] = strategic_merge(items.get(item[key], {}), item)
        return list(items.values())
    if not isinstance(patch, dict):
        return patch
    out = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            out.pop(key, None)
        else:
            out[key] = strategic_merge(out.get(key), value, key)
    return out
