"""Bring a database back to a snapshot: guards, and the restore itself."""

from __future__ import annotations

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from keikaku_snapshots.errors import (
    DatabaseInUseError,
    FileOperationError,
    KeikakuError,
    RestoreFailedError,
    SnapshotCorruptError,
    ToolVersionError,
)
from keikaku_snapshots.postgres import databases
from keikaku_snapshots.postgres.alembic import alembic_heads
from keikaku_snapshots.postgres.catalog_hashes import catalog_versions
from keikaku_snapshots.postgres.connect import connect, server_info, translated
from keikaku_snapshots.progress import Progress, ProgressCallback
from keikaku_snapshots.snapshots import guards
from keikaku_snapshots.snapshots.compression import packed_as, require
from keikaku_snapshots.snapshots.parameters import HOOK_TIMEOUT_S, LOCK_TIMEOUT_S
from keikaku_snapshots.snapshots.rights import RoleRights, role_rights
from keikaku_snapshots.snapshots.strategy import StrategyChoice
from keikaku_snapshots.snapshots.swap import put_in_place
from keikaku_snapshots.snapshots.templates import template_key
from keikaku_snapshots.snapshots.warm import Beside, WarmSource

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from keikaku_snapshots.postgres.connect import Connection
    from keikaku_snapshots.postgres.url import DatabaseURL
    from keikaku_snapshots.snapshots.dump_script import Script
    from keikaku_snapshots.snapshots.hook_run import HookRun, HookRunner
    from keikaku_snapshots.snapshots.hooks import Command, Function
    from keikaku_snapshots.snapshots.manifest import Manifest, Snapshot
    from keikaku_snapshots.snapshots.parallel_load import Archive
    from keikaku_snapshots.snapshots.reading import OpenSnapshot
    from keikaku_snapshots.snapshots.sources import Sources
    from keikaku_snapshots.snapshots.store import SnapshotStore

log = logging.getLogger("keikaku_snapshots.restore")

#: Bytes of the file between two progress values.
_PROGRESS_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Restored:
    """A restore that is done."""

    #: What was restored.
    snapshot: Snapshot
    #: How: ``in_place``, ``swap``, or ``template``: a swap that took what was there already.
    strategy: str
    #: Why this way, in words.
    reason: str
    #: Seconds from the call to the end.
    seconds: float
    #: What is not exactly as in the snapshot, or worth knowing.
    warnings: tuple[str, ...] = ()
    #: After-restore hooks that ran, in order.
    hooks: tuple[HookRun, ...] = ()


@dataclass(frozen=True, slots=True)
class RestoreOptions:
    """What the caller asked for."""

    #: ``auto``, ``in_place``, ``swap`` or ``template``.
    strategy: str = "auto"
    #: ``warn``, ``error`` or ``ignore``.
    on_schema_mismatch: str = "warn"
    #: Replace another application's tables.
    from_other_database: bool = False
    #: Take a file without manifest.
    trust: bool = False
    #: End other sessions, so that ``auto`` may swap.
    disconnect: bool = False
    #: Seconds ``in_place`` waits for each lock.
    lock_timeout_s: float = LOCK_TIMEOUT_S
    #: Seconds to wait for another restore of the same database.
    lock_wait_s: float = 0
    #: Minutes a replaced database is kept.
    keep_old_minutes: float = 0
    #: The database from which others are made and renamed.
    maintenance: str = databases.MAINTENANCE_DATABASE
    #: Where the programs are.
    pg_bin: str | Path | None = None
    #: Megabytes that must stay free where an archive is unpacked.
    minimum_free_mb: int = 1000
    #: Connections that load a directory beside the database; the usual number if None.
    jobs: int | None = None
    #: What runs on the new database before it takes the old one's place.
    hooks: tuple[Command | Function, ...] = ()
    #: Seconds for each of them; None: no limit.
    hook_timeout_s: float | None = HOOK_TIMEOUT_S
    #: Use and leave templates on the server.
    templates: bool = True
    #: Clones of the template to leave for later restores.
    spare: int = 0


