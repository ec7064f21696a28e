"""The records of runs in the schema ``keikaku_patches``: written by the engine, read by everybody."""

from __future__ import annotations

import codecs
import json
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final

from psycopg import sql

from keikaku_snapshots.errors import LeaseLostError, UnknownPatchError
from keikaku_snapshots.patches.execution import Execution
from keikaku_snapshots.patches.records_schema import SCHEMA, STATEMENTS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from keikaku_snapshots.postgres.connect import Connection

_TABLE: Final = sql.Identifier(SCHEMA, "execution")
_COLUMNS: Final = tuple(field.name for field in fields(Execution))
_ALL: Final = sql.SQL(", ").join(map(sql.Identifier, _COLUMNS))
_TUPLES: Final = frozenset({"target_tables", "cursor", "upper_key"})
_JSON: Final = frozenset({"parameters", "findings"})
#: Key of the advisory lock under which the schema is made.
_SCHEMA_LOCK: Final = 0x6B65696B_70617463


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """A committed batch, as ``batch_log`` has it."""

    #: ``run`` or ``rollback``.
    phase: str
    #: Its number, from 1 on.
    number: int
    #: When it began.
    started_at: datetime
    #: Seconds it took.
    seconds: float
    #: Rows that it was allowed.
    batch_size: int
    #: Rows that it worked on.
    processed: int
    #: Rows that it changed, added or removed.
    changed: int
    #: Rows that are not as they should be.
    inconsistent: int
    #: Resident memory of the process at its end, in bytes.
    memory_bytes: int


def ensure_schema(connection: Connection) -> None:
    """Make the schema of records where it is not there; one query when it is.

    Args:
        connection: In autocommit.
    """
    row = connection.execute("SELECT pg_catalog.to_regclass(%s) IS NOT NULL", [f"{SCHEMA}.audit"]).fetchone()
    if row and row[0]:
        return
    with connection.transaction():
        connection.execute("SELECT pg_catalog.pg_advisory_xact_lock(%s)", [_SCHEMA_LOCK])
        connection.execute("SET LOCAL client_min_messages = warning")
        connection.execute(STATEMENTS.encode())


def has_schema(connection: Connection) -> bool:
    """Tell whether any patch has ever been run here.

    Args:
        connection: The database.
    """
    row = connection.execute("SELECT pg_catalog.to_regclass(%s) IS NOT NULL", [f"{SCHEMA}.audit"]).fetchone()
    return bool(row and row[0])


def insert(connection: Connection, values: dict[str, Any]) -> Execution:
    """Add an execution.

    Args:
        connection: The database.
        values: Columns of the table.

    Returns:
        What was added, defaults included.
    """
    query = sql.SQL("INSERT INTO {} ({}) VALUES ({}) RETURNING {}").format(
        _TABLE,
        sql.SQL(", ").join(map(sql.Identifier, values)),
        sql.SQL(", ").join(map(sql.Placeholder, values)),
        _ALL,
    )
    row = connection.execute(query, _stored(connection, values)).fetchone()
    assert row is not None
    return _read(row)


def update(
    connection: Connection, execution_id: UUID, *, lease_token: int | None = None, **values: Any
) -> Execution:
    """Change an execution.

    Args:
        connection: The database.
        execution_id: Which one.
        lease_token: When given, only as long as nobody else has taken it over.
        values: New values by column.

    Returns:
        The execution as it is now.

    Raises:
        LeaseLostError: Somebody else has taken it over.
    """
    assignments = sql.SQL(", ").join(
        sql.SQL("{} = {}").format(sql.Identifier(name), sql.Placeholder(name)) for name in values
    )
    query = sql.SQL(
        "UPDATE {} SET {} WHERE execution_id = %(its_id)s AND (%(its_lease)s::bigint IS NULL"
        " OR lease_token = %(its_lease)s) RETURNING {}"
    ).format(_TABLE, assignments, _ALL)
    row = connection.execute(
        query, _stored(connection, values) | {"its_id": execution_id, "its_lease": lease_token}
    ).fetchone()
    if row is None:
        raise lease_lost(execution_id)
    return _read(row)


def lease_lost(execution_id: UUID) -> LeaseLostError:
    """Make the error of a worker whose execution has been taken over.

    Args:
        execution_id: Which one.
    """
    return LeaseLostError(
        f"another worker has taken over execution {execution_id}", execution_id=str(execution_id)
    )


