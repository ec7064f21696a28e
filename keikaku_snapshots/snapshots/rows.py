"""Make a snapshot of the test rows alone, as JSON.

One REPEATABLE READ transaction sees everything. Rows come by COPY with the
server's own text of each value and go to the file at once: neither a table nor
the file is ever in the memory as a whole.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from json.encoder import encode_basestring
from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg import sql

from keikaku_snapshots.errors import CreateFailedError, DataError, KeikakuError
from keikaku_snapshots.postgres import catalog
from keikaku_snapshots.postgres.connect import connect, retrying, server_info, translated
from keikaku_snapshots.postgres.rewrites import refuse_rewritten
from keikaku_snapshots.progress import Progress, ProgressCallback
from keikaku_snapshots.snapshots.creating import created_by, is_worth_another_try
from keikaku_snapshots.snapshots.disk import check_space, estimate_bytes
from keikaku_snapshots.snapshots.guards import check_create_identity
from keikaku_snapshots.snapshots.manifest import Manifest, Snapshot
from keikaku_snapshots.snapshots.names import suffix_of
from keikaku_snapshots.snapshots.rows_file import RowsFile
from keikaku_snapshots.snapshots.rows_references import References
from keikaku_snapshots.snapshots.rows_scope import (
    MARKER,
    Scope,
    ScopedTable,
    begin_reading,
    count_rows,
    find_scope,
    in_order,
)
from keikaku_snapshots.snapshots.rows_values import encoder, kind_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from keikaku_snapshots.postgres.connect import Connection, RetryPolicy
    from keikaku_snapshots.postgres.url import DatabaseURL
    from keikaku_snapshots.snapshots.packed_file import PackedHash
    from keikaku_snapshots.snapshots.stage import Stage
    from keikaku_snapshots.snapshots.store import SnapshotStore

log = logging.getLogger("keikaku_snapshots.create")

#: Characters gathered before they are handed to the file.
_BLOCK_CHARACTERS: Final = 256 * 1024
#: Seconds between two progress values.
_PROGRESS_S: Final = 0.25
#: Seconds to wait for a table that is being altered.
_LOCK_WAIT_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class RowsOptions:
    """What the caller asked for."""

    #: What counts as a test row.
    scope: Scope = field(default_factory=Scope)
    #: ``gzip``, ``zstd`` or None.
    compression: str | None = None
    #: Level of the compression; its default if None.
    level: int | None = None
    #: Megabytes that must stay free on the disk.
    minimum_free_mb: int = 1000

    @classmethod
    def made(
        cls,
        marker: str | None,
        predicates: Mapping[str, str] | None,
        compression: str | None,
        level: int | None,
        minimum_free_mb: int,
    ) -> RowsOptions:
        """Return the options of a call of ``create_snapshot``."""
        return cls(Scope(marker or MARKER, predicates), compression, level, minimum_free_mb)


class CreateRows:
    """One create of test-data rows; `run` does it."""

    def __init__(
        self,
        url: DatabaseURL,
        store: SnapshotStore,
        options: RowsOptions,
        fields: dict[str, Any],
        *,
        retry: RetryPolicy | None = None,
    ) -> None:
        """Prepare; nothing is touched yet.

        Args:
            url: The database.
            store: Where the snapshot goes.
            options: Rows and form.
            fields: What the caller says for the manifest, the name among it.
            retry: Tries when the connection is lost.
        """
        self._url = url
        self._store = store
        self._options = options
        self._fields = fields
        self._retry = retry
        self._suffix = suffix_of("json", options.compression)

    def run(
        self,
        version: str | None,
        *,
        overwrite: bool = False,
        lock_wait_s: float = 0,
        progress: ProgressCallback | None = None,
    ) -> Snapshot:
        """Make the snapshot, or nothing.

        Args:
            version: Its version; the time if None.
            overwrite: Replace that version if it exists.
            lock_wait_s: Seconds to wait for another create of this name.
            progress: Told the rows written.

        Returns:
            The snapshot.

        Raises:
            KeikakuError: Nothing was published.
        """
        name = self._fields["name"]

        with self._store.writing(name, operation="create", wait_s=lock_wait_s):
            if version is not None:
                self._store.check_free(name, version, overwrite=overwrite)
            try:
                snapshot: Snapshot = retrying(self._retry, should_retry=is_worth_another_try)(
                    self._attempt, version, overwrite, progress
                )
            except UnicodeDecodeError as error:
                raise CreateFailedError(
                    f"{self._url.database} holds text that is not in its encoding", found=error.reason
                ) from error
            except KeikakuError as error:
                if type(error) is not KeikakuError and not isinstance(error, DataError):
                    raise
                raise CreateFailedError(
                    f"reading the test rows of {self._url.database} failed",
                    found=f"{error.headline}\n{error.found}",
                    **error.details,
                ) from error
        log.info("created %s (%d bytes)", snapshot, snapshot.size_bytes)
        return snapshot

    def _attempt(self, version: str | None, overwrite: bool, progress: ProgressCallback | None) -> Snapshot:
        connection = connect(
            self._url, statement_timeout_s=0, lock_timeout_s=_LOCK_WAIT_S, row_security=False
        )
        try:
            with translated(self._url, "reading the test rows"):
                connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
                connection.read_only = True
                begin_reading(connection)
                created_at = datetime.now(UTC)
                tables = find_scope(connection, self._options.scope)
                self._look(connection, tables)
                facts = self._facts(connection, tables)
                self._warn(connection, tables)
            with self._store.stage(self._fields["name"], self._suffix) as stage:
                with translated(self._url, "reading the test rows"):
                    written = self._write(connection, stage, tables, created_at, facts, progress)
                    refuse_rewritten(connection, self._url)
                return self._publish(stage, written, created_at, facts, version, overwrite=overwrite)
        finally:
            connection.close()

    def _look(self, connection: Connection, tables: Sequence[ScopedTable]) -> None:
        """Look at everything that can be known beforehand: disk, whose name it is."""
        name = self._fields["name"]
        earlier = [
            item.manifest for item in self._store.list(name) if item.is_valid and item.manifest is not None
        ]
        names = [table.name.text for table in catalog.tables(connection)]
        check_create_identity(name, earlier[0] if earlier else None, names, self._url)
        oids = [oid for table in tables for oid in table.oids]
        row = connection.execute(
            "SELECT coalesce(sum(pg_catalog.pg_table_size(oid)), 0)::bigint"
            " FROM pg_catalog.pg_class WHERE oid = ANY(%s)",
            [oids],
        ).fetchone()
        same = [one for one in earlier if one.suffix == self._suffix and one.database == self._url.database]
        estimate = estimate_bytes(
            database_bytes=int(row[0]) if row else 0,
            last_snapshot_bytes=same[0].size_bytes if same else None,
            format_name="json",
            compressed=self._options.compression is not None,
        )
        self._store.prepare()
        check_space(self._store.directory, estimate, minimum_free_mb=self._options.minimum_free_mb)

    def _facts(self, connection: Connection, tables: Sequence[ScopedTable]) -> dict[str, Any]:
        info = server_info(connection)
        schema = catalog.fingerprint(connection)
        collation = connection.execute(
            "SELECT datcollate::text FROM pg_catalog.pg_database WHERE datname = current_database()"
        ).fetchone()
        return {
            "database": self._url.database,
            "server_version": info.version,
            "server_major": info.major,
            "encoding": info.encoding,
            "collation": str(collation[0]) if collation else "",
            "schema_fingerprint": schema.digest,
            "schema_objects": schema.objects,
            "alembic_heads": catalog.alembic_heads(connection),
            "row_counts": count_rows(connection, tables),
        }

    def _warn(self, connection: Connection, tables: Sequence[ScopedTable]) -> None:
        for one in References(connection, tables).outgoing():
            log.warning(
                "%s: %d test rows refer to rows of %s that are not test data (constraint %s); "
                "they must be there when the snapshot is restored",
                one.child,
                one.rows,
                one.parent,
                one.constraint,
            )

    def _write(
        self,
        connection: Connection,
        stage: Stage,
        tables: Sequence[ScopedTable],
        created_at: datetime,
        facts: dict[str, Any],
        progress: ProgressCallback | None,
    ) -> PackedHash:
        options = self._options
        counter = _Counter(sum(facts["row_counts"].values()), progress)
        with RowsFile(
            stage.fileno(),
            stage.path,
            compression=options.compression,
            level=options.level,
            minimum_free_mb=options.minimum_free_mb,
        ) as file:
            for block in _blocks(self._document(connection, tables, created_at, facts, counter)):
                file.write(block)
            written = file.finish()
        counter.tell(finished=True)
        return written

    def _document(
        self,
        connection: Connection,
        tables: Sequence[ScopedTable],
        created_at: datetime,
        facts: dict[str, Any],
        counter: _Counter,
    ) -> Iterator[str]:
        """The file, piece by piece: one row a line, so that people and version control can read it."""
        header = {
            "name": self._fields["name"],
            "created_at": created_at.isoformat(),
            "description": self._fields["description"],
            # What a person compares: the revision, or what the schema looks like.
            "schema_version": ", ".join(facts["alembic_heads"]) or facts["schema_fingerprint"],
        }
        yield "{\n"
        for key, value in header.items():
            yield f'  "{key}": {encode_basestring(value)},\n'
        counts = [f"    {encode_basestring(name)}: {rows}" for name, rows in facts["row_counts"].items()]
        yield '  "stats": {\n' + ",\n".join(counts) + '\n  },\n  "tables": {'
        for number, table in enumerate(tables):
            yield ("," if number else "") + f"\n    {encode_basestring(table.name.text)}: ["
            empty = True
            for line in counter.each(_rows(connection, table)):
                yield ("\n" if empty else ",\n") + line
                empty = False
            yield "]" if empty else "\n    ]"
        yield "\n  }\n}\n"

    def _publish(
        self,
        stage: Stage,
        written: PackedHash,
        created_at: datetime,
        facts: dict[str, Any],
        version: str | None,
        *,
        overwrite: bool,
    ) -> Snapshot:
        from keikaku_snapshots import __version__

        scope = self._options.scope
        manifest = Manifest(
            **self._fields,
            **facts,
            version=version or self._store.next_version(self._fields["name"], created_at),
            created_at=created_at,
            finished_at=datetime.now(UTC),
            data_file=stage.path.name,
            size_bytes=written.file.size_bytes,
            sha256=written.file.sha256,
            format="json",
            compression=self._options.compression,
            uncompressed_bytes=written.content.size_bytes if written.content else None,
            uncompressed_sha256=written.content.sha256 if written.content else "",
            scope="test_data",
            marker=scope.marker,
            predicates=dict(scope.predicates or {}),
            owners=False,
            keikaku_version=__version__,
            created_by=created_by(),
        )
        return self._store.publish(stage, manifest, overwrite=overwrite)


def _rows(connection: Connection, table: ScopedTable) -> Iterator[str]:
    """The test rows of a table, each as a JSON object on one line."""
    columns = [
        (f"{encode_basestring(column.name)}: ", encoder(kind_of(column.base_type, is_array=column.is_array)))
        for column in table.written
    ]
    statement = sql.SQL("COPY (SELECT {} FROM {} WHERE {}{}) TO STDOUT").format(
        sql.SQL(", ").join(sql.Identifier(column.name) for column in table.written),
        table.source,
        table.condition,
        in_order(connection, table),
    )
    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        for row in copy.rows():
            yield _object(columns, row)


def _object(columns: Sequence[tuple[str, Callable[[str], str]]], row: Sequence[Any]) -> str:
    members = [
        label + ("null" if value is None else encode(value))
        for (label, encode), value in zip(columns, row, strict=True)
    ]
    return "      {" + ", ".join(members) + "}"


def _blocks(pieces: Iterable[str]) -> Iterator[str]:
    """Larger pieces: what is handed from thread to thread should be worth it."""
    gathered: list[str] = []
    size = 0
    for piece in pieces:
        gathered.append(piece)
        size += len(piece)
        if size >= _BLOCK_CHARACTERS:
            yield "".join(gathered)
            gathered, size = [], 0
    yield "".join(gathered)


class _Counter:
    """Counts rows and tells how many there are, now and then."""

    def __init__(self, total: int, progress: ProgressCallback | None) -> None:
        self._total = total
        self._progress = progress
        self._done = 0
        self._begun = self._told = time.monotonic()

    def each(self, rows: Iterator[str]) -> Iterator[str]:
        """Hand the rows on, counting them."""
        for row in rows:
            self._done += 1
            if self._progress is not None and time.monotonic() - self._told >= _PROGRESS_S:
                self.tell()
            yield row

    def tell(self, *, finished: bool = False) -> None:
        """Say how far it is."""
        self._told = time.monotonic()
        if self._progress is not None:
            seconds = self._told - self._begun
            self._progress(Progress("dump", self._done, self._total, "rows", seconds, finished))
