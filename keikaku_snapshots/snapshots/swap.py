"""Restore beside the live database and let the new one take its name (docs/design.md, Swap).

Until the two renames, which are one transaction, the live database is not
touched; whatever fails before only leaves a scratch database to drop. The
load needs no transaction of its own for the same reason, so it can neither run
out of locks nor hold back the server's cleaning.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import psycopg

from keikaku_snapshots.errors import KeikakuError, RestoreFailedError, UnsafeRestoreError
from keikaku_snapshots.postgres import databases
from keikaku_snapshots.postgres.connect import connect, translated
from keikaku_snapshots.snapshots.analyze import AnalyzeBeside, analyze
from keikaku_snapshots.snapshots.clear import drop_public
from keikaku_snapshots.snapshots.counts import compare_counts
from keikaku_snapshots.snapshots.load import RoleRights, restore_failed
from keikaku_snapshots.snapshots.warm import Beside

if TYPE_CHECKING:
    from collections.abc import Callable

    from keikaku_snapshots.postgres.connect import Connection
    from keikaku_snapshots.postgres.url import DatabaseURL
    from keikaku_snapshots.snapshots.dump_script import Script
    from keikaku_snapshots.snapshots.hook_run import HookRunner
    from keikaku_snapshots.snapshots.manifest import Manifest
    from keikaku_snapshots.snapshots.parallel_load import Archive

log = logging.getLogger("keikaku_snapshots.restore")


@dataclass(frozen=True, slots=True)
class SwapResult:
    """How a restore by swap went."""

    #: What the replaced database is called while it is kept; empty when it is being dropped.
    kept_as: str
    #: What was not given back exactly.
    warnings: tuple[str, ...]


def build_beside(
    url: DatabaseURL,
    script: Script | Archive,
    manifest: Manifest | None,
    rights: RoleRights,
    lock: databases.TargetLock,
    *,
    verified: Callable[[], None],
    maintenance: str = databases.MAINTENANCE_DATABASE,
    progress: Callable[[int], None] | None = None,
) -> Beside:
    """Build a database from the snapshot beside the live one, and count it.

    Args:
        url: The database.
        script: The dump: a script, or a directory archive to be loaded by several connections.
        manifest: What is known about the snapshot; None when it is restored on trust.
        rights: Which roles the connected role can serve.
        lock: The lock of the target, held.
        verified: Waits for the check of the file and raises if it is damaged;
            called before anything goes live, and when the load fails.
        maintenance: The maintenance database.
        progress: Told the position in the file, bytes.

    Returns:
        The new database, and warnings.

    Raises:
        SnapshotCorruptError: The file is damaged; nothing is left.
        RestoreFailedError: The server refused something; likewise.
    """
    scratch = databases.sibling_name("new", url.database)
    databases.create_scratch(lock.connection, scratch, like=url.database, backend_pid=lock.backend_pid)
    try:
        return Beside(scratch, _fill(url, scratch, script, manifest, rights, verified, progress))
    except BaseException:
        _drop_quietly(url, scratch, maintenance)
        raise


def put_in_place(
    url: DatabaseURL,
    beside: Beside,
    lock: databases.TargetLock,
    *,
    maintenance: str = databases.MAINTENANCE_DATABASE,
    disconnect: bool = True,
    keep_old_minutes: float = 0,
    hooks: HookRunner | None = None,
) -> SwapResult:
    """Run the hooks on a finished database and rename it into the place of the live one.

    Args:
        url: The database.
        beside: The finished database; it is dropped when this fails.
        lock: The lock of the target, held.
        maintenance: The maintenance database.
        disconnect: End the sessions inside the live database.
        keep_old_minutes: How long the replaced database stays.
        hooks: Run on the new database before the renames.

    Returns:
        What became of the old database, and warnings.

    Raises:
        UnsafeRestoreError: A swap would lose something; the live database is untouched.
        DatabaseInUseError: Sessions are inside and may not be ended; likewise.
        HookFailedError: A hook failed; likewise.
    """
    admin, scratch, warnings = lock.connection, beside.database, beside.warnings
    try:
        if hooks is not None and hooks.hooks:
            _run_hooks(admin, url, scratch, hooks)
            warnings += tuple(hooks.warnings)
        lock.check()
        # Looked at again: a slot or a prepared transaction may have come while we loaded.
        refuse_obstacles(admin, url, disconnect=disconnect)
        if hooks is None or not hooks.hooks:
            databases.copy_settings(admin, url.database, scratch)
        old_name = databases.sibling_name("old", url.database)
        keep_until = None
        if keep_old_minutes > 0:
            keep_until = (datetime.now(UTC) + timedelta(minutes=keep_old_minutes)).isoformat(
                timespec="seconds"
            )
        databases.swap_by_rename(
            url,
            replacement=scratch,
            old_name=old_name,
            disconnect=disconnect,
            keep_until=keep_until,
            drop_old=keep_until is None,
            helper=admin,
            maintenance=maintenance,
        )
    except BaseException:
        _drop_quietly(url, scratch, maintenance)
        raise
    return SwapResult("" if keep_until is None else old_name, warnings)


def refuse_obstacles(admin: Connection, url: DatabaseURL, *, disconnect: bool) -> None:
    """Refuse a swap that would lose something (FAULTS 101).

    Args:
        admin: The maintenance database.
        url: The target.
        disconnect: True if sessions may be ended.

    Raises:
        UnsafeRestoreError: Something is in the way.
    """
    # Whether sessions are inside is asked by the rename itself.
    reasons = [
        reason
        for reason in databases.obstacles_to_swap(admin, url.database, disconnect=disconnect)
        if disconnect or not reason.startswith("session is connected")
    ]
    if reasons:
        raise UnsafeRestoreError(
            f"the database {url.database!r} cannot be replaced by a swap",
            found="\n".join([*reasons, f"Database: {url.location}"]),
            hint="Use strategy='in_place', or remove the causes named above.",
        )


def _fill(
    url: DatabaseURL,
    scratch: str,
    script: Script | Archive,
    manifest: Manifest | None,
    rights: RoleRights,
    verified: Callable[[], None],
    progress: Callable[[int], None] | None,
) -> tuple[str, ...]:
    """Load, count, analyse; nothing is committed that anybody but us can see."""

    def enter() -> Connection:
        return connect(url, database=scratch, autocommit=True, statement_timeout_s=0, lock_timeout_s=0)

    try:
        connection = enter()
    except KeikakuError:
        verified()
        raise
    beside = AnalyzeBeside(enter)
    loader = script.loader(connection, url, rights, progress=progress, loaded=beside.loaded)
    try:
        with beside:
            _quick(connection)
            loader.load(clean=manifest is None or manifest.clean)
            # The dump set the search path and more; the rest needs names with schemas only.
            if manifest is not None:
                drop_public(connection, manifest)
                compare_counts(connection, manifest)
            analyze(connection, beside.finish())
    except psycopg.Error as error:
        verified()
        what = f"restoring {script.name} into {url.database} failed; the database was not touched"
        raise restore_failed(error, url, what, statement=loader.current) from error
    except KeikakuError:
        verified()
        raise
    finally:
        connection.close()
    verified()
    return tuple(loader.warnings)


def _run_hooks(admin: Connection, url: DatabaseURL, scratch: str, hooks: HookRunner) -> None:
    """Let hooks change the new database, and leave nobody inside."""
    # Before the hooks: they need the search path and the grants that the live database gives them,
    # and what they set themselves stays.
    databases.copy_settings(admin, url.database, scratch)
    with translated(url, "running after-restore hooks"):
        databases.terminate(admin, scratch)
        hooks.run(url, url.with_database(scratch), admin)
        databases.terminate(admin, scratch)
        left = admin.execute(
            "SELECT gid FROM pg_catalog.pg_prepared_xacts WHERE database = %s ORDER BY 1", (scratch,)
        ).fetchall()
    if left:
        raise RestoreFailedError(
            f"an after-restore hook left a prepared transaction in the new database of {url.database}",
            found=", ".join(repr(gid) for (gid,) in left),
            hint="Have the hook end it: COMMIT PREPARED or ROLLBACK PREPARED.",
        )
    try:
        with connect(url, database=scratch, autocommit=True, statement_timeout_s=0) as connection:
            connection.execute("SET client_min_messages = error")
            analyze(connection)
    except psycopg.Error as error:
        what = f"the new database of {url.database} cannot be analysed after the hooks"
        raise restore_failed(error, url, what) from error


def _quick(connection: Connection) -> None:
    """Not to wait for the disk after each statement: the rename's COMMIT brings all of it there."""
    connection.execute("SET synchronous_commit = off")
    connection.execute("SET client_min_messages = error")
    connection.execute("SET idle_session_timeout = 0")


def _drop_quietly(url: DatabaseURL, name: str, maintenance: str) -> None:
    """Drop the scratch database; when that fails, the next command finds it by its mark."""
    try:
        with databases.connect_maintenance(url, maintenance=maintenance) as connection:
            databases.drop(connection, name)
    except (KeikakuError, psycopg.Error) as error:
        log.warning("scratch database %s is dropped by the next command (%s)", name, type(error).__name__)
