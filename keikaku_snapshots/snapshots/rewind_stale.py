"""Why a rewind is not possible: no checkpoint, another schema, or a capture that failed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import psycopg

from keikaku_snapshots.errors import KeikakuError, SchemaDriftError, SnapshotNotFoundError
from keikaku_snapshots.postgres import catalog
from keikaku_snapshots.postgres.connect import connect
from keikaku_snapshots.snapshots.checkpoint import MARK, NAMES, SnapshotReference

if TYPE_CHECKING:
    from keikaku_snapshots.postgres.connect import Connection
    from keikaku_snapshots.postgres.url import DatabaseURL

#: Lines of a difference that an error shows.
_SHOWN = 10


def explain_stale(url: DatabaseURL) -> KeikakuError | None:
    """Look what became of the checkpoint.

    Args:
        url: The database.

    Returns:
        The error to raise, or None when the checkpoint is as it should be. A `SchemaDriftError` has
        the snapshot to restore in ``details["snapshot"]``, or None there.
    """
    try:
        with connect(url, autocommit=True) as connection:
            return _explain(connection, url)
    except psycopg.Error:
        return None


def known_snapshot(url: DatabaseURL) -> SnapshotReference | None:
    """Read which snapshot the checkpoint was made from.

    Args:
        url: The database.

    Returns:
        The snapshot, or None if nobody said so or it cannot be read.
    """
    try:
        with connect(url, autocommit=True) as connection:
            row = connection.execute(f"SELECT snapshot FROM {NAMES.schema}.state").fetchone()  # noqa: S608
    except (psycopg.Error, KeikakuError):
        return None
    return _reference(row[0]) if row else None


def _explain(connection: Connection, url: DatabaseURL) -> KeikakuError | None:
    row = connection.execute(
        "SELECT pg_catalog.obj_description(oid, 'pg_namespace'),"
        " pg_catalog.has_schema_privilege(oid, 'USAGE') FROM pg_catalog.pg_namespace WHERE nspname = %s",
        [NAMES.schema],
    ).fetchone()
    if row is None or not str(row[0] or "").startswith("keikaku_snapshots "):
        return SnapshotNotFoundError(
            f"the database {url.database!r} has no checkpoint",
            found=f"Database: {url.location}",
            hint="Make one: manager.checkpoint(), or `keikaku checkpoint`.",
        )
    if not row[1]:
        return None  # the server's own words name the schema
    if row[0] != MARK:
        return SchemaDriftError(
            "the checkpoint was made by another version of keikaku_snapshots",
            found=f"Database: {url.location}",
            hint="Make a new one: `keikaku checkpoint`.",
            snapshot=None,
        )
    return _drifted(connection, url)


def _drifted(connection: Connection, url: DatabaseURL) -> SchemaDriftError | None:
    state = connection.execute(
        "SELECT about->'objects', snapshot,"  # noqa: S608 - constants
        f" ddl <> {NAMES.schema}.ddl_hash(), {NAMES.schema}.crashed() FROM {NAMES.schema}.state"
    ).fetchone()
    broken = connection.execute(
        "SELECT DISTINCT coalesce(relation::pg_catalog.regclass::text, 'a table'), state"  # noqa: S608
        f" FROM {NAMES.schema}.broken LIMIT {_SHOWN}"
    ).fetchall()
    if state is None or not (state[2] or state[3] or broken):
        return None
    lines = catalog.difference(state[0], catalog.fingerprint(connection).objects)
    shown = [*lines[:_SHOWN], *([f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else [])]
    shown += [f"changes of {name} could not be kept (SQLSTATE {code})" for name, code in broken]
    if state[3]:
        shown.append("the server crashed, and unlogged tables are empty since")
    if not shown:
        shown = [
            "triggers of the checkpoint were switched off or dropped, or an index or setting was changed"
        ]
    return SchemaDriftError(
        f"the schema of {url.database!r} was changed since the checkpoint",
        found="\n".join([*shown, f"Database: {url.location}"]),
        hint="Restore the state to go back to, then make a new checkpoint; "
        "checkpoint(snapshot=NAME) (--snapshot) lets rewind do both.",
        differences=lines,
        snapshot=_reference(state[1]),
    )


def _reference(fields: Any) -> SnapshotReference | None:
    if isinstance(fields, str):
        fields = json.loads(fields)
    return SnapshotReference(**fields) if fields else None
