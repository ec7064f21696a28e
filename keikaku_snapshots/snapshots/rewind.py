"""Go back to a checkpoint: every committed change of every session, in milliseconds."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psycopg

from keikaku_snapshots.errors import KeikakuError, UnsafeRestoreError
from keikaku_snapshots.postgres.capture import STYLES
from keikaku_snapshots.postgres.capture_owner import THOROUGH_STATE
from keikaku_snapshots.postgres.connect import connect, translate
from keikaku_snapshots.snapshots.checkpoint import LOCK
from keikaku_snapshots.snapshots.rewind_functions import RESTLESS_STATE, STALE_STATE
from keikaku_snapshots.snapshots.rewind_stale import explain_stale, known_snapshot
from keikaku_snapshots.snapshots.rewind_waiting import in_the_way

if TYPE_CHECKING:
    from keikaku_snapshots.postgres.connect import Connection
    from keikaku_snapshots.postgres.url import DatabaseURL

_CALLS = {
    path: f"SELECT tables, rows, sequences, raised FROM keikaku_rewind.rewind_{path}()"  # noqa: S608
    for path in ("replica", "owner", "suspended")
}
#: What holds for the session of a rewinder.
_SETTINGS = {
    "application_name": "keikaku_snapshots rewind",
    "row_security": "off",
    "statement_timeout": "0",
    "transaction_timeout": "0",
    "idle_session_timeout": "0",
    "synchronous_commit": "off",
    "jit": "off",
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
    **STYLES,
}
# Not every version of the server has every one.
_SET = """SELECT pg_catalog.set_config(name, value, false)
FROM pg_catalog.json_each_text(%s::pg_catalog.json) AS wanted(name, value)
WHERE pg_catalog.current_setting(name, true) IS NOT NULL"""
_SEQUENCES = "SELECT keikaku_rewind.rewind_sequences(false)"
_BUSY = frozenset({"55P03", "40P01"})
#: Seconds of one try: shorter than the server's deadlock_timeout (1 s), so that it is always we who give way
#: to a transaction that locked a row (SELECT … FOR UPDATE) and now wants to write.
_TRY_S = 0.5


@dataclass(frozen=True, slots=True)
class Rewound:
    """A rewind that is done."""

    #: Rows that differed and are as they were.
    rows: int
    #: Tables that had been written to.
    tables: int
    #: Seconds from the call to the end.
    seconds: float
    #: How: "replica", "owner", "suspended", or "restored" from a snapshot.
    path: str
    #: Sequences that were moved.
    sequences: int = 0
    #: What is worth knowing.
    warnings: tuple[str, ...] = ()


def _is_for_thorough_way(error: psycopg.Error) -> bool:
    """Whether the quick way of an owner met what only the thorough way can do."""
    return error.sqlstate == THOROUGH_STATE or (error.sqlstate or "").startswith("23")


def _rest(connection: Connection) -> bool:
    """Put foreign keys and triggers to rest for this session, if the role may."""
    try:
        connection.execute("SET session_replication_role = replica")
    except psycopg.errors.InsufficientPrivilege:
        return False
    return True


class Rewinder:
    """Keeps the connection of one database for rewinds."""

    #: Whether an owner tries the quick way before the thorough one.
    quick = True

    def __init__(self, url: DatabaseURL) -> None:
        """Prepare; the connection is made by the first rewind.

        Args:
            url: The database.
        """
        self._url = url
        self._connection: Connection | None = None
        self._is_set = False
        self._wait_ms = -1
        self._is_replica = False
        self._was_lost = False

    def keep(self, connection: Connection) -> None:
        """Use a connection that has made the checkpoint: it has planned already what a rewind asks first.

        Args:
            connection: Outside of a transaction; closed by `close`.
        """
        self.close()
        self._connection = connection

    def close(self) -> None:
        """Give the connection back; harmless when repeated."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
            self._is_set = False

    def rewind(self, *, wait_s: float) -> Rewound:
        """Bring every table and sequence back.

        Args:
            wait_s: Seconds to wait for open transactions that have written.

        Returns:
            What was done.

        Raises:
            SnapshotNotFoundError: There is no checkpoint.
            DatabaseInUseError: A transaction stayed open; the text says which.
            SchemaDriftError: The schema was changed since the checkpoint.
        """
        begun = time.monotonic()
        while True:
            left_s = begun + wait_s - time.monotonic()
            try:
                path, tables, rows, sequences = self._once_more_when_lost(
                    min(wait_s, max(left_s, 0.01), _TRY_S)
                )
            except psycopg.Error as error:
                if error.sqlstate in _BUSY and time.monotonic() < begun + wait_s:
                    continue
                raise self._explained(error, wait_s) from error
            return Rewound(rows, tables, time.monotonic() - begun, path, sequences)

    def _once_more_when_lost(self, wait_s: float) -> tuple[str, int, int, int]:
        """A kept connection may have been lost since; a rewind that was done is done again without harm."""
        kept = self._connection is not None
        try:
            return self._run(wait_s)
        except psycopg.OperationalError:
            if not (kept and self._was_lost):
                raise
            return self._run(wait_s)

    def _run(self, wait_s: float) -> tuple[str, int, int, int]:
        self._was_lost = False
        try:
            return self._call(self._connected(wait_s))
        except BaseException:
            self._was_lost = self._connection is not None and self._connection.closed
            self.close()  # a lock of the session outlives its failed transaction
            raise

    def _call(self, connection: Connection) -> tuple[str, int, int, int]:
        path = "replica" if self._is_replica else "owner" if self.quick else "suspended"
        try:
            row = connection.execute(_CALLS[path]).fetchone()
        except psycopg.Error as error:
            if path != "owner" or not _is_for_thorough_way(error):
                raise
            path = "suspended"
            row = connection.execute(_CALLS[path]).fetchone()
        if row is None:
            raise KeikakuError("the server gave no answer to a rewind")
        tables, rows, is_moved, raised = row
        # Outside of the transaction: what is set back stays so even if the rest is rolled back.
        moved = connection.execute(_SEQUENCES).fetchone() if is_moved else None
        return path, tables, rows, raised + (moved[0] if moved else 0)

    def _connected(self, wait_s: float) -> Connection:
        if self._connection is None or self._connection.closed:
            self._connection = connect(self._url, autocommit=True, statement_timeout_s=0)
            self._is_set = False
        if not self._is_set:
            self._set(self._connection)
        wait_ms = max(1, round(wait_s * 1000))
        if wait_ms != self._wait_ms:
            self._connection.execute(
                "SELECT pg_catalog.set_config('lock_timeout', %s, false)", [f"{wait_ms}ms"]
            )
            self._wait_ms = wait_ms
        return self._connection

    def _set(self, connection: Connection) -> None:
        connection.autocommit = True
        connection.execute(_SET, [json.dumps(_SETTINGS)])
        self._is_replica = _rest(connection)
        self._is_set, self._wait_ms = True, -1

    def _explained(self, error: psycopg.Error, wait_s: float) -> KeikakuError:
        if error.sqlstate in _BUSY:
            return in_the_way(self._url, LOCK, wait_s, tables=False)
        state = error.sqlstate or ""
        if state == STALE_STATE or state.startswith(("42", "3F")):
            found = explain_stale(self._url)
            if found is not None:
                return found
        if state == RESTLESS_STATE or state.startswith(("23", "55", "P0")):
            return UnsafeRestoreError(
                f"rewinding {self._url.database!r} as role {self._url.user!r} would not be exact",
                found=f"{_words(error)}\nDatabase: {self._url.location}",
                hint="Restore the state to go back to, then make a new checkpoint; "
                "checkpoint(snapshot=NAME) (--snapshot) lets rewind do both."
                if self._is_replica
                else "Use a superuser, or let one say: "
                f"GRANT SET ON PARAMETER session_replication_role TO {self._url.user};",
                snapshot=known_snapshot(self._url),
            )
        return translate(error, url=self._url, doing="rewinding")


def _words(error: psycopg.Error) -> str:
    """What the server said, without the values of the row that it quotes."""
    said = error.diag.message_primary or type(error).__name__
    return f"{said} (SQLSTATE {error.sqlstate})"
