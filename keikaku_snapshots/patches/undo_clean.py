"""Take the backup point away again: triggers at the end of a run, logs when their retention has ended."""
# ruff: noqa: S608 - SQL is put together from names that are quoted and constants of this package

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from uuid import UUID

from psycopg import sql

from keikaku_snapshots.errors import LockBusyError
from keikaku_snapshots.patches.records_schema import SCHEMA
from keikaku_snapshots.patches.undo import patiently, tag

if TYPE_CHECKING:
    from keikaku_snapshots.postgres.connect import Connection

log = logging.getLogger("keikaku_snapshots.patches")

#: Hexadecimal digits of an execution in the names of its objects.
_DIGITS: Final = 12
_NUMBER: Final = f"_([0-9a-f]{{{_DIGITS}}})_"
# Cloned triggers of partitions go with that of their parent.
_TRIGGERS: Final = """
SELECT n.nspname::text, c.relname::text, array_agg(t.tgname::text)
FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE NOT t.tgisinternal AND t.tgparentid = 0 AND starts_with(t.tgname::text, %s)
GROUP BY c.oid, n.nspname, c.relname ORDER BY c.oid
"""
_FUNCTIONS: Final = """
SELECT p.oid::regprocedure::text FROM pg_catalog.pg_proc p
WHERE p.pronamespace = pg_catalog.to_regnamespace(%s) AND p.proname ~ %s ORDER BY p.oid
"""


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep removed."""

    #: Executions whose triggers were still there.
    disarmed: tuple[str, ...]
    #: Executions whose logs were dropped.
    dropped: tuple[str, ...]
    #: Tables that somebody held, so that triggers, which do nothing, are still on them.
    left: tuple[str, ...]


def disarm(connection: Connection, execution_id: UUID, *, lock_wait_s: float = 10.0) -> tuple[str, ...]:
    """Drop the triggers and functions of an execution; its logs stay. Harmless when repeated.

    Dropping a trigger needs the table for a moment, from readers too. Where somebody holds it, the trigger
    is left: it does nothing without the switch, and the next sweep drops it.

    Args:
        connection: In autocommit, or outside of a transaction.
        execution_id: The execution.
        lock_wait_s: Seconds to wait for sessions that use a table.

    Returns:
        Tables that still have triggers, as ``schema.table``.
    """
    prefix = f"{SCHEMA}{tag(execution_id)}_"
    left = []
    with connection.transaction():
        found = connection.execute(_TRIGGERS, [prefix]).fetchall()
    for schema, name, triggers in found:
        table = sql.Identifier(schema, name)
        drops = sql.SQL("; ").join(
            sql.SQL("DROP TRIGGER IF EXISTS {} ON {}").format(sql.Identifier(trigger), table)
            for trigger in sorted(triggers)
        )

        def drop(statements: sql.Composed = drops) -> None:
            connection.execute(statements)

        text = f"{schema}.{name}"
        try:
            patiently(connection, drop, [text], wait_s=lock_wait_s, doing="dropping triggers")
        except LockBusyError as error:
            log.warning("triggers of execution %s are left on %s: %s", execution_id, text, error.found)
            left.append(text)
    if not left:
        with connection.transaction():
            drop_functions(connection, execution_id)
    return tuple(left)


def drop_functions(connection: Connection, execution_id: UUID) -> None:
    """Drop the capture functions of an execution, and triggers that still call them.

    Args:
        connection: In a transaction.
        execution_id: The execution.
    """
    functions = connection.execute(
        _FUNCTIONS, [SCHEMA, f"^(insert|update|delete|row|truncate){tag(execution_id)}_[0-9]+$"]
    ).fetchall()
    if functions:
        connection.execute("SET LOCAL client_min_messages = warning")
        # The names are those that the server quoted.
        connection.execute(f"DROP FUNCTION {', '.join(row[0] for row in functions)} CASCADE".encode())


def drop(connection: Connection, execution_id: UUID) -> None:
    """Drop everything that was kept for an execution; it can no longer be rolled back.

    Args:
        connection: In autocommit, or outside of a transaction.
        execution_id: The execution.
    """
    disarm(connection, execution_id)
    with connection.transaction():
        relations = connection.execute(
            "SELECT c.relkind::text, c.relname::text FROM pg_catalog.pg_class c"
            " WHERE c.relnamespace = pg_catalog.to_regnamespace(%s) AND c.relkind IN ('r', 'S')"
            " AND c.relname ~ %s",
            [SCHEMA, f"^(undo|counter){tag(execution_id)}(_|$)"],
        ).fetchall()
        for kind, name in relations:
            connection.execute(
                sql.SQL("DROP {} IF EXISTS {}").format(
                    sql.SQL("SEQUENCE" if kind == "S" else "TABLE"), sql.Identifier(SCHEMA, name)
                )
            )
        connection.execute(f"DELETE FROM {SCHEMA}.undo WHERE execution_id = %s", [execution_id])


def sweep(connection: Connection, *, retention_days: float) -> Swept:
    """Remove what runs left behind that are over, and logs older than their retention.

    Runs that are not over are not touched, whether their process lives or not: `reap` decides about them.

    Args:
        connection: In autocommit, or outside of a transaction.
        retention_days: Days for which the logs of an ended run are kept.

    Returns:
        What was removed.
    """
    with connection.transaction():
        states = connection.execute(
            "SELECT execution_id, status IN ('completed', 'failed'),"
            " completed_at < now() - make_interval(secs => %s)"
            f" FROM {SCHEMA}.execution",
            [retention_days * 86_400],
        ).fetchall()
        # A process may have died with the triggers dropped and the functions not.
        objects = connection.execute(
            "SELECT DISTINCT substring(tgname::text FROM %(digits)s) FROM pg_catalog.pg_trigger"
            " WHERE NOT tgisinternal AND tgname ~ %(trigger)s"
            " UNION SELECT substring(proname::text FROM %(digits)s) FROM pg_catalog.pg_proc"
            " WHERE pronamespace = pg_catalog.to_regnamespace(%(schema)s) AND proname ~ %(digits)s",
            {"digits": _NUMBER, "trigger": f"^{SCHEMA}{_NUMBER}", "schema": SCHEMA},
        ).fetchall()
        kept = connection.execute(f"SELECT DISTINCT execution_id FROM {SCHEMA}.undo").fetchall()
    armed = {row[0] for row in objects}
    with_logs = {row[0] for row in kept}
    disarmed: list[str] = []
    dropped: list[str] = []
    left: list[str] = []
    known = set()
    for execution_id, is_over, is_old in states:
        digits = execution_id.hex[:_DIGITS]
        known.add(digits)
        if not is_over:
            continue
        if digits in armed:
            left += disarm(connection, execution_id)
            disarmed.append(str(execution_id))
        if is_old and execution_id in with_logs:
            drop(connection, execution_id)
            dropped.append(str(execution_id))
    for digits in sorted(armed - known):
        # The record of that execution was removed by somebody else.
        left += disarm(connection, UUID(digits.ljust(32, "0")))
        disarmed.append(digits)
    return Swept(tuple(disarmed), tuple(dropped), tuple(left))
