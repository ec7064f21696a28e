"""Bring test rows back from JSON: in one transaction, and no other row is touched.

The file is read into temporary tables first (`rows_staging`), so everything
that can be refused is refused before a row of the database changes. Then the
tables are locked, what refers across the scope is counted, the test rows go in
reverse foreign-key order and the new ones come in foreign-key order.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Final

import psycopg
from psycopg import sql

from keikaku_snapshots.errors import JSONCorruptError, RestoreFailedError, UsageError
from keikaku_snapshots.postgres import catalog, databases
from keikaku_snapshots.postgres.connect import connect, translated
from keikaku_snapshots.progress import Progress, ProgressCallback
from keikaku_snapshots.snapshots import guards
from keikaku_snapshots.snapshots.in_place import commit, in_use
from keikaku_snapshots.snapshots.load import restore_failed
from keikaku_snapshots.snapshots.resting import Resting
from keikaku_snapshots.snapshots.restore import Restored, RestoreOptions
from keikaku_snapshots.snapshots.rows_file import rows_bytes
from keikaku_snapshots.snapshots.rows_json import RowsReader
from keikaku_snapshots.snapshots.rows_references import References
from keikaku_snapshots.snapshots.rows_scope import (
    MARKER,
    Scope,
    ScopedTable,
    Tables,
    begin_writing,
    count_rows,
)
from keikaku_snapshots.snapshots.rows_staging import Staging

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keikaku_snapshots.postgres.connect import Connection
    from keikaku_snapshots.postgres.url import DatabaseURL
    from keikaku_snapshots.snapshots.reading import OpenSnapshot

log = logging.getLogger("keikaku_snapshots.restore")

#: Bytes of the file between two progress values.
_PROGRESS_BYTES: Final = 1 << 20
_BUSY: Final = frozenset({"55P03", "40P01"})


class RestoreRows:
    """One restore of test-data rows; `run` does it."""

    def __init__(
        self,
        url: DatabaseURL,
        opened: OpenSnapshot,
        options: RestoreOptions,
        *,
        clean_existing: bool = True,
        marker: str | None = None,
        progress: ProgressCallback | None = None,
    ) -> None:
        """Prepare; nothing is touched yet.

        Args:
            url: The database.
            opened: The snapshot, held so that nobody deletes it.
            options: What the caller asked for.
            clean_existing: Delete the test rows of the snapshot's tables first.
            marker: The column that marks test rows; what the manifest says if None.
            progress: Told the bytes read.
        """
        self._url = url
        self._opened = opened
        self._options = options
        self._clean = clean_existing
        self._progress = progress
        self._manifest = opened.snapshot.manifest
        recorded = self._manifest.marker if self._manifest else ""
        self._scope = Scope(
            marker or recorded or MARKER, self._manifest.predicates if self._manifest else None
        )
        self._warnings: list[str] = []
        self._begun = time.monotonic()
        self._doing = ""

    def run(self) -> Restored:
        """Restore.

        Returns:
            How it went.

        Raises:
            KeikakuError: The database is as it was, but after `OutcomeUnknownError`.
        """
        if self._options.strategy == "swap":
            raise UsageError(
                "test-data rows are restored inside the database",
                found="strategy='swap'",
                hint="Leave strategy out, or use 'in_place'.",
            )
        if self._manifest is not None:
            self._opened.check()
        options = self._options
        with (
            # A connection can be lost between any two statements, here and in all that is called.
            translated(self._url, f"restoring {self._opened.snapshot}"),
            databases.target_lock(self._url, options.lock_wait_s, "restore", maintenance=options.maintenance),
        ):
            self._restore()
        self._tell(self._opened.snapshot.size_bytes, finished=True)
        seconds = time.monotonic() - self._begun
        log.info("restored %s into %s in %.2f s", self._opened.snapshot, self._url.database, seconds)
        reason = "test-data rows are replaced inside the database"
        return Restored(self._opened.snapshot, "in_place", reason, seconds, tuple(self._warnings))

    def _restore(self) -> None:
        connection = connect(
            self._url,
            statement_timeout_s=0,
            lock_timeout_s=self._options.lock_timeout_s,
            row_security=False,
        )
        try:
            with translated(self._url, "checking the database"):
                begin_writing(connection)
                connection.execute("SET LOCAL client_min_messages = error")
                self._look(connection)
            tables = self._replace(connection)
            commit(connection, self._url)
            self._analyze(connection, tables)
        finally:
            connection.close()

    def _look(self, connection: Connection) -> None:
        """Look at the target before anything else."""
        manifest = self._manifest
        guards.check_writing(connection, self._url, manifest.encoding if manifest else "UTF8")
        if manifest is None:
            self._warnings.append(f"{self._opened.path.name} has no manifest; it was restored on trust")
            return
        tables = [table.name.text for table in catalog.tables(connection)]
        guards.check_identity(manifest, tables, self._url, allowed=self._options.from_other_database)
        lines = guards.drift(manifest, catalog.fingerprint(connection), catalog.alembic_heads(connection))
        self._warnings += guards.check_drift(manifest, lines, self._options.on_schema_mismatch)

    def _replace(self, connection: Connection) -> list[ScopedTable]:
        what = f"restoring {self._opened.path.name} into {self._url.database} was stopped and rolled back"
        tables = Tables(connection, self._scope)
        staging = Staging(connection, tables, self._scope, str(self._opened.path))
        try:
            self._stage(connection, staging)
            self._lock(connection, staging.tables)
            references = References(connection, staging.tables)
            if self._clean:
                references.refuse_incoming()
            references.refuse_missing(staging.selected, clean_existing=self._clean)
            self._exchange(connection, tables, staging)
        except psycopg.Error as error:
            connection.close()
            if error.sqlstate in _BUSY:
                raise in_use(self._url) from error
            doing = self._doing or (f"reading the rows of {staging.current}" if staging.current else "")
            raise restore_failed(error, self._url, what, statement=doing) from error
        return staging.tables

    def _stage(self, connection: Connection, staging: Staging) -> None:
        content = rows_bytes(self._opened.fileno(), str(self._opened.path))
        told = 0

        def read(count: int) -> bytes:
            nonlocal told
            block = content.read(count)
            if content.position - told >= _PROGRESS_BYTES:
                told = content.position
                self._tell(told)
            return block

        reader = RowsReader(read, str(self._opened.path))
        try:
            staging.read(reader, clean_existing=self._clean)
        except UnicodeEncodeError as error:
            raise JSONCorruptError(
                "the JSON file has text that is no Unicode", found=str(self._opened.path)
            ) from error
        self._opened.check_unchanged()
        self._compare_header(connection, reader, staging)

    def _compare_header(self, connection: Connection, reader: RowsReader, staging: Staging) -> None:
        """What a file says about itself against what was found; the manifest says more where there is one."""
        if self._manifest is not None:
            wanted = self._manifest.row_counts
            found = {table.name.text: staging.count(table) for table in staging.tables}
            if found != wanted:
                raise JSONCorruptError(
                    "the JSON file has not the rows that its manifest says", found=str(self._opened.path)
                )
            return
        stats = reader.header.get("stats")
        for text, rows in stats.items() if isinstance(stats, dict) else ():
            name = staging.find(text)
            if name is not None and rows != name[1]:
                self._warnings.append(f"stats say {rows} rows of {text}, the file has {name[1]}")
        heads = ", ".join(catalog.alembic_heads(connection))
        version = reader.header.get("schema_version")
        if heads and isinstance(version, str) and version and version != heads:
            line = f"schema_version {version} in the file, Alembic revision {heads} in the database"
            self._warnings += guards.answer_drift(
                self._opened.path.name, [line], self._options.on_schema_mismatch
            )

    def _lock(self, connection: Connection, tables: Sequence[ScopedTable]) -> None:
        """Keep other writers out; EXCLUSIVE also keeps rows elsewhere from beginning to refer to ours."""
        self._doing = "locking the tables"
        ordered = sorted(tables, key=lambda table: min(table.oids))
        if ordered:
            names = sql.SQL(", ").join(table.name.identifier for table in ordered)
            connection.execute(sql.SQL("LOCK TABLE {} IN EXCLUSIVE MODE").format(names))

    def _exchange(self, connection: Connection, tables: Tables, staging: Staging) -> None:
        """The only part that changes rows."""
        ordered = staging.tables
        before = {table.name.text: 0 for table in ordered}
        if not self._clean:
            before = count_rows(connection, [table for table in ordered if not table.problem])
        resting = Resting()
        oids = [oid for table in ordered for oid in table.oids]
        resting.add_triggers(connection, oids)
        resting.add_rules(connection, oids)
        resting.add_circles(connection, tables.circles)
        self._doing = "letting triggers and rules rest"
        for statement in resting.off:
            connection.execute(statement)
        connection.execute("SET CONSTRAINTS ALL DEFERRED")
        if self._clean:
            for group in reversed(_groups(ordered, tables.circles)):
                self._delete(connection, group)
        for table in ordered:
            self._doing = f"putting in the rows of {table.name}"
            staging.insert(table)
        self._doing = "checking the constraints"
        # Events of deferred constraints would make the ALTER TABLEs below fail.
        connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
        self._doing = "waking triggers and rules"
        for statement in resting.on:
            connection.execute(statement)
        self._compare(connection, staging, before)
        self._doing = "moving the sequences"
        # setval is not undone by a rollback (FAULTS 83), so this comes last.
        catalog.reset_sequences(connection, [table.name for table in ordered])

    def _delete(self, connection: Connection, group: Sequence[ScopedTable]) -> None:
        """Delete the test rows of a table, or of a circle of tables at once: in no order could they go."""
        self._doing = f"deleting the test rows of {', '.join(str(table.name) for table in group)}"
        deletes = [
            sql.SQL("DELETE FROM {} WHERE {}").format(table.source, table.condition) for table in group
        ]
        if len(deletes) == 1:
            connection.execute(deletes[0])
            return
        parts = [
            sql.SQL("{} AS ({} RETURNING 1)").format(sql.Identifier(f"gone_{number}"), delete)
            for number, delete in enumerate(deletes)
        ]
        connection.execute(sql.SQL("WITH {} SELECT 1").format(sql.SQL(", ").join(parts)))

    def _compare(self, connection: Connection, staging: Staging, before: dict[str, int]) -> None:
        """Count before COMMIT: a check afterwards is too late."""
        self._doing = "counting the rows"
        counted = [table for table in staging.tables if not table.problem]
        found = count_rows(connection, counted)
        lines = []
        for table in counted:
            text = table.name.text
            wanted = before[text] + staging.count(table)
            if found[text] != wanted:
                lines.append(f"{text}: {wanted} expected, {found[text]} there")
        if lines:
            raise RestoreFailedError(
                "the restored rows are not those of the snapshot",
                found="\n".join(lines),
                hint="The database is unchanged. Look for what else writes these tables.",
            )

    def _analyze(self, connection: Connection, tables: Sequence[ScopedTable]) -> None:
        """Give the planner statistics of the new rows; not having them is no reason to fail."""
        try:
            connection.autocommit = True
            connection.execute("SET client_min_messages = error")
            for table in tables:
                connection.execute(sql.SQL("ANALYZE {}").format(table.name.identifier))
        except psycopg.Error as error:
            log.warning(
                "ANALYZE after the restore was not possible (%s)", error.sqlstate or type(error).__name__
            )

    def _tell(self, done: int, *, finished: bool = False) -> None:
        if self._progress is not None:
            total, seconds = self._opened.snapshot.size_bytes, time.monotonic() - self._begun
            self._progress(Progress("restore", done, total, "bytes", seconds, finished))


def _groups(
    ordered: Sequence[ScopedTable], circles: Sequence[Sequence[catalog.TableName]]
) -> list[list[ScopedTable]]:
    """The tables in order, those of one circle together."""
    groups: list[list[ScopedTable]] = []
    last: Sequence[catalog.TableName] = ()
    for table in ordered:
        circle = next((one for one in circles if table.name in one), ())
        if circle and circle is last:
            groups[-1].append(table)
        else:
            groups.append([table])
        last = circle
    return groups
