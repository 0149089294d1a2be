"""The durable list of snapshots, and its copy in memory.

SQLite in WAL mode with synchronous=FULL: what a method returned is on disk. All reads come from memory:
containerd asks for every snapshot every ten seconds, and it calls Commit and Update inside a write
transaction of its own. One lock orders the writers, another guards the copy, and readers never wait for
a disk. Only one process can have a store open; others ask it for its records (`rows`).
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from apparate.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Unavailable
from apparate.oci.digest import Digest
from apparate.oci.names import TARGET_SNAPSHOT
from apparate.snapshot.labels import without_empty
from apparate.snapshot.model import Info, Kind, Record, SnapshotId
from apparate.snapshot.remote import Usage
from apparate.snapshot.rows import COLUMNS, SCHEMA_VERSION, read_rows, row_of
from apparate.telemetry.logging import get_logger

_log = get_logger("snapshot.metastore")

RESERVE_BYTES = 1 << 20
"""Given up for a removal on a full disk, taken again as soon as there is space."""
METADATA_NAME = "snapshots.db"
"""The store's file below a snapshotter's root."""
_SCHEMA = """
CREATE TABLE snapshots (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,       -- never reused: it names a directory
    name       TEXT    NOT NULL UNIQUE,                 -- key (active, view) or name (committed)
    parent_id  INTEGER REFERENCES snapshots (id),
    kind       TEXT    NOT NULL CHECK (kind IN ('view', 'active', 'committed')),
    origin     TEXT    NOT NULL CHECK (origin IN ('ordinary', 'unpacked', 'lazy')),
    layer      TEXT    CHECK ((layer IS NOT NULL) = (origin = 'lazy')),
    reason     TEXT    NOT NULL DEFAULT '',
    created_ns INTEGER NOT NULL,
    updated_ns INTEGER NOT NULL,
    labels     TEXT    NOT NULL,                        -- JSON object
    size       INTEGER,                                 -- bytes and inodes of a committed directory,
    inodes     INTEGER                                  -- NULL until measured
);
CREATE INDEX snapshots_parent ON snapshots (parent_id);
"""
_INSERT = f"INSERT INTO snapshots ({COLUMNS}) VALUES ({', '.join('?' * 12)})"  # noqa: S608 - constants only
_UPDATE = f"UPDATE snapshots SET ({COLUMNS}) = ({', '.join('?' * 12)}) WHERE id = ?"  # noqa: S608 - constants only


class Metastore:
    """The snapshots of one root. Thread-safe."""

    def __init__(self, path: Path) -> None:
        """Open or create the store in the file *path*.

        Raises:
            FailedPrecondition: the file is damaged or was written by a newer version.
        """
        self._path = path
        self._reserve = path.with_suffix(".reserve")
        self._write_lock = threading.Lock()
        self._mirror_lock = threading.Lock()
        self._by_name: dict[str, Record] = {}
        self._by_id: dict[SnapshotId, Record] = {}
        self._children: dict[SnapshotId, int] = {}
        try:
            self._db = self._open()
            self._load()
        except sqlite3.DatabaseError as error:
            raise FailedPrecondition(
                f"the metadata of snapshots in {path} cannot be read: {error}; restore it, or remove it together "
                "with every image of this snapshotter (docs/snapshots.md, 'When the metadata are lost')"
            ) from error
        self._keep_reserve()

    def _open(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, check_same_thread=False, isolation_level=None)
        # Exclusive before WAL: then no shared memory is mapped, whose pages a full disk could not give (SIGBUS).
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA foreign_keys = ON")
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
        elif version != SCHEMA_VERSION:
            db.close()
            raise FailedPrecondition(
                f"{self._path} has version {version} of the schema, this program knows {SCHEMA_VERSION}; "
                "start the version that wrote it, or a newer one"
            )
        return db

    def _load(self) -> None:
        for record in read_rows(self._db):
            self._mirror(record)
        sequence = self._db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'snapshots'").fetchone()
        self._last_id = sequence[0] if sequence else 0

    def _keep_reserve(self) -> None:
        """Hold some disk space, so that a full disk does not keep containerd from removing what fills it."""
        try:
            with self._reserve.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, RESERVE_BYTES)
        except OSError as error:
            self._reserve.unlink(missing_ok=True)
            _log.warning("no disk space can be reserved for removals", path=str(self._reserve), error=error.strerror)

    def close(self) -> None:
        """Close the file; the log is folded into it."""
        with self._write_lock:
            self._db.close()

    def skip_ids(self, highest: int) -> None:
        """Give no id up to *highest* to a new snapshot."""
        with self._mirror_lock:
            self._last_id = max(self._last_id, highest)

    def reserve_id(self) -> SnapshotId:
        """Return an id that no snapshot has had, for a directory made before its record."""
        with self._mirror_lock:
            self._last_id += 1
            return SnapshotId(self._last_id)

    # Reading

    def get(self, name: str) -> Record:
        """Return the snapshot *name*.

        Raises:
            NotFound: there is none.
        """
        with self._mirror_lock:
            record = self._by_name.get(name)
        if record is None:
            raise NotFound(f"snapshot {name!r} does not exist")
        return record

    def find(self, name: str) -> Record | None:
        """Return the snapshot *name*, or None."""
        with self._mirror_lock:
            return self._by_name.get(name)

    def records(self) -> list[Record]:
        """Return all snapshots as they are now."""
        with self._mirror_lock:
            return list(self._by_id.values())

    def ids(self) -> set[SnapshotId]:
        """Return the ids of all snapshots."""
        with self._mirror_lock:
            return set(self._by_id)

    def chain(self, record: Record) -> list[Record]:
        """Return *record* and its ancestors, nearest first; without those removed since the record was read."""
        with self._mirror_lock:
            chain = [record]
            next_id = record.parent_id
            while next_id is not None and next_id in self._by_id:
                chain.append(self._by_id[next_id])
                next_id = chain[-1].parent_id
            return chain

    def find_target(self, target: str, parent: str) -> Record | None:
        """Return the committed snapshot of the chain id *target* on *parent*, as containerd will look it up."""
        for record in self.records():
            info = record.info
            if info.kind is Kind.COMMITTED and info.parent == parent and info.labels.get(TARGET_SNAPSHOT) == target:
                return record
        return None

    def layers(self) -> set[Digest]:
        """Return the layers that any snapshot refers to."""
        return {record.layer for record in self.records() if record.layer is not None}

    def layers_in_use(self) -> set[Digest]:
        """Return the layers below any active snapshot or view: they may be mounted by a container."""
        used: set[Digest] = set()
        with self._mirror_lock:
            seen: set[SnapshotId] = set()
            for record in self._by_id.values():
                if record.info.kind is Kind.COMMITTED:
                    continue
                next_id = record.parent_id
                while next_id is not None and next_id not in seen:
                    seen.add(next_id)
                    ancestor = self._by_id[next_id]
                    if ancestor.layer is not None:
                        used.add(ancestor.layer)
                    next_id = ancestor.parent_id
        return used

    # Writing. Each method is one durable transaction.

    def create(self, record: Record) -> Record:
        """Add *record*, whose id was reserved; `parent_id` is filled in from `info.parent`.

        Raises:
            AlreadyExists: the name is in use.
            NotFound: the parent does not exist.
            InvalidArgument: the parent is not committed.
        """
        with self._write_lock:
            info = record.info
            if not info.name:
                raise InvalidArgument("a snapshot needs a key")
            if self.find(info.name) is not None:
                raise AlreadyExists(f"snapshot {info.name!r} exists")
            parent_id = self.require_parent(info.parent)
            labelled = replace(info, labels=without_empty(info.labels))
            record = replace(record, info=labelled, parent_id=parent_id)
            with self._transaction():
                self._db.execute(_INSERT, row_of(record))
            self._mirror(record)
            return record

    def require_parent(self, name: str) -> SnapshotId | None:
        """Return the id of the committed snapshot *name*, None for "".

        Raises:
            NotFound: it does not exist.
            InvalidArgument: it is not committed.
        """
        if not name:
            return None
        parent = self.find(name)
        if parent is None:
            raise NotFound(f"parent snapshot {name!r} does not exist")
        if parent.info.kind is not Kind.COMMITTED:
            raise InvalidArgument(f"parent snapshot {name!r} is not committed")
        return parent.id

    def commit(self, key: str, name: str, labels: Mapping[str, str], parent: str, now_ns: int) -> Record:
        """Turn the active snapshot *key* into the committed *name*; its labels become *labels*.

        *parent*, if given, is the parent the result must have; an active snapshot without one gets it.

        Raises:
            NotFound: no snapshot *key*.
            FailedPrecondition: it is not active, or *parent* is not committed.
            AlreadyExists: *name* is in use.
            InvalidArgument: the snapshot has another parent than *parent*.
        """
        with self._write_lock:
            active = self.get(key)
            if active.info.kind is not Kind.ACTIVE:
                raise FailedPrecondition(f"snapshot {key!r} is not active")
            if not name:
                raise InvalidArgument("a committed snapshot needs a name")
            if self.find(name) is not None:
                raise AlreadyExists(f"snapshot {name!r} exists")
            parent_id, parent_name = self._commit_parent(active, parent)
            info = Info(name, parent_name, Kind.COMMITTED, now_ns, now_ns, without_empty(labels))
            committed = replace(active, info=info, parent_id=parent_id)
            self._replace(active, committed)
            return committed

    def _commit_parent(self, active: Record, parent: str) -> tuple[SnapshotId | None, str]:
        if not parent or parent == active.info.parent:
            return active.parent_id, active.info.parent
        if active.info.parent:
            raise InvalidArgument(
                f"snapshot {active.info.name!r} has the parent {active.info.parent!r}, not {parent!r}"
            )
        try:
            return self.require_parent(parent), parent
        except InvalidArgument as error:
            raise FailedPrecondition(str(error)) from error

    def remove(self, name: str) -> Record:
        """Remove the snapshot *name* and return what it was.

        Raises:
            NotFound: no such snapshot.
            FailedPrecondition: it has children.
        """
        with self._write_lock:
            record = self.get(name)
            if self._children.get(record.id):
                raise FailedPrecondition(f"cannot remove snapshot {name!r}: it has children")
            try:
                self._delete(record)
            except Unavailable:
                if not self._reserve.exists():
                    raise
                self._reserve.unlink()
                self._delete(record)
            if not self._reserve.exists():
                self._keep_reserve()
            self._mirror(None, replaced=record)
            return record

    def _delete(self, record: Record) -> None:
        with self._transaction():
            self._db.execute("DELETE FROM snapshots WHERE id = ?", (record.id,))

    def update_labels(self, name: str, change: Callable[[Mapping[str, str]], Mapping[str, str]], now_ns: int) -> Record:
        """Give the snapshot *name* the labels that *change* makes of its present ones.

        Raises:
            NotFound: no such snapshot.
        """
        with self._write_lock:
            record = self.get(name)
            labels = without_empty(change(record.info.labels))
            updated = replace(record, info=replace(record.info, labels=labels, updated_ns=now_ns))
            self._replace(record, updated)
            return updated

    def set_usage(self, snapshot_id: SnapshotId, usage: Usage) -> None:
        """Remember what a committed directory occupies; nothing if the snapshot is gone by now."""
        with self._write_lock:
            with self._mirror_lock:
                record = self._by_id.get(snapshot_id)
            if record is not None and record.info.kind is Kind.COMMITTED:
                self._replace(record, replace(record, usage=usage))

    def _replace(self, old: Record, new: Record) -> None:
        with self._transaction():
            self._db.execute(_UPDATE, (*row_of(new), new.id))
        self._mirror(new, replaced=old)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise Unavailable(f"the metadata of snapshots cannot be written to {self._path}: {error}") from error

    def _mirror(self, record: Record | None, replaced: Record | None = None) -> None:
        """Put *record* into the copy in the place of *replaced*; no reader sees the moment between."""
        with self._mirror_lock:
            if replaced is not None:
                del self._by_name[replaced.info.name]
                if record is None:
                    del self._by_id[replaced.id]
                if replaced.parent_id is not None:
                    self._children[replaced.parent_id] -= 1
            if record is not None:
                self._by_name[record.info.name] = record
                self._by_id[record.id] = record
                if record.parent_id is not None:
                    self._children[record.parent_id] = self._children.get(record.parent_id, 0) + 1
