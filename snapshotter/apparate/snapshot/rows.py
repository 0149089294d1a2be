"""Records of snapshots as rows: in the store's file, and as JSON for those who ask a running snapshotter."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path

from apparate.errors import FailedPrecondition, FormatError, InvalidArgument, NotFound
from apparate.oci.digest import Digest
from apparate.snapshot.model import Info, Kind, Origin, Record, SnapshotId
from apparate.snapshot.remote import Usage

Row = tuple[int | str | None, ...]

SCHEMA_VERSION = 1
RECORDS_PAGE = "/records"
"""Where a running snapshotter answers `to_json` of its records, on the telemetry socket."""
COLUMNS = "id, name, parent_id, kind, origin, layer, reason, created_ns, updated_ns, labels, size, inodes"
_SELECT = f"SELECT {COLUMNS} FROM snapshots ORDER BY id"  # noqa: S608 - constants only


def read_rows(db: sqlite3.Connection) -> list[Record]:
    """Return the records in an open store."""
    return _records(db.execute(_SELECT).fetchall())


def read_records(path: Path) -> list[Record]:
    """Return the snapshots in the file *path* of a snapshotter that does not run; one that runs keeps it to itself.

    Raises:
        NotFound: there is no such file.
        FailedPrecondition: it cannot be read, as while a snapshotter runs, or was written by another version.
    """
    if not path.exists():
        raise NotFound(f"{path} does not exist: no snapshotter has run here with this root; see snapshotter.root")
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as db:
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version != SCHEMA_VERSION:
                raise FailedPrecondition(
                    f"{path} has version {version} of the schema, this program knows {SCHEMA_VERSION}"
                )
            return read_rows(db)
    except sqlite3.Error as error:
        raise FailedPrecondition(f"{path} cannot be read: {error}; see whether the snapshotter hangs") from error


def to_json(records: Iterable[Record]) -> bytes:
    """Return *records* for `from_json` of the same version."""
    return json.dumps({"version": SCHEMA_VERSION, "rows": [row_of(record) for record in records]}).encode()


def from_json(body: bytes) -> list[Record]:
    """Return the records that `to_json` made *body* of.

    Raises:
        FailedPrecondition: another version made it.
        FormatError: it is something else.
    """
    try:
        page = json.loads(body)
        if page["version"] != SCHEMA_VERSION:
            raise FailedPrecondition(
                f"the running snapshotter has version {page['version']} of the schema, this program knows {SCHEMA_VERSION}"
            )
        return _records([tuple(row) for row in page["rows"]])
    except (ValueError, LookupError, TypeError, OverflowError, RecursionError, InvalidArgument) as error:
        raise FormatError("records of snapshots", "page", str(error)) from error


def _records(rows: list[Row]) -> list[Record]:
    names = {row[0]: row[1] for row in rows}
    return [_record(row, names) for row in rows]


def row_of(record: Record) -> Row:
    """Return the columns of *record*."""
    info, usage = record.info, record.usage
    return (
        record.id,
        info.name,
        record.parent_id,
        info.kind.value,
        record.origin.value,
        str(record.layer) if record.layer else None,
        record.reason,
        info.created_ns,
        info.updated_ns,
        json.dumps(dict(info.labels), sort_keys=True),
        usage.size if usage else None,
        usage.inodes if usage else None,
    )


def _record(row: Row, names: Mapping[int | str | None, int | str | None]) -> Record:
    ident, name, parent_id, kind, origin, layer, reason, created_ns, updated_ns, labels, size, inodes = row
    info = Info(
        str(name),
        str(names[parent_id]) if parent_id is not None else "",
        Kind(kind),
        int(created_ns or 0),
        int(updated_ns or 0),
        json.loads(str(labels)),
    )
    return Record(
        id=SnapshotId(int(ident or 0)),
        info=info,
        parent_id=SnapshotId(int(parent_id)) if parent_id is not None else None,
        origin=Origin(origin),
        layer=Digest.parse(str(layer)) if layer is not None else None,
        reason=str(reason),
        usage=Usage(int(size), int(inodes or 0)) if size is not None else None,
    )
