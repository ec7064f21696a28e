"""What stands in the way of a restore, found out before anything is done."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keikaku_snapshots.errors import UsageError
from keikaku_snapshots.postgres.sessions import sessions_in
from keikaku_snapshots.postgres.settings import database_settings, uncopyable_settings

if TYPE_CHECKING:
    from keikaku_snapshots.postgres.connect import Connection


def obstacles_to_create(connection: Connection, target: str) -> list[str]:
    """Say why our role cannot make a database for a target.

    Args:
        connection: Any database of the server.
        target: The database whose owner the new one must have.

    Returns:
        Reasons, empty if it can.
    """
    owner = database_settings(connection, target).owner
    row = connection.execute(
        "SELECT r.rolsuper, r.rolcreatedb, pg_catalog.pg_has_role(%s, 'USAGE') FROM pg_catalog.pg_roles r "
        "WHERE r.rolname = current_user",
        (owner,),
    ).fetchone()
    if row is None or row[0]:
        return []
    reasons = []
    if not row[1]:
        reasons.append("the role may not create databases (ALTER ROLE … CREATEDB)")
    if not row[2]:
        reasons.append(f"the database belongs to {owner}, and the role is no member of it")
    return reasons


def obstacles_to_writing(connection: Connection, *, encoding: str | None = None) -> list[str]:
    """Say why the connected database cannot take a restore at all (FAULTS 73).

    Args:
        connection: The database.
        encoding: Encoding of what is to be written, such as "UTF8".

    Returns:
        Reasons, empty if it can.
    """
    row = connection.execute(
        "SELECT pg_catalog.pg_is_in_recovery(), pg_catalog.current_setting('default_transaction_read_only'), "
        "pg_catalog.current_setting('server_encoding')"
    ).fetchone()
    if row is None:
        return []
    reasons = []
    if row[0]:
        reasons.append("the server is a standby and takes no changes")
    if row[1] == "on":
        reasons.append("default_transaction_read_only is on for this database or role")
    if encoding is not None and row[2] not in {encoding, "SQL_ASCII"}:
        reasons.append(f"the database's encoding is {row[2]}, the data's is {encoding}")
    return reasons


def obstacles_to_swap(connection: Connection, database: str, *, disconnect: bool = True) -> list[str]:
    """Say why a database cannot be replaced by a swap without loss.

    Args:
        connection: The maintenance database.
        database: The target.
        disconnect: False if sessions inside must stay; then each is an obstacle.

    Returns:
        Reasons in plain words, empty if nothing is in the way.
    """
    reasons = _obstacles_of_server(connection, database)
    reasons += uncopyable_settings(connection, database)
    inside = sessions_in(connection, database)
    if disconnect:
        reasons += [
            f"session cannot be ended by this role: {one.text}" for one in inside if not one.can_terminate
        ]
    else:
        reasons += [f"session is connected: {one.text}" for one in inside]
    return reasons


def _obstacles_of_server(connection: Connection, database: str) -> list[str]:
    row = connection.execute(
        """
        SELECT r.rolsuper, r.rolcreatedb, pg_catalog.pg_has_role(d.datdba, 'USAGE'),
               pg_catalog.pg_get_userbyid(d.datdba), d.datname = current_database(), d.datistemplate,
               ARRAY(SELECT l.slot_name::text FROM pg_catalog.pg_replication_slots l
                   WHERE l.database = d.datname ORDER BY 1),
               ARRAY(SELECT s.subname::text FROM pg_catalog.pg_subscription s
                   WHERE s.subdbid = d.oid ORDER BY 1),
               ARRAY(SELECT ARRAY[p.gid, p.owner::text] FROM pg_catalog.pg_prepared_xacts p
                   WHERE p.database = d.datname ORDER BY 1)
        FROM pg_catalog.pg_roles r, pg_catalog.pg_database d WHERE r.rolname = current_user AND d.datname = %s
        """,
        (database,),
    ).fetchone()
    if row is None:
        raise UsageError(f"there is no database {database!r}", hint="Correct the name, or create it.")
    is_superuser, may_create, is_owner, owner, is_maintenance, is_template = row[:6]
    slots, subscriptions, prepared = row[6:]
    reasons = []
    if is_maintenance:
        reasons.append("it is the maintenance database itself; name another one (maintenance_database)")
    if is_template:
        reasons.append("it is marked as a template, which others may clone at any moment")
    if not is_superuser and not is_owner:
        reasons.append(f"the database belongs to {owner}, and the role is no member of it")
    if not is_superuser and not may_create:
        reasons.append("the role may not create or rename databases (ALTER ROLE … CREATEDB)")
    reasons += [f"logical replication slot {slot} would be lost with the old database" for slot in slots]
    reasons += [f"subscription {name} keeps the old database from being dropped" for name in subscriptions]
    reasons += [f"prepared transaction {gid!r} of {role} is open" for gid, role in prepared]
    return reasons
