"""Which rows are test data: the tables that carry the marker, or that a condition was given for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from psycopg import sql

from keikaku_snapshots.errors import UsageError
from keikaku_snapshots.postgres import catalog
from keikaku_snapshots.postgres.columns import primary_key

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from keikaku_snapshots.postgres.connect import Connection
    from keikaku_snapshots.snapshots.manifest import Snapshot

#: The column that marks test rows, unless another one is named.
MARKER = "is_test_data"

_DOTTED = re.compile(r'(?:(?P<schema>"(?:[^"]|"")+"|[^".]+)\.)?(?P<name>"(?:[^"]|"")+"|[^".]+)')


@dataclass(frozen=True, slots=True)
class Scope:
    """What counts as a test row."""

    #: The boolean column that marks test rows.
    marker: str = MARKER
    #: SQL conditions by table, in place of the marker there.
    predicates: Mapping[str, str] | None = None

    def condition(self, name: catalog.TableName) -> sql.Composable:
        """Return the SQL condition of a table's test rows, never NULL."""
        text = self.predicate(name)
        if text is not None:
            # A line of its own, so that a comment at its end does not swallow the bracket.
            trusted: Any = text
            return sql.SQL("((") + sql.SQL(trusted) + sql.SQL("\n) IS TRUE)")
        return sql.SQL("({} IS TRUE)").format(sql.Identifier(self.marker))

    def predicate(self, name: catalog.TableName) -> str | None:
        """Return the condition that was given for a table, None for one that goes by the marker."""
        for key, text in (self.predicates or {}).items():
            if names_table(key, name):
                return text
        return None


@dataclass(frozen=True, slots=True, eq=False)
class ScopedTable:
    """A table that holds test rows."""

    #: Schema and name; the root of a partitioned table.
    name: catalog.TableName
    #: Object ids of the table and of its partitions.
    oids: tuple[int, ...]
    #: Their names.
    members: tuple[catalog.TableName, ...]
    #: True for a partitioned table.
    partitioned: bool
    #: All columns in the table's order.
    columns: tuple[catalog.Column, ...]
    #: The rows that are test data.
    condition: sql.Composable
    #: Why its test rows cannot be told from others; empty when they can.
    problem: str = ""

    @property
    def written(self) -> tuple[catalog.Column, ...]:
        """The columns that can be written: not the generated ones."""
        return tuple(column for column in self.columns if not column.generated)

    @property
    def source(self) -> sql.Composable:
        """The table for FROM: without the children of old-style inheritance, which are tables themselves."""
        only = sql.SQL("" if self.partitioned else "ONLY ")
        return only + self.name.identifier


def names_table(text: str, name: catalog.TableName) -> bool:
    """Tell whether ``schema.table``, or ``table`` in schema public, is this table.

    Args:
        text: As it stands in a file or was given by a person; quotes only where a name has dots.
        name: The table.
    """
    if text == name.text:
        return True
    match = _DOTTED.fullmatch(text)
    if match is None:
        return False
    schema = _bare(match["schema"]) if match["schema"] else "public"
    return (schema, _bare(match["name"])) == (name.schema, name.name)


def _bare(text: str) -> str:
    return text[1:-1].replace('""', '"') if text.startswith('"') else text


class Tables:
    """The root tables of a database, described when they are asked for.

    Args:
        connection: The database.
        scope: What counts as a test row.
    """

    def __init__(self, connection: Connection, scope: Scope) -> None:
        self._connection = connection
        self._scope = scope
        order = catalog.table_order(connection)
        #: Every root table, parents first.
        self.names = order.tables
        #: Groups of tables that refer to each other in a circle.
        self.circles = order.cycles
        self._members: dict[catalog.TableName, list[catalog.TableInfo]] = {}
        for info in catalog.tables(connection):
            self._members.setdefault(info.root or info.name, []).append(info)

    def find(self, text: str) -> catalog.TableName | None:
        """Return the table that a file or a person calls by this name."""
        return next((name for name in self.names if names_table(text, name)), None)

    def describe(self, name: catalog.TableName) -> ScopedTable:
        """Return everything about a table."""
        columns = tuple(catalog.columns(self._connection, name))
        members = self._members[name]
        return ScopedTable(
            name=name,
            oids=tuple(info.oid for info in members),
            members=tuple(info.name for info in members),
            partitioned=any(info.name == name and info.kind == "partitioned" for info in members),
            columns=columns,
            condition=self._scope.condition(name),
            problem=self._problem(name, columns),
        )

    def _problem(self, name: catalog.TableName, columns: Sequence[catalog.Column]) -> str:
        marker = next((column for column in columns if column.name == self._scope.marker), None)
        if self._scope.predicate(name) is not None:
            return ""
        if marker is None:
            return f"it has no column {self._scope.marker} to tell test rows from others"
        if marker.base_type != "bool":
            return f"its column {marker.name} is {marker.type}, not boolean"
        return ""


