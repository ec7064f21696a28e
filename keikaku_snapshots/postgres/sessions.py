"""Who is in a database, who holds what, and how they are sent away."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from keikaku_snapshots.postgres.catalog import TableName
    from keikaku_snapshots.postgres.connect import Connection

#: Seconds between two looks whether the sessions are gone.
POLL_S = 0.002


@dataclass(frozen=True, slots=True)
class Session:
    """A session as pg_stat_activity shows it to us."""

    #: Server process.
    pid: int
    #: Role, empty for a background process.
    user: str
    #: What the client calls itself.
    application_name: str
    #: "active", "idle in transaction", …; empty when the role may not see it.
    state: str
    #: "client backend", "walsender", …; empty for a client, "background process" for another one,
    #: whose type the role may not see.
    backend_type: str
    #: True if our role may terminate it.
    can_terminate: bool

    @property
    def is_client(self) -> bool:
        """True for a client; of other roles' sessions a plain role sees only that they have a role."""
        return self.backend_type in {"", "client backend"}

    @property
    def text(self) -> str:
        """For messages: pid, user and application, never the query."""
        parts = [f"pid {self.pid}", f"user {self.user}" if self.user else self.backend_type]
        if self.application_name:
            parts.append(f"application {self.application_name!r}")
        if self.state:
            parts.append(self.state)
        return ", ".join(part for part in parts if part)


#: Whether our role may end session ``a``: pg_terminate_backend raises where it may not.
_MAY_END = """
    coalesce((SELECT r.rolsuper FROM pg_catalog.pg_roles r WHERE r.rolname = current_user)
        OR (NOT (SELECT s.rolsuper FROM pg_catalog.pg_roles s WHERE s.oid = a.usesysid)
            AND (pg_catalog.pg_has_role(a.usesysid, 'USAGE')
                 OR pg_catalog.pg_has_role('pg_signal_backend', 'USAGE'))),
        false)
"""
_SESSION_COLUMNS = f"""
    a.pid, coalesce(a.usename, ''), coalesce(a.application_name, ''), coalesce(a.state, ''),
    coalesce(a.backend_type, CASE WHEN a.usesysid IS NULL THEN 'background process' ELSE '' END), {_MAY_END}
"""


def sessions_in(connection: Connection, database: str, *, clients_only: bool = True) -> list[Session]:
    """List the sessions of a database, our own one left out.

    Args:
        connection: Any database of the server.
        database: The database to look into.
        clients_only: False lists background processes and replication too.

    Returns:
        Sessions by pid.
    """
    rows = connection.execute(
        f"SELECT {_SESSION_COLUMNS} FROM pg_catalog.pg_stat_activity a "  # noqa: S608 - constant of this module
        "WHERE a.datname = %s AND a.pid <> pg_catalog.pg_backend_pid() ORDER BY a.pid",
        (database,),
    ).fetchall()
    found = [Session(*row) for row in rows]
    return [session for session in found if session.is_client or not clients_only]


def sessions_ever(connection: Connection, database: str) -> int:
    """Count the sessions that a database has had so far, by the server's statistics.

    Args:
        connection: Any database of the server, in autocommit.
        database: The database.

    Returns:
        Their number; a session counts once it rests or has ended.
    """
    row = connection.execute(
        "SELECT sessions FROM pg_catalog.pg_stat_database WHERE datname = %s", (database,)
    ).fetchone()
    return int(row[0]) if row else 0


def lock_holders(connection: Connection, tables: Iterable[TableName] | None = None) -> list[Session]:
    """List the other sessions that hold or await locks on tables of the connected database.

    Args:
        connection: The database.
        tables: The tables; every table of the user when None.

    Returns:
        Sessions by pid.
    """
    names = None if tables is None else [[name.schema, name.name] for name in tables]
    condition = (
        ""
        if names is None
        else "AND (n.nspname::text, c.relname::text) IN (SELECT * FROM unnest(%s::text[], %s::text[]))"
    )
    parameters = [] if names is None else [[pair[0] for pair in names], [pair[1] for pair in names]]
    rows = connection.execute(
        f"""
        SELECT {_SESSION_COLUMNS} FROM pg_catalog.pg_stat_activity a
        WHERE a.pid <> pg_catalog.pg_backend_pid() AND a.pid IN (
            SELECT l.pid FROM pg_catalog.pg_locks l
            JOIN pg_catalog.pg_class c ON c.oid = l.relation
            JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
            WHERE l.locktype = 'relation' AND c.relkind IN ('r', 'p', 'm')
              AND l.database =
                  (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = current_database())
              AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast') {condition})
        ORDER BY a.pid
        """,  # noqa: S608 - constants of this module
        parameters,
    ).fetchall()
    return [Session(*row) for row in rows]


def terminate_once(connection: Connection, databases: Collection[str], *, spare: Collection[int] = ()) -> int:
    """Send every session of these databases away, without waiting for any.

    Args:
        connection: Another database of the server.
        databases: Database names.
        spare: Server processes to leave alone.

    Returns:
        How many sessions were there, those that our role may not end included.
    """
    # pg_terminate_backend(pid, timeout) waits in steps of 100 ms, one session after another.
    row = connection.execute(
        "SELECT count(*), "  # noqa: S608 - constant of this module
        f"count(CASE WHEN {_MAY_END} THEN pg_catalog.pg_terminate_backend(a.pid) END) "
        "FROM pg_catalog.pg_stat_activity a WHERE a.datname = ANY (%s) "
        "AND a.pid <> pg_catalog.pg_backend_pid() AND NOT a.pid = ANY (%s::int[])",
        (list(databases), list(spare)),
    ).fetchone()
    return int(row[0]) if row else 0


def terminate(
    connection: Connection, database: str, *, wait_s: float = 5.0, spare: Collection[int] = ()
) -> list[Session]:
    """End every session of a database and wait until all are gone.

    Args:
        connection: Another database of the server, in autocommit.
        database: The database to clear.
        wait_s: Most seconds to wait for all together.
        spare: Server processes to leave alone.

    Returns:
        Sessions still there at the end; empty when it is clear.
    """
    deadline = time.monotonic() + wait_s
    while True:
        if terminate_once(connection, [database], spare=spare) == 0:
            return []
        if time.monotonic() >= deadline:
            left = sessions_in(connection, database, clients_only=False)
            return [session for session in left if session.pid not in set(spare)]
        time.sleep(POLL_S)
