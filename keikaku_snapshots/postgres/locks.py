"""One lock for each target database, always taken in the maintenance database.

Advisory locks are kept by each database for itself (FAULTS 59), so all who
work on one target must ask in the same place. The server frees the lock when
its session ends, however that comes about.
"""

from __future__ import annotations

import os
import random
import socket
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psycopg

from keikaku_snapshots.errors import AccessDeniedError, ConnectError, KeikakuError, LockBusyError
from keikaku_snapshots.postgres.connect import connect, translated
from keikaku_snapshots.postgres.identity import lock_key

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keikaku_snapshots.postgres.connect import Connection
    from keikaku_snapshots.postgres.url import DatabaseURL

#: The database that every server has unless somebody dropped it.
MAINTENANCE_DATABASE = "postgres"
#: Most seconds between two tries for a busy lock.
_POLL_MAX_S = 0.25


#: Condition that a row of pg_locks is an advisory lock with these two halves of its key.
_IS_LOCK = """
    l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
    AND l.classid::bigint = %s AND l.objid::bigint = %s
    AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = current_database())
"""


def _lock_numbers(target: str) -> tuple[int, int]:
    unsigned = lock_key(target) % 2**64
    return unsigned >> 32, unsigned & 0xFFFFFFFF


def connect_maintenance(
    url: DatabaseURL,
    *,
    maintenance: str = MAINTENANCE_DATABASE,
    application_name: str = "keikaku_snapshots",
    statement_timeout_s: float | None = 0,
    lock_timeout_s: float | None = 0,
) -> Connection:
    """Connect to the database from which others are made, renamed and dropped.

    Args:
        url: Any database of the server.
        maintenance: Name of the maintenance database.
        application_name: What the server shows in pg_stat_activity.
        statement_timeout_s: Seconds a statement may take; no limit by default.
        lock_timeout_s: Seconds a statement may wait for a lock; no limit by default.

    Returns:
        A connection in autocommit.

    Raises:
        ConnectError: There is no such database, or no server.
        AccessDeniedError: The role may not connect to it.
    """
    try:
        return connect(
            url,
            database=maintenance,
            autocommit=True,
            application_name=application_name,
            statement_timeout_s=statement_timeout_s,
            lock_timeout_s=lock_timeout_s,
        )
    except KeikakuError as error:
        missing = "does not exist" in error.what
        if isinstance(error, AccessDeniedError) or missing:
            state = "does not exist" if missing else "cannot be used by this role"
            raise (ConnectError if missing else AccessDeniedError)(
                f"The maintenance database {maintenance!r} {state}",
                found=error.found,
                hint="Name another database that the role may connect to (maintenance_database), "
                f"or: GRANT CONNECT ON DATABASE {maintenance} TO {url.user};",
            ) from error
        raise


@dataclass(frozen=True, slots=True)
class TargetLock:
    """The lock of a target database while it is held."""

    #: The session that holds it; closing it frees the lock. In autocommit, usable for other work.
    connection: Connection
    #: Name of the target database.
    target: str
    #: Key of the advisory lock.
    key: int
    #: Server process of the holding session.
    backend_pid: int

    def check(self) -> None:
        """Make sure that the lock is still held, before something that needs it.

        Raises:
            LockBusyError: The session was lost and with it the lock.
        """
        try:
            row = self.connection.execute(
                f"SELECT EXISTS (SELECT FROM pg_catalog.pg_locks l WHERE {_IS_LOCK}"  # noqa: S608 - a constant
                " AND l.pid = pg_catalog.pg_backend_pid())",
                _lock_numbers(self.target),
            ).fetchone()
        except psycopg.Error as error:
            raise LockBusyError(
                f"the lock of database {self.target!r} was lost",
                found="The session that held it has ended.",
                hint="Run it again.",
            ) from error
        if row is None or not row[0]:
            raise LockBusyError(
                f"the lock of database {self.target!r} is no longer held", hint="Run it again."
            )