def find_scope(connection: Connection, scope: Scope) -> list[ScopedTable]:
    """List the tables whose test rows make a snapshot, parents first.

    Args:
        connection: The database.
        scope: What counts as a test row.

    Returns:
        The tables, also those without a test row.

    Raises:
        UsageError: There is none, the marker is not boolean, or a condition is for a table that is not there.
    """
    tables = Tables(connection, scope)
    marked = set(
        connection.execute(
            "SELECT n.nspname::text, c.relname::text FROM pg_catalog.pg_attribute a"
            " JOIN pg_catalog.pg_class c ON c.oid = a.attrelid"
            " JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
            " WHERE a.attname = %s AND a.attnum > 0 AND NOT a.attisdropped",
            [scope.marker],
        ).fetchall()
    )
    found = [
        tables.describe(name)
        for name in tables.names
        if (name.schema, name.name) in marked or scope.predicate(name) is not None
    ]
    lines = [f"{table.name}: {table.problem}" for table in found if table.problem]
    lines += [f"{key}: there is no such table" for key in scope.predicates or {} if tables.find(key) is None]
    if lines:
        raise UsageError("the test rows cannot be told from others", found="\n".join(lines))
    if not found:
        raise UsageError(
            f"no table has a column {scope.marker!r}, so there are no test rows",
            hint=f"Add the column ({scope.marker} boolean NOT NULL DEFAULT false), or name another one as "
            "marker= (--marker), or give conditions as predicates=.",
        )
    return found


def count_rows(connection: Connection, tables: Sequence[ScopedTable]) -> dict[str, int]:
    """Count the test rows.

    Args:
        connection: In the transaction that counts.
        tables: The tables.

    Returns:
        Rows by ``schema.table``.
    """
    counts: dict[str, int] = {}
    for table in tables:
        statement = sql.SQL("SELECT count(*) FROM {} WHERE {}").format(table.source, table.condition)
        row = connection.execute(statement).fetchone()
        counts[table.name.text] = int(row[0]) if row else 0
    return counts


def replaced_rows(connection: Connection, snapshot: Snapshot) -> dict[str, int]:
    """Count the test rows that a restore of a snapshot would replace.

    Args:
        connection: The database.
        snapshot: A snapshot of test data.

    Returns:
        Rows by ``schema.table``; tables that are not there are left out.
    """
    manifest = snapshot.manifest
    scope = Scope(manifest.marker or MARKER, manifest.predicates) if manifest else Scope()
    tables = Tables(connection, scope)
    wanted = [name for name in tables.names if manifest is None or name.text in manifest.row_counts]
    found = [tables.describe(name) for name in wanted]
    return count_rows(connection, [table for table in found if not table.problem])


#: What the text of values depends on; the same when they are written and when they are read.
_TEXT_SETTINGS = {
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "extra_float_digits": "3",
    "bytea_output": "hex",
    "lc_monetary": "C",
    "xmloption": "content",
    "array_nulls": "on",
}
_NO_LIMITS = ("idle_in_transaction_session_timeout", "transaction_timeout", "statement_timeout")


def begin_reading(connection: Connection) -> None:
    """Fix for the transaction how values are written as text, and that no time limit ends it half-way.

    Args:
        connection: In, or at the beginning of, its transaction.
    """
    _begin(connection)
    # Names of tables and types are written with their schema then (regclass, regtype).
    connection.execute("SET LOCAL search_path = pg_catalog")


def begin_writing(connection: Connection) -> None:
    """Fix how text is read; functions in checks and defaults see the tables that they always see.

    Args:
        connection: In, or at the beginning of, its transaction.
    """
    _begin(connection)
    # Named last, or our temporary tables would come before the user's.
    connection.execute(
        "SELECT pg_catalog.set_config('search_path', pg_catalog.concat_ws(', ',"
        " nullif(pg_catalog.current_setting('search_path'), ''), 'pg_temp'), true)"
    )


def _begin(connection: Connection) -> None:
    for name, value in _TEXT_SETTINGS.items():
        connection.execute("SELECT pg_catalog.set_config(%s, %s, true)", (name, value))
    connection.execute(
        "SELECT pg_catalog.set_config(name, '0', true) FROM pg_catalog.pg_settings WHERE name = ANY(%s)",
        [list(_NO_LIMITS)],
    )


def in_order(connection: Connection, table: ScopedTable) -> sql.Composable:
    """Return ORDER BY, so that equal data make equal files; nothing for a table without a primary key.

    Rows of one parent stand together, which people like to read, and which
    makes a gzip file an eighth smaller than the order of random keys.

    Args:
        connection: The database.
        table: The table.
    """
    key = primary_key(connection, table.name)
    if not key:
        return sql.SQL("")
    parents = [one.columns for one in catalog.foreign_keys(connection) if one.table == table.name]
    names = dict.fromkeys([*(name for columns in parents for name in columns), *key])
    return sql.SQL(" ORDER BY ") + sql.SQL(", ").join(map(sql.Identifier, names))
