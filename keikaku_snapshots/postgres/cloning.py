"""Copies of databases: the quickest way, another name and mark for one, clones left to the server.

What is measured is in docs/design.md, Warm restore.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from psycopg import sql

from keikaku_snapshots.postgres.connect import translated
from keikaku_snapshots.postgres.creation import comment_statement
from keikaku_snapshots.postgres.identity import lock_key
from keikaku_snapshots.postgres.locks import MAINTENANCE_DATABASE, connect_maintenance
from keikaku_snapshots.postgres.together import WorkLeftToServer, send_together
from keikaku_snapshots.postgres.url import check_database_name

if TYPE_CHECKING:
    from keikaku_snapshots.postgres.connect import Connection
    from keikaku_snapshots.postgres.identity import Identity
    from keikaku_snapshots.postgres.url import DatabaseURL

#: Above this copying the files is quicker than writing every page to the log, although it needs checkpoints.
FILE_COPY_BYTES = 200_000_000
#: The first version that can have the file system share the blocks of a copy.
_SHARED_BLOCKS_VERSION = 180_000


@dataclass(frozen=True, slots=True)
class CloneMethod:
    """How the server shall copy a database."""

    #: ``WAL_LOG`` or ``FILE_COPY``.
    strategy: str
    #: Have the kernel copy, which shares the blocks where the file system can (PostgreSQL 18).
    by_kernel: bool = False

    @property
    def options(self) -> sql.SQL:
        """For CREATE DATABASE."""
        return sql.SQL("STRATEGY = FILE_COPY" if self.strategy == "FILE_COPY" else "STRATEGY = WAL_LOG")

    def prepare(self, connection: Connection) -> None:
        """Set what the session needs for it."""
        if self.by_kernel:
            connection.execute("SET file_copy_method = 'clone'")


def clone_method(connection: Connection, size_bytes: int) -> CloneMethod:
    """Choose how to copy a database.

    Args:
        connection: Any database of the server.
        size_bytes: Size of the database.

    Returns:
        The quickest way that this server has.
    """
    if size_bytes < FILE_COPY_BYTES:
        return CloneMethod("WAL_LOG")
    if connection.info.server_version < _SHARED_BLOCKS_VERSION:
        return CloneMethod("FILE_COPY")
    row = connection.execute(
        "SELECT 'clone' = ANY (enumvals) FROM pg_catalog.pg_settings WHERE name = 'file_copy_method'"
    ).fetchone()
    return CloneMethod("FILE_COPY", by_kernel=bool(row and row[0]))


def become(connection: Connection, name: str, new_name: str, identity: Identity, *, closed: bool) -> None:
    """Give a database of ours another name, mark and door, all or none.

    Args:
        connection: The maintenance database, in autocommit.
        name: What it is called.
        new_name: What it shall be called.
        identity: What its mark shall say.
        closed: True if nobody may enter it: a session inside a template keeps it from being cloned.

    Raises:
        KeikakuError: The name is taken, or the database is gone.
    """
    check_database_name(new_name)
    rename = sql.SQL("ALTER DATABASE {} RENAME TO {}").format(sql.Identifier(name), sql.Identifier(new_name))
    door = sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}").format(
        sql.Identifier(new_name), sql.SQL("false" if closed else "true")
    )
    with translated(doing=f"renaming database {name} to {new_name}"), connection.transaction():
        connection.execute(rename)
        connection.execute(door)
        connection.execute(comment_statement(new_name, identity.to_comment()))


def clones_in_flight(connection: Connection, template: str) -> int:
    """Count the clones of a template that were left to the server and are not there yet.

    Args:
        connection: The maintenance database.
        template: The template.

    Returns:
        Their number.
    """
    unsigned = _flight_key(template) % 2**64
    row = connection.execute(
        "SELECT count(*) FROM pg_catalog.pg_locks l WHERE l.locktype = 'advisory' AND l.granted"
        " AND l.objsubid = 1 AND l.classid::bigint = %s AND l.objid::bigint = %s AND l.database ="
        " (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = current_database())",
        (unsigned >> 32, unsigned & 0xFFFFFFFF),
    ).fetchone()
    return int(row[0]) if row else 0


def leave_clone_to_server(
    url: DatabaseURL,
    template: str,
    name: str,
    identity: Identity,
    *,
    owner: str,
    method: CloneMethod,
    maintenance: str = MAINTENANCE_DATABASE,
) -> WorkLeftToServer:
    """Have the server copy a template under a new name, and leave; no process of ours remains.

    The copy and its mark are sent in one piece, so the server does both or
    none. Nobody can enter the copy until `become` opens it. The session holds a
    lock by which others see that the copy is on its way.

    Args:
        url: Any database of the server.
        template: The database to copy.
        name: Name of the copy.
        identity: What its mark shall say.
        owner: Its owner.
        method: How to copy.
        maintenance: Name of the maintenance database.

    Returns:
        What can be waited for or abandoned.
    """
    check_database_name(name)
    statement = sql.SQL("CREATE DATABASE {} TEMPLATE {} OWNER {} ALLOW_CONNECTIONS false {}").format(
        sql.Identifier(name), sql.Identifier(template), sql.Identifier(owner), method.options
    )
    connection = connect_maintenance(url, maintenance=maintenance, application_name="keikaku_snapshots spare")
    try:
        # Otherwise the server would notice our absence and stop.
        connection.execute("SET client_connection_check_interval = 0")
        method.prepare(connection)
        connection.execute("SELECT pg_catalog.pg_advisory_lock_shared(%s)", (_flight_key(template),))
        send_together(connection, [statement, comment_statement(name, identity.to_comment())])
    except BaseException:
        connection.close()
        raise
    return WorkLeftToServer(connection)


def _flight_key(template: str) -> int:
    return lock_key(f"spare of {template}")
