"""Reading the report of a run from the records in its database."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from psycopg import sql

from keikaku_snapshots.patches import records
from keikaku_snapshots.patches.records_schema import SCHEMA
from keikaku_snapshots.patches.report import (
    MB,
    SHOWN,
    Batch,
    Check,
    Conflict,
    Difference,
    Message,
    PatchReport,
    Rejected,
)
from keikaku_snapshots.patches.report_sample import sample

if TYPE_CHECKING:
    from uuid import UUID

    from keikaku_snapshots.patches.execution import Execution
    from keikaku_snapshots.patches.settings import EngineSettings, PatchSettings
    from keikaku_snapshots.postgres.connect import Connection


def read_report(
    connection: Connection,
    execution_id: UUID | str,
    *,
    location: str,
    settings: PatchSettings | None = None,
    engine: EngineSettings | None = None,
) -> PatchReport:
    """Read everything that is known of a run.

    Args:
        connection: The database, in autocommit.
        execution_id: The run; its first characters are enough.
        location: What the page calls the database.
        settings: How the patch is run, for its memory limit; None when nobody knows.
        engine: For the days that undo is kept, and the silence of a dead run.

    Returns:
        The report.

    Raises:
        UnknownPatchError: There is no such run.
    """
    # One moment for all of it: a run that goes on meanwhile does not tear the page.
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        execution = records.find(connection, execution_id)
        number = execution.execution_id
        undo_bytes = _undo_bytes(connection, number)
        more: dict[str, Any] = {} if engine is None else {
            "undo_retention_days": engine.undo_retention_days, "lease_s": engine.lease_s
        }  # fmt: skip
        return PatchReport(
            execution=execution,
            made_at=datetime.now(UTC),
            location=location,
            batches=(*_batches(connection, number, "run"), *_batches(connection, number, "rollback")),
            checks=tuple(_checks(execution)),
            differences=tuple(_differences(execution) or sample(connection, number)),
            conflicts=_conflicts(connection, number),
            rejected=_rejected(connection, number),
            deferred=_deferred(connection, number),
            messages=_messages(connection, number),
            silent_s=silent_s(connection, number),
            undo_kept=undo_bytes is not None,
            undo_bytes=undo_bytes,
            memory_limit_bytes=settings.memory_limit_mb * MB if settings else None,
            more={name: value for name, value in execution.findings.items() if name == "plan"},
            **more,
        )


def _batches(connection: Connection, number: UUID, phase: Any) -> list[Batch]:
    return [
        Batch(
            phase=phase,
            number=one.number,
            started_at=one.started_at,
            seconds=one.seconds,
            batch_size=one.batch_size,
            processed=one.processed,
            changed=one.changed,
            inconsistent=one.inconsistent,
            memory_bytes=one.memory_bytes,
        )
        for one in records.batches(connection, number, phase)
    ]


def _checks(execution: Execution) -> list[Check]:
    return [
        Check(
            name=str(one.get("name", "")), passed=bool(one.get("passed")), detail=str(one.get("detail", ""))
        )
        for one in execution.findings.get("verification", [])
    ]


def _differences(execution: Execution) -> list[Difference]:
    return [
        Difference(
            table=one["table"],
            key=tuple(map(str, one["key"])),
            kind=one["kind"],
            columns={name: (pair[0], pair[1]) for name, pair in one["columns"].items()},
        )
        for one in execution.findings.get("sample", [])
    ]


def _select(connection: Connection, table: str, columns: str, number: UUID, order: str) -> list[Any]:
    """The first rows that belong to a run, in an order; columns and order are names with commas between."""

    def names(text: str) -> sql.Composed:
        return sql.SQL(", ").join(map(sql.Identifier, text.split()))

    query = sql.SQL("SELECT {} FROM {} WHERE execution_id = %s ORDER BY {} LIMIT {}").format(
        names(columns), sql.Identifier(SCHEMA, table), names(order), sql.Literal(SHOWN)
    )
    return connection.execute(query, [number]).fetchall()


def _conflicts(connection: Connection, number: UUID) -> tuple[Conflict, ...]:
    found = _select(connection, "conflict", "table_name key columns why", number, "table_name key")
    return tuple(
        Conflict(table=table, key=tuple(key), columns=tuple(columns), why=why)
        for table, key, columns, why in found
    )


def _rejected(connection: Connection, number: UUID) -> tuple[Rejected, ...]:
    found = _select(connection, "rejected", "key why", number, "key")
    return tuple(Rejected(key=tuple(key), why=why) for key, why in found)


def _deferred(connection: Connection, number: UUID) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(key) for (key,) in _select(connection, "deferred", "key", number, "key"))


def _messages(connection: Connection, number: UUID) -> tuple[Message, ...]:
    rows = connection.execute(
        "SELECT o.event, o.created_at, min(d.delivered_at),"  # noqa: S608
        " coalesce(string_agg(d.channel || ': ' || d.last_error, '; ' ORDER BY d.channel)"
        " FILTER (WHERE d.last_error <> '' AND d.delivered_at IS NULL), '')"
        f" FROM {SCHEMA}.outbox o LEFT JOIN {SCHEMA}.delivery d ON d.message = o.number"
        " WHERE o.execution_id = %s GROUP BY o.number ORDER BY o.number",
        [number],
    )
    return tuple(
        Message(event=event, created_at=created, delivered_at=delivered, last_error=problem)
        for event, created, delivered, problem in rows
    )


def silent_s(connection: Connection, number: UUID) -> float | None:
    """Return the seconds since the process of a run gave a sign of life.

    Args:
        connection: The database.
        number: The run.

    Returns:
        Seconds; None when there was none.
    """
    # The server's clock wrote it, so the server's clock is asked.
    now = connection.execute("SELECT pg_catalog.clock_timestamp()").fetchone()
    beat = _select(connection, "heartbeat", "beat_at", number, "beat_at")
    return (now[0] - beat[0][0]).total_seconds() if now and beat else None


def memory_bytes(connection: Connection, number: UUID) -> int:
    """Return the resident memory that the process of a run had at its last sign of life.

    Args:
        connection: The database.
        number: The run.

    Returns:
        Bytes; 0 when there was none.
    """
    found = _select(connection, "heartbeat", "memory_bytes", number, "beat_at")
    return int(found[0][0]) if found else 0


_UNDO_BYTES = """
SELECT sum(pg_catalog.pg_total_relation_size(c.oid))::bigint FROM pg_catalog.pg_class c
WHERE c.relnamespace = pg_catalog.to_regnamespace(%(schema)s) AND c.relkind = 'r'
  AND starts_with(c.relname, 'undo_' || left(replace(%(number)s::uuid::text, '-', ''), 12) || '_')
"""


def _undo_bytes(connection: Connection, number: UUID) -> int | None:
    """Bytes of its undo tables; None when they are gone."""
    row = connection.execute(_UNDO_BYTES, {"schema": SCHEMA, "number": number}).fetchone()
    return row[0] if row else None
