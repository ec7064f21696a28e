"""Databases of ours: which are there, and which a run that has ended left behind."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from keikaku_snapshots.errors import AccessDeniedError, RefusedError
from keikaku_snapshots.postgres.dropping import drop
from keikaku_snapshots.postgres.identity import Identity, Kind
from keikaku_snapshots.postgres.locks import holder_of, try_lock, unlock

if TYPE_CHECKING:
    from collections.abc import Collection

    from keikaku_snapshots.postgres.connect import Connection

_log = logging.getLogger("keikaku_snapshots.postgres")


@dataclass(frozen=True, slots=True)
class Leftover:
    """A database of ours."""

    #: Name.
    name: str
    #: What its comment says.
    identity: Identity
    #: True while somebody holds the target's lock, or `keep_until` is to come.
    in_use: bool


def our_databases(connection: Connection, *, kinds: Collection[Kind] | None = None) -> list[Leftover]:
    """List the databases whose comment says that they are ours.

    Args:
        connection: The maintenance database, where the locks are.
        kinds: Roles to list; all when None.

    Returns:
        Databases by name.
    """
    # Not their sizes: the server drops some at this moment, and asking for the size of one that is gone is
    # an error.
    names = ["keikaku\\_%"] if kinds is None else [f"keikaku\\_{kind}\\_%" for kind in kinds]
    rows = connection.execute(
        """
        SELECT d.datname, pg_catalog.shobj_description(d.oid, 'pg_database')
        FROM pg_catalog.pg_database d WHERE d.datname LIKE ANY (%s) ORDER BY 1
        """,
        (names,),
    ).fetchall()
    found = []
    for name, comment in rows:
        identity = Identity.from_comment(comment)
        if identity is None or (kinds is not None and identity.kind not in kinds):
            continue
        in_use = identity.is_kept() or holder_of(connection, identity.target) is not None
        found.append(Leftover(name, identity, in_use))
    return found


def unmarked(connection: Connection) -> list[str]:
    """List the databases that are called like ours and do not say that they are.

    A crash of the server in the moment in which it makes a database can leave one, between the
    database and its mark. Nothing of ours ever drops them, because they may be somebody else's.

    Args:
        connection: The maintenance database.

    Returns:
        Their names.
    """
    rows = connection.execute(
        "SELECT d.datname::text FROM pg_catalog.pg_database d WHERE d.datname ~ %s"
        " AND pg_catalog.shobj_description(d.oid, 'pg_database') IS NULL ORDER BY 1",
        (f"^keikaku_({'|'.join(get_args(Kind))})_",),
    ).fetchall()
    return [str(name) for (name,) in rows]


def leftovers(connection: Connection, *, target: str | None = None) -> list[Leftover]:
    """List databases that a run which has ended left behind.

    Templates, spares and test workers' databases are caches and not listed.

    Args:
        connection: The maintenance database, where the locks are.
        target: Only those made for this database.

    Returns:
        Databases that nobody works on.
    """
    found = our_databases(connection, kinds=("new", "old"))
    return [one for one in found if not one.in_use and target in {None, one.identity.target}]


def sweep(connection: Connection, *, target: str | None = None, lock_is_ours: bool = False) -> list[str]:
    """Drop what runs that have ended left behind.

    Args:
        connection: The maintenance database, in autocommit.
        target: Only databases made for this one.
        lock_is_ours: True when this session holds the lock of `target` already.

    Returns:
        Names of the dropped databases; one that cannot be dropped is logged and left.
    """
    dropped: list[str] = []
    for one in our_databases(connection, kinds=("new", "old")):
        if one.identity.is_kept() or target not in {None, one.identity.target}:
            continue
        if not lock_is_ours and not try_lock(connection, one.identity.target):
            continue  # its maker is alive
        try:
            if _is_being_dropped(connection, one.name):
                continue  # by the server, on our behalf: waiting for it would only cost time
            if drop(connection, one.name):
                dropped.append(one.name)
        except (AccessDeniedError, RefusedError) as error:
            _log.warning("leftover database %s was not dropped: %s", one.name, error.what)
        finally:
            if not lock_is_ours:
                unlock(connection, one.identity.target)
    return dropped


def _is_being_dropped(connection: Connection, name: str) -> bool:
    row = connection.execute(
        "SELECT count(*) FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_database d ON d.oid = l.objid"
        " WHERE l.locktype = 'object' AND l.classid = 'pg_catalog.pg_database'::pg_catalog.regclass"
        " AND l.mode = 'AccessExclusiveLock' AND l.granted AND d.datname = %s",
        (name,),
    ).fetchone()
    return bool(row and row[0])
