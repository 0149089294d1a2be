"""Our settings in containerd's configuration: which keys, in which file, by the version of the daemon and of the file.

containerd 1.x replaces a whole plugin table when a drop-in names it, so a drop-in that selects a snapshotter would wipe the site's
registry, CNI and runtimes: its main file is edited. containerd 2.x merges deeply, so where its main file already imports a directory of
drop-ins, ours goes there and the site's file stays untouched. Each way is tried on copies with the node's own `containerd config dump`,
and the first that has the intended effect is taken; a way that this containerd does not understand can therefore do no harm.
"""

from __future__ import annotations

import fnmatch
import functools
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import tomlkit
from tomlkit.exceptions import TOMLKitError

from apparate.errors import ApparateError, FailedPrecondition, InvalidArgument
from apparate.node import toml_edit
from apparate.node.effective import CRI_1, CRI_IMAGES, Effective
from apparate.node.program import Program, Version
from apparate.node.program import text as program_text
from apparate.node.settings import DROP_IN, NAME, NodeSettings
from apparate.node.toml_edit import Edit, Value

DEEP_MERGE: Final = (2, 0, 0)
"""From here on a drop-in adds to a plugin's table instead of replacing it."""
LOCAL_PULL_FLAG: Final = (2, 1, 0)
"""From here on CRI pulls by the transfer service unless it is told otherwise."""
CONFIG_VERSION_1X: Final = 2
CONFIG_VERSION_2X: Final = 3
"""The newest that every 2.x reads."""

Wanted = Sequence[tuple[toml_edit.Path, Value | tuple[str, ...]]]
Files = Mapping[Path, bytes | None]
"""Content by path; None: the file does not exist."""


