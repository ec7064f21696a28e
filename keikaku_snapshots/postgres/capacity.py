"""How many connections a server has left for us."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keikaku_snapshots.errors import ConnectError

if TYPE_CHECKING:
    from keikaku_snapshots.postgres.connect import Connection
    from keikaku_snapshots.postgres.url import DatabaseURL

#: What the server, the role and the database allow, each with what is used of it. A plain role does
#: not see what kind of session another role has, but background processes are in no database.
_LEFT = """
SELECT least(
    current_setting('max_connections')::integer
      - CASE WHEN me.rolsuper THEN 0 ELSE current_setting('superuser_reserved_connections')::integer
             + coalesce(current_setting('reserved_connections', true), '0')::integer END
      - (SELECT count(*) FROM pg_catalog.pg_stat_activity WHERE datid IS NOT NULL),
    CASE WHEN me.rolconnlimit >= 0 AND NOT me.rolsuper THEN me.rolconnlimit
      - (SELECT count(*) FROM pg_catalog.pg_stat_activity WHERE usesysid = me.oid) END,
    CASE WHEN here.datconnlimit >= 0 AND NOT me.rolsuper THEN here.datconnlimit
      - (SELECT count(*) FROM pg_catalog.pg_stat_activity WHERE datid = here.oid) END)
FROM pg_catalog.pg_roles me, pg_catalog.pg_database here
WHERE me.rolname = current_user AND here.datname = pg_catalog.current_database()
"""


def free_connections(connection: Connection) -> int:
    """Return how many more connections the role may make to this database now; a hint, no promise.

    Args:
        connection: The database.

    Returns:
        The number, 0 or more.
    """
    row = connection.execute(_LEFT).fetchone()
    return max(0, int(row[0])) if row else 0


def check_free_connections(connection: Connection, url: DatabaseURL, jobs: int, *, beside: int) -> None:
    """Make sure that a program can work with so many connections, before anything is begun.

    Args:
        connection: The database.
        url: The same, for messages.
        jobs: Connections that work at once.
        beside: Further ones that are needed.

    Raises:
        ConnectError: There are too few; worth trying again later.
    """
    free = free_connections(connection)
    if jobs + beside <= free:
        return
    raise ConnectError(
        f"jobs={jobs} needs {jobs + beside} more connections to the server, which has {free} left",
        found=f"Database: {url.location}",
        hint="Use fewer jobs (--jobs), end idle sessions, or raise max_connections "
        "(or the connection limit of the role or the database).",
        hint_ja="jobs(--jobs)を減らすか、不要な接続を閉じるか、max_connections"
        "(ロールやデータベースの接続上限も)を上げてください。",
        transient=True,
    )
