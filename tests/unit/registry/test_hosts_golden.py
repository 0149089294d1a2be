"""hosts.toml as containerd itself reads it (tests/corpus/hosts)."""

import json
from pathlib import Path
from typing import Any

import pytest

from apparate.registry.endpoint import Capability, Endpoint
from apparate.registry.hosts import HostTable
from apparate.registry.settings import RegistrySettings

CASES = json.loads((Path(__file__).parents[2] / "corpus/hosts/containerd-2.1.4.json").read_text())
NAMES = {"pull": Capability.PULL, "resolve": Capability.RESOLVE, "push": Capability.PUSH}


@pytest.mark.parametrize("case", CASES, ids=lambda case: "+".join((case["registry"], *case["files"])))
def test_endpoints_are_those_of_containerd(case: dict[str, Any], tmp_path: Path) -> None:
    for name, text in case["files"].items():
        path = tmp_path / name
        path.parent.mkdir()
        path.write_text(text)
    table = HostTable(RegistrySettings(hosts_dirs=(str(tmp_path),)))
    for name, needed in NAMES.items():
        expected = [endpoint for endpoint in case["endpoints"] if name in endpoint["capabilities"]]
        assert [_shown(endpoint) for endpoint in table.endpoints(case["registry"], needed)] == expected


def _shown(endpoint: Endpoint) -> dict[str, object]:
    return {
        "scheme": endpoint.scheme,
        "host": endpoint.host,
        "path": endpoint.path,
        "capabilities": [name for name, flag in NAMES.items() if flag in endpoint.capabilities],
        "headers": dict(sorted(endpoint.headers)),
        "http_fallback": endpoint.http_fallback,
        "skip_verify": None if endpoint.http_fallback else endpoint.tls.skip_verify,
    }
