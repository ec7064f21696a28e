"""A sample of what a run has changed, read from its undo log: the row before and after."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from psycopg import sql

from keikaku_snapshots.patches.report import Difference
from keikaku_snapshots.patches.undo import names_of, undo_tables

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from uuid import UUID

    from keikaku_snapshots.patches.undo import UndoTable
    from keikaku_snapshots.postgres.connect import Connection

#: Rows of each table that are shown.
ROWS: Final = 10
#: Entries of a log that are looked at, so that a log of any length costs the same.
_LOOKED_AT: Final = 50_000


def sample(connection: Connection, execution_id: UUID) -> Iterator[Difference]:
    """Read some of the rows that a run has changed.

    Args:
        connection: The database.
        execution_id: The run.

    Yields:
        Rows of each table whose log is still there, at most `ROWS` of it.
    """
    for undo in undo_tables(connection, execution_id):
        log = names_of(execution_id).log(undo.table)
        row = connection.execute("SELECT pg_catalog.to_regclass(%s) IS NOT NULL", [log]).fetchone()
        if row and row[0]:
            yield from _of_table(connection, undo, log)


def _of_table(connection: Connection, undo: UndoTable, log: str) -> Iterator[Difference]:
    table = undo.table
    kept = [column.kept for column in table.columns]
    keys = [column.kept for column in table.key_columns()]
    # The log's and its columns' names are SQL already.
    query = sql.SQL(
        "WITH looked AS MATERIALIZED (SELECT * FROM {log} WHERE op IN ('-', '+') LIMIT {most}),"
        " chosen AS (SELECT DISTINCT {keys} FROM (SELECT * FROM looked LIMIT {rows}) l)"
        " SELECT op, {texts} FROM looked JOIN chosen USING ({keys}) ORDER BY {order}, seq"
    ).format(
        log=sql.SQL(log),
        most=sql.Literal(_LOOKED_AT),
        rows=sql.Literal(ROWS),
        keys=sql.SQL(", ".join(keys)),
        # By the values; the bare names would be those of the texts.
        order=sql.SQL(", ".join(f"looked.{name}" for name in keys)),
        texts=sql.SQL(", ".join(f"{name}::pg_catalog.text" for name in kept)),
    )
    places = [kept.index(name) for name in keys]
    names = [column.identifier[1:-1].replace('""', '"') for column in table.columns]
    found: dict[tuple[str, ...], list[tuple[str, Sequence[Any]]]] = {}
    for op, *values in connection.execute(query):
        found.setdefault(tuple(values[place] for place in places), []).append((op, values))
    for key, entries in found.items():
        yield _difference(table.name.text, key, names, entries)


def _difference(
    table: str, key: tuple[str, ...], names: Sequence[str], entries: Sequence[tuple[str, Sequence[Any]]]
) -> Difference:
    before = entries[0][1] if entries[0][0] == "-" else None
    after = entries[-1][1] if entries[-1][0] == "+" else None
    kind = "insert" if before is None else "delete" if after is None else "update"
    old = before or [None] * len(names)
    new = after or [None] * len(names)
    columns = {name: (one, other) for name, one, other in zip(names, old, new, strict=True) if one != other}
    return Difference(table=table, key=key, kind=kind, columns=columns)
