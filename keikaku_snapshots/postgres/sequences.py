"""Sequences: where they stand, and putting them behind rows that came with their ids."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from psycopg import sql

from keikaku_snapshots.errors import UsageError
from keikaku_snapshots.postgres.filters import USER_SCHEMA, not_extension_member
from keikaku_snapshots.postgres.tables import COUNT_BATCH, TableName

if TYPE_CHECKING:
    from collections.abc import Iterable

    from keikaku_snapshots.postgres.connect import Connection


class SequenceState(NamedTuple):
    """Where a sequence stands."""

    #: The value last given out, or the next one if `is_called` is False.
    last_value: int
    #: Whether `last_value` was given out.
    is_called: bool


_SEQUENCES = f"""
SELECT n.nspname, c.relname FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'S' AND c.relpersistence <> 't' AND {USER_SCHEMA}
  AND {not_extension_member("pg_class", "c.oid")}
ORDER BY 1, 2
"""  # noqa: S608 - constants of this package


def sequences(connection: Connection) -> dict[str, SequenceState]:
    """Read where every sequence stands, those of identity columns included.

    Args:
        connection: The database.

    Returns:
        States by ``schema.sequence``, sorted by name.
    """
    names = [TableName(*row) for row in connection.execute(_SEQUENCES).fetchall()]
    states: dict[str, SequenceState] = {}
    for start in range(0, len(names), COUNT_BATCH):
        batch = names[start : start + COUNT_BATCH]
        parts = [
            sql.SQL("SELECT {}::int, last_value, is_called FROM {}").format(
                sql.Literal(number), name.identifier
            )
            for number, name in enumerate(batch)
        ]
        rows = connection.execute(sql.SQL(" UNION ALL ").join(parts)).fetchall()
        found = {row[0]: SequenceState(row[1], row[2]) for row in rows}
        states.update({name.text: found[number] for number, name in enumerate(batch)})
    return states


_FEEDS = """
SELECT DISTINCT sn.nspname, s.relname, a.attname, q.seqstart, q.seqincrement, q.seqmin, q.seqmax
FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
JOIN pg_catalog.pg_depend p
  ON (p.classid = 'pg_class'::regclass AND p.refclassid = 'pg_class'::regclass AND p.refobjid = c.oid
      AND p.refobjsubid = a.attnum AND p.deptype IN ('a', 'i'))
  OR (p.classid = 'pg_attrdef'::regclass AND p.objid = d.oid AND p.refclassid = 'pg_class'::regclass)
JOIN pg_catalog.pg_class s
  ON s.relkind = 'S' AND s.oid = CASE WHEN p.classid = 'pg_class'::regclass THEN p.objid ELSE p.refobjid END
JOIN pg_catalog.pg_namespace sn ON sn.oid = s.relnamespace
JOIN pg_catalog.pg_sequence q ON q.seqrelid = s.oid
WHERE n.nspname = %s AND c.relname = %s
ORDER BY 1, 2, 3
"""


def reset_sequences(connection: Connection, tables: Iterable[TableName]) -> dict[str, int]:
    """Put every sequence that feeds a column of these tables behind the highest value there (FAULTS 82).

    A sequence never goes back: another session may hold values that it has
    not committed yet.

    Args:
        connection: The database; setval is not undone by a rollback.
        tables: Tables that rows with explicit ids were copied into.

    Returns:
        The next value of each sequence that was moved.

    Raises:
        UsageError: A column holds the last value of its sequence already.
    """
    moved: dict[str, int] = {}
    for table in tables:
        for row in connection.execute(_FEEDS, (table.schema, table.name)).fetchall():
            sequence, column = TableName(row[0], row[1]), row[2]
            start, step, lowest, highest = row[3:]
            following = _next_value(connection, table, column, sequence, step=step, start=start)
            if following is None:
                continue
            if not lowest <= following <= highest:
                message = f"the sequence {sequence} has no value left after the rows of {table}"
                raise UsageError(
                    message,
                    found=f"Column: {column}",
                    hint="Widen the sequence (ALTER SEQUENCE … AS bigint).",
                )
            connection.execute(
                "SELECT pg_catalog.setval(%s::regclass, %s, false)", (_regclass(sequence), following)
            )
            moved[sequence.text] = following
    return moved


def _regclass(name: TableName) -> str:
    return '"' + name.schema.replace('"', '""') + '"."' + name.name.replace('"', '""') + '"'


def _next_value(
    connection: Connection, table: TableName, column: str, sequence: TableName, *, step: int, start: int
) -> int | None:
    """The value the sequence must give next, or None if it stands well already."""
    furthest = sql.SQL("max" if step > 0 else "min")
    statement = sql.SQL("SELECT (SELECT {}({}) FROM {}), last_value, is_called FROM {}").format(
        furthest, sql.Identifier(column), table.identifier, sequence.identifier
    )
    row = connection.execute(statement).fetchone()
    if row is None or row[0] is None:
        return None
    current = row[1] + step if row[2] else row[1]
    # Stay on the grid of the sequence: start + n * step.
    steps = (int(row[0]) - start) // step + 1
    wanted = start + max(steps, 0) * step
    stands_well = wanted <= current if step > 0 else wanted >= current
    return None if stands_well else wanted