@dataclass(frozen=True, slots=True)
class FileChange:
    """What becomes of one file: None on either side means that it does not exist."""

    path: Path
    before: bytes | None
    after: bytes | None
    edits: tuple[Edit, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """What has to be written, and what is in force then."""

    change: FileChange | None
    effective: Effective


class ConfigPlanner:
    """Plans for one containerd program and one main file."""

    def __init__(self, program: Program, settings: NodeSettings) -> None:
        self._program = program
        self._settings = settings

    @functools.cached_property
    def _version(self) -> Version:
        return self._program.supported_version()

    def effective(self, files: Files) -> Effective:
        """Return what is in force with *files* in place of what is on disk; *files* has the main file.

        Raises:
            InvalidArgument: containerd refuses it.
        """
        main = files[self._settings.config]
        if main is None:
            return Effective.of(self._program.defaults())
        with tempfile.TemporaryDirectory(prefix="apparate-trial-") as scratch:
            trial = self._trial(Path(scratch), main, files)
            dump = self._program.dump(trial, self._settings.config)
        where = str(self._settings.config)
        return Effective.of(dump, toml_edit.parse(toml_edit.decode(main, where), where))

    def in_force(self) -> Effective:
        """Return what is in force with the files on disk, as the daemon reads them. Raises InvalidArgument: it refuses them."""
        path = self._settings.config
        return Effective.of(self._program.dump(path) if path.exists() else self._program.defaults())

    def plan(self, files: Files) -> Plan:
        """Return how our settings come into force, starting from *files*.

        Raises:
            FailedPrecondition: no way has the intended effect; the message says what stands against it.
            InvalidArgument: containerd refuses the files as they are.
        """
        now = self.effective(files)
        if not _missing(now, self._settings):
            return Plan(None, now)
        obstacles = []
        for change in self._ways(files):
            try:
                then = self.effective({**files, change.path: change.after})
            except ApparateError as error:
                obstacles.append(f"{change.path}: {error}")
                continue
            missing = _missing(then, self._settings)
            if not missing:
                return Plan(change, then)
            obstacles.append(f"{change.path}: {missing}")
        raise FailedPrecondition(
            f"our settings do not come into force ({'; '.join(obstacles)}); find the imported file that sets something else "
            "and take it out there"
        )

    def drop_in(self, main: bytes | None) -> Path | None:
        """Return where our drop-in belongs, None where the main file has to be edited."""
        if main is None or self._version < DEEP_MERGE:
            return None
        path = self._settings.config
        imports = toml_edit.parse(toml_edit.decode(main, str(path)), str(path)).get("imports") or ()
        directory = _drop_in_directory(imports, path)
        return None if directory is None else directory / DROP_IN

    def _ways(self, files: Files) -> Iterator[FileChange]:
        main = self._settings.config
        body = files[main]
        drop_in = self.drop_in(body)
        if drop_in is not None:
            yield self._change(drop_in, files.get(drop_in), CONFIG_VERSION_2X)
        fresh = CONFIG_VERSION_2X if self._version >= DEEP_MERGE else CONFIG_VERSION_1X
        yield self._change(main, body, fresh)

    def _change(self, path: Path, before: bytes | None, fresh_version: int) -> FileChange:
        text = toml_edit.decode(before or b"", str(path))
        declared = toml_edit.parse(text, str(path)).get("version", 0)
        if declared > CONFIG_VERSION_1X and self._version < DEEP_MERGE:
            raise InvalidArgument(
                f"{path} has configuration version {declared}, which containerd {program_text(self._version)} does not read: "
                "write the file for the version that is installed, or upgrade containerd"
            )
        wanted: list[tuple[toml_edit.Path, Value | tuple[str, ...]]] = []
        if before is None:
            declared = fresh_version
            wanted.append((("version",), fresh_version))
        wanted += _wanted(self._settings, self._version, declared)
        after, edits = toml_edit.apply(text, wanted, str(path))
        return FileChange(path, before, after.encode(), edits)

    def _trial(self, scratch: Path, main: bytes, files: Files) -> Path:
        """Write a copy of the main file that imports copies of *files*; return its path."""
        source = self._settings.config
        trial = scratch / source.name
        try:
            document: Any = tomlkit.parse(main.decode())
        except (TOMLKitError, UnicodeDecodeError):
            trial.write_bytes(main)  # containerd says it better
            return trial
        imports = document.get("imports")
        if imports:
            copies = {path: scratch / f"{number}-{path.name}" for number, path in enumerate(files) if path != source}
            for path, copy in copies.items():
                body = files[path]
                if body is not None:
                    copy.write_bytes(body)
            document["imports"] = _resolved(imports, source, self._version, files, copies)
        trial.write_bytes(tomlkit.dumps(document).encode())
        return trial


def _wanted(settings: NodeSettings, version: Version, declared: int) -> Wanted:
    """Return our settings for a file whose `version` is *declared*, read by containerd *version*."""
    proxy = ("proxy_plugins", NAME)
    wanted: list[tuple[toml_edit.Path, Value | tuple[str, ...]]] = []
    selection: tuple[tuple[str, Value], ...] = (
        ("snapshotter", NAME),
        ("disable_snapshot_annotations", False),
        ("discard_unpacked_layers", False),
    )
    if declared < CONFIG_VERSION_2X:
        cri = CRI_1 if declared == CONFIG_VERSION_1X else "cri"
        wanted += [(("plugins", cri, "containerd", key), value) for key, value in selection]
    if version >= DEEP_MERGE:
        # An older file gets both: whether containerd carries the old keys over depends on what else stands there.
        wanted += [(("plugins", CRI_IMAGES, key), value) for key, value in selection]
        if version >= LOCAL_PULL_FLAG:
            wanted.append((("plugins", CRI_IMAGES, "use_local_image_pull"), True))
    wanted += [
        ((*proxy, "type"), "snapshot"),
        ((*proxy, "address"), str(settings.socket)),
        ((*proxy, "exports", "root"), str(settings.root)),
        ((*proxy, "exports", "enable_remote_snapshot_annotations"), "true"),
    ]
    return wanted


def _missing(effective: Effective, settings: NodeSettings) -> str:
    """Return what of our settings is not in force, in a few words; nothing if all is."""
    proxy = effective.proxies.get(NAME)
    if proxy is None or proxy.address != str(settings.socket) or proxy.type != "snapshot":
        return f"proxy plugin {NAME} is not at {settings.socket}"
    if effective.snapshotter != NAME:
        return f"the default snapshotter is {effective.snapshotter}"
    if not effective.annotations:
        return "snapshot annotations are disabled"
    if effective.discards_layers:
        return "unpacked layers are discarded"
    return ""


def _drop_in_directory(imports: Sequence[str], main: Path) -> Path | None:
    """Return the directory whose files named *.toml the main file imports."""
    for pattern in imports:
        path = Path(os.path.normpath(main.parent / pattern))
        if path != main and fnmatch.fnmatch(DROP_IN, path.name) and not any(sign in str(path.parent) for sign in "*?["):
            return path.parent
    return None


def _resolved(
    imports: Sequence[str], main: Path, version: Version, files: Files, copies: Mapping[Path, Path]
) -> list[str]:
    """Return *imports* as absolute paths without patterns, in containerd's order, with *copies* in place of the originals."""
    found: list[str] = []
    for pattern in imports:
        # containerd up to 1.6 takes a relative pattern from its working directory, which is / under a service manager.
        is_pattern = any(sign in pattern for sign in "*?[")
        start = Path("/") if is_pattern and version < (1, 7, 0) else main.parent
        path = Path(os.path.normpath(start / pattern))
        if not is_pattern:
            found.append(str(copies.get(path, path)))
            continue
        here = {match for match in path.parent.glob(path.name) if match not in copies}
        here |= {given for given in copies if given.match(str(path)) and files[given] is not None}
        found += [str(copies.get(match, match)) for match in sorted(here)]
    return found
