"""Small images that run: a static busybox from the machine, and the sandbox image that keeps a pod alive."""

from __future__ import annotations

import json
import shutil
import tarfile
import tempfile
from pathlib import Path

from tests.support.images import Image, build_image, write_layout
from tests.support.tarball import Node, file, symlink

APPLETS = (
    "cat", "chmod", "date", "dd", "echo", "env", "false", "find", "grep", "head", "id", "ln", "ls", "md5sum", "mkdir",
    "mv", "rm", "rmdir", "seq", "sh", "sha256sum", "sleep", "sort", "stat", "tail", "tar", "test", "touch", "tr",
    "true", "wc", "xargs",
)  # fmt: skip
Entries = dict[str, Node | bytes | None]


def busybox_entries() -> Entries:
    """The entries of a layer with /bin/busybox and links to it."""
    found = shutil.which("busybox")
    if found is None:
        raise AssertionError("busybox-static is not installed")
    program = Path(found).read_bytes()
    entries: Entries = {"bin/": None, "bin/busybox": file(program, mode=0o755), "etc/": None, "tmp/": None}
    entries["etc/passwd"] = b"root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n"
    for applet in APPLETS:
        entries[f"bin/{applet}"] = symlink("busybox")
    return entries


def pause_image() -> Image:
    """The sandbox image: it sleeps until it is killed."""
    found = shutil.which("busybox")
    if found is None:
        raise AssertionError("busybox-static is not installed")
    entries: Entries = {"bin/": None, "bin/busybox": file(Path(found).read_bytes(), mode=0o755)}
    return build_image([entries], config={"Entrypoint": ["/bin/busybox", "sleep", "2000000000"]})


def write_archive(path: Path, image: Image, name: str) -> Path:
    """Write *image* as an archive that `ctr images import` stores as *name*."""
    with tempfile.TemporaryDirectory(prefix="apparate-archive-") as scratch:
        layout = write_layout(Path(scratch), image)
        index = json.loads((layout / "index.json").read_text())
        index["manifests"][0]["annotations"] = {"io.containerd.image.name": name}
        (layout / "index.json").write_text(json.dumps(index))
        with tarfile.open(path, "w") as archive:
            for each in sorted(layout.iterdir()):
                archive.add(each, each.name)
    return path
