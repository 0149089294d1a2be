"""What is durable about layers besides their files: number, references, sizes, and who has them mounted.

SQLite in WAL mode with full syncing: what a method has written survives any crash once it returns. Tables are small (one row
a layer), transactions short, and none is held across network or disk work of others. On a full disk a ballast file gives way,
so that a layer that is here can still be mounted.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from apparate.errors import FailedPrecondition, NotFound, Unavailable
from apparate.layer.model import IndexSource, LayerId, LayerInfo
from apparate.oci.digest import Digest

_SCHEMA_VERSION: Final = 1
_REFERENCES_MAX: Final = 8
"""References kept for a layer, newest first: enough to survive a deleted repository, not a history."""
_BUSY_TIMEOUT_S: Final = 10.0
_BALLAST_BYTES: Final = 1024 * 1024
_PRIMARY_CODE: Final = 0xFF
"""SQLite's extended result codes hold the primary one in their last byte."""
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")

# AUTOINCREMENT: a number is never used again, for inode numbers of the FUSE file system derive from it.
_SCHEMA: Final = """
CREATE TABLE layers (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    digest TEXT NOT NULL UNIQUE,
    image_size INTEGER NOT NULL,
    blob_size INTEGER NOT NULL,
    index_source TEXT NOT NULL,
    promise TEXT NOT NULL,                          -- what the index was verified against
    complete INTEGER NOT NULL DEFAULT 0,
    fetched_bytes INTEGER NOT NULL DEFAULT 0,
    used_wall_s REAL NOT NULL
) STRICT;
CREATE TABLE layer_references (
    layer INTEGER NOT NULL REFERENCES layers (id) ON DELETE CASCADE,
    reference TEXT NOT NULL,
    used INTEGER NOT NULL,
    PRIMARY KEY (layer, reference)
) STRICT;
CREATE TABLE pins (
    layer INTEGER NOT NULL REFERENCES layers (id) ON DELETE CASCADE,
    owner TEXT NOT NULL,
    direct INTEGER NOT NULL,
    boot TEXT NOT NULL,
    PRIMARY KEY (layer, owner)
) STRICT;
"""
# Beside the versioned tables: an older program passes it over.
_IDENTITY_SCHEMA: Final = "CREATE TABLE identity (value TEXT NOT NULL) STRICT"
_COLUMNS: Final = "id, digest, image_size, blob_size, index_source, complete"

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Pin:
    """Something that has a layer mounted. With *direct* the kernel reads the layer's file itself."""

    owner: str
    direct: bool


