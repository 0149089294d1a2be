"""What we have changed on a node, written before it is changed, so that any later run can take exactly that back.

    <state_dir>/node.json         this module's record, 0600
    <state_dir>/before            the file as it was, byte for byte; absent if there was none
    <state_dir>/last-error.json   why the last run failed
    <state_dir>/lock              one run at a time (`lock`)

The record outlives packages: another version of the program reads it. Its schema has a number, and an unknown one is refused.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from apparate.errors import FailedPrecondition
from apparate.node import files, toml_edit
from apparate.node.containerd_config import FileChange
from apparate.node.toml_edit import Edit

SCHEMA_VERSION: Final = 1
_RECORD: Final = "node.json"
_BEFORE: Final = "before"
_ERROR: Final = "last-error.json"
_PRIVATE: Final = 0o600


class Phase(enum.Enum):
    """How far a change has come."""

    CHANGING = "changing"
    """Begun: the file may be the old or the new one, containerd may run with either. The next run takes it back."""
    APPLIED = "applied"
    RETURNING = "returning"
    """Begun: the former default comes back, the plugin stays. The next `restore` goes on, `configure` turns round."""
    LEAVING = "leaving"
    """The former default is back; the proxy plugin stays for containers that still stand on it."""


@dataclass(frozen=True, slots=True)
class State:
    """One configured file.

    Attributes:
        path: the file.
        edits: what we set in it.
        existed: whether there was a file before.
        before: SHA-256 of the file as it was.
        after: SHA-256 of what we wrote.
        former: the default snapshotter that we replaced.
        apparate_version: who wrote this.
    """

    phase: Phase
    path: Path
    edits: tuple[Edit, ...]
    existed: bool
    before: str
    after: str
    former: str
    apparate_version: str

    @classmethod
    def of(cls, change: FileChange, former: str, version: str, phase: Phase = Phase.CHANGING) -> State:
        """Return the record of *change*."""
        return cls(
            phase=phase,
            path=change.path,
            edits=change.edits,
            existed=change.before is not None,
            before=files.digest(change.before),
            after=files.digest(change.after),
            former=former,
            apparate_version=version,
        )


@dataclass(frozen=True, slots=True)
class GivenBack:
    """A file without what we set. *left* are settings of ours that somebody has changed since, which stay as they are."""

    path: Path
    now: bytes | None
    body: bytes | None
    left: tuple[Edit, ...] = ()


class StateStore:
    """The records of one node."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def load(self) -> State | None:
        """Return the record, None on a node that we have not changed.

        Raises:
            FailedPrecondition: it cannot be read.
        """
        path = self._directory / _RECORD
        body = files.read(path)
        if body is None:
            return None
        try:
            return _from_json(json.loads(body))
        except (ValueError, KeyError, TypeError) as error:
            raise FailedPrecondition(
                f"{path} cannot be used ({error!r}): use the version of apparate that wrote it, or take our settings out of "
                "containerd's configuration by hand and delete this file"
            ) from error

    def save(self, state: State) -> None:
        """Replace the record. Raises Unavailable: the disk does not take it."""
        body = json.dumps(_to_json(state), indent=1).encode()
        files.replace(self._directory / _RECORD, body, mode=_PRIVATE)

    def begin(self, change: FileChange, state: State) -> None:
        """Keep the file as it was, then the record: from here on any run can take the change back."""
        files.replace(self._directory / _BEFORE, change.before, mode=_PRIVATE)
        self.save(state)

    def note_error(self, message: str) -> None:
        """Keep why a run failed, for `status`, until one succeeds."""
        body = json.dumps({"message": message, "wall_s": int(time.time())}).encode()
        files.replace(self._directory / _ERROR, body, mode=_PRIVATE)

    def clear_error(self) -> None:
        """A run has succeeded."""
        files.replace(self._directory / _ERROR, None)

    def last_error(self) -> str:
        """Return why the last run failed; empty if it did not."""
        body = files.read(self._directory / _ERROR)
        try:
            return str(json.loads(body)["message"]) if body else ""
        except (ValueError, KeyError, TypeError):
            return f"{self._directory / _ERROR} cannot be read"

    def give_back(self, state: State) -> GivenBack:
        """Return the configured file as it is without us.

        The very bytes that were there if nobody has edited the file since, else its text without our settings.

        Raises:
            InvalidArgument: the file is no TOML now.
            FailedPrecondition: our copy of the old file is gone and nobody can tell what was there.
        """
        now = files.read(state.path)
        found = files.digest(now)
        if found == state.before:
            return GivenBack(state.path, now, now)
        if found == state.after:
            old = files.read(self._directory / _BEFORE) if state.existed else None
            if files.digest(old) == state.before:
                return GivenBack(state.path, now, old)
        if now is None:
            return GivenBack(state.path, None, None)
        text, left = toml_edit.revert(toml_edit.decode(now, str(state.path)), state.edits, str(state.path))
        if not state.existed and not text.strip():
            return GivenBack(state.path, now, None, left)
        return GivenBack(state.path, now, text.encode(), left)

    def forget(self) -> None:
        """Remove the records: nothing of ours is left in the configuration."""
        for name in (_RECORD, _BEFORE, _ERROR):
            files.replace(self._directory / name, None)


def _to_json(state: State) -> dict[str, Any]:
    value = dataclasses.asdict(state)
    return {**value, "schema": SCHEMA_VERSION, "phase": state.phase.value, "path": str(state.path)}


def _from_json(value: dict[str, Any]) -> State:
    if value.pop("schema") != SCHEMA_VERSION:
        raise ValueError("unknown schema")
    edits = tuple(
        Edit(
            path=tuple(edit["path"]),
            value=tuple(edit["value"]) if isinstance(edit["value"], list) else edit["value"],
            before=edit["before"],
            created=tuple(tuple(path) for path in edit["created"]),
        )
        for edit in value.pop("edits")
    )
    return State(phase=Phase(value.pop("phase")), path=Path(value.pop("path")), edits=edits, **value)
