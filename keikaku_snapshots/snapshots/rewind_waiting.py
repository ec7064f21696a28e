"""Who keeps a rewind or checkpoint waiting, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg

from keikaku_snapshots.errors import DatabaseInUseError, KeikakuError
from keikaku_snapshots.postgres.connect import connect

if TYPE_CHECKING:
    from keikaku_snapshots.postgres.url import DatabaseURL

_WRITERS = """
SELECT DISTINCT ON (l.pid) l.pid, coalesce(a.usename::text, '?'),
       coalesce(nullif(a.application_name, ''), '?'), coalesce(a.state, ''),
       coalesce(extract(epoch FROM clock_timestamp() - a.xact_start)::float, 0)
FROM pg_catalog.pg_locks l LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
WHERE l.granted
  AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = current_database())
  AND l.pid IS DISTINCT FROM pg_catalog.pg_backend_pid()
  AND (l.locktype = 'advisory' AND l.classid = %(first)s AND l.objid = %(second)s AND l.objsubid = 2
       OR l.locktype = 'relation' AND l.relation >= 16384 AND (%(tables)s OR l.mode <> 'AccessShareLock')
          AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_class c
                          WHERE c.oid = l.relation AND c.relnamespace::regnamespace::text = 'keikaku_rewind'))
ORDER BY l.pid
"""


def in_the_way(
    url: DatabaseURL, lock: tuple[int, int], waited_s: float, *, tables: bool
) -> DatabaseInUseError:
    """Name the transactions that did not end; asked on a fresh connection.

    Args:
        url: The database.
        lock: Key of the advisory lock that writers share.
        waited_s: How long they were waited for, seconds.
        tables: True if readers are in the way too.

    Returns:
        The error to raise.
    """
    lines: list[str] = []
    pids: list[int] = []
    parameters = {"first": lock[0], "second": lock[1], "tables": tables}
    try:
        with connect(url, autocommit=True, lock_timeout_s=1) as connection:
            for pid, user, application, state, seconds in connection.execute(_WRITERS, parameters).fetchall():
                if pid is None:
                    lines.append("a prepared transaction (see pg_prepared_xacts)")
                    continue
                pids.append(pid)
                detail = f", {state} for {seconds:.0f} s" if state else ""
                lines.append(f"pid {pid}, user {user}, application {application}{detail}")
    except (psycopg.Error, KeikakuError):
        lines.append("the sessions could not be listed")
    return DatabaseInUseError(
        f"transactions of other sessions stayed open for {waited_s:g} s; nothing was changed",
        found="\n".join(lines) or "they have ended in the meantime",
        hint="Commit or roll back the transactions named above, or wait longer (wait_s, --wait).",
        pids=pids,
    )
