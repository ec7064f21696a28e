"""Who works on a run: locks that the server frees when a worker dies, and signs of life."""

from __future__ import annotations

import hashlib
import logging
import os
import socket
import threading
from typing import TYPE_CHECKING, Final

from keikaku_snapshots.errors import KeikakuError, LockBusyError
from keikaku_snapshots.patches.records_schema import SCHEMA
from keikaku_snapshots.postgres.connect import connect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from uuid import UUID

    from keikaku_snapshots.postgres.connect import Connection
    from keikaku_snapshots.postgres.url import DatabaseURL

_log = logging.getLogger("keikaku_snapshots.patches")
#: What the sessions of a run are called in pg_stat_activity; the number of the run follows.
APPLICATION: Final = "keikaku patch "


def lock_keys(patch_name: str, tables: Iterable[int]) -> list[int]:
    """Return the keys of the advisory locks of a run: its name first, then each of its tables.

    Args:
        patch_name: The patch.
        tables: Object ids of its tables.
    """
    return [key_of(f"patch {patch_name}"), *(key_of(f"table {oid}") for oid in sorted(tables))]


def key_of(text: str) -> int:
    """Return the key of an advisory lock.

    Args:
        text: What is locked.
    """
    digest = hashlib.sha256(b"keikaku_patches\0" + text.encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def take_locks(connection: Connection, keys: Sequence[int]) -> None:
    """Take all locks on this session, or none.

    Args:
        connection: The work connection.
        keys: From `lock_keys`.

    Raises:
        LockBusyError: Another run holds one; it is named.
    """
    for place, key in enumerate(keys):
        row = connection.execute("SELECT pg_catalog.pg_try_advisory_lock(%s)", [key]).fetchone()
        if not (row and row[0]):
            found = holder(connection, key)
            for taken in keys[:place]:
                connection.execute("SELECT pg_catalog.pg_advisory_unlock(%s)", [taken])
            raise _busy(found, same_patch=place == 0)


def free_locks(connection: Connection) -> None:
    """Give all locks of this session back.

    Args:
        connection: The work connection.
    """
    connection.execute("SELECT pg_catalog.pg_advisory_unlock_all()")


def holder(connection: Connection, key: int) -> tuple[int, str] | None:
    """Find who holds a lock.

    Args:
        connection: The same database.
        key: The lock.

    Returns:
        Server process, and the number of its run or what the session is called; None if it is free.
    """
    unsigned = key % 2**64
    row = connection.execute(
        """
        SELECT l.pid, coalesce(a.application_name, '') FROM pg_catalog.pg_locks l
        LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
        WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
          AND l.classid::bigint = %s AND l.objid::bigint = %s
          AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = current_database())
        """,
        [unsigned >> 32, unsigned & 0xFFFFFFFF],
    ).fetchone()
    return (row[0], str(row[1]).removeprefix(APPLICATION)) if row else None


def _busy(found: tuple[int, str] | None, *, same_patch: bool) -> LockBusyError:
    what = "this data patch is being run" if same_patch else "another data patch works on the same table"
    who = f"Execution: {found[1]}, server process {found[0]}" if found else "It has ended in this moment."
    return LockBusyError(
        what,
        found=who,
        hint="Wait until it has ended; `keikaku patch status` shows how far it is.",
        hint_ja="終了を待ってください。進行状況は `keikaku patch status` で確認できます。",
        holder=found[1] if found else None,
        holder_pid=found[0] if found else None,
    )


def beat(
    connection: Connection, execution_id: UUID, lease_token: int, backend_pid: int, memory_bytes: int
) -> None:
    """Give a sign of life.

    Args:
        connection: In autocommit; not the work connection, which may wait.
        execution_id: The run.
        lease_token: The worker's lease.
        backend_pid: Server process of the work connection.
        memory_bytes: Resident memory of this process.
    """
    connection.execute(
        f"INSERT INTO {SCHEMA}.heartbeat AS h (execution_id, lease_token, process, backend_pid, memory_bytes)"  # noqa: S608
        " VALUES (%s, %s, %s, %s, %s) ON CONFLICT (execution_id) DO UPDATE SET beat_at = clock_timestamp(),"
        " lease_token = excluded.lease_token, process = excluded.process, backend_pid = excluded.backend_pid,"
        " memory_bytes = excluded.memory_bytes WHERE h.lease_token <= excluded.lease_token",
        [execution_id, lease_token, f"{os.getpid()}@{socket.gethostname()}", backend_pid, memory_bytes],
    )


class Heartbeat:
    """Gives signs of life from a thread of its own, over a connection of its own.

    Args:
        url: The database.
        execution_id: The run.
        every_s: Seconds between two signs.
        state: Tells lease, server process of the work connection, and resident memory.
    """

    def __init__(
        self, url: DatabaseURL, execution_id: UUID, every_s: float, state: Callable[[], tuple[int, int, int]]
    ) -> None:
        self._url = url
        self._execution_id = execution_id
        self._every_s = every_s
        self._state = state
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="keikaku-heartbeat", daemon=True)

    def start(self) -> None:
        """Begin; the first sign is given by the caller."""
        self._thread.start()

    def stop(self) -> None:
        """End it and wait for the thread."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        connection: Connection | None = None
        while not self._ended.wait(self._every_s):
            try:
                if connection is None or connection.closed:
                    connection = connect(
                        self._url,
                        autocommit=True,
                        application_name=f"{APPLICATION}{self._execution_id} beat"[:63],
                        statement_timeout_s=10,
                    )
                beat(connection, self._execution_id, *self._state())
            except Exception as error:  # noqa: BLE001 - a missed sign is no reason to end a run
                kind = type(error).__name__
                _log.warning("no sign of life could be given (%s); trying again", kind)
                if connection is not None and not isinstance(error, KeikakuError):
                    connection.close()
        if connection is not None:
            connection.close()
