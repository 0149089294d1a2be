"""What the kernel's overlayfs can do here, found by trying it (containerd, overlay/overlayutils)."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from apparate.errors import FailedPrecondition
from apparate.snapshot import syscalls

_PARAMETERS = Path("/sys/module/overlay/parameters")
_WHOLE_ID_RANGE = 4294967295


@dataclass(frozen=True, slots=True)
class Overlay:
    """The options that every overlay mount of this host gets."""

    options: tuple[str, ...] = ()


def detect(root: Path) -> Overlay:
    """Return how to mount overlays whose directories lie below *root*.

    Raises:
        FailedPrecondition: overlays do not work there; one line that says why.
    """
    try:
        probe = Path(tempfile.mkdtemp(prefix="probe-", dir=root))
    except OSError as error:
        raise FailedPrecondition(f"root {root} cannot be written: {error.strerror}") from error
    try:
        in_user_namespace = _in_user_namespace()
        # The module's parameters exist once it is loaded, which the first mount does.
        _try_overlay(root, probe, ("userxattr",) if in_user_namespace else ())
        return Overlay(_options(_PARAMETERS, in_user_namespace=in_user_namespace))
    finally:
        shutil.rmtree(probe)


def _options(parameters: Path, *, in_user_namespace: bool) -> tuple[str, ...]:
    options = []
    if (parameters / "index").exists():
        # Uppers are mounted again and lowers are replaced over their life; an index would refuse both.
        options.append("index=off")
    if in_user_namespace:
        options.append("userxattr")
    elif _is_on(parameters / "metacopy"):
        # With metacopy the upper directory of a committed layer would hold files without data.
        options.append("metacopy=off")
    return tuple(options)


def _is_on(parameter: Path) -> bool:
    try:
        return parameter.read_text().strip() == "Y"
    except FileNotFoundError:
        return False


def _in_user_namespace() -> bool:
    ranges = [line.split() for line in Path("/proc/self/uid_map").read_text().splitlines()]
    return [[int(number) for number in line] for line in ranges] != [[0, 0, _WHOLE_ID_RANGE]]


def _try_overlay(root: Path, probe: Path, options: tuple[str, ...]) -> None:
    lower, upper, work, merged = (probe / name for name in ("lower", "upper", "work", "merged"))
    for directory in (lower, upper, work, merged):
        directory.mkdir()
    (lower / "file").touch()
    joined = ",".join((*options, f"lowerdir={lower}", f"upperdir={upper}", f"workdir={work}"))
    try:
        syscalls.mount("overlay", merged, "overlay", joined)
    except OSError as error:
        raise FailedPrecondition(
            f"overlayfs cannot be mounted below {root}: {error.strerror}; it needs root (CAP_SYS_ADMIN), the kernel's "
            "overlay module, and a root on a local disk"
        ) from error
    try:
        (merged / "file").unlink()
        if os.listdir(merged):
            raise FailedPrecondition(
                f"root {root} is on a file system without d_type; deleted files would show up again: "
                "use ext4, or xfs made with ftype=1"
            )
    finally:
        syscalls.unmount(merged)