@dataclass(frozen=True, slots=True)
class _Target:
    """What was found out about the database before anything is touched."""

    #: Which of the snapshot's roles the connected one can serve.
    rights: RoleRights
    #: The templates that may serve it.
    warm: WarmSource | None = None


class Restore:
    """One restore; `run` does it."""

    def __init__(
        self,
        url: DatabaseURL,
        store: SnapshotStore,
        opened: OpenSnapshot,
        options: RestoreOptions,
        progress: ProgressCallback | None = None,
    ) -> None:
        """Prepare; nothing is touched yet.

        Args:
            url: The database.
            store: Where the snapshot is.
            opened: The snapshot, held so that nobody deletes it.
            options: What the caller asked for.
            progress: Told every step and the bytes loaded.
        """
        self._url = url
        self._store = store
        self._opened = opened
        self._options = options
        self._progress = progress
        self._begun = time.monotonic()
        self._warnings: list[str] = []
        self._hooks: HookRunner | None = None
        if options.hooks:
            from keikaku_snapshots.snapshots.hook_run import HookRunner

            self._hooks = HookRunner(options.hooks, options.hook_timeout_s, progress)

    @property
    def _snapshot(self) -> Snapshot:
        return self._opened.snapshot

    @property
    def _manifest(self) -> Manifest | None:
        return self._snapshot.manifest

    def run(self) -> Restored:
        """Restore.

        Returns:
            How it went.

        Raises:
            KeikakuError: The database is as it was, but after `OutcomeUnknownError`.
        """
        options = self._options
        require(packed_as(self._snapshot))
        with (
            # A connection can be lost between any two statements, here and in all that is called.
            translated(self._url, f"restoring {self._snapshot}"),
            databases.renaming_session(self._url, options.maintenance) as renamer,
            databases.target_lock(
                self._url, options.lock_wait_s, "restore", maintenance=options.maintenance
            ) as lock,
        ):
            strategy, reason = self._restore(lock, renamer)
        if not reason.startswith(("warm:", "spare:")):  # nothing was read then
            self._tell("restore", self._snapshot.size_bytes, finished=True)
        seconds = time.monotonic() - self._begun
        log.info("restored %s into %s by %s in %.2f s", self._snapshot, self._url.database, strategy, seconds)
        hooks = () if self._hooks is None else tuple(self._hooks.done)
        return Restored(self._snapshot, strategy, reason, seconds, tuple(self._warnings), hooks)

    def _restore(self, lock: databases.TargetLock, renamer: databases.SessionAhead) -> tuple[str, str]:
        """Say what a restore was after it was done: strategy and reason."""
        warm = self._begin_copy(lock, renamer)
        try:
            target, strategy, reason = self._prepare(lock, warm)
            if strategy != "in_place":
                return self._swap_or_stay(target, lock, renamer, reason)
        finally:
            if warm is not None:
                warm.abandon()
        self._in_place(target.rights)
        return strategy, reason

    # -- before anything is touched ------------------------------------------------

    def _begin_copy(self, lock: databases.TargetLock, renamer: databases.SessionAhead) -> WarmSource | None:
        """Have the server copy a small template while the target is looked at."""
        options, manifest = self._options, self._manifest
        if manifest is None or not options.templates or options.strategy in {"swap", "in_place"}:
            return None
        admin, name = lock.connection, self._url.database
        if name == options.maintenance or not databases.database_exists(admin, name):
            return None  # whoever looks at it says so
        is_quiet = (
            options.disconnect
            or options.strategy == "template"
            or not databases.sessions_in(admin, self._url.database)
        )
        if is_quiet:
            renamer.open()
        rights = role_rights(admin, manifest.roles if manifest.owners else [])
        key = template_key(admin, manifest, name, rights)
        warm = WarmSource(
            self._url, lock, self._opened, key, renamer, spares=options.spare, maintenance=options.maintenance
        )
        if is_quiet:
            databases.sweep(admin, target=name, lock_is_ours=True)
            warm.begin()
        return warm

    def _prepare(self, lock: databases.TargetLock, warm: WarmSource | None) -> tuple[_Target, str, str]:
        """Look at the target; even the catalog's functions wait for a table that is being altered."""
        timeout_s = self._options.lock_timeout_s
        try:
            with (
                connect(
                    self._url, autocommit=True, statement_timeout_s=0, lock_timeout_s=timeout_s
                ) as connection,
                translated(self._url, "checking the database"),
            ):
                target = self._look(connection, warm)
                choice = StrategyChoice(self._url, self._snapshot, self._options)
                return target, *choice.choose(connection, lock.connection)
        except DatabaseInUseError as error:
            if self._options.hooks and "sessions" in error.details:
                raise  # says it all already
            from keikaku_snapshots.snapshots.in_place import in_use

            raise in_use(self._url) from error

    def _look(self, connection: Connection, warm: WarmSource | None) -> _Target:
        manifest = self._manifest
        self._check_versions(connection)
        guards.check_writing(connection, self._url, manifest.encoding if manifest else "UTF8")
        if manifest is None:
            self._warnings.append(
                f"{self._opened.path.name} has no manifest; it was restored on trust, uncounted"
            )
            return _Target(role_rights(connection, []))
        rights = role_rights(connection, manifest.roles if manifest.owners else [])
        self._check_schema(connection, manifest, warm)
        return _Target(rights, warm)

    def _check_schema(self, connection: Connection, manifest: Manifest, warm: WarmSource | None) -> None:
        """Compare the schemas, unless an earlier restore did and nobody has changed the catalog since."""
        heads = alembic_heads(connection)
        if warm is not None:
            state = [catalog_versions(connection), manifest.schema_fingerprint, *heads]
            if warm.knows_schema(state):
                return
        # Not at the top, as all that only a cold restore needs: a warm one takes a third of a second.
        from keikaku_snapshots.postgres import catalog

        tables = [table.name.text for table in catalog.tables(connection) if table.holds_rows]
        guards.check_identity(manifest, tables, self._url, allowed=self._options.from_other_database)
        lines = guards.drift(manifest, catalog.fingerprint(connection), heads)
        self._warnings += guards.check_drift(manifest, lines, self._options.on_schema_mismatch)
        if warm is not None and not lines:
            warm.remember_schema(state)

    def _check_versions(self, connection: Connection) -> None:
        """A newer server's dump has settings and syntax that an older one refuses (FAULTS 68)."""
        info = server_info(connection)
        if self._manifest is not None and self._manifest.server_major > info.major:
            raise ToolVersionError(
                f"snapshot {self._snapshot} was made by PostgreSQL {self._manifest.server_major}, "
                f"the server is PostgreSQL {info.version}",
                found=f"Database: {self._url.location}",
                hint=f"Restore into PostgreSQL {self._manifest.server_major} or newer.",
            )

    # -- the two ways -----------------------------------------------------------------

    def _in_place(self, rights: RoleRights) -> None:
        from keikaku_snapshots.snapshots.in_place import restore_in_place

        self._check_file()
        with self._sources.script() as script:
            result = restore_in_place(
                self._url,
                script,
                self._manifest,
                rights,
                lock_timeout_s=self._options.lock_timeout_s,
                progress=self._told(script),
            )
        self._warnings += result.warnings

    def _swap_or_stay(
        self, target: _Target, lock: databases.TargetLock, renamer: databases.SessionAhead, reason: str
    ) -> tuple[str, str]:
        """Swap; when ``auto`` chose it and somebody came in meanwhile, restore in place instead."""
        disconnect = self._options.strategy in {"swap", "template"} or self._options.disconnect
        try:
            beside = self._swap(target, lock, renamer, disconnect=disconnect)
        except DatabaseInUseError:
            if disconnect or self._options.hooks:
                raise
            self._in_place(target.rights)
            return "in_place", "a session connected while the new database was being built"
        return self._in_words(beside, reason)

    def _in_words(self, beside: Beside, reason: str) -> tuple[str, str]:
        """Strategy and reason of a swap, with the part that templates had in it."""
        if beside.origin in {"warm", "spare"}:
            found = "a spare was ready" if beside.origin == "spare" else "cloned from the template"
            return "template", f"{beside.origin}: {found}; {reason}"
        strategy = "template" if self._options.strategy == "template" else "swap"
        return strategy, f"cold: {beside.reason}; {reason}" if beside.reason else reason

    def _swap(
        self,
        target: _Target,
        lock: databases.TargetLock,
        renamer: databases.SessionAhead,
        *,
        disconnect: bool,
    ) -> Beside:
        """Put a database beside in the live one's place; says where it came from."""
        warm = target.warm
        if warm is None or not warm.has_begun:
            databases.sweep(lock.connection, target=self._url.database, lock_is_ours=True)
        if warm is None:
            beside = self._build(target.rights, lock)
        else:
            beside = warm.beside(lambda: self._build(target.rights, lock), self._check_file)
        if self._hooks is not None:
            renamer.close()  # it would be idle for as long as they run
        result = put_in_place(
            self._url,
            beside,
            lock,
            maintenance=self._options.maintenance,
            disconnect=disconnect,
            keep_old_minutes=self._options.keep_old_minutes,
            hooks=self._hooks,
            renamer=renamer,
        )
        if warm is not None:
            warm.leave()
        self._warnings += result.warnings
        if result.kept_as:
            self._warnings.append(f"the replaced database is kept as {result.kept_as}")
        return beside

    def _build(self, rights: RoleRights, lock: databases.TargetLock) -> Beside:
        from keikaku_snapshots.snapshots.build_beside import build_beside

        self._check_shape()
        with ThreadPoolExecutor(1, "keikaku-verify") as checking:
            checked = checking.submit(self._check_file)
            try:
                with self._sources.fastest() as script:
                    return build_beside(
                        self._url,
                        script,
                        self._manifest,
                        rights,
                        lock,
                        verified=checked.result,
                        maintenance=self._options.maintenance,
                        progress=self._told(script),
                    )
            except SnapshotCorruptError:
                checked.result()  # what the checksum says comes first
                raise

    def _check_file(self) -> None:
        """Shape and checksum, on the file that is held open (B13)."""
        self._check_shape()
        if self._manifest is not None:
            self._opened.check()

    def _check_shape(self) -> None:
        """Of a compressed file it is checked when it is unpacked, before anything reads it."""
        if packed_as(self._snapshot) is None:
            from keikaku_snapshots.snapshots.verify import check_shape

            check_shape(self._opened.fileno(), self._snapshot.format, self._opened.path.name)

    @property
    def _sources(self) -> Sources:
        options = self._options
        from keikaku_snapshots.snapshots.sources import Sources

        return Sources(
            self._opened,
            self._store,
            self._url,
            jobs=options.jobs,
            pg_bin=options.pg_bin,
            minimum_free_mb=options.minimum_free_mb,
        )

    def _tell(self, step: str, done: int, *, finished: bool = False) -> None:
        if self._progress is not None:
            seconds = time.monotonic() - self._begun
            self._progress(Progress(step, done, self._snapshot.size_bytes, "bytes", seconds, finished))

    def _told(self, script: Script | Archive) -> Callable[[int], None] | None:
        progress = self._progress
        if progress is None:
            return None
        begun = time.monotonic()
        last = 0

        def tell(position: int) -> None:
            nonlocal last
            done = position >= script.size_bytes
            if position - last >= _PROGRESS_BYTES or done:
                last = position
                progress(Progress("restore", position, script.size_bytes, "bytes", time.monotonic() - begun))

        return tell


def as_restore_error(error: KeikakuError, url: DatabaseURL) -> KeikakuError:
    """Give an unexpected failure the restore's own exit code; others are told as they are.

    Args:
        error: What ended the restore.
        url: The database.

    Returns:
        The error to raise.
    """
    if type(error) not in {KeikakuError, FileOperationError}:
        return error
    return RestoreFailedError(
        f"restoring into {url.database} failed", found=f"{error.what}\n{error.found}", **error.details
    )
