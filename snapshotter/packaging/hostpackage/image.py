"""The OCI image: the tree, its link `current`, and the few files that a root file system without a distribution needs.

Written here, not by a builder: no daemon, no base image, and the same bytes each time.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import tarfile
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from hostpackage.archives import add_bytes, add_tree, tar_writer
from hostpackage.inputs import digest_of

_FOLDERS: Final = (
    ("etc", 0o755),
    ("opt", 0o755),
    ("opt/apparate", 0o755),
    ("tmp", 0o1777),
    ("usr", 0o755),
    ("usr/bin", 0o755),
)
_FILES: Final = {
    "etc/passwd": b"root:x:0:0:root:/root:/sbin/nologin\napparate:x:65532:65532:apparate:/:/sbin/nologin\n",
    "etc/group": b"root:x:0:\napparate:x:65532:\n",
}
_CONFIG_TYPE: Final = "application/vnd.oci.image.config.v1+json"
_LAYER_TYPE: Final = "application/vnd.oci.image.layer.v1.tar+gzip"
_MANIFEST_TYPE: Final = "application/vnd.oci.image.manifest.v1+json"
_INDEX_TYPE: Final = "application/vnd.oci.image.index.v1+json"


def write_image(tree: Path, version: str, epoch: int, out: Path) -> Path:
    """Write the image as an archive of an OCI image layout, which skopeo, podman and containerd read, and return it."""
    target = out / f"apparate-{version}-x86_64.oci.tar"
    created = datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    with tempfile.TemporaryDirectory(dir=out, prefix=".image-") as scratch:
        layer = Path(scratch) / "layer"
        diff_id = _write_layer(layer, tree, version, epoch)
        config = _json(_config(version, created, diff_id))
        manifest = _json(_manifest(version, created, config, layer))
        index = _json(
            {
                "schemaVersion": 2,
                "mediaType": _INDEX_TYPE,
                "manifests": [
                    {
                        **_described(manifest, _MANIFEST_TYPE),
                        "platform": {"architecture": "amd64", "os": "linux"},
                        "annotations": {"org.opencontainers.image.ref.name": version},
                    }
                ],
            }
        )
        with target.open("wb") as file, tar_writer(file) as tar:
            add_bytes(tar, "oci-layout", _json({"imageLayoutVersion": "1.0.0"}), epoch)
            add_bytes(tar, "index.json", index, epoch)
            for blob in (config, manifest):
                add_bytes(tar, f"blobs/sha256/{hashlib.sha256(blob).hexdigest()}", blob, epoch)
            add_bytes(tar, f"blobs/sha256/{digest_of(layer)}", layer.read_bytes(), epoch)
    return target


def _write_layer(target: Path, tree: Path, version: str, epoch: int) -> str:
    """Write the compressed layer and return the digest of what it is uncompressed."""
    plain = target.with_suffix(".tar")
    with plain.open("wb") as file, tar_writer(file) as tar:
        for name, mode in _FOLDERS:
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode, folder.mtime = tarfile.DIRTYPE, mode, epoch
            tar.addfile(folder)
        for name, content in _FILES.items():
            add_bytes(tar, name, content, epoch)
        add_tree(tar, tree, f"opt/apparate/{version}", epoch)
        for name, where in (
            ("opt/apparate/current", version),
            ("usr/bin/apparate", "/opt/apparate/current/bin/apparate"),
        ):
            link = tarfile.TarInfo(name)
            link.type, link.linkname, link.mode, link.mtime = tarfile.SYMTYPE, where, 0o777, epoch
            tar.addfile(link)
    with (
        plain.open("rb") as source,
        target.open("wb") as file,
        gzip.GzipFile(fileobj=file, mode="wb", filename="", mtime=epoch) as compressed,
    ):
        shutil.copyfileobj(source, compressed)
    return f"sha256:{digest_of(plain)}"


def _config(version: str, created: str, diff_id: str) -> Mapping[str, Any]:
    return {
        "architecture": "amd64",
        "os": "linux",
        "created": created,
        "config": {
            "Entrypoint": ["/opt/apparate/current/bin/apparate"],
            "Cmd": ["--help"],
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"],
            "Labels": _annotations(version, created),
        },
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        "history": [{"created": created, "created_by": "apparate"}],
    }


def _manifest(version: str, created: str, config: bytes, layer: Path) -> Mapping[str, Any]:
    return {
        "schemaVersion": 2,
        "mediaType": _MANIFEST_TYPE,
        "config": _described(config, _CONFIG_TYPE),
        "layers": [{"mediaType": _LAYER_TYPE, "digest": f"sha256:{digest_of(layer)}", "size": layer.stat().st_size}],
        "annotations": _annotations(version, created),
    }


def _annotations(version: str, created: str) -> Mapping[str, str]:
    prefix = "org.opencontainers.image"
    return {
        f"{prefix}.title": "apparate",
        f"{prefix}.version": version,
        f"{prefix}.created": created,
        f"{prefix}.licenses": "Apache-2.0",
    }


def _described(content: bytes, media_type: str) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": f"sha256:{hashlib.sha256(content).hexdigest()}", "size": len(content)}


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
