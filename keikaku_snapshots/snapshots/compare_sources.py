"""The two kinds of sides of a comparison: a snapshot's file and the live database.

Both give the rows as the same COPY text: the live side sets its session as
pg_dump does (ISO dates, shortest exact floats, UTC, empty search path), and
reads everything in one transaction.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import re
from datetime import UTC, datetime
from pathlib import Path
from tempfile import gettempdir
from typing import TYPE_CHECKING, Final

import psycopg
from psycopg import sql

from keikaku_snapshots.errors import DatabaseInUseError, SnapshotCorruptError
from keikaku_snapshots.postgres import catalog
from keikaku_snapshots.postgres.connect import connect, server_info, translated
from keikaku_snapshots.postgres.rewrites import refuse_rewritten
from keikaku_snapshots.postgres.tools import (
    DUMP_SETTINGS,
    find_tools,
    pg_restore_script,
    translate_tool_failure,
)
from keikaku_snapshots.snapshots.archive import chosen, read_contents
from keikaku_snapshots.snapshots.compare_keys import parse_copy, tables_and_roots
from keikaku_snapshots.snapshots.compare_parts import parts_of, row_files
from keikaku_snapshots.snapshots.compare_rows import BLOCK_BYTES, Blocks, blocks_of, project
from keikaku_snapshots.snapshots.compare_side import Side, Source, in_order
from keikaku_snapshots.snapshots.compare_test_rows import live_rows
from keikaku_snapshots.snapshots.compression import packed_as
from keikaku_snapshots.snapshots.disk import ReserveWatcher
from keikaku_snapshots.snapshots.dump_script import Script
from keikaku_snapshots.snapshots.in_place import in_use
from keikaku_snapshots.snapshots.script import Kind, Part
from keikaku_snapshots.snapshots.temporary import temporary_file, translated_room
from keikaku_snapshots.snapshots.unpack import unpack_into
from keikaku_snapshots.snapshots.verify import check_shape

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from keikaku_snapshots.postgres.catalog import TableName
    from keikaku_snapshots.postgres.connect import Connection
    from keikaku_snapshots.postgres.url import DatabaseURL
    from keikaku_snapshots.snapshots.manifest import Manifest
    from keikaku_snapshots.snapshots.reading import OpenSnapshot
    from keikaku_snapshots.snapshots.rows_scope import Scope

#: What pg_dump sets for its session, so that equal values have equal texts.
LIVE_SETTINGS: Final = {
    **DUMP_SETTINGS,
    "DateStyle": "ISO",
    "IntervalStyle": "postgres",
    "extra_float_digits": "3",
    "search_path": "",
    "row_security": "off",
    "synchronize_seqscans": "off",
}
#: Bytes of a large object that are read at once.
_LARGE_OBJECT_BYTES: Final = 1 << 20
_OPEN = re.compile(rb"SELECT pg_catalog\.lo_open\('(?P<oid>[0-9]+)'")
_WRITE = re.compile(rb"SELECT pg_catalog\.lowrite\(0, '\\x(?P<hex>[0-9a-f]*)'\);")


# -- a snapshot --------------------------------------------------------------------------


@contextlib.contextmanager
def snapshot_side(
    opened: OpenSnapshot, *, pg_bin: Path | None = None, minimum_free_mb: int = 0
) -> Iterator[Side]:
    """Check a snapshot and open its rows.

    Args:
        opened: The snapshot, held so that nobody deletes it.
        pg_bin: Where pg_restore is, for archives.
        minimum_free_mb: Megabytes that must stay free where an archive is unpacked.

    Yields:
        The side; its rows can be read inside the block.

    Raises:
        SnapshotCorruptError: The file is damaged.
        ToolMissingError: The library or program that unpacks it is missing.
    """
    snapshot = opened.snapshot
    if packed_as(snapshot) is None:
        check_shape(opened.fileno(), snapshot.format, opened.path.name)
    opened.check()
    manifest = snapshot.manifest
    if manifest is None:
        raise SnapshotCorruptError(f"snapshot {snapshot} has no manifest")
    with _read(opened, manifest, pg_bin, minimum_free_mb) as (tables, large_objects):
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
            sequences={name: (state[0], state[1]) for name, state in manifest.sequences.items()},
            tables=tables,
            large_objects=large_objects,
        )
    opened.check_unchanged()


@contextlib.contextmanager
def _read(
    opened: OpenSnapshot, manifest: Manifest, pg_bin: Path | None, minimum_free_mb: int
) -> Iterator[tuple[dict[TableName, list[Source]], dict[int, bytes]]]:
    """Where the rows of each table are, and the digests of the large objects."""
    contents = read_contents(opened.fileno(), opened.path.name) if manifest.format == "directory" else None
    files = row_files(contents, manifest.parts) if contents is not None else None
    if contents is None or files is None:
        with _script(opened, manifest, pg_bin, minimum_free_mb) as script:
            yield _contents(script, manifest.schema_objects)
        return
    tables = parts_of(opened, manifest, contents, files)
    if not manifest.large_objects:
        yield tables, {}
        return
    blobs = [entry.id for entry in contents.entries if entry.kind == "BLOBS"]
    with (
        chosen(blobs) as only,
        _script(opened, manifest, pg_bin, minimum_free_mb, only=only) as script,
    ):
        yield tables, _contents(script, manifest.schema_objects)[1]


@contextlib.contextmanager
def _script(
    opened: OpenSnapshot,
    manifest: Manifest,
    pg_bin: Path | None,
    minimum_free_mb: int,
    *,
    only: int | None = None,
) -> Iterator[Script]:
    """The snapshot as plain SQL; what is packed, and the rows of an archive, in a temporary file first."""
    name, descriptor = opened.path.name, opened.fileno()
    if manifest.format == "plain" and packed_as(opened.snapshot) is None:
        with Script(descriptor, name) as script:
            yield script
        return
    # Without a name, which a kill would leave with all the rows.
    with temporary_file() as file:
        written, place = file.fileno(), Path(gettempdir())
        if manifest.format == "plain":
            with translated_room():
                unpack_into(opened, written, place / "unpacked.sql", minimum_free_mb=minimum_free_mb)
            with Script(written, name) as script:
                yield script
            return
        tools = find_tools(manifest.server_major, configured=pg_bin)
        watcher = ReserveWatcher(place, minimum_free_mb)
        result = pg_restore_script(
            tools,
            f"/dev/fd/{descriptor}",
            written,
            single_transaction=False,
            list_file=None if only is None else f"/dev/fd/{only}",
            extra=["--data-only"],
            pass_fds=(descriptor,) if only is None else (descriptor, only),
            watch=watcher,
        )
        with translated_room():
            if result.stopped:
                raise watcher.error(result.stopped)
            if not result.ok:
                raise translate_tool_failure(result, None, doing=f"reading {name}")
        with Script(written, name) as script:
            yield script


def _contents(
    script: Script, objects: Mapping[str, str]
) -> tuple[dict[TableName, list[Source]], dict[int, bytes]]:
    """Where the rows of each table are, and the digests of the large objects."""
    roots = tables_and_roots(objects)
    found: dict[TableName, list[tuple[TableName, Source]]] = {root: [] for root in roots.values()}
    large_objects = _LargeObjects()
    for part in script.stream(clean=False):
        if part.kind is Kind.LARGE_OBJECT:
            large_objects.add(script.text(part))
        elif part.kind is Kind.COPY:
            target = parse_copy(script.text(part).decode())
            # Rows of an extension's own tables come with the extension and are not the user's.
            if target is not None and target[0] in roots:
                table, columns = target
                found[roots[table]].append((table, _copy_source(script, part, columns)))
            _forget(script, part.data_start, part.data_end)
    return {root: in_order(sources) for root, sources in found.items()}, large_objects.digests()


def _copy_source(script: Script, part: Part, columns: tuple[str, ...]) -> Source:
    def read(wanted: tuple[str, ...]) -> Blocks:
        positions = tuple(columns.index(name) for name in wanted)
        return project(_rows(script, part), positions, len(columns))

    return Source(columns, read)


def _rows(script: Script, part: Part) -> Blocks:
    start, buffer = part.data_start, script.buffer
    while start < part.data_end:
        end = min(start + BLOCK_BYTES, part.data_end)
        if end < part.data_end:
            end = buffer.find(b"\n", end - 1, part.data_end) + 1
        yield bytes(buffer[start:end])
        _forget(script, start, end)
        start = end


def _forget(script: Script, start: int, end: int) -> None:
    """Give back the memory of a part of the mapped file; it is read again when it is needed."""
    start -= start % mmap.PAGESIZE
    if isinstance(script.buffer, mmap.mmap):
        script.buffer.madvise(mmap.MADV_DONTNEED, start, end - start)


class _LargeObjects:
    """Digests of large objects, from the statements that write them."""

    def __init__(self) -> None:
        self._open: hashlib._Hash = hashlib.sha256()
        self._found: dict[int, hashlib._Hash] = {}

    def add(self, statement: bytes) -> None:
        opened = _OPEN.match(statement)
        if opened is not None:
            self._open = self._found.setdefault(int(opened["oid"]), hashlib.sha256())
            return
        written = _WRITE.match(statement)
        if written is not None:
            self._open.update(bytes.fromhex(written["hex"].decode()))

    def digests(self) -> dict[int, bytes]:
        return {oid: hasher.digest() for oid, hasher in self._found.items()}


# -- the live database -------------------------------------------------------------------


@contextlib.contextmanager
def live_side(url: DatabaseURL, *, lock_timeout_s: float, test_rows: Scope | None = None) -> Iterator[Side]:
    """Open the rows of a database, as of one moment.

    Args:
        url: The database.
        lock_timeout_s: Seconds to wait for a table that is being altered.
        test_rows: Only the rows that are test data by these rules.

    Yields:
        The side; its rows can be read inside the block.

    Raises:
        ConnectError: The server cannot be reached.
        AccessDeniedError: The role may not read a table, or row security hides rows from it.
        DatabaseInUseError: Another session alters a table; the text says which.
        LockBusyError: At the end of the block: a table was emptied before it was read.
    """
    try:
        with connect(url, statement_timeout_s=0, lock_timeout_s=lock_timeout_s) as connection:
            with translated(url, "reading the catalog"):
                side = live_rows(connection, url, test_rows) if test_rows else _live(connection, url)
            yield side
            with translated(url, "looking for tables that were emptied meanwhile"):
                refuse_rewritten(connection, url)
    except DatabaseInUseError as error:
        named = in_use(url)
        raise DatabaseInUseError(
            f"other sessions hold tables of {url.database}",
            found=named.found,
            hint="Wait until they have committed, or end them, then compare again.",
            **named.details,
        ) from error


def _live(connection: Connection, url: DatabaseURL) -> Side:
    connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    connection.read_only = True
    for name, value in LIVE_SETTINGS.items():
        connection.execute("SELECT pg_catalog.set_config(%s, %s, true)", (name, value))
    # Reading the other side for long must not look like an abandoned transaction.
    connection.execute(
        "SELECT pg_catalog.set_config(name, '0', true) FROM pg_catalog.pg_settings"
        " WHERE name IN ('idle_in_transaction_session_timeout', 'transaction_timeout')"
    )
    at = datetime.now(UTC)
    schema = catalog.fingerprint(connection)
    sources: dict[TableName, list[tuple[TableName, Source]]] = {}
    for info in catalog.tables(connection):
        found = sources.setdefault(info.root or info.name, [])
        if info.holds_rows:
            columns = tuple(
                column.name for column in catalog.columns(connection, info.name) if not column.generated
            )
            found.append((info.name, _table_source(connection, url, info.name, columns)))
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
        sequences={
            name: (state.last_value, state.is_called) for name, state in catalog.sequences(connection).items()
        },
        tables={root: in_order(found) for root, found in sources.items()},
        large_objects=_live_large_objects(connection),
    )


def _table_source(
    connection: Connection, url: DatabaseURL, table: TableName, columns: tuple[str, ...]
) -> Source:
    def read(wanted: tuple[str, ...]) -> Blocks:
        if wanted:
            names = sql.SQL(", ").join(map(sql.Identifier, wanted))
            statement = sql.SQL("COPY {} ({}) TO STDOUT").format(table.identifier, names)
        else:
            statement = sql.SQL("COPY (SELECT FROM ONLY {}) TO STDOUT").format(table.identifier)
        with (
            translated(url, f"reading {table}"),
            connection.cursor() as cursor,
            cursor.copy(statement) as copy,
        ):
            yield from blocks_of(copy)  # type: ignore[arg-type]  # memoryviews, which are joined

    return Source(columns, read)


def _live_large_objects(connection: Connection) -> dict[int, bytes]:
    digests = {}
    for (oid,) in connection.execute("SELECT oid FROM pg_catalog.pg_largeobject_metadata").fetchall():
        hasher, offset = hashlib.sha256(), 0
        while True:
            row = connection.execute(
                "SELECT pg_catalog.lo_get(%s, %s::bigint, %s)", (oid, offset, _LARGE_OBJECT_BYTES)
            ).fetchone()
            chunk = bytes(row[0]) if row else b""
            hasher.update(chunk)
            offset += len(chunk)
            if len(chunk) < _LARGE_OBJECT_BYTES:
                break
        digests[int(oid)] = hasher.digest()
    return digests
