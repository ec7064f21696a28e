"""The rows of a JSON snapshot in temporary tables: all of the file is read before a table is touched.

COPY brings the rows there with the types of the tables they are for. So
broken JSON, values that do not fit, missing tables and columns, and references
that lead nowhere are known, all at once, while nothing has been changed and no
lock is held; and the time for which others must wait is that of
``INSERT … SELECT`` inside the server.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from psycopg import sql

from keikaku_snapshots.errors import JSONCorruptError, RefusedError, SchemaDriftError
from keikaku_snapshots.snapshots.rows_values import Kind, Raw, decode, kind_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from keikaku_snapshots.postgres.connect import Connection
    from keikaku_snapshots.snapshots.rows_json import Row, RowsReader
    from keikaku_snapshots.snapshots.rows_scope import Scope, ScopedTable, Tables

#: Problems that an error shows.
_SHOWN = 30


@dataclass
class Segment:
    """Rows of one table that have the same columns, in a temporary table."""

    #: The temporary table.
    staged: sql.Identifier
    #: Columns of the file that the table has, in the order of the temporary table.
    columns: tuple[str, ...]
    #: Their places in a row of the file.
    places: tuple[int, ...]
    #: How their values are written.
    kinds: tuple[Kind, ...]
    #: Rows.
    rows: int = 0


class Staging:
    """Fills the temporary tables and knows what is in them.

    Args:
        connection: In the transaction of the restore.
        tables: The tables of the database.
        scope: What counts as a test row.
        place: What to call the file in errors: its path.
    """

    def __init__(self, connection: Connection, tables: Tables, scope: Scope, place: str) -> None:
        self._connection = connection
        self._tables = tables
        self._scope = scope
        self._place = place
        self._segments: dict[ScopedTable, list[Segment]] = {}
        self._names: set[str] = set()
        self._problems: list[str] = []
        #: The table whose rows are being read, for messages.
        self.current = ""
        #: Rows read so far.
        self.rows = 0

    @property
    def tables(self) -> list[ScopedTable]:
        """The tables of the file, parents first."""
        place = {name: number for number, name in enumerate(self._tables.names)}
        return sorted(self._segments, key=lambda table: place[table.name])

    def segments(self, table: ScopedTable) -> list[Segment]:
        """The rows of a table."""
        return self._segments[table]

    def count(self, table: ScopedTable) -> int:
        """How many rows the file has for a table."""
        return sum(segment.rows for segment in self._segments[table])

    def find(self, text: str) -> tuple[ScopedTable, int] | None:
        """Return the table of the file that goes by this name, and its rows."""
        name = self._tables.find(text)
        return next(((table, self.count(table)) for table in self._segments if table.name == name), None)

    def read(self, reader: RowsReader, *, clean_existing: bool) -> None:
        """Read the whole file.

        Args:
            reader: The file.
            clean_existing: True if test rows will be deleted, so that they must be known from others.

        Raises:
            JSONCorruptError: It is broken.
            SchemaDriftError: The database lacks tables or columns, or wants columns that the file lacks.
            RefusedError: Rows of the file are not test data by their own marker.
            psycopg.Error: The server refused a value; `current` says of which table.
        """
        for text, rows in reader.tables():
            name = self._tables.find(text)
            if name is None:
                self._problems.append(f"table {text} is missing")
                for _ in rows:
                    pass
                continue
            self.current = name.text
            table = self._tables.describe(name)
            if any(table.name == other.name for other in self._segments):
                raise JSONCorruptError(
                    "the JSON file has a table twice", found=f"{self._place}: {text} is {table.name.text}"
                )
            if table.problem and clean_existing:
                self._problems.append(f"table {name}: {table.problem}")
            self._segments[table] = []
            self._read_rows(table, rows)
            self._check_needed(table)
        self.current = ""
        if self._problems:
            raise self._drift()
        self._check_scope()
        for segment in (one for table in self._segments for one in self._segments[table]):
            self._connection.execute(sql.SQL("ANALYZE {}").format(segment.staged))

    def selected(self, table: ScopedTable, columns: Sequence[str]) -> sql.Composable | None:
        """Return a subquery of some columns of a table's new rows, None when no row of the file has them.

        Args:
            table: The table.
            columns: Its columns.
        """
        if table not in self._segments:
            return None
        names = sql.SQL(", ").join(map(sql.Identifier, columns))
        parts = [
            sql.SQL("SELECT {} FROM {}").format(names, segment.staged)
            for segment in self._segments[table]
            if set(columns) <= set(segment.columns)
        ]
        if not parts:
            return None
        return sql.SQL("(") + sql.SQL(" UNION ALL ").join(parts) + sql.SQL(")")

    def insert(self, table: ScopedTable) -> None:
        """Put a table's new rows where they belong.

        Args:
            table: The table.

        Raises:
            psycopg.Error: The server refused a row.
        """
        for segment in self._segments[table]:
            columns: list[sql.Composable] = [sql.Identifier(name) for name in segment.columns]
            values = list(columns)
            if self._marker_is_implied(table, segment):
                columns.append(sql.Identifier(self._scope.marker))
                values.append(sql.SQL("true"))
            self._connection.execute(
                sql.SQL("INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM {}").format(
                    table.name.identifier,
                    sql.SQL(", ").join(columns),
                    sql.SQL(", ").join(values),
                    segment.staged,
                )
            )

    # -- reading ---------------------------------------------------------------------

    def _read_rows(self, table: ScopedTable, rows: Iterator[Row]) -> None:
        """COPY as long as the rows have the same columns; files made by hand may change them."""
        by_columns: dict[tuple[str, ...], Segment | None] = {}
        current: tuple[str, ...] | None = None
        segment: Segment | None = None
        with ExitStack() as stack:
            copy: Any = None
            for number, row in enumerate(rows, 1):
                if row.columns != current:
                    stack.close()
                    current = row.columns
                    if current not in by_columns:
                        by_columns[current] = self._segment(table, current)
                    segment = by_columns[current]
                    copy = stack.enter_context(self._copy(segment)) if segment else None
                if segment is None or copy is None:
                    continue
                copy.write_row(self._values(table, segment, row, number))
                segment.rows += 1
                self.rows += 1

    def _copy(self, segment: Segment) -> Any:
        names = sql.SQL(", ").join(map(sql.Identifier, segment.columns))
        statement = sql.SQL("COPY {} ({}) FROM STDIN").format(segment.staged, names)
        return self._connection.cursor().copy(statement)

    def _values(self, table: ScopedTable, segment: Segment, row: Row, number: int) -> list[str | None]:
        values = row.values
        try:
            return [
                decode(values[place], kind) if type(values[place]) is Raw else values[place]
                for place, kind in zip(segment.places, segment.kinds, strict=True)
            ]
        except ValueError as error:
            raise JSONCorruptError(
                "the JSON file has a value that its column cannot hold",
                found=f"{self._place}: table {table.name}, row {number}: {error}",
                table=table.name.text,
                row_number=number,
            ) from error

    def _segment(self, table: ScopedTable, names: tuple[str, ...]) -> Segment | None:
        there = {column.name: column for column in table.columns}
        missing = [name for name in names if name not in there]
        self._problems += [f"table {table.name}: column {name} is missing" for name in missing]
        kept = [
            (place, there[name])
            for place, name in enumerate(names)
            if name in there and not there[name].generated
        ]
        if self._problems:
            return None  # it will be refused; only further problems are of interest
        name = self._free_name(table)
        staged = sql.Identifier("pg_temp", name)
        columns = tuple(column.name for _, column in kept)
        self._connection.execute(
            sql.SQL("CREATE TEMPORARY TABLE {} ON COMMIT DROP AS SELECT {} FROM {} WITH NO DATA").format(
                sql.Identifier(name),
                sql.SQL(", ").join(map(sql.Identifier, columns)),
                table.name.identifier,
            )
        )
        segment = Segment(
            staged=staged,
            columns=columns,
            places=tuple(place for place, _ in kept),
            kinds=tuple(kind_of(column.base_type, is_array=column.is_array) for _, column in kept),
        )
        self._segments[table].append(segment)
        return segment

    def _free_name(self, table: ScopedTable) -> str:
        """The table's own name where it is free: the server names it in errors."""
        name = table.name.name
        if name in self._names:
            name = f"keikaku_rows_{len(self._names)}"
        self._names.add(name)
        return name

    # -- what does not fit -----------------------------------------------------------

    def _marker_is_implied(self, table: ScopedTable, segment: Segment) -> bool:
        by_marker = not table.problem and self._scope.predicate(table.name) is None
        return by_marker and self._scope.marker not in segment.columns

    def _check_needed(self, table: ScopedTable) -> None:
        for segment in self._segments[table]:
            implied = {self._scope.marker} if self._marker_is_implied(table, segment) else set()
            given = {*segment.columns, *implied}
            self._problems += [
                f"table {table.name}: column {column.name} ({column.type}) is NOT NULL without a default, "
                "and the snapshot has no value for it"
                for column in table.written
                if column.not_null and not column.has_default and column.name not in given
            ]

    def _drift(self) -> SchemaDriftError:
        lines = list(dict.fromkeys(self._problems))
        shown = lines[:_SHOWN] + ([f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else [])
        return SchemaDriftError(
            "the database has not the tables and columns that the rows of the snapshot need",
            found="\n".join(shown),
            hint="Migrate the database to the schema of the snapshot, or make a new snapshot. "
            "Nothing was changed.",
            hint_ja="データベースをスナップショットのスキーマに合わせてマイグレーションするか、"
            "スナップショットを作り直してください。何も変更されていません。",
            differences=lines,
        )

    def _check_scope(self) -> None:
        """Rows that the next restore would not find again must not come in."""
        lines = []
        for table, segments in self._segments.items():
            for segment in segments:
                if table.problem or self._marker_is_implied(table, segment):
                    continue
                row = self._connection.execute(
                    sql.SQL("SELECT count(*) FROM {} WHERE NOT {}").format(segment.staged, table.condition)
                ).fetchone()
                if row and row[0]:
                    lines.append(f"table {table.name}: {row[0]:,} rows")
        if lines:
            raise RefusedError(
                "the snapshot has rows that are not test data; nothing was changed",
                found="\n".join(lines),
                hint=f"Set {self._scope.marker} to true in these rows of {self._place}, or leave it out.",
            )
