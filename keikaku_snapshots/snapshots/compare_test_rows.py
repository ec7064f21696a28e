"""The sides of a comparison of test data: a JSON snapshot, and the test rows of the live database.

A value is compared as it stands in the JSON, without the quotes: that is the
server's own text under the settings that a JSON snapshot is written with
(`rows_scope`), but for booleans, which are ``true`` and ``false``.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

import psycopg
from psycopg import sql

from keikaku_snapshots.errors import DiskFullError, JSONCorruptError, UsageError
from keikaku_snapshots.postgres import catalog
from keikaku_snapshots.postgres.connect import server_info, translated
from keikaku_snapshots.snapshots.compare_keys import tables_and_roots
from keikaku_snapshots.snapshots.compare_rows import BLOCK_BYTES, Blocks, blocks_of, project
from keikaku_snapshots.snapshots.compare_side import Side, Source
from keikaku_snapshots.snapshots.disk import ReserveWatcher
from keikaku_snapshots.snapshots.files import translate_os_error
from keikaku_snapshots.snapshots.rows_file import rows_bytes
from keikaku_snapshots.snapshots.rows_json import RowsReader
from keikaku_snapshots.snapshots.rows_scope import (
    MARKER,
    Scope,
    begin_reading,
    find_scope,
    in_order,
    names_table,
)
from keikaku_snapshots.snapshots.temporary import temporary_file, translated_room

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from keikaku_snapshots.postgres.catalog import TableName
    from keikaku_snapshots.postgres.connect import Connection
    from keikaku_snapshots.postgres.url import DatabaseURL
    from keikaku_snapshots.snapshots.manifest import Manifest, Snapshot
    from keikaku_snapshots.snapshots.reading import OpenSnapshot
    from keikaku_snapshots.snapshots.rows_json import Row
    from keikaku_snapshots.snapshots.rows_scope import ScopedTable

#: Bytes between two looks at the free space.
_WATCH_BYTES: Final = 16 * 1024 * 1024
#: What COPY escapes.
_SPECIAL = re.compile(r"[\\\b\f\n\r\t\v]")
_SPECIAL_BYTES: Final = b"\\\b\f\n\r\t\v"
_ESCAPES: Final = {
    "\\": r"\\", "\b": r"\b", "\f": r"\f", "\n": r"\n", "\r": r"\r", "\t": r"\t", "\v": r"\v",
}  # fmt: skip


def check_sides(found: Sequence[Snapshot | None]) -> Scope | None:
    """Refuse sides that do not hold the same kind of rows.

    Args:
        found: The snapshots; None for the database.

    Returns:
        Which rows of the database are compared; None for all of them.

    Raises:
        UsageError: One holds test data and the other everything, or their test data are chosen otherwise.
    """
    there = [snapshot for snapshot in found if snapshot is not None]
    test_data = [snapshot for snapshot in there if snapshot.format == "json"]
    if not test_data:
        return None
    if len(test_data) < len(there):
        raise UsageError(
            "test data cannot be compared with a whole database",
            found="\n".join(f"{one}: {'test data' if one in test_data else one.format}" for one in there),
            hint="Compare it with another snapshot of test data, or with the database (live).",
        )
    scopes = [
        Scope(one.manifest.marker or MARKER, one.manifest.predicates) if one.manifest else Scope()
        for one in test_data
    ]
    if scopes[0] != scopes[-1]:
        raise UsageError(
            "the test data of the two snapshots were chosen by different rules",
            found="\n".join(
                f"{one}: marker {scope.marker}, conditions {dict(scope.predicates or {}) or 'none'}"
                for one, scope in zip(test_data, scopes, strict=True)
            ),
        )
    return scopes[0]


# -- a snapshot --------------------------------------------------------------------------


@contextlib.contextmanager
def rows_side(opened: OpenSnapshot, *, minimum_free_mb: int) -> Iterator[Side]:
    """Check a JSON snapshot and open its rows, which are written to a temporary file as COPY text.

    Args:
        opened: The snapshot, held so that nobody deletes it.
        minimum_free_mb: Megabytes that must stay free where the rows are written.

    Yields:
        The side; its rows can be read inside the block.

    Raises:
        JSONCorruptError: The file is damaged.
        DiskFullError: There is too little room for its rows.
    """
    opened.check()
    manifest = opened.snapshot.manifest
    if manifest is None:
        raise JSONCorruptError(f"snapshot {opened.snapshot} has no manifest")
    with temporary_file() as file:
        with translated_room():
            try:
                tables = _tables(opened, manifest, file, minimum_free_mb)
            except OSError as error:
                raise translate_os_error(
                    error, doing="reading the rows of a snapshot", path=Path(tempfile.gettempdir())
                ) from error
        yield Side(
            kind="snapshot",
            name=manifest.name,
            version=manifest.version,
            location=str(opened.path),
            at=manifest.created_at,
            server_major=manifest.server_major,
            fingerprint=manifest.schema_fingerprint,
            objects=manifest.schema_objects,
            alembic_heads=manifest.alembic_heads,
            sequences={},
            tables=tables,
        )
    opened.check_unchanged()


def _tables(
    opened: OpenSnapshot, manifest: Manifest, file: IO[bytes], minimum_free_mb: int
) -> dict[TableName, list[Source]]:
    """Write the rows of all tables one behind the other; where each of them is."""
    place = str(opened.path)
    watcher, watched = ReserveWatcher(tempfile.gettempdir(), minimum_free_mb), 0
    known = tables_and_roots(manifest.schema_objects)
    found: dict[TableName, list[Source]] = {}
    for text, rows in RowsReader(rows_bytes(opened.fileno(), place).read, place).tables():
        name = next((table for table in known if names_table(text, table)), None)
        if name is None:
            raise JSONCorruptError(
                "the JSON file has a table that its manifest does not know", found=f"{place}: {text}"
            )
        found[name] = []
        first = next(rows, None)
        if first is None:
            continue
        start = file.tell()
        for block in blocks_of(_lines(itertools.chain([first], rows), first.columns, f"{place}: {text}")):
            file.write(block)
            if file.tell() - watched >= _WATCH_BYTES:
                watched = file.tell()
                full = watcher()
                if full:
                    raise DiskFullError("the disk became too full while a snapshot was compared", found=full)
        found[name] = [_source(file, start, file.tell(), first.columns)]
    file.flush()
    return found


def _lines(rows: Iterable[Row], columns: tuple[str, ...], place: str) -> Iterator[bytes]:
    for row in rows:
        if row.columns != columns:
            raise JSONCorruptError("the rows of a table have different columns", found=place)
        yield _line(row.values)


def _line(values: Sequence[str | None]) -> bytes:
    """A row as COPY text; looking into each value would cost more than reading it."""
    nulls = values.count(None)
    line = "\t".join([r"\N" if value is None else value for value in values]).encode()
    ours = len(values) - 1 + nulls  # the tabs between the values and the backslash of each NULL
    if len(line) - len(line.translate(None, _SPECIAL_BYTES)) != ours:
        line = "\t".join(map(_field, values)).encode()
    return line + b"\n"


def _field(value: str | None) -> str:
    if value is None:
        return r"\N"
    return _SPECIAL.sub(lambda match: _ESCAPES[match.group()], value)


def _source(file: IO[bytes], start: int, end: int, columns: tuple[str, ...]) -> Source:
    def blocks() -> Blocks:
        position, rest = start, b""
        while position < end:
            block = os.pread(file.fileno(), min(BLOCK_BYTES, end - position), position)
            position += len(block)
            whole = block.rfind(b"\n") + 1
            if whole:
                yield rest + block[:whole]
                rest = block[whole:]
            else:
                rest += block

    def read(wanted: tuple[str, ...]) -> Blocks:
        return project(blocks(), tuple(columns.index(name) for name in wanted), len(columns))

    return Source(columns, read)


# -- the live database -------------------------------------------------------------------


def live_rows(connection: Connection, url: DatabaseURL, scope: Scope) -> Side:
    """Open the test rows of a database, as of one moment.

    Args:
        connection: The database, idle; in a transaction of ours until it is closed.
        url: The database.
        scope: What counts as a test row.

    Returns:
        The side.

    Raises:
        UsageError: There are no such rows.
    """
    connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    connection.read_only = True
    begin_reading(connection)
    connection.execute("SET LOCAL row_security = off")
    at = datetime.now(UTC)
    schema = catalog.fingerprint(connection)
    return Side(
        kind="live",
        name=url.database,
        version="",
        location=url.location,
        at=at,
        server_major=server_info(connection).major,
        fingerprint=schema.digest,
        objects=schema.objects,
        alembic_heads=catalog.alembic_heads(connection),
        sequences={},
        tables={
            table.name: [_live_source(connection, url, table)] for table in find_scope(connection, scope)
        },
    )


def _live_source(connection: Connection, url: DatabaseURL, table: ScopedTable) -> Source:
    columns = {column.name: column for column in table.written}

    def read(wanted: tuple[str, ...]) -> Blocks:
        # As text a boolean is true or false, in COPY it would be t or f.
        values = [
            sql.Identifier(name)
            + sql.SQL("::text" if columns[name].base_type == "bool" and not columns[name].is_array else "")
            for name in wanted
        ]
        statement = sql.SQL("COPY (SELECT {} FROM {} WHERE {}{}) TO STDOUT").format(
            sql.SQL(", ").join(values), table.source, table.condition, in_order(connection, table)
        )
        with (
            translated(url, f"reading {table.name}"),
            connection.cursor() as cursor,
            cursor.copy(statement) as copy,
        ):
            yield from blocks_of(copy)  # type: ignore[arg-type]  # memoryviews, which are joined

    return Source(tuple(columns), read)
