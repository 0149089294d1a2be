"""The list of what the package is made of, as CycloneDX 1.6: Debian's packages with their hashes, Python's with their licences."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from email.parser import Parser
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from hostpackage.inputs import SUITE, Deb

_DISTRIBUTION: Final = "debian-12"


def write_sbom(target: Path, version: str, epoch: int, debs: Iterable[Deb], site_packages: Path) -> None:
    """Write the list to *target*; the same inputs give the same bytes."""
    components = [*map(_of_deb, debs), *map(_of_dist_info, sorted(site_packages.glob("*.dist-info")))]
    root = {
        "type": "application",
        "bom-ref": "apparate",
        "name": "apparate",
        "version": version,
        "purl": f"pkg:generic/apparate@{quote(version, safe='')}",
        "licenses": [{"license": {"id": "Apache-2.0"}}],
    }
    content: dict[str, Any] = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "timestamp": datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "component": root,
        },
        "components": components,
        "dependencies": [{"ref": "apparate", "dependsOn": sorted(component["bom-ref"] for component in components)}],
    }
    target.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


def _of_deb(deb: Deb) -> dict[str, Any]:
    purl = f"pkg:deb/debian/{quote(deb.name, safe='')}@{quote(deb.version, safe='')}?arch=amd64&distro={_DISTRIBUTION}"
    return {
        "type": "library",
        "bom-ref": purl,
        "name": deb.name,
        "version": deb.version,
        "purl": purl,
        "hashes": [{"alg": "SHA-256", "content": deb.sha256}],
        "properties": [{"name": "debian:suite", "value": SUITE}],
    }


def _of_dist_info(folder: Path) -> dict[str, Any]:
    metadata = Parser().parsestr((folder / "METADATA").read_text(), headersonly=True)
    name, version = metadata["Name"], metadata["Version"]
    purl = f"pkg:pypi/{name.lower().replace('_', '-').replace('.', '-')}@{quote(version, safe='')}"
    component: dict[str, Any] = {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}
    licence = metadata["License-Expression"]
    if licence:
        component["licenses"] = [{"expression": licence}]
    return component
