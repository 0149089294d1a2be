"""Media types, annotation keys and label keys, each with its source."""

from __future__ import annotations

from typing import Final

# --- media types: OCI image specification 1.1, media-types.md; Docker image manifest V2, schema 2 ---
OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
OCI_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_GZIP: Final = "application/vnd.oci.image.layer.v1.tar+gzip"
OCI_LAYER_ZSTD: Final = "application/vnd.oci.image.layer.v1.tar+zstd"
OCI_LAYER_NONDISTRIBUTABLE: Final = "application/vnd.oci.image.layer.nondistributable.v1.tar"
OCI_LAYER_NONDISTRIBUTABLE_GZIP: Final = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
DOCKER_LIST: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_MANIFEST_V1: Final = "application/vnd.docker.distribution.manifest.v1+prettyjws"
DOCKER_CONFIG: Final = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER: Final = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_LAYER_GZIP: Final = "application/vnd.docker.image.rootfs.diff.tar.gzip"
DOCKER_LAYER_ZSTD: Final = "application/vnd.docker.image.rootfs.diff.tar.zstd"
DOCKER_LAYER_FOREIGN_GZIP: Final = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"

INDEX_TYPES: Final = frozenset({OCI_INDEX, DOCKER_LIST})
MANIFEST_TYPES: Final = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
CONFIG_TYPES: Final = frozenset({OCI_CONFIG, DOCKER_CONFIG})
LAYER_TYPES_PLAIN: Final = frozenset({OCI_LAYER, DOCKER_LAYER, OCI_LAYER_NONDISTRIBUTABLE})
LAYER_TYPES_GZIP: Final = frozenset(
    {OCI_LAYER_GZIP, DOCKER_LAYER_GZIP, OCI_LAYER_NONDISTRIBUTABLE_GZIP, DOCKER_LAYER_FOREIGN_GZIP}
)
LAYER_TYPES_ZSTD: Final = frozenset({OCI_LAYER_ZSTD, DOCKER_LAYER_ZSTD})
LAYER_TYPES: Final = LAYER_TYPES_PLAIN | LAYER_TYPES_GZIP | LAYER_TYPES_ZSTD

# --- annotations on a layer descriptor. containerd hands to the snapshotter each one with this prefix ---
SNAPSHOT_PREFIX: Final = "containerd.io/snapshot/"
TOC_DIGEST: Final = "containerd.io/snapshot/stargz/toc.digest"
"""SHA-256 of the uncompressed TOC JSON (stargz-snapshotter, estargz.TOCJSONDigestAnnotation)."""
UNCOMPRESSED_SIZE: Final = "io.containers.estargz.uncompressed-size"
"""Bytes of the layer's tar, decimal (stargz-snapshotter, estargz.StoreUncompressedSizeAnnotation)."""
ZSTD_CHUNKED_CHECKSUM: Final = "io.github.containers.zstd-chunked.manifest-checksum"
ZSTD_CHUNKED_POSITION: Final = "io.github.containers.zstd-chunked.manifest-position"
"""`offset:compressed length:uncompressed length:type` of a zstd:chunked TOC (containers/storage)."""
OLD_ZSTD_CHUNKED_CHECKSUM: Final = "io.containers.zstd-chunked.manifest-checksum"
OLD_ZSTD_CHUNKED_POSITION: Final = "io.containers.zstd-chunked.manifest-position"
"""The same before containers/storage 1.45, as in podman 4.3."""
INDEX: Final = "containerd.io/snapshot/apparate.index"
"""`v1:<offset>:<length>:<sha256>` of the embedded index region (docs/formats/embedding.md)."""
CODEC: Final = "containerd.io/snapshot/apparate.codec"
"""`name/version/level`: what wrote the layer's members; the digests depend on it."""

# --- annotations on a manifest or index that we made ---
SOURCE_REFERENCE: Final = "com.tencent.cloud.apparate.source.reference"
SOURCE_DIGEST: Final = "com.tencent.cloud.apparate.source.digest"
"""Where an accelerated image came from. Its presence, never the tag, tells that an image is accelerated."""

# --- labels of a snapshot: containerd core/snapshots and the CRI plugin (containerd.md, section 2) ---
TARGET_SNAPSHOT: Final = "containerd.io/snapshot.ref"
CRI_IMAGE_REF: Final = "containerd.io/snapshot/cri.image-ref"
CRI_LAYER_DIGEST: Final = "containerd.io/snapshot/cri.layer-digest"
CRI_IMAGE_LAYERS: Final = "containerd.io/snapshot/cri.image-layers"
CRI_MANIFEST_DIGEST: Final = "containerd.io/snapshot/cri.manifest-digest"
REMOTE_REFERENCE: Final = "containerd.io/snapshot/remote/stargz.reference"
REMOTE_DIGEST: Final = "containerd.io/snapshot/remote/stargz.digest"
REMOTE_LAYERS: Final = "containerd.io/snapshot/remote/stargz.layers"
"""What ctr-remote and nerdctl write instead of the cri.* labels (stargz-snapshotter, fs/source)."""
