"""How many connections, and how many bytes of disk, a server has left for us."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, NamedTuple

from keikaku_snapshots.errors import ConnectError

if TYPE_CHECKING:
    from keikaku_snapshots.postgres.connect import Connection
    from keikaku_snapshots.postgres.url import DatabaseURL

#: What the server, the role and the database allow, each with what is used of it. A plain role does
#: not see what kind of session another role has, but background processes are in no database.
_LIMITS = """
SELECT current_setting('max_connections')::integer
         - CASE WHEN me.rolsuper THEN 0 ELSE current_setting('superuser_reserved_connections')::integer
                + coalesce(current_setting('reserved_connections', true), '0')::integer END,
       (SELECT count(*) FROM pg_catalog.pg_stat_activity WHERE datid IS NOT NULL),
       CASE WHEN NOT me.rolsuper THEN nullif(me.rolconnlimit, -1) END,
       (SELECT count(*) FROM pg_catalog.pg_stat_activity WHERE usesysid = me.oid),
       CASE WHEN NOT me.rolsuper THEN nullif(here.datconnlimit, -1) END,
       (SELECT count(*) FROM pg_catalog.pg_stat_activity WHERE datid = here.oid)
FROM pg_catalog.pg_roles me, pg_catalog.pg_database here
WHERE me.rolname = current_user AND here.datname = pg_catalog.current_database()
"""


class Capacity(NamedTuple):
    """Connections that a role may make to a database."""

    #: All that are allowed.
    limit: int
    #: Those that nobody has now.
    free: int


def capacity(connection: Connection) -> Capacity:
    """Ask how many connections our role may make to this database; a hint, no promise.

    Args:
        connection: The database.

    Returns:
        The numbers, 0 or more.
    """
    row = connection.execute(_LIMITS).fetchone() or (0, 0)
    pairs = [(limit, used) for limit, used in zip(row[::2], row[1::2], strict=True) if limit is not None]
    return Capacity(
        max(0, min(limit for limit, _ in pairs)), max(0, min(limit - used for limit, used in pairs))
    )


def check_free_connections(connection: Connection, url: DatabaseURL, jobs: int, *, beside: int) -> None:
    """Make sure that a program can work with so many connections, before anything is begun.

    Args:
        connection: The database.
        url: The same, for messages.
        jobs: Connections that work at once.
        beside: Further ones that are needed.

    Raises:
        ConnectError: There are too few; transient unless there can never be enough.
    """
    limit, free = capacity(connection)
    if jobs + beside <= free:
        return
    raise ConnectError(
        f"jobs={jobs} needs {jobs + beside} more connections to the server, which has {free} left",
        found=f"Database: {url.location}",
        hint="Use fewer jobs (--jobs), end idle sessions, or raise max_connections "
        "(or the connection limit of the role or the database).",
        hint_ja="jobs(--jobs)を減らすか、不要な接続を閉じるか、max_connections"
        "(ロールやデータベースの接続上限も)を上げてください。",
        transient=jobs + beside <= limit,
    )


def free_disk_bytes(connection: Connection) -> int | None:
    """Ask how much of the server's disk is free.

    Args:
        connection: Any database of the server.

    Returns:
        Bytes; None for a server elsewhere, or a role that may not know where its data is.
    """
    host = connection.info.host
    if host and not host.startswith("/") and host not in {"localhost", "127.0.0.1", "::1"}:
        return None
    row = connection.execute(
        "SELECT setting FROM pg_catalog.pg_settings WHERE name = 'data_directory'"
    ).fetchone()
    if row is None or not row[0]:
        return None
    try:
        return shutil.disk_usage(row[0]).free
    except OSError:
        return None  # in a container, for example