def take_lease(connection: Connection, execution: Execution) -> Execution:
    """Become the only worker that may go on with an execution; waits for a batch that is being committed.

    Args:
        connection: The database.
        execution: The execution as it was last read.

    Returns:
        The execution as it is now, with a new token.

    Raises:
        LeaseLostError: Somebody else has taken it over since it was read.
    """
    query = sql.SQL(
        "UPDATE {} SET lease_token = nextval({}) WHERE execution_id = %s AND lease_token = %s RETURNING {}"
    ).format(_TABLE, sql.Literal(f"{SCHEMA}.lease"), _ALL)
    row = connection.execute(query, [execution.execution_id, execution.lease_token]).fetchone()
    if row is None:
        raise lease_lost(execution.execution_id)
    return _read(row)


def check_lease(connection: Connection, execution: Execution) -> None:
    """Make sure that nobody else has taken an execution over.

    Args:
        connection: The database.
        execution: The execution as it was last read.

    Raises:
        LeaseLostError: Somebody has.
    """
    if find(connection, execution.execution_id).lease_token != execution.lease_token:
        raise lease_lost(execution.execution_id)


def unknown(execution_id: object) -> UnknownPatchError:
    """Make the error of an execution that is not there.

    Args:
        execution_id: What was asked for.
    """
    return UnknownPatchError(f"there is no execution {execution_id}")


def find(connection: Connection, execution_id: UUID | str) -> Execution:
    """Return an execution.

    Args:
        connection: The database.
        execution_id: Its number; the first characters are enough when no other begins with them.

    Returns:
        The execution.

    Raises:
        UnknownPatchError: There is none, or several begin so.
    """
    if not has_schema(connection):
        raise unknown(execution_id)
    query = sql.SQL("SELECT {} FROM {} WHERE starts_with(execution_id::text, %s) LIMIT 2").format(
        _ALL, _TABLE
    )
    text = str(execution_id).lower()
    rows = connection.execute(query, [text]).fetchall() if text else []
    if len(rows) != 1:
        raise unknown(execution_id)
    return _read(rows[0])


def recent(connection: Connection, *, patch_name: str | None = None, limit: int = 20) -> list[Execution]:
    """List executions, the newest first.

    Args:
        connection: The database.
        patch_name: Only those of this patch.
        limit: Most to list.

    Returns:
        Executions; none where no patch was ever run.
    """
    if not has_schema(connection):
        return []
    query = sql.SQL(
        "SELECT {} FROM {} WHERE %(name)s::text IS NULL OR patch_name = %(name)s"
        " ORDER BY created_at DESC, execution_id LIMIT %(limit)s"
    ).format(_ALL, _TABLE)
    return [_read(row) for row in connection.execute(query, {"name": patch_name, "limit": limit})]


def batches(connection: Connection, execution_id: UUID, phase: str = "run") -> list[BatchRecord]:
    """List the committed batches of an execution in their order.

    Args:
        connection: The database.
        execution_id: Which one.
        phase: ``run`` or ``rollback``.

    Returns:
        Batches.
    """
    query = sql.SQL("SELECT {} FROM {} WHERE execution_id = %s AND phase = %s ORDER BY number").format(
        sql.SQL(", ").join(sql.Identifier(field.name) for field in fields(BatchRecord)),
        sql.Identifier(SCHEMA, "batch_log"),
    )
    return [BatchRecord(*row) for row in connection.execute(query, [execution_id, phase])]


