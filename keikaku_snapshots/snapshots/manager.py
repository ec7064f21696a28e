"""SnapshotManager: what people import."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from keikaku_snapshots.errors import (
    KeikakuError,
    NoDatabaseError,
    SnapshotNotFoundError,
)
from keikaku_snapshots.snapshots.audit import AuditLog
from keikaku_snapshots.snapshots.file_methods import FileMethods
from keikaku_snapshots.snapshots.labels import name_and_version
from keikaku_snapshots.snapshots.names import check_name, check_version
from keikaku_snapshots.snapshots.parameters import (
    check_clean_existing,
    check_create,
    check_directory,
    check_hook_timeout,
    check_jobs,
    check_marker,
    check_number,
    check_restore,
    check_spare,
    check_templates,
)
from keikaku_snapshots.snapshots.rewind_methods import RewindMethods
from keikaku_snapshots.snapshots.store import SnapshotStore
from keikaku_snapshots.snapshots.template_methods import TemplateMethods

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from keikaku_snapshots.postgres.connect import RetryPolicy
    from keikaku_snapshots.postgres.url import DatabaseURL
    from keikaku_snapshots.progress import ProgressCallback
    from keikaku_snapshots.snapshots.aio import AsyncSnapshotManager
    from keikaku_snapshots.snapshots.comparison import Comparison
    from keikaku_snapshots.snapshots.hooks import Command, Function, Hook
    from keikaku_snapshots.snapshots.latest import LatestMode
    from keikaku_snapshots.snapshots.manifest import Snapshot
    from keikaku_snapshots.snapshots.restore import Restored
    from keikaku_snapshots.snapshots.retention import RetentionPolicy


class SnapshotManager(FileMethods, RewindMethods, TemplateMethods):
    """Makes, restores and looks after the snapshots of one database in one directory.

    Use it as a context manager, or call `close`. One manager serves one
    thread at a time; `aio` has the same methods as awaitables.
    """

    def __init__(
        self,
        db_url: str | DatabaseURL | Any | None,
        snapshot_dir: str | os.PathLike[str] = "snapshots",
        *,
        lock_wait_s: float = 0,
        keep_old_minutes: float = 0,
        allow_protected: bool = False,
        allowed_databases: Sequence[str] = (),
        protected_words: Sequence[str] | None = None,
        minimum_free_mb: int = 1000,
        lock_timeout_s: float = 3.0,
        pg_bin: str | os.PathLike[str] | None = None,
        maintenance_database: str = "postgres",
        retry: RetryPolicy | None = None,
        retention: RetentionPolicy | None = None,
        audit: str = "warn",
        latest: LatestMode = "symlink",
        templates: bool = True,
        spare: int = 0,
    ) -> None:
        """Prepare; no connection is made and no file is touched.

        Args:
            db_url: The database: text, `DatabaseURL` or SQLAlchemy URL. None for
                a manager that only looks after files.
            snapshot_dir: Directory of the snapshots; made when something is written.
            lock_wait_s: Seconds to wait for another process on the same snapshot or database.
            keep_old_minutes: Minutes a database replaced by a swap is kept.
            allow_protected: Restore over a database that looks like production.
            allowed_databases: Patterns of the only databases that may be replaced.
            protected_words: Whole words that mean production; the usual ones if None.
            minimum_free_mb: Megabytes that must stay free on the disk of the snapshots.
            lock_timeout_s: Seconds a restore in place waits for each lock.
            pg_bin: Directory of pg_dump and pg_restore; searched if None.
            maintenance_database: The database from which others are made and renamed.
            retry: Tries when the connection is lost while dumping.
            retention: What `prune` keeps when it is told nothing else; 30 days if None.
            audit: ``warn`` or ``error``: what happens when the audit log cannot be written.
            latest: What ``NAME_latest`` is: ``symlink``, ``hardlink`` or ``copy``.
            templates: Leave a copy of what was restored on the server, from which later restores are made.
            spare: Further copies that the server makes ready after a restore, so that the next one
                only renames.

        Raises:
            InvalidURLError: The URL cannot be understood.
            UsageError: An option has a value that makes no sense.
            ParameterTypeError: An option has the wrong type.
        """
        from keikaku_snapshots.postgres.url import DatabaseURL
        from keikaku_snapshots.snapshots.guards import PROTECTED_WORDS

        numbers = {
            "lock_wait_s": lock_wait_s,
            "keep_old_minutes": keep_old_minutes,
            "minimum_free_mb": minimum_free_mb,
            "lock_timeout_s": lock_timeout_s,
        }
        for label, value in numbers.items():
            check_number(label, value)
        check_spare(spare, templates=templates)
        self._url = None if db_url is None else DatabaseURL.parse(db_url)
        check_directory(snapshot_dir)
        self._store = SnapshotStore(snapshot_dir, latest_mode=latest)
        self._audit = AuditLog(self._store, audit, self._url)
        self._lock_wait_s = lock_wait_s
        self._keep_old_minutes = keep_old_minutes
        self._allow_protected = allow_protected
        self._allowed_databases = tuple(allowed_databases)
        self._protected_words = tuple(PROTECTED_WORDS if protected_words is None else protected_words)
        self._minimum_free_mb = minimum_free_mb
        self._lock_timeout_s = lock_timeout_s
        self._pg_bin = None if pg_bin is None else Path(pg_bin)
        self._maintenance = maintenance_database
        self._retry = retry
        self._retention = retention
        self._templates = templates
        self._spare = spare
        self._aio: AsyncSnapshotManager | None = None

    # -- life ------------------------------------------------------------------------

    @property
    def url(self) -> DatabaseURL:
        """The database.

        Raises:
            NoDatabaseError: None was given.
        """
        if self._url is None:
            raise NoDatabaseError("this SnapshotManager was made without a database")
        return self._url

    @property
    def directory(self) -> Path:
        """Directory of the snapshots, absolute."""
        return self._store.directory

    @property
    def aio(self) -> AsyncSnapshotManager:
        """The same methods as awaitables."""
        if self._aio is None:
            from keikaku_snapshots.snapshots.aio import AsyncSnapshotManager

            self._aio = AsyncSnapshotManager(self)
        return self._aio

    def close(self) -> None:
        """Give back what is held; harmless when repeated."""
        if self._aio is not None:
            self._aio.stop()
            self._aio = None
        self._close_rewinder()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"SnapshotManager({self._url!s}, snapshot_dir={str(self.directory)!r})"

    # -- making ----------------------------------------------------------------------

    def create_snapshot(
        self,
        name: str,
        description: str = "",
        version: str | None = None,
        format: str = "plain",  # noqa: A002
        compression: str | None = None,
        level: int | None = None,
        scope: str = "database",
        owners: bool = True,
        clean: bool = False,
        jobs: int = 1,
        tags: Sequence[str] = (),
        pinned: bool = False,
        overwrite: bool = False,
        metadata: Mapping[str, Any] | None = None,
        progress: ProgressCallback | None = None,
        *,
        marker: str | None = None,
        predicates: Mapping[str, str] | None = None,
    ) -> Snapshot:
        """Make a new version of a snapshot; it appears complete, or not at all.

        Args:
            name: Name of the snapshot: letters, digits, ``.``, ``_``, ``-``.
            description: What it is for.
            version: A label of your own instead of the time.
            format: ``plain`` (SQL text), ``custom`` (an archive for pg_restore), ``directory`` (the same as
                a directory, written and loaded by several connections) or ``json`` (test data).
            compression: ``gzip`` or ``zstd``, for ``plain`` and ``json``; zstd needs the extra ``[zstd]``.
            level: Level of it: gzip 1 to 9, zstd 1 to 19; or of an archive's own compression, 0 to 9.
            scope: ``database``, or ``test_data`` with ``format="json"``: only the rows that are test data.
            owners: Keep owners and grants; False makes a portable file.
            clean: Put DROP statements in front, for psql by hand.
            jobs: Tables that ``directory`` dumps at once; each takes a connection more.
            tags: Free words.
            pinned: Never deleted by retention.
            overwrite: Replace ``version`` if it exists, once the new one is complete.
            metadata: Recorded in the manifest, such as dataset, scale and seed.
            progress: Called with `Progress` values, in bytes; of test data in rows.
            marker: The boolean column that marks test data; ``is_test_data`` if None.
            predicates: SQL conditions by table (``schema.table``) in place of the marker, such as
                ``{"public.orders": "number LIKE 'T-%'"}``; other names in them need their schema, and
                only columns of the table itself may decide.

        Returns:
            The snapshot.

        Raises:
            SnapshotExistsError: The version exists (a `ValueError`).
            OtherDatabaseError: The name belongs to another application's snapshots.
            DiskFullError: There is too little room; nothing was left behind.
            LockBusyError: Another process makes a snapshot of this name.
            CreateFailedError: pg_dump failed; nothing was published.
        """
        from keikaku_snapshots.snapshots.create import Create
        from keikaku_snapshots.snapshots.dump import DumpOptions
        from keikaku_snapshots.snapshots.labels import check_tags

        check_name(name)
        if version is not None:
            check_version(version)
        check_create(format, compression, level, scope, jobs, clean=clean)
        check_marker(marker, predicates, format)
        options = DumpOptions(
            format, level, owners, clean, self._minimum_free_mb, compression=compression, jobs=jobs
        )
        fields: dict[str, Any] = {
            "name": name,
            "description": description,
            "tags": check_tags(tags),
            "pinned": pinned,
            "metadata": dict(metadata or {}),
        }
        create: Create | CreateRows
        if format == "json":
            from keikaku_snapshots.snapshots.rows import CreateRows, RowsOptions

            rows = RowsOptions.made(marker, predicates, compression, level, self._minimum_free_mb)
            create = CreateRows(self.url, self._store, rows, fields, retry=self._retry)
        else:
            create = Create(self.url, self._store, options, fields, pg_bin=self._pg_bin, retry=self._retry)
        with self._audit.recording("create", name, version=version) as record:
            snapshot = create.run(
                version, overwrite=overwrite, lock_wait_s=self._lock_wait_s, progress=progress
            )
            record.note(version=snapshot.version, size_bytes=snapshot.size_bytes)
        return snapshot

    # -- restoring -------------------------------------------------------------------

    def restore_snapshot(
        self,
        name: str | Snapshot,
        version: str | None = None,
        use_latest: bool = True,
        strategy: str = "auto",
        on_schema_mismatch: str = "warn",
        clean_existing: bool = True,
        from_other_database: bool = False,
        trust: bool = False,
        after_restore: Hook | Sequence[Hook] = (),
        progress: ProgressCallback | None = None,
        *,
        disconnect: bool = False,
        marker: str | None = None,
        hook_timeout_s: float | None = 3600.0,
        jobs: int | None = None,
    ) -> Restored:
        """Bring the database back to a snapshot, exactly; on any error it is as it was.

        Args:
            name: Name of the snapshot, or the snapshot itself.
            version: An exact version; the newest valid one if None.
            use_latest: Accepted for existing callers; the newest valid snapshot is
                always found from the manifests.
            strategy: ``in_place`` (one transaction, sessions stay), ``swap`` (built
                beside, renamed; ends other sessions), ``template`` (the same from the copy on the server,
                which the first restore leaves there), or ``auto``: never disconnects anyone.
            on_schema_mismatch: ``warn``, ``error`` or ``ignore`` when the schema is not the snapshot's.
            clean_existing: Of a test-data snapshot: delete the test rows of its tables first.
            from_other_database: Replace another application's tables.
            trust: Restore a file that has no manifest.
            after_restore: Hooks, in order: commands (a text that is split as a shell would, without
                a shell, or a sequence of arguments) and callables that take the `DatabaseURL`. They
                run on the new database before it takes the old one's place; the first that fails
                ends the restore, and the old database stays. Needs a swap.
            progress: Called with `Progress` values, in bytes of the snapshot.
            disconnect: Let ``auto`` end other sessions and use the fast way.
            marker: Of a test-data snapshot: the column that marks test rows; what its manifest says,
                or ``is_test_data``, if None.
            hook_timeout_s: Seconds that each hook may take; None: no limit.
            jobs: Connections that load a ``directory`` snapshot beside the database; as many as there are
                processors, at most 4, if None. In place it is always one.

        Returns:
            Which way was used and why, the time it took, and warnings.

        Raises:
            SnapshotNotFoundError: There is none (a `FileNotFoundError`).
            SnapshotCorruptError: The files are damaged; the database was not touched.
            JSONCorruptError: The same for the JSON of test data.
            TestDataReferencedError: Rows that are not test data refer to rows that would be deleted.
            ForeignKeyError: Test rows of the snapshot refer to rows that are not there.
            ProtectedDatabaseError: The database looks like production.
            OtherDatabaseError: It holds another application's tables.
            SchemaDriftError: The schema differs and ``error`` was asked for.
            DatabaseInUseError: Another session holds a table; the text says which.
            UnsafeRestoreError: This way would not be exact; nothing was changed.
            RestoreFailedError: The server refused something; nothing was changed.
            HookFailedError: A hook failed or took too long; nothing was changed.
            UsageError: A hook cannot be understood, names this database, or cannot run in place.
        """
        from keikaku_snapshots.snapshots.guards import check_protected
        from keikaku_snapshots.snapshots.restore import Restore, RestoreOptions, as_restore_error

        del use_latest
        name, version = name_and_version(self._store, name, version)
        check_restore(strategy, on_schema_mismatch)
        check_templates(strategy, templates=self._templates)
        check_jobs(jobs)
        check_hook_timeout(hook_timeout_s)
        url = self.url
        hooks = self._hooks(after_restore, strategy)
        check_name(name)
        if version is not None:
            check_version(version)
        options = RestoreOptions(
            strategy=strategy,
            on_schema_mismatch=on_schema_mismatch,
            from_other_database=from_other_database,
            trust=trust,
            disconnect=disconnect,
            lock_timeout_s=self._lock_timeout_s,
            lock_wait_s=self._lock_wait_s,
            keep_old_minutes=self._keep_old_minutes,
            maintenance=self._maintenance,
            pg_bin=self._pg_bin,
            minimum_free_mb=self._minimum_free_mb,
            hooks=hooks,
            hook_timeout_s=hook_timeout_s,
            jobs=jobs,
            templates=self._templates,
            spare=self._spare,
        )
        self._close_rewinder()
        with self._audit.recording("restore", name, version=version) as record:
            check_protected(
                url,
                allow_protected=self._allow_protected,
                protected_words=self._protected_words,
                allowed_databases=self._allowed_databases,
            )
            snapshot = self._find(name, version, trust=trust)
            record.note(version=snapshot.version)
            check_clean_existing(snapshot.format, clean_existing=clean_existing)
            check_marker(marker, None, snapshot.format)
            if hooks:
                from keikaku_snapshots.snapshots.hooks import check_hooks_possible

                check_hooks_possible(hooks, format_name=snapshot.format)
            try:
                with self._store.reading(snapshot, wait_s=self._lock_wait_s, trust=trust) as opened:
                    if opened.snapshot.format == "json":
                        from keikaku_snapshots.snapshots.rows_restore import RestoreRows

                        restored = RestoreRows(
                            url,
                            opened,
                            options,
                            clean_existing=clean_existing,
                            marker=marker,
                            progress=progress,
                        ).run()
                    else:
                        restored = Restore(url, self._store, opened, options, progress).run()
            except KeikakuError as error:
                better = as_restore_error(error, url)
                if better is error:
                    raise
                raise better from error
            record.note(strategy=restored.strategy)
            origin = restored.reason.partition(":")[0]
            if origin in {"cold", "warm", "spare"}:
                record.note(template=origin)
            if restored.hooks:
                record.note(hooks=[hook.hook for hook in restored.hooks])
        return restored

    def _hooks(self, given: Hook | Sequence[Hook], strategy: str) -> tuple[Command | Function, ...]:
        if given == ():
            return ()
        from keikaku_snapshots.snapshots.hooks import check_hooks_possible, read_hooks

        hooks = read_hooks(given, self.url)
        check_hooks_possible(hooks, strategy=strategy)
        return hooks

    def _find(self, name: str, version: str | None, *, trust: bool) -> Snapshot:
        try:
            return self._store.find(name, version)
        except SnapshotNotFoundError:
            # A file without manifest is never "the newest valid one"; trust takes it all the same.
            found = [item for item in self._store.list(name) if trust and item.manifest is None]
            if not found:
                raise
            return found[0]

    # -- comparing -------------------------------------------------------------------

    def compare_snapshots(
        self,
        a: str | Snapshot,
        b: str | Snapshot,
        *,
        rows: int = 0,
        progress: ProgressCallback | None = None,
    ) -> Comparison:
        """Say how two snapshots, or a snapshot and the database, differ; nothing is changed.

        Both files are checked first. Memory does not grow with the data: rows
        that do not fit are spread over temporary files in the snapshot directory.

        Args:
            a: The one side: a snapshot, its name (the newest valid one), ``name@version``,
                or "live" for the database.
            b: The other side, likewise.
            rows: Most rows of each table that are given back with their values.
            progress: Called with `Progress` values, in tables.

        Returns:
            Differences of schema, rows, sequences and large objects, on the way from ``a`` to ``b``.

        Raises:
            UsageError: A side cannot be understood, or both are the database.
            SnapshotNotFoundError: There is no such snapshot (a `FileNotFoundError`).
            SnapshotCorruptError: A file is damaged.
            NoDatabaseError: "live" was said to a manager without database.
        """
        from keikaku_snapshots.snapshots.compare import LIVE, CompareOptions, compare

        url = self.url if LIVE in (a, b) else None
        options = CompareOptions(
            rows, self._pg_bin, self._lock_wait_s, self._lock_timeout_s, self._minimum_free_mb
        )
        return compare(self._store, url, (a, b), options, progress)
