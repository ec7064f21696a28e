"""How many connections a server has left for us."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from keikaku_snapshots.postgres.connect import Connection

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