def advance(
    connection: Connection,
    execution: Execution,
    *,
    cursor: Sequence[str] | None,
    counts: Mapping[str, int],
    next_size: int,
    active_s: float,
    peak_memory_bytes: int,
    switched: bool,
) -> Execution:
    """Move the cursor of an execution in the transaction of a batch.

    Args:
        connection: The batch's connection.
        execution: The execution as it was before the batch.
        cursor: Key of the last row that was looked at; None leaves the cursor where it is.
        counts: What the batch adds to the columns of counts.
        next_size: Rows of the next batch.
        active_s: Seconds of work so far.
        peak_memory_bytes: Most resident memory so far.
        switched: Whether undo capture must be on, or else somebody ended the batch's transaction inside.

    Returns:
        The execution as it is after the batch.

    Raises:
        LeaseLostError: Somebody else has taken it over, or has done this batch.
    """
    sums = sql.SQL(", ").join(
        sql.SQL("{name} = {name} + {value}").format(name=sql.Identifier(name), value=sql.Literal(value))
        for name, value in counts.items()
    )
    query = sql.SQL(
        "UPDATE {} SET cursor = coalesce(%(cursor)s, cursor), batch_number = batch_number + 1, {},"
        " batch_size = %(size)s, active_s = greatest(active_s, %(active)s),"
        " peak_memory_bytes = greatest(peak_memory_bytes, %(peak)s)"
        " WHERE execution_id = %(id)s AND lease_token = %(lease)s AND status = 'running'"
        " AND batch_number = %(number)s"
        " AND (NOT %(switched)s OR pg_catalog.current_setting('keikaku.patch', true) = %(id)s::text)"
        " RETURNING {}"
    ).format(_TABLE, sums, _ALL)
    row = connection.execute(
        query,
        {
            "cursor": None if cursor is None else list(cursor),
            "size": next_size,
            "active": active_s,
            "peak": peak_memory_bytes,
            "id": execution.execution_id,
            "lease": execution.lease_token,
            "number": execution.batch_number,
            "switched": switched,
        },
    ).fetchone()
    if row is None:
        raise lease_lost(execution.execution_id)
    return _read(row)


def log_batch(connection: Connection, execution_id: UUID, record: BatchRecord) -> None:
    """Add a batch to the log, in the batch's own transaction.

    Args:
        connection: The batch's connection.
        execution_id: Which execution.
        record: The batch.
    """
    names = [field.name for field in fields(BatchRecord)]
    query = sql.SQL("INSERT INTO {} (execution_id, {}) VALUES ({})").format(
        sql.Identifier(SCHEMA, "batch_log"),
        sql.SQL(", ").join(map(sql.Identifier, names)),
        sql.SQL(", ").join([sql.Placeholder()] * (len(names) + 1)),
    )
    connection.execute(query, [execution_id, *(getattr(record, name) for name in names)])


def request(connection: Connection, execution_id: UUID, what: str, actor: str) -> None:
    """Ask a running execution to pause or to be cancelled.

    Args:
        connection: In autocommit.
        execution_id: Which one.
        what: ``pause`` or ``cancel``.
        actor: Who asks.
    """
    connection.execute(
        f"INSERT INTO {SCHEMA}.control (execution_id, request, actor) VALUES (%s, %s, %s)",  # noqa: S608
        [execution_id, what, actor],
    )


def requests(connection: Connection, execution_id: UUID) -> list[str]:
    """Return what operators ask of an execution and nobody has taken yet, oldest first.

    Args:
        connection: In autocommit.
        execution_id: Which one.
    """
    query = (
        f"SELECT request FROM {SCHEMA}.control WHERE execution_id = %s AND taken_at IS NULL ORDER BY number"  # noqa: S608
    )
    return [row[0] for row in connection.execute(query, [execution_id])]


def take_requests(connection: Connection, execution_id: UUID, what: str | None = None) -> None:
    """Mark requests of an execution as taken.

    Args:
        connection: The database.
        execution_id: Which one.
        what: Only those; all when None.
    """
    connection.execute(
        f"UPDATE {SCHEMA}.control SET taken_at = clock_timestamp()"  # noqa: S608
        " WHERE execution_id = %s AND taken_at IS NULL AND (%s::text IS NULL OR request = %s)",
        [execution_id, what, what],
    )


def storable(connection: Connection, text: str) -> str:
    """Return a text as a database of any encoding can keep it; what it has no letter for becomes "?".

    Args:
        connection: The database.
        text: Such as a message, which is in English and Japanese.
    """
    encoding = connection.info.parameter_status("server_encoding") or "UTF8"
    if encoding in {"UTF8", "SQL_ASCII"}:
        return text
    try:
        codec = codecs.lookup(encoding).name
    except LookupError:
        codec = "ascii"
    return text.encode(codec, "replace").decode(codec)


def _stored(connection: Connection, values: dict[str, Any]) -> dict[str, Any]:
    stored: dict[str, Any] = {}
    for name, value in values.items():
        if name in _JSON:
            stored[name] = storable(connection, json.dumps(value, ensure_ascii=False))
        elif name in _TUPLES and value is not None:
            stored[name] = list(value)
        else:
            stored[name] = storable(connection, value) if isinstance(value, str) else value
    return stored


def _read(row: Sequence[Any]) -> Execution:
    values = dict(zip(_COLUMNS, row, strict=True))
    for name in _TUPLES:
        values[name] = tuple(values[name]) if values[name] is not None else None
    return Execution(**values)
