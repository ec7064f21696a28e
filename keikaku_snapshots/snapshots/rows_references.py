"""Foreign keys that cross the scope: counted before anything changes, because a cascade never decides."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from psycopg import sql

from keikaku_snapshots.errors import ForeignKeyError
from keikaku_snapshots.postgres import catalog
from keikaku_snapshots.postgres.references import Counted, refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from keikaku_snapshots.postgres.connect import Connection
    from keikaku_snapshots.snapshots.rows_scope import ScopedTable


#: The operators a foreign key compares with, wherever they are (citext): the name alone may find another one.
_OPERATORS = """
SELECT n.nspname::text, c.relname::text, k.conname::text,
       ARRAY(SELECT pg_catalog.format('OPERATOR(%I.%s)', s.nspname, o.oprname)
             FROM unnest(k.conpfeqop) WITH ORDINALITY AS u (operator, place)
             JOIN pg_catalog.pg_operator o ON o.oid = u.operator
             JOIN pg_catalog.pg_namespace s ON s.oid = o.oprnamespace ORDER BY u.place)
FROM pg_catalog.pg_constraint k JOIN pg_catalog.pg_class c ON c.oid = k.conrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE k.contype = 'f'
"""


class References:
    """The foreign keys of a database, seen from the tables in scope.

    Args:
        connection: In the transaction that works.
        tables: The tables in scope.
    """

    def __init__(self, connection: Connection, tables: Sequence[ScopedTable]) -> None:
        self._connection = connection
        self._owner = {member: table for table in tables for member in table.members}
        # The server checks neither at the usual time nor by equality what these words say (PostgreSQL 18).
        self._keys = [
            key
            for key in catalog.foreign_keys(connection)
            if "PERIOD " not in key.definition and not key.definition.endswith("NOT ENFORCED")
        ]
        self._operators = {row[:3]: row[3] for row in connection.execute(_OPERATORS).fetchall()}
        partitioned = {info.name for info in catalog.tables(connection) if info.kind == "partitioned"}
        self._partitioned = partitioned

    def refuse_incoming(self) -> None:
        """Refuse when rows that stay refer to test rows that would be deleted.

        Raises:
            TestDataReferencedError: There are such rows; table, count and constraint are in it.
        """
        counts = []
        for key in self._keys:
            parent = self._owner.get(key.references)
            if parent is None:
                continue
            child = self._owner.get(key.table)
            stays = sql.SQL("NOT ") + child.condition if child else sql.SQL("true")
            rows = self._count(
                sql.SQL("SELECT count(*) FROM {child} c JOIN {parent} p ON {same}").format(
                    child=self._selected(key.table, key.columns, stays),
                    parent=self._selected(key.references, key.referenced_columns, parent.condition),
                    same=self._same(key),
                )
            )
            if rows:
                counts.append(Counted(key.table.text, key.references.text, key.name, rows))
        if counts:
            raise refusal(counts)

    def outgoing(self) -> list[Counted]:
        """Count the test rows that refer to rows outside of the scope, which a restore needs to find."""
        counts = []
        for key in self._keys:
            child, parent = self._owner.get(key.table), self._owner.get(key.references)
            if child is None:
                continue
            outside = sql.SQL("NOT ") + parent.condition if parent else sql.SQL("true")
            rows = self._count(
                sql.SQL("SELECT count(*) FROM {child} c JOIN {parent} p ON {same}").format(
                    child=self._selected(key.table, key.columns, child.condition),
                    parent=self._selected(key.references, key.referenced_columns, outside),
                    same=self._same(key),
                )
            )
            if rows:
                counts.append(Counted(key.table.text, key.references.text, key.name, rows))
        return counts

    def refuse_missing(
        self, staged: Callable[[ScopedTable, Sequence[str]], sql.Composable | None], *, clean_existing: bool
    ) -> None:
        """Refuse when new rows refer to rows that will not be there.

        Args:
            staged: Gives a subquery of the new rows' values of some columns, None without any.
            clean_existing: True if the test rows of now will be gone.

        Raises:
            ForeignKeyError: There are such rows; table, count and constraint are in it.
        """
        counts = []
        for key in self._keys:
            child, parent = self._owner.get(key.table), self._owner.get(key.references)
            children = staged(child, key.columns) if child and key.table == child.name else None
            if children is None:
                continue
            kept = sql.SQL("NOT ") + parent.condition if parent and clean_existing else sql.SQL("true")
            places: list[sql.Composable] = [self._selected(key.references, key.referenced_columns, kept)]
            new = staged(parent, key.referenced_columns) if parent else None
            if new is not None:
                places.append(new)
            absent = [
                sql.SQL("NOT EXISTS (SELECT FROM {} p WHERE {})").format(place, self._same(key))
                for place in places
            ]
            given = [sql.SQL("c.{} IS NOT NULL").format(sql.Identifier(name)) for name in key.columns]
            rows = self._count(
                sql.SQL("SELECT count(*) FROM {} c WHERE {}").format(
                    children, sql.SQL(" AND ").join([*given, *absent])
                )
            )
            if rows:
                counts.append(Counted(key.table.text, key.references.text, key.name, rows))
        if counts:
            raise _missing(counts)

    def _selected(
        self, name: catalog.TableName, columns: Sequence[str], condition: sql.Composable
    ) -> sql.Composed:
        return sql.SQL("(SELECT {} FROM {} WHERE {})").format(
            sql.SQL(", ").join(map(sql.Identifier, columns)),
            sql.SQL("" if name in self._partitioned else "ONLY ") + name.identifier,
            condition,
        )

    def _same(self, key: catalog.ForeignKey) -> sql.Composed:
        operators = self._operators[key.table.schema, key.table.name, key.name]
        parts = []
        for child, parent, text in zip(key.columns, key.referenced_columns, operators, strict=True):
            operator: Any = sql.SQL(text)
            parts.append(
                sql.SQL("p.{} {} c.{}").format(sql.Identifier(parent), operator, sql.Identifier(child))
            )
        return sql.SQL(" AND ").join(parts)

    def _count(self, statement: sql.Composed) -> int:
        row = self._connection.execute(statement).fetchone()
        return int(row[0]) if row else 0


def _missing(counts: Sequence[Counted]) -> ForeignKeyError:
    lines = [
        f"{one.child}: {one.rows:,} rows refer to rows of {one.parent} that are neither in the snapshot nor "
        f"in the database (constraint {one.constraint})"
        for one in counts
    ]
    return ForeignKeyError(
        "rows of the snapshot refer to rows that do not exist; nothing was changed",
        found="\n".join(lines),
        hint="Create the rows referred to first; rows that are not test data are not part of the snapshot.",
        table=counts[0].child,
        rows=counts[0].rows,
        constraint=counts[0].constraint,
    )
