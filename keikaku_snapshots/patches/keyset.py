"""Walking over a table in the order of its key: ranges of keys, never OFFSET.

A range ends at a key, so what a batch changes in its own condition can neither
skip nor repeat a row. A condition that few rows meet is looked for in a bounded
number of rows at a time; a range may hold none.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from psycopg import sql

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keikaku_snapshots.postgres.connect import Connection

#: The key of a row: texts as the server writes them, which it reads back exactly.
Key: TypeAlias = tuple[str, ...]
#: Rows that are looked at for each row of a batch, where few meet the condition.
SCAN_FACTOR: Final = 20
#: Rows that are looked at for a batch at the least.
SCAN_MIN: Final = 200


@dataclass(frozen=True, slots=True)
class Range:
    """The rows of one batch: those above one key and up to another."""

    #: Key before the first row; None at the beginning of the table.
    after: Key | None
    #: Key of the last row.
    upper: Key


@dataclass(frozen=True, slots=True)
class Keyset:
    """A table, its key and a condition."""

    #: The table as an identifier.
    table: sql.Identifier
    #: Columns of the key in the order of its index.
    columns: tuple[str, ...]
    #: Their types as SQL.
    types: tuple[str, ...]
    #: Which rows; always true for an empty one.
    where: sql.Composable
    #: Values of the condition's placeholders.
    values: dict[str, Any] = field(repr=False)

    @property
    def key(self) -> sql.Composed:
        """The key's columns, with commas."""
        return sql.SQL(", ").join(map(sql.Identifier, self.columns))

    @property
    def key_texts(self) -> sql.Composed:
        """The key's columns as texts, called as in `names`."""
        return sql.SQL(", ").join(
            sql.SQL("{}::text AS {}").format(sql.Identifier(column), name)
            for column, name in zip(self.columns, self.names, strict=True)
        )

    @property
    def names(self) -> tuple[sql.Identifier, ...]:
        """Names for the key's columns that no column of the user has."""
        return tuple(sql.Identifier(f"keikaku_key_{number}") for number in range(len(self.columns)))

    @property
    def renamed(self) -> sql.Composed:
        """The key's columns under the names of `names`."""
        return sql.SQL(", ").join(
            sql.SQL("{} AS {}").format(sql.Identifier(column), name)
            for column, name in zip(self.columns, self.names, strict=True)
        )

    def order(self, *, descending: bool = False) -> sql.Composed:
        """Return ORDER BY of the key.

        Args:
            descending: From the greatest on.
        """
        direction = sql.SQL(" DESC" if descending else "")
        return sql.SQL(" ORDER BY ") + sql.SQL(", ").join(
            sql.Identifier(column) + direction for column in self.columns
        )

    def _compared(self, operator: str, key: Key) -> sql.Composed:
        values = (
            sql.SQL("{}::{}").format(sql.Literal(text), sql.SQL(name))
            for text, name in zip(key, self.types, strict=True)
        )
        return sql.SQL("({}) {} ({})").format(self.key, sql.SQL(operator), sql.SQL(", ").join(values))

    def within(self, after: Key | None, upper: Key | None) -> sql.Composed:
        """Return the condition of a range of keys.

        Args:
            after: Above this key, or from the beginning.
            upper: Up to this key, or to the end.
        """
        parts = [sql.SQL("true")] if after is None and upper is None else []
        conditions: list[sql.Composable] = [*parts]
        if after is not None:
            conditions.append(self._compared(">", after))
        if upper is not None:
            conditions.append(self._compared("<=", upper))
        return escaped(sql.SQL(" AND ").join(conditions))

    def matching(self, found: Range) -> sql.Composed:
        """Return the condition of the rows of a range that are to be worked on.

        Args:
            found: The range.
        """
        return sql.SQL("{} AND ({})").format(self.within(found.after, found.upper), self.where)


def escaped(part: sql.Composable) -> sql.Composed:
    """Double the percent signs of a text without placeholders, which is run beside some that has.

    Args:
        part: SQL, such as a key that holds a percent sign.
    """
    return sql.Composed([sql.SQL(part.as_string(None).replace("%", "%%"))])


def last_key(connection: Connection, keyset: Keyset) -> Key | None:
    """Find the greatest key of a table, whatever the condition; one look at the index.

    Args:
        connection: The database.
        keyset: Table and key.

    Returns:
        The key; None for an empty table.
    """
    query = sql.SQL("SELECT {} FROM {}{} LIMIT 1").format(
        keyset.key_texts, keyset.table, keyset.order(descending=True)
    )
    row = connection.execute(query).fetchone()
    return tuple(row) if row else None


