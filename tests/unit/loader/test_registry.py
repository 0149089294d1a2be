"""The registry client that is loaded late."""

from __future__ import annotations

import subprocess
import sys

import pytest
from tests.support.services import environment

from apparate.errors import Unavailable
from apparate.loader.registry import LateClient
from apparate.registry.settings import RegistrySettings

LOADED = "import sys, apparate.loader.main; sys.exit(any(name in sys.modules for name in ('urllib3', 'apparate.registry.client')))"


def test_a_loader_starts_without_what_speaks_to_registries() -> None:
    assert subprocess.run([sys.executable, "-c", LOADED], check=False, env=environment()).returncode == 0


def test_there_is_one_client() -> None:
    late = LateClient(RegistrySettings())
    try:
        assert late.get() is late.get()
    finally:
        late.close()


def test_after_the_end_none_is_made() -> None:
    late = LateClient(RegistrySettings())
    late.close()
    late.close()
    with pytest.raises(Unavailable):
        late.get()
