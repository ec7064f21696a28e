"""Build a database from a snapshot beside the live one (docs/design.md, Swap).

Whatever fails only leaves a scratch database to drop. The load needs no
transaction of its own for the same reason, so it can neither run out of locks
nor hold back the server's cleaning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg

from keikaku_snapshots.errors import KeikakuError
from keikaku_snapshots.postgres import databases
from keikaku_snapshots.postgres.connect import connect
from keikaku_snapshots.snapshots.analyze import AnalyzeBeside, analyze
from keikaku_snapshots.snapshots.clear import drop_public
from keikaku_snapshots.snapshots.counts import compare_counts
from keikaku_snapshots.snapshots.load import restore_failed
from keikaku_snapshots.snapshots.warm import Beside

if TYPE_CHECKING:
    from collections.abc import Callable

    from keikaku_snapshots.postgres.connect import Connection
    from keikaku_snapshots.postgres.url import DatabaseURL
    from keikaku_snapshots.snapshots.dump_script import Script
    from keikaku_snapshots.snapshots.manifest import Manifest
    from keikaku_snapshots.snapshots.parallel_load import Archive
    from keikaku_snapshots.snapshots.rights import RoleRights


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
        databases.drop_quietly(url, scratch, maintenance=maintenance)
        raise


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


def _quick(connection: Connection) -> None:
    """Not to wait for the disk after each statement: the rename's COMMIT brings all of it there."""
    connection.execute("SET synchronous_commit = off")
    connection.execute("SET client_min_messages = error")
    connection.execute("SET idle_session_timeout = 0")
