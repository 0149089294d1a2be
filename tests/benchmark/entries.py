"""An image with one layer of very many entries, to see what making such a layer mountable costs."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from tests.benchmark.recipes import write
from tests.support.busybox import APPLETS

ENTRIES = 60_000
_DIRECTORIES = 600
_CONTENT = b"%d %d: a file of about the size that a small module or a license has in a tree of packages\n"


def entry_layers(scratch: Path) -> Sequence[Path]:
    """A shell, then a layer of `ENTRIES` entries."""
    shell, tree = scratch / "shell", scratch / "tree"
    found = shutil.which("busybox")
    if found is None:
        raise AssertionError("busybox-static is not installed")
    write(shell / "bin/busybox", Path(found).read_bytes())
    (shell / "bin/busybox").chmod(0o755)
    for applet in APPLETS:
        (shell / "bin" / applet).symlink_to("busybox")
    files = ENTRIES // _DIRECTORIES - 1
    for directory in range(_DIRECTORIES):
        for number in range(files):
            write(tree / f"tree/{directory}/{number}", _CONTENT % (directory, number))
    return shell, tree
