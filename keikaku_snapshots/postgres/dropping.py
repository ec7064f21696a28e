"""Databases are dropped: at once, or by the server after we have gone."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import psycopg
from psycopg import sql

from keikaku_snapshots.errors import KeikakuError, RefusedError, UsageError
from keikaku_snapshots.postgres.connect import translated
from keikaku_snapshots.postgres.identity import Identity
from keikaku_snapshots.postgres.locks import MAINTENANCE_DATABASE, connect_maintenance
from keikaku_snapshots.postgres.settings import database_settings
from keikaku_snapshots.postgres.together import WorkLeftToServer, send_together

if TYPE_CHECKING:
    from keikaku_snapshots.postgres.connect import Connection
    from keikaku_snapshots.postgres.url import DatabaseURL

_log = logging.getLogger("keikaku_snapshots.postgres")


def drop(connection: Connection, name: str, *, force: bool = True, only_ours: bool = True) -> bool:
    """Drop a database; without a word if it is gone already.

    Args:
        connection: The maintenance database, in autocommit.
        name: The database.
        force: End the sessions inside.
        only_ours: Refuse a database without our mark in its comment.

    Returns:
        True if it was there.

    Raises:
        RefusedError: It is not ours, or a replication slot would vanish with it.
        DatabaseInUseError: Sessions are inside and `force` is False.
        AccessDeniedError: It belongs to another role.
    """
    try:
        settings = database_settings(connection, name)
    except UsageError:
        return False  # it is gone already
    if only_ours and Identity.from_comment(settings.comment) is None:
        raise RefusedError(
            f"database {name!r} was not made by keikaku_snapshots",
            found="Its comment does not say so.",
            hint="Drop it by hand if it is not needed.",
        )
    slots = connection.execute(
        "SELECT slot_name FROM pg_catalog.pg_replication_slots WHERE database = %s ORDER BY 1", (name,)
    ).fetchall()
    if slots:
        names = ", ".join(str(row[0]) for row in slots)
        raise RefusedError(
            f"database {name!r} has replication slots that would be lost",
            found=names,
            hint="Drop the slots first.",
        )
    with translated(doing=f"dropping database {name}"):
        if settings.is_template:
            connection.execute(sql.SQL("ALTER DATABASE {} IS_TEMPLATE false").format(sql.Identifier(name)))
        connection.execute(_drop_statement(name, force=force))
    return True


def drop_quietly(url: DatabaseURL, name: str, *, maintenance: str = MAINTENANCE_DATABASE) -> None:
    """Drop a scratch database; when that fails, the next command finds it by its mark.

    Args:
        url: Any database of the server.
        name: The scratch database.
        maintenance: Name of the maintenance database.
    """
    try:
        with connect_maintenance(url, maintenance=maintenance) as connection:
            drop(connection, name)
    except (KeikakuError, psycopg.Error) as error:
        _log.warning("scratch database %s is dropped by the next command (%s)", name, type(error).__name__)


def _drop_statement(name: str, *, force: bool) -> sql.Composed:
    ending = sql.SQL(" WITH (FORCE)" if force else "")
    return sql.SQL("DROP DATABASE IF EXISTS {}{}").format(sql.Identifier(name), ending)


def leave_to_server(
    url: DatabaseURL, *, drop_database: str, maintenance: str = MAINTENANCE_DATABASE
) -> WorkLeftToServer:
    """Send a DROP and leave; no process of ours remains (docs/design.md, Swap).

    Args:
        url: Any database of the server.
        drop_database: Database to drop, sessions inside included.
        maintenance: Name of the maintenance database.

    Returns:
        What can be waited for or abandoned.
    """
    return leave_drop(connect_maintenance(url, maintenance=maintenance), drop_database)


def leave_drop(connection: Connection, name: str) -> WorkLeftToServer:
    """Send a DROP over a session that has nothing else to do, and leave.

    Args:
        connection: The maintenance database, in autocommit; it ends with the work.
        name: Database to drop, sessions inside included.

    Returns:
        What can be waited for or abandoned.
    """
    # Otherwise the server would notice our absence and stop.
    connection.execute(
        "SELECT pg_catalog.set_config('client_connection_check_interval', '0', false),"
        " pg_catalog.set_config('application_name', 'keikaku_snapshots background', false)"
    )
    send_together(connection, [_drop_statement(name, force=True)])
    return WorkLeftToServer(connection)