def holder_of(connection: Connection, target: str) -> tuple[int, str, str] | None:
    """Find who holds the lock of a target.

    Args:
        connection: The maintenance database.
        target: Name of the target database.

    Returns:
        Server process, role and application name, or None if it is free.
    """
    row = connection.execute(
        "SELECT l.pid, coalesce(a.usename, ''), coalesce(a.application_name, '')"  # noqa: S608 - a constant
        " FROM pg_catalog.pg_locks l LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid"
        f" WHERE {_IS_LOCK}",
        _lock_numbers(target),
    ).fetchone()
    return (row[0], row[1], row[2]) if row else None


def try_lock(connection: Connection, target: str) -> bool:
    """Take the lock of a target on this session if it is free.

    Args:
        connection: The maintenance database.
        target: Name of the target database.

    Returns:
        True if this session holds it now.
    """
    row = connection.execute("SELECT pg_catalog.pg_try_advisory_lock(%s)", (lock_key(target),)).fetchone()
    return bool(row and row[0])


def unlock(connection: Connection, target: str) -> None:
    """Give the lock of a target back.

    Args:
        connection: The session that holds it.
        target: Name of the target database.
    """
    connection.execute("SELECT pg_catalog.pg_advisory_unlock(%s)", (lock_key(target),))


def _application_name(purpose: str) -> str:
    text = f"keikaku_snapshots {purpose} {_process()}"
    return text.encode("ascii", "replace").decode()[:63]


def _process() -> str:
    return f"{os.getpid()}@{socket.gethostname()}"


def _is_this_process(application_name: str) -> bool:
    """Tell whether the holder of a lock is another thread of ours; a long name was cut at its end."""
    mark = application_name.rpartition(" ")[2]
    return "@" in mark and _process().encode("ascii", "replace").decode().startswith(mark)


@contextmanager
def target_lock(
    url: DatabaseURL,
    wait_s: float = 0,
    purpose: str = "restore",
    *,
    maintenance: str = MAINTENANCE_DATABASE,
) -> Iterator[TargetLock]:
    """Hold the lock of the database that a URL names.

    The lock is not re-entrant: a second one in the same process is a second
    session and finds it busy.

    Args:
        url: The target.
        wait_s: Seconds to wait for it; 0 fails at once.
        purpose: What for, shown to others who find it busy.
        maintenance: Name of the maintenance database.

    Yields:
        The lock, whose connection can be used for other work.

    Raises:
        LockBusyError: Somebody else holds it.
        ConnectError: The maintenance database cannot be reached.
    """
    connection = connect_maintenance(
        url, maintenance=maintenance, application_name=_application_name(purpose)
    )
    try:
        with translated(url, "taking the database's lock"):
            _acquire(connection, url, wait_s)
        yield TargetLock(connection, url.database, lock_key(url.database), connection.info.backend_pid)
    finally:
        connection.close()


def _acquire(connection: Connection, url: DatabaseURL, wait_s: float) -> None:
    deadline = time.monotonic() + wait_s
    pause_s = 0.01
    while not try_lock(connection, url.database):
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise _busy(connection, url, wait_s)
        time.sleep(min(left_s, pause_s * random.uniform(0.5, 1.5)))
        pause_s = min(pause_s * 2, _POLL_MAX_S)


def _busy(connection: Connection, url: DatabaseURL, wait_s: float) -> LockBusyError:
    holder = holder_of(connection, url.database)
    waited = f" after {wait_s:g} s" if wait_s else ""
    found = "It was freed in this moment." if holder is None else (
        f"Held by server process {holder[0]}, user {holder[1]}, application {holder[2]!r}"
    )  # fmt: skip
    ours = holder is not None and _is_this_process(holder[2])
    return LockBusyError(
        f"{'another thread of this process' if ours else 'another process'} works on database"
        f" {url.database!r}{waited}",
        found=f"{found}\nDatabase: {url.location}",
        holder_pid=holder[0] if holder else None,
        holder_application=holder[2] if holder else None,
    )
