"""What a rollback has to know of its tables: their order, their present names, who refers to them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from keikaku_snapshots.errors import PatchRollbackError
from keikaku_snapshots.patches.records_schema import SCHEMA
from keikaku_snapshots.patches.rollback_sql import TableSql
from keikaku_snapshots.patches.rollback_table import TableRollback
from keikaku_snapshots.patches.undo import names_of
from keikaku_snapshots.postgres import catalog
from keikaku_snapshots.postgres.capture_owner import cascades
from keikaku_snapshots.postgres.capture_tables import CapturedTable, captured_tables

if TYPE_CHECKING:
    from uuid import UUID

    from keikaku_snapshots.patches.undo import UndoTable
    from keikaku_snapshots.postgres.connect import Connection


def tables_to_roll_back(
    connection: Connection, execution_id: UUID, known: tuple[UndoTable, ...], *, force: bool
) -> list[TableRollback]:
    """Read the tables of an execution as they are now, those that others refer to first.

    Args:
        connection: In autocommit.
        execution_id: The execution.
        known: Its tables as they were when the run began.
        force: Restore rows whatever others made of them.

    Returns:
        The tables.

    Raises:
        PatchRollbackError: A table or a column that was kept is gone.
    """
    with connection.transaction():
        present = {table.oid: table for table in captured_tables(connection, SCHEMA)}
        references = cascades(connection, all_keys=True)
        order = {name: place for place, name in enumerate(catalog.table_order(connection).tables)}
        triggers = _with_triggers(connection)
    names = names_of(execution_id)
    named = {table.name: table.oid for table in present.values()}
    found = []
    for undo in known:
        table = _as_now(undo, present.get(undo.table.oid), named.get(undo.table.name))
        found.append(
            TableRollback(
                connection=connection,
                execution_id=execution_id,
                number=undo.number,
                sql=TableSql(names, table, tuple(one for one in references if one.parent_oid == table.oid)),
                force=force,
                has_triggers=bool(triggers & {member.oid for member in table.members}),
                has_more_columns=len(present[table.oid].columns) > len(table.columns),
            )
        )
    return sorted(found, key=lambda one: order.get(one.sql.table.name, 0))


def _with_triggers(connection: Connection) -> set[int]:
    rows = connection.execute(
        "SELECT DISTINCT tgrelid::bigint FROM pg_catalog.pg_trigger"
        " WHERE NOT tgisinternal AND tgenabled IN ('O', 'A') AND NOT starts_with(tgname::text, %s)",
        [SCHEMA],
    ).fetchall()
    return {row[0] for row in rows}


def _as_now(undo: UndoTable, present: CapturedTable | None, named: int | None) -> CapturedTable:
    """The table as it is called now, with the columns that were kept."""
    kept = undo.table
    if named is not None and named != kept.oid:
        # It may hold a copy of the patched rows; to change the other one back would be no rollback.
        raise PatchRollbackError(
            "another table has the name of the one that the run changed",
            found=f"{kept.name.text}"
            + (f"; the run's own is called {present.name.text} now" if present is not None else ""),
            hint="Decide which of them counts: give the run's own table its name back and roll back again, "
            "or correct the other one by a new patch.",
            hint_ja="どちらのテーブルが正しいか確認し、元のテーブル名に戻して再度ロールバックするか、"
            "新しいパッチで修正してください。",
        )
    if present is None:
        raise PatchRollbackError("a table that the run changed is not there any more", found=kept.name.text)
    by_kept = {column.kept: column for column in present.columns}
    columns = []
    for column in kept.columns:
        now = by_kept.get(column.kept)
        if now is None or (now.kept_type, now.cast) != (column.kept_type, column.cast):
            raise PatchRollbackError(
                "a column that the run kept was dropped or has another type since",
                found=f"{kept.name.text}: {column.identifier}",
            )
        columns.append(now)
    names = {old.identifier: new for old, new in zip(kept.columns, columns, strict=True)}
    key = tuple(
        part._replace(name=_bare(names[column.identifier].identifier))
        for part, column in zip(kept.key, kept.key_columns(), strict=True)
    )
    return replace(present, number=undo.number, columns=tuple(columns), key=key, mode="images")


def _bare(identifier: str) -> str:
    return identifier[1:-1].replace('""', '"')
