"""Let a database that was made beside take the name of the live one (docs/design.md, Swap).

Until the two renames, which are one transaction, the live database is not
touched; whatever fails before only leaves a scratch database to drop.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import psycopg

from keikaku_snapshots.errors import RestoreFailedError, UnsafeRestoreError
from keikaku_snapshots.postgres import databases
from keikaku_snapshots.postgres.connect import connect, translated

if TYPE_CHECKING:
    from keikaku_snapshots.postgres.connect import Connection
    from keikaku_snapshots.postgres.url import DatabaseURL
    from keikaku_snapshots.snapshots.hook_run import HookRunner
    from keikaku_snapshots.snapshots.warm import Beside


@dataclass(frozen=True, slots=True)
class SwapResult:
    """How a restore by swap went."""

    #: What the replaced database is called while it is kept; empty when it is being dropped.
    kept_as: str
    #: What was not given back exactly.
    warnings: tuple[str, ...]


def put_in_place(
    url: DatabaseURL,
    beside: Beside,
    lock: databases.TargetLock,
    *,
    maintenance: str = databases.MAINTENANCE_DATABASE,
    disconnect: bool = True,
    keep_old_minutes: float = 0,
    hooks: HookRunner | None = None,
    renamer: databases.SessionAhead | None = None,
) -> SwapResult:
    """Run the hooks on a finished database and rename it into the place of the live one.

    Args:
        url: The database.
        beside: The finished database; it is dropped when this fails.
        lock: The lock of the target, held.
        maintenance: The maintenance database.
        disconnect: End the sessions inside the live database.
        keep_old_minutes: How long the replaced database stays.
        renamer: The session that renames, being opened; one is opened when None.
        hooks: Run on the new database before the renames, if any.

    Returns:
        What became of the old database, and warnings.

    Raises:
        UnsafeRestoreError: A swap would lose something; the live database is untouched.
        DatabaseInUseError: Sessions are inside and may not be ended; likewise.
        HookFailedError: A hook failed; likewise.
    """
    admin, scratch, warnings = lock.connection, beside.database, beside.warnings
    try:
        if hooks is not None:
            _run_hooks(admin, url, scratch, hooks)
            warnings += tuple(hooks.warnings)
        lock.check()
        # Looked at again: a slot or a prepared transaction may have come while we loaded.
        refuse_obstacles(admin, url, disconnect=disconnect)
        if hooks is None:
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
            renamer=renamer,
            helper=admin,
            maintenance=maintenance,
        )
    except BaseException:
        databases.drop_quietly(url, scratch, maintenance=maintenance)
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


def _run_hooks(admin: Connection, url: DatabaseURL, scratch: str, hooks: HookRunner) -> None:
    """Let hooks change the new database, and leave nobody inside."""
    from keikaku_snapshots.snapshots.analyze import analyze
    from keikaku_snapshots.snapshots.load import restore_failed

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
