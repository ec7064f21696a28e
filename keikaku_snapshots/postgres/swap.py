"""A finished database takes the place of another: two renames in one transaction.

There is no closed state and no journal: a client that dies leaves both
databases with valid names and open to connections (docs/design.md, Swap).
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import psycopg
from psycopg import sql

from keikaku_snapshots.errors import DatabaseInUseError, KeikakuError, OutcomeUnknownError, UsageError
from keikaku_snapshots.postgres.connect import report_of, translate
from keikaku_snapshots.postgres.creation import comment_statement
from keikaku_snapshots.postgres.dropping import leave_drop
from keikaku_snapshots.postgres.identity import Identity
from keikaku_snapshots.postgres.locks import MAINTENANCE_DATABASE, connect_maintenance
from keikaku_snapshots.postgres.outcome import transaction_outcome
from keikaku_snapshots.postgres.session_ahead import SessionAhead
from keikaku_snapshots.postgres.sessions import POLL_S, Session, sessions_in, terminate, terminate_once
from keikaku_snapshots.postgres.settings import database_settings

if TYPE_CHECKING:
    from keikaku_snapshots.postgres.connect import Connection
    from keikaku_snapshots.postgres.url import DatabaseURL

_log = logging.getLogger("keikaku_snapshots.postgres")
#: What the server shows of our sessions.
_APPLICATION_NAME = "keikaku_snapshots swap"
#: How long a rename may wait for sessions that must not be disconnected. The server's own
#: 5 s would let every new connection hang for as long.
QUIET_TIMEOUT_MS = 150
#: SQLSTATEs after which the same swap may be tried again: in use, deadlock, lock or statement timeout.
_TRY_AGAIN = frozenset({"55006", "40P01", "55P03"})


@dataclass(frozen=True, slots=True)
class Swapped:
    """How a swap went."""

    #: What the replaced database is called now.
    old_name: str
    #: Seconds from the first statement to COMMIT.
    seconds: float
    #: Tries that were needed.
    attempts: int
    #: Sessions that were ended; each counts once for every time it was told.
    terminated: int


def swap_by_rename(
    url: DatabaseURL,
    *,
    replacement: str,
    old_name: str,
    target: str | None = None,
    disconnect: bool = False,
    wait_s: float = 10.0,
    keep_until: str | None = None,
    drop_old: bool = False,
    renamer: SessionAhead | None = None,
    helper: Connection | None = None,
    maintenance: str = MAINTENANCE_DATABASE,
) -> Swapped:
    """Let a finished database take the target's place and name.

    The target's comment moves to the replacement; the old database gets our
    mark, so that it is found and dropped later. Look with `obstacles_to_swap`
    and use `copy_settings` before.

    Args:
        url: Any database of the server, as a role that owns both databases.
        replacement: The finished database; its sessions are ended.
        old_name: What the replaced database shall be called, from `sibling_name`.
        target: The database to replace; the one of `url` when None.
        disconnect: End the sessions inside the target. False gives up within
            `QUIET_TIMEOUT_MS` if there are any.
        wait_s: Most seconds for all tries together.
        keep_until: Until when the old database must stay, for its mark.
        drop_old: Have the server drop the replaced database, without waiting for it.
        renamer: The session that renames, being opened; one is opened when None.
        helper: A session of the maintenance database, in autocommit, from which sessions are ended
            meanwhile; one is opened when None.
        maintenance: Name of the maintenance database.

    Returns:
        How it went.

    Raises:
        DatabaseInUseError: Sessions were in the way; both databases are as before.
        OutcomeUnknownError: The connection was lost and nobody could be asked.
        AccessDeniedError: The role may not rename or may not end a session.
    """
    name = target if target is not None else url.database
    work = _Swap(url, name, replacement, old_name, disconnect, keep_until, drop_old, helper, maintenance)
    with contextlib.nullcontext(renamer) if renamer else renaming_session(url, maintenance) as ahead:
        return work.run(ahead, wait_s)


def renaming_session(url: DatabaseURL, maintenance: str = MAINTENANCE_DATABASE) -> SessionAhead:
    """Prepare the session that renames; whoever makes the replacement can have it opened meanwhile.

    Args:
        url: Any database of the server.
        maintenance: Name of the maintenance database.

    Returns:
        The session, not yet opened.
    """
    return SessionAhead(url, _APPLICATION_NAME, maintenance=maintenance)


@dataclass(frozen=True, slots=True)
class _Swap:
    """The facts of one swap, and its steps."""

    url: DatabaseURL
    target: str
    replacement: str
    old_name: str
    disconnect: bool
    keep_until: str | None
    drop_old: bool
    helper: Connection | None
    maintenance: str
    #: The transaction, once its COMMIT is being sent.
    sent: list[str] = field(default_factory=list)

    def _connect(self) -> Connection:
        return connect_maintenance(self.url, maintenance=self.maintenance, application_name=_APPLICATION_NAME)

    def run(self, renamer: SessionAhead, wait_s: float) -> Swapped:
        began = time.monotonic()
        attempts = terminated = 0
        helper = self._connect() if self.helper is None else contextlib.nullcontext(self.helper)
        with helper as session_b:
            session_a = renamer.take()
            oid = self._oid(session_a, self.replacement)
            if oid is None or self._oid(session_a, self.target) is None:
                missing = self.replacement if oid is None else self.target
                raise UsageError(f"there is no database {missing!r}")
            terminate(session_b, self.replacement, wait_s=wait_s)
            while True:
                attempts += 1
                error, told = self._attempt(session_a, session_b, wait_s - (time.monotonic() - began))
                terminated += told
                seconds = time.monotonic() - began
                if error is None or self._is_done(error, oid):
                    if self.drop_old:
                        self._leave_drop(session_a)
                    return Swapped(self.old_name, seconds, attempts, terminated)
                again = report_of(error).sqlstate in _TRY_AGAIN and self.disconnect
                if not again or seconds >= wait_s:
                    raise self._failure(error, session_b) from error
                _log.info("swap of %s: try %d found sessions in the way", self.target, attempts)

    def _attempt(
        self, session_a: Connection, session_b: Connection, wait_s: float
    ) -> tuple[psycopg.Error | None, int]:
        # Nobody has a right to be in the replacement: not even what an after-restore hook left running.
        names = [self.replacement]
        counts = [0]
        if self.disconnect:
            # Most are gone before the rename looks; it looks again only every 100 ms.
            names.append(self.target)
            counts[0] = terminate_once(session_b, [self.target])
            if counts[0]:
                terminate(session_b, self.target, wait_s=0.05)
        stop = threading.Event()
        sweeper = threading.Thread(
            target=self._keep_ending, args=(session_b, names, stop, counts), daemon=True
        )
        sweeper.start()
        try:
            error = self._rename(session_a, wait_s)
        finally:
            stop.set()
            sweeper.join()
        return error, sum(counts)

    def _keep_ending(
        self, session_b: Connection, names: list[str], stop: threading.Event, counts: list[int]
    ) -> None:
        while not stop.is_set():
            try:
                counts.append(terminate_once(session_b, names))
            except psycopg.Error:
                return  # the rename will say who is in the way
            stop.wait(POLL_S)

    def _rename(self, session_a: Connection, wait_s: float) -> psycopg.Error | None:
        try:
            with session_a.transaction():
                limit_ms = max(1, round(wait_s * 1000)) if self.disconnect else QUIET_TIMEOUT_MS
                session_a.execute(f"SET LOCAL statement_timeout = {limit_ms}")
                settings = database_settings(session_a, self.target)
                session_a.execute(_rename_statement(self.target, self.old_name))
                session_a.execute(_rename_statement(self.replacement, self.target))
                session_a.execute(comment_statement(self.target, settings.comment))
                session_a.execute(comment_statement(self.old_name, self._mark(settings.comment).to_comment()))
                row = session_a.execute("SELECT pg_catalog.pg_current_xact_id()::text").fetchone()
                self.sent[:] = [str(row[0])] if row else []
        except psycopg.Error as error:
            return error
        return None

    def _leave_drop(self, session: Connection) -> None:
        """Over the session that renamed: to open another one takes longer than the renames."""
        try:
            if session.closed:
                session = self._connect()
            leave_drop(session, self.old_name).abandon()
        except (KeikakuError, psycopg.Error) as error:
            reason = type(error).__name__
            _log.warning("replaced database %s is dropped by the next command (%s)", self.old_name, reason)

    def _mark(self, comment: str | None) -> Identity:
        identity = Identity(kind="old", target=self.target, comment=comment)
        return replace(identity, keep_until=self.keep_until)

    def _is_done(self, error: psycopg.Error, oid: int) -> bool:
        """After a connection was lost at COMMIT: ask the server which database has the target's name."""
        state = report_of(error).sqlstate
        if not self.sent or (state and not state.startswith(("08", "57P"))):
            return False
        try:
            with self._connect() as fresh:
                # After a crash the server may never have had it; the name says all the same.
                with contextlib.suppress(psycopg.DataError):
                    if transaction_outcome(fresh, self.sent[0]) == "in progress":
                        raise OutcomeUnknownError("the server is still at COMMIT")
                return self._oid(fresh, self.target) == oid
        except (KeikakuError, psycopg.Error) as second:
            raise OutcomeUnknownError(
                f"the connection was lost while database {self.target!r} was being replaced",
                found=f"Either it is the new one, or the new one is still called {self.replacement!r}.",
            ) from second

    @staticmethod
    def _oid(connection: Connection, name: str) -> int | None:
        row = connection.execute(
            "SELECT oid FROM pg_catalog.pg_database WHERE datname = %s", (name,)
        ).fetchone()
        return int(row[0]) if row else None

    def _failure(self, error: psycopg.Error, session_b: Connection) -> KeikakuError:
        state = report_of(error).sqlstate
        if state not in {*_TRY_AGAIN, "57014"}:
            return translate(error, url=self.url, doing=f"renaming database {self.target}")
        inside: list[Session] = []
        with contextlib.suppress(psycopg.Error):
            inside = sessions_in(session_b, self.target, clients_only=False)
        lines = [one.text for one in inside] or ["They have left by now; try again."]
        return DatabaseInUseError(
            f"database {self.target!r} is in use by other sessions and was not replaced",
            found="\n".join([*lines, f"Database: {self.url.with_database(self.target).location}"]),
            sessions=inside,
        )


def _rename_statement(name: str, new_name: str) -> sql.Composed:
    return sql.SQL("ALTER DATABASE {} RENAME TO {}").format(sql.Identifier(name), sql.Identifier(new_name))