class Catalogue:
    """The catalogue below one root. Thread-safe."""

    def __init__(self, path: Path) -> None:
        """Open or make the catalogue; mounts of an earlier boot are forgotten, for none can have survived it.

        Raises:
            FailedPrecondition: the file was written by a newer version, or is no catalogue.
            Unavailable: it cannot be opened.
        """
        self._lock = threading.Lock()
        self._references: dict[Digest, tuple[str, ...]] = {}  # changed under the lock, read without
        self._ballast = path.with_name("ballast")
        try:
            self._boot = _BOOT_ID.read_text().strip()
            self._db = sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S, check_same_thread=False, isolation_level=None)
        except (OSError, sqlite3.Error) as error:
            raise Unavailable(f"catalogue {path} cannot be opened: {error}") from error
        try:
            self._prepare(path)
        except sqlite3.OperationalError as error:
            self._db.close()
            raise Unavailable(f"catalogue {path} cannot be opened: {error}") from error
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise FailedPrecondition(f"catalogue {path} cannot be used: {error}; move it away to start anew") from error
        except FailedPrecondition:
            self._db.close()
            raise
        try:
            self.identity: Final = self._write(_identify)
        except Unavailable:
            self._db.close()
            raise

    def _prepare(self, path: Path) -> None:
        # Exclusive before WAL: then no shared memory is mapped, whose pages a full disk could not give (SIGBUS).
        for pragma in ("locking_mode = EXCLUSIVE", "journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
            self._db.execute(f"PRAGMA {pragma}")
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version > _SCHEMA_VERSION:
            raise FailedPrecondition(
                f"catalogue {path} has version {version}, this program knows {_SCHEMA_VERSION}; upgrade it"
            )
        if version == 0:
            self._db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {_SCHEMA_VERSION}; COMMIT;")

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def tidy(self) -> None:
        """Put the ballast back and forget the pins of earlier boots, as far as the disk has room."""
        if not self._ballast.exists():
            with self._ballast.open("wb") as file:
                try:
                    os.posix_fallocate(file.fileno(), 0, _BALLAST_BYTES)
                except OSError as error:
                    self._ballast.unlink()
                    raise Unavailable(f"no room for {self._ballast}: {error.strerror}") from error
        if self._rows("SELECT 1 FROM pins WHERE boot != ? LIMIT 1", self._boot):
            self._write(lambda db: db.execute("DELETE FROM pins WHERE boot != ?", (self._boot,)))

    def _write_for_boot(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        """As `_write`, for what the next boot makes void: it survives the death of this process, so nothing is synced."""
        with self._lock:
            self._db.execute("PRAGMA synchronous = NORMAL")
            try:
                return self._attempted(work)
            finally:
                self._db.execute("PRAGMA synchronous = FULL")

    def _write(self, work: Callable[[sqlite3.Connection], _T], referring: Digest | None = None) -> _T:
        """Return what *work* returns, done as one transaction; twice if the disk was full and there was ballast.

        *referring* is the layer whose references change.
        """
        with self._lock:
            if referring is not None:
                self._references.pop(referring, None)
            return self._attempted(work)

    def _attempted(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        try:
            return self._transaction(work)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & _PRIMARY_CODE != sqlite3.SQLITE_FULL or not self._ballast.exists():
                raise Unavailable(f"catalogue of layers cannot be written: {error}") from error
        except sqlite3.Error as error:
            raise Unavailable(f"catalogue of layers cannot be written: {error}") from error
        self._ballast.unlink()
        try:
            return self._transaction(work)
        except sqlite3.Error as error:
            raise Unavailable(f"catalogue of layers cannot be written: {error}") from error

    def _transaction(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            result = work(self._db)
            self._db.execute("COMMIT")
        finally:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
        return result

    def _rows(self, query: str, *values: str | int) -> list[tuple[object, ...]]:
        with self._lock:
            return self._read(query, *values)

    def _read(self, query: str, *values: str | int) -> list[tuple[object, ...]]:
        try:
            return self._db.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise Unavailable(f"catalogue of layers cannot be read: {error}") from error

    # --- layers ---

    def add(
        self,
        digest: Digest,
        reference: str,
        image_size: int,
        blob_size: int,
        source: IndexSource,
        promise: str,
        fetched_bytes: int = 0,
    ) -> LayerInfo:
        """Make a layer known, or renew what is known of it; its number stays. It counts as incomplete.

        *fetched_bytes* were received to learn this; they are added to those of before.
        """

        def work(db: sqlite3.Connection) -> None:
            db.execute(
                "INSERT INTO layers (digest, image_size, blob_size, index_source, promise, fetched_bytes, used_wall_s)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)"
                " ON CONFLICT (digest) DO UPDATE SET image_size = excluded.image_size, blob_size = excluded.blob_size,"
                " index_source = excluded.index_source, promise = excluded.promise, complete = 0,"
                " fetched_bytes = fetched_bytes + excluded.fetched_bytes, used_wall_s = excluded.used_wall_s",
                (str(digest), image_size, blob_size, source.value, promise, fetched_bytes, time.time()),
            )
            _refer(db, digest, reference)

        self._write(work, digest)
        info = self.get(digest)
        assert info is not None
        return info

    def renumber(self, digest: Digest) -> None:
        """Give a layer that nobody has mounted another number; success if it is not known."""
        columns = "digest, image_size, blob_size, index_source, promise, fetched_bytes, used_wall_s"

        def work(db: sqlite3.Connection) -> None:
            row = db.execute(f"SELECT {columns} FROM layers WHERE digest = ?", (str(digest),)).fetchone()  # noqa: S608 - constant
            if row is None:
                return
            references = db.execute(
                "SELECT reference, used FROM layer_references JOIN layers ON layer = id WHERE digest = ?", row[:1]
            ).fetchall()
            db.execute("DELETE FROM layers WHERE digest = ?", row[:1])
            number = db.execute(f"INSERT INTO layers ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?)", row).lastrowid  # noqa: S608 - constant
            db.executemany(
                "INSERT INTO layer_references (layer, reference, used) VALUES (?, ?, ?)",
                [(number, *reference) for reference in references],
            )

        self._write(work, digest)

    def promise(self, digest: Digest) -> str:
        """Return what the index of a known layer was verified against; "" if it is not known."""
        rows = self._rows("SELECT promise FROM layers WHERE digest = ?", str(digest))
        return str(rows[0][0]) if rows else ""

    def refer(self, digest: Digest, reference: str) -> None:
        """Note that a layer can also be fetched by *reference*, from now on the first to be tried; success if it is not known."""
        if self.references(digest)[:1] == [reference]:
            return
        self._write(lambda db: _refer(db, digest, reference), digest)

    def references(self, digest: Digest) -> list[str]:
        """Return by which references a layer can be fetched, newest first. Asked for each request, so kept in memory."""
        known = self._references.get(digest)  # without the lock, which is held while the disk syncs
        if known is None:
            with self._lock:
                known = tuple(self._read_references(digest))
                if known:
                    self._references[digest] = known
        return list(known)

    def _read_references(self, digest: Digest) -> Iterator[str]:
        query = "SELECT reference FROM layer_references JOIN layers ON layer = id WHERE digest = ? ORDER BY used DESC"
        return (str(reference) for (reference,) in self._read(query, str(digest)))

    def get(self, digest: Digest) -> LayerInfo | None:
        """Return a layer, None if it is not known."""
        return self._one("digest", str(digest))

    def by_id(self, layer_id: LayerId) -> LayerInfo | None:
        """Return a layer, None if it is not known."""
        return self._one("id", layer_id)

    def _one(self, column: str, value: str | int) -> LayerInfo | None:
        rows = self._rows(f"SELECT {_COLUMNS} FROM layers WHERE {column} = ?", value)  # noqa: S608 - column is a constant of ours
        return self._info(rows[0]) if rows else None

    def all(self) -> list[LayerInfo]:
        """Return every layer, ordered by digest."""
        return [self._info(row) for row in self._rows(f"SELECT {_COLUMNS} FROM layers ORDER BY digest")]  # noqa: S608 - constant

    def _info(self, row: Sequence[object]) -> LayerInfo:
        layer_id, text, image_size, blob_size, source, complete = row
        digest = Digest.parse(str(text))
        references = self.references(digest)
        assert isinstance(layer_id, int)
        assert isinstance(image_size, int)
        assert isinstance(blob_size, int)
        reference = references[0] if references else ""
        return LayerInfo(
            digest,
            LayerId(layer_id),
            reference,
            blob_size,
            image_size,
            IndexSource(str(source)),
            complete=bool(complete),
        )

    def remove(self, digest: Digest) -> None:
        """Forget a layer."""
        self._write(lambda db: db.execute("DELETE FROM layers WHERE digest = ?", (str(digest),)), digest)

    def set_complete(self, digest: Digest, *, complete: bool) -> None:
        """Note whether every byte of a layer is durable."""
        query = "UPDATE layers SET complete = ? WHERE digest = ?"
        self._write(lambda db: db.execute(query, (int(complete), str(digest))))

    # --- use ---

    def note_use(self, fetched: Sequence[tuple[Digest, int, float]]) -> None:
        """Add (layer, bytes fetched since the last time, wall-clock time of last use) to what is known."""
        query = (
            "UPDATE layers SET fetched_bytes = fetched_bytes + ?, used_wall_s = max(used_wall_s, ?) WHERE digest = ?"
        )
        rows = [(count, used, str(digest)) for digest, count, used in fetched]
        self._write(lambda db: db.executemany(query, rows))

    def fetched_bytes(self, digest: Digest) -> int:
        """Return the bytes fetched for a layer, ever; 0 if it is not known."""
        rows = self._rows("SELECT fetched_bytes FROM layers WHERE digest = ?", str(digest))
        return int(str(rows[0][0])) if rows else 0

    def used(self) -> dict[Digest, tuple[int, float]]:
        """Return for each layer the bytes fetched for it, ever, and when it was used last, wall clock."""
        rows = self._rows("SELECT digest, fetched_bytes, used_wall_s FROM layers")
        return {Digest.parse(str(digest)): (int(str(count)), float(str(used))) for digest, count, used in rows}

    def pin(self, digest: Digest, owner: str, *, direct: bool) -> None:
        """Note that *owner* has the layer mounted, durably against the death of this process.

        One that is *direct* stays so until `unpin`, or the machine boots again. What is noted already costs no write.

        Raises:
            NotFound: the layer is not known.
        """
        query = (
            "INSERT INTO pins (layer, owner, direct, boot) SELECT id, ?, ?, ? FROM layers WHERE digest = ?"
            " ON CONFLICT (layer, owner) DO UPDATE SET direct = excluded.direct, boot = excluded.boot"
            " WHERE boot != excluded.boot OR direct < excluded.direct"
        )

        def work(db: sqlite3.Connection) -> bool:
            known = db.execute("SELECT 1 FROM layers WHERE digest = ?", (str(digest),)).fetchone()
            db.execute(query, (owner, int(direct), self._boot, str(digest)))
            return known is not None

        if not self._write_for_boot(work):
            raise NotFound(f"layer {digest} is not known here")

    def unpin(self, digest: Digest, owner: str) -> None:
        """Note that *owner* no longer has the layer mounted; if it had not, nothing changes."""
        query = "DELETE FROM pins WHERE owner = ? AND layer = (SELECT id FROM layers WHERE digest = ?)"
        self._write_for_boot(lambda db: db.execute(query, (owner, str(digest))))

    def pins(self, digest: Digest) -> tuple[Pin, ...]:
        """Return who has the layer mounted."""
        query = "SELECT owner, direct FROM pins JOIN layers ON layer = id WHERE digest = ? AND boot = ?"
        rows = self._rows(query, str(digest), self._boot)
        return tuple(Pin(str(owner), bool(direct)) for owner, direct in rows)

    def pinned(self) -> dict[Digest, bool]:
        """Return the mounted layers, each with whether the kernel reads its file itself."""
        query = "SELECT digest, max(direct) FROM pins JOIN layers ON layer = id WHERE boot = ? GROUP BY digest"
        rows = self._rows(query, self._boot)
        return {Digest.parse(str(digest)): bool(direct) for digest, direct in rows}


def _identify(db: sqlite3.Connection) -> str:
    """Return the random name that a catalogue has from its beginning to its end."""
    if not db.execute("SELECT 1 FROM sqlite_schema WHERE name = 'identity'").fetchone():
        db.execute(_IDENTITY_SCHEMA)
        db.execute("INSERT INTO identity (value) VALUES (?)", (uuid.uuid4().hex,))
    (value,) = db.execute("SELECT value FROM identity").fetchone()
    return str(value)


def _refer(db: sqlite3.Connection, digest: Digest, reference: str) -> None:
    row = db.execute("SELECT id FROM layers WHERE digest = ?", (str(digest),)).fetchone()
    if row is None:
        return
    (layer,) = row
    db.execute(
        "INSERT OR REPLACE INTO layer_references (layer, reference, used)"
        " SELECT ?, ?, coalesce(max(used), 0) + 1 FROM layer_references WHERE layer = ?",
        (layer, reference, layer),
    )
    db.execute(
        "DELETE FROM layer_references WHERE layer = ? AND reference NOT IN"
        " (SELECT reference FROM layer_references WHERE layer = ? ORDER BY used DESC LIMIT ?)",
        (layer, layer, _REFERENCES_MAX),
    )
