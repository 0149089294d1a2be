"""Layers of a root looked at from outside, whether a loader runs on it or not: what `apparate fsck` walks through.

The bitmap on disk is always true (docs/layer-store.md), so what it shows can be checked while a loader fills more. Data that a
loader drops in that moment would look wrong; a suspicious member is therefore looked up in the bitmap again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from apparate.errors import FormatError, InvalidArgument, NotFound, Unavailable
from apparate.layer.bitmap import Bitmap, load
from apparate.layer.opening import open_index
from apparate.layer.root import LAYERS_NAME
from apparate.layer.store import IMAGE_NAME, PRESENT_NAME
from apparate.layer.verify import VerifyReport, verify_image
from apparate.oci.digest import Digest


def layers_on_disk(root: Path) -> Iterator[tuple[Digest, Path]]:
    """Yield the layers below the store's *root*, each with its directory, ordered by digest.

    Raises:
        NotFound: there is no such store.
        Unavailable: it cannot be read.
    """
    folder = root / LAYERS_NAME
    try:
        paths = sorted(folder.iterdir())
    except FileNotFoundError as error:
        raise NotFound(f"{folder} does not exist: no loader has run here with this root; see layers.root") from error
    except OSError as error:
        raise Unavailable(f"{folder}: {error.strerror}") from error
    for path in paths:
        try:
            digest = Digest("sha256", path.name)
        except InvalidArgument:  # not the directory of a layer: nothing of ours to judge
            continue
        yield digest, path


def check_layer(directory: Path, progress: Callable[[int], None] = lambda _: None) -> VerifyReport:
    """Return what is wrong with the layer in *directory*; *progress* gets the bytes read so far.

    A damaged index is a problem in the report: nothing below it can be judged.

    Raises:
        Unavailable: the files cannot be read.
    """
    try:
        return _check(directory, progress)
    except FormatError as error:
        report = VerifyReport()
        report.add("index", 0, 0, str(error))
        return report
    except OSError as error:
        raise Unavailable(f"{directory}: {error.strerror}") from error


def _check(directory: Path, progress: Callable[[int], None]) -> VerifyReport:
    index, identity = open_index(directory)
    if not (directory / IMAGE_NAME).exists():
        report = VerifyReport()
        report.members_missing = index.member_count
        return report
    descriptor = os.open(directory / IMAGE_NAME, os.O_RDONLY | os.O_CLOEXEC)
    try:
        inode = os.fstat(descriptor).st_ino

        def bitmap() -> Bitmap:
            try:
                content = (directory / PRESENT_NAME).read_bytes()
            except FileNotFoundError:
                content = b""
            return load(content, index.member_count, inode, identity) or Bitmap(index.member_count)

        first = bitmap()
        report = verify_image(descriptor, index, present=lambda number: number in first, progress=progress)
        if report.is_sound:
            return report
        second = bitmap()
        return verify_image(descriptor, index, present=lambda number: number in first and number in second)
    finally:
        os.close(descriptor)
