"""Prove before the first batch that a change is kept and can be read back: a row is written to itself."""
# ruff: noqa: S608 - SQL is put together from names that are quoted and constants of this package

from __future__ import annotations

from typing import TYPE_CHECKING

from keikaku_snapshots.errors import PatchRefusedError
from keikaku_snapshots.patches.records_schema import SCHEMA
from keikaku_snapshots.patches.undo import is_armed, names_of, switch, undo_tables
from keikaku_snapshots.patches.undo_image import SAME, kept_image, restored_image, row_image
from keikaku_snapshots.postgres.capture import STYLES
from keikaku_snapshots.postgres.capture_net import match

if TYPE_CHECKING:
    from uuid import UUID

    from keikaku_snapshots.patches.undo import UndoTable
    from keikaku_snapshots.postgres.capture import CaptureNames
    from keikaku_snapshots.postgres.connect import Connection


def check(connection: Connection, execution_id: UUID) -> None:
    """Write a row of each table to itself, look whether it was kept as it is, and roll back.

    Also looks that nothing is kept without the switch. Rows that others have locked are passed over; of a
    table without rows only the triggers are looked at.

    Args:
        connection: In autocommit, or outside of a transaction.
        execution_id: The execution, armed.

    Raises:
        PatchRefusedError: A change would not be kept; the run must not start.
    """
    known = undo_tables(connection, execution_id)
    if not known:
        raise _refused("there is no backup point", "")
    names = names_of(execution_id)
    for undo in known:
        if not is_armed(connection, execution_id, undo):
            raise _refused("triggers of the backup point are missing or switched off", undo.table.name.text)
        with connection.transaction(force_rollback=True):
            for name, value in STYLES.items():
                connection.execute("SELECT pg_catalog.set_config(%s, %s, true)", [name, value])
            _write_to_itself(connection, undo)
            if _kept(connection, names, undo):
                raise _refused(
                    "writes of applications would be kept as changes of the run", str(undo.table.name)
                )
            connection.execute(switch(execution_id))
            written = _write_to_itself(connection, undo)
            if _kept(connection, names, undo) != 2 * written or _differing(connection, names, undo):
                raise _refused("a change was not kept exactly", undo.table.name.text)


_NOT_ARMED = f"""
SELECT u.table_name FROM {SCHEMA}.undo u CROSS JOIN LATERAL (SELECT u.description::jsonb AS d) j
CROSS JOIN LATERAL (
  SELECT CASE WHEN (j.d->>'is_inherited')::boolean THEN %(by_row)s::text[]
              ELSE %(by_statement)s::text[] END AS names) w
WHERE u.execution_id = %(id)s AND (
  to_regclass(format('%%I.%%I', j.d->'name'->>'schema', j.d->'name'->>'name'))::oid
    IS DISTINCT FROM (j.d->>'oid')::oid
  OR EXISTS (
    SELECT FROM jsonb_array_elements(j.d->'members') m
    JOIN pg_catalog.pg_class c ON c.oid = (m->>'oid')::oid CROSS JOIN unnest(w.names) n(name)
    WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_trigger t
                      WHERE t.tgrelid = c.oid AND t.tgname = n.name AND t.tgenabled = 'A')))
ORDER BY u.number
"""


def confirm(connection: Connection, execution_id: UUID) -> None:
    """Look at the end of a batch's transaction whether its changes were kept.

    Between two batches anybody may switch triggers off or put another table in the place of a target.
    Within a batch nobody can: what it has written holds locks that keep both out.

    Args:
        connection: In the transaction, after its work.
        execution_id: The execution, armed.

    Raises:
        PatchRefusedError: The transaction must not be committed.
    """
    names = names_of(execution_id)
    wanted = {
        kind: [names.trigger(what) for what in (*whats, "write_truncate")]
        for kind, whats in (("by_row", ("row",)), ("by_statement", ("insert", "update", "delete")))
    }
    rows = connection.execute(_NOT_ARMED, {"id": execution_id, **wanted}).fetchall()
    if rows:
        raise PatchRefusedError(
            "changes of the last batch would not have been kept, so it was not committed",
            found="Since the run began, triggers of the backup point were switched off or dropped, or another"
            f" table was put in this one's place: {', '.join(row[0] for row in rows)}",
            hint="Find out who changed the table; run the patch again when nobody does.",
            hint_ja="テーブルを変更したセッションを確認し、変更がない状態でパッチを再実行してください。",
        )


def _refused(what: str, table: str) -> PatchRefusedError:
    return PatchRefusedError(
        f"the backup point does not work: {what}; nothing was changed",
        found=f"Table: {table}" if table else "",
        hint="Look which triggers, rules or policies of the table stand in the way, then run it again.",
        hint_ja="テーブルのトリガー・ルール・ポリシーを確認してから、パッチを再実行してください。",
    )


def _write_to_itself(connection: Connection, undo: UndoTable) -> int:
    """Set a column of one row to what it is; returns 0 where there is no row that nobody holds."""
    table = undo.table
    key = {column.identifier for column in table.key_columns()}
    settable = [column.identifier for column in table.columns if not column.is_identity_always]
    if not settable:
        return 0
    # Rather no key column: others wait for such a change who only refer to the row.
    column = next((name for name in settable if name not in key), settable[0])
    keys = ", ".join(one.identifier for one in table.key_columns())
    same = " AND ".join(
        f"t.{one.identifier} {part.equals} found.{one.identifier}{part.collate}"
        for part, one in zip(table.key, table.key_columns(), strict=True)
    )
    free = f"SELECT {keys} FROM {table.only} LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED"
    query = f"UPDATE {table.only} t SET {column} = t.{column} FROM ({free}) found WHERE {same}"
    return connection.execute(query.encode()).rowcount


_OURS = "u.transaction = pg_catalog.pg_current_xact_id()"


def _kept(connection: Connection, names: CaptureNames, undo: UndoTable) -> int:
    query = f"SELECT count(*) FROM {names.log(undo.table)} u WHERE {_OURS}"
    row = connection.execute(query.encode()).fetchone()
    return int(row[0]) if row else 0


def _differing(connection: Connection, names: CaptureNames, undo: UndoTable) -> int:
    """Count the images of this transaction that are not the row as it is, or do not come back as they are."""
    table = undo.table
    back, kept = restored_image(table, "u"), kept_image(table, "u")
    query = (
        f"SELECT count(*) FROM {names.log(table)} u LEFT JOIN {table.only} t ON {match(table, 't', 'u')}"
        f" WHERE {_OURS} AND ({back} {SAME} {kept}"
        # A trigger of the user may have made another row of the old one.
        f" AND (u.op = '-' OR {row_image(table, 't')} {SAME} {kept})) IS NOT TRUE"
    )
    row = connection.execute(query.encode()).fetchone()
    return int(row[0]) if row else 0