def next_range(
    connection: Connection, keyset: Keyset, after: Key | None, upper: Key, size: int
) -> tuple[Range, int] | None:
    """Find the next range with at most so many rows that meet the condition.

    Args:
        connection: The database.
        keyset: Table, key and condition.
        after: Key of the last row that was worked on.
        upper: Greatest key of the run.
        size: Most rows.

    Returns:
        The range, and how many of its rows met the condition; None at the end of the table.
    """
    scan = max(size * SCAN_FACTOR, SCAN_MIN)
    names = keyset.names
    candidates = sql.SQL("SELECT {}{} FROM {} WHERE {}{} LIMIT {}").format(
        keyset.renamed,
        sql.SQL(", ({}) AS keikaku_wanted").format(keyset.where),
        keyset.table,
        keyset.within(after, upper),
        keyset.order(),
        sql.Literal(scan),
    )
    by_name = sql.SQL(", ").join(names)
    query = sql.SQL(
        "SELECT {texts}, keikaku_number FROM (SELECT {names}, row_number() OVER (ORDER BY {names})"
        " AS keikaku_number FROM (SELECT {names} FROM ({candidates}) c WHERE keikaku_wanted"
        " ORDER BY {names} LIMIT {size}) w) n ORDER BY keikaku_number DESC LIMIT 1"
    ).format(
        texts=sql.SQL(", ").join(sql.SQL("{}::text").format(name) for name in names),
        names=by_name,
        candidates=candidates,
        size=sql.Literal(size),
    )
    row = connection.execute(query, keyset.values).fetchone()
    matched = row[-1] if row else 0
    if row and matched == size:
        return Range(after, tuple(row[:-1])), matched
    end = _scanned_to(connection, keyset, after, upper, scan)
    return None if end is None else (Range(after, end), matched)


def _scanned_to(
    connection: Connection, keyset: Keyset, after: Key | None, upper: Key, scan: int
) -> Key | None:
    """Find the last key that the search has looked at."""
    query = sql.SQL(
        "SELECT {texts} FROM (SELECT {renamed} FROM {table} WHERE {within}{order} LIMIT {scan}) c"
        " ORDER BY {last} LIMIT 1"
    ).format(
        texts=sql.SQL(", ").join(sql.SQL("{}::text").format(name) for name in keyset.names),
        renamed=keyset.renamed,
        table=keyset.table,
        within=keyset.within(after, upper),
        order=keyset.order(),
        scan=sql.Literal(scan),
        # Without the "c." it would be the output column of that name, which is a text.
        last=sql.SQL(", ").join(sql.SQL("c.{} DESC").format(name) for name in keyset.names),
    )
    # Its percent signs are doubled, so that it must have values.
    row = connection.execute(query, {}).fetchone()
    return tuple(row) if row else None


_HIDDEN: Final = """
SELECT a.attname::text, s.nspname::text FROM pg_catalog.pg_attribute a
CROSS JOIN LATERAL (
  WITH RECURSIVE below AS (
    SELECT t.oid, t.typbasetype FROM pg_catalog.pg_type t WHERE t.oid = a.atttypid
    UNION ALL
    SELECT u.oid, u.typbasetype FROM below JOIN pg_catalog.pg_type u ON u.oid = below.typbasetype)
  SELECT oid FROM below WHERE typbasetype = 0) b
JOIN pg_catalog.pg_opclass c ON c.opcintype = b.oid AND c.opcdefault
JOIN pg_catalog.pg_am m ON m.oid = c.opcmethod AND m.amname = 'btree'
JOIN pg_catalog.pg_amop g ON g.amopfamily = c.opcfamily AND g.amopstrategy = 5
  AND g.amoplefttype = b.oid AND g.amoprighttype = b.oid
JOIN pg_catalog.pg_operator o ON o.oid = g.amopopr JOIN pg_catalog.pg_namespace s ON s.oid = o.oprnamespace
WHERE a.attrelid = %s AND a.attname = ANY (%s) AND NOT pg_catalog.pg_operator_is_visible(o.oid)
"""


def hidden_orders(connection: Connection, table_oid: int, columns: Sequence[str]) -> list[tuple[str, str]]:
    """Find columns that would be sorted in one way and compared in another one.

    The operators of a type whose schema is not on the search path are not found by their names, such as
    those of citext; "<=" then means another type's, and a range of keys would leave rows out.

    Args:
        connection: The database.
        table_oid: The table.
        columns: Columns of its key.

    Returns:
        Columns, each with the schema of its operators.
    """
    return [(row[0], row[1]) for row in connection.execute(_HIDDEN, [table_oid, list(columns)])]


def key_values(keys: Sequence[Key], keyset: Keyset) -> tuple[sql.Composed, dict[str, Any]]:
    """Return ``unnest(…)`` of keys as a table of texts, and its values.

    Args:
        keys: Keys.
        keyset: Whose.

    Returns:
        SQL with columns called as in `Keyset.names`, and values for its placeholders.
    """
    placeholders = {
        f"keikaku_key_{number}": list(column) for number, column in enumerate(zip(*keys, strict=True))
    }
    return (
        sql.SQL("unnest({}) AS v({})").format(
            sql.SQL(", ").join(sql.SQL("{}::text[]").format(sql.Placeholder(name)) for name in placeholders),
            sql.SQL(", ").join(keyset.names),
        ),
        placeholders,
    )
