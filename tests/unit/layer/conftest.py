"""Fixtures of the layer store's tests: managers over a registry without a network."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest
from tests.support.layers import FakeRegistry

from apparate.layer.manager import LayerManager
from apparate.layer.settings import LayerSettings
from apparate.registry.client import RegistryClient

NO_CLIENT = cast("RegistryClient", None)  # every source comes from the FakeRegistry

ManagerFactory = Callable[..., LayerManager]


@pytest.fixture
def registry() -> FakeRegistry:
    return FakeRegistry()


@pytest.fixture
def settings(tmp_path: Path) -> LayerSettings:
    return LayerSettings(
        root=tmp_path / "root", read_deadline_s=10.0, resolve_deadline_s=5.0, attempt_timeout_s=5.0, disk_reserve_bytes=0,
        background_after_s=0.0, fetch_gap_min_bytes=1, fetch_window_min_bytes=0,
    )  # fmt: skip


@pytest.fixture
def open_manager(registry: FakeRegistry) -> Iterator[ManagerFactory]:
    """Return a function that opens a manager; all are closed at the end."""
    opened: list[LayerManager] = []

    def open_one(settings: LayerSettings, **more: object) -> LayerManager:
        manager = LayerManager(settings, NO_CLIENT, sources=registry.source, **more)  # type: ignore[arg-type] # passed on
        opened.append(manager)
        return manager

    yield open_one
    for manager in opened:
        manager.close()


@pytest.fixture
def manager(open_manager: ManagerFactory, settings: LayerSettings) -> LayerManager:
    return open_manager(settings)


def replaced(settings: LayerSettings, **changes: object) -> LayerSettings:
    """Return *settings* with *changes*."""
    return dataclasses.replace(settings, **changes)  # type: ignore[arg-type] # fields by name
