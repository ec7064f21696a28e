"""The audit log of data patches: who did what to live data, when, and how it ended.

Lines are encrypted, chained and signed (`audit_crypto`), in the table
``keikaku_patches.audit`` of the database that the patches change.

A line is written over a connection of the log's own, and committed at once: a
run that fails and is rolled back has still been audited. Where a line tells of
one short change of the records, the connection of that change may be given;
both are then committed together or not at all. It must be the last statement
before the commit, since until then nobody else can write a line; and never the
connection of a batch.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Self

import psycopg

from keikaku_snapshots.errors import AuditError, ConnectError, KeikakuError, UsageError
from keikaku_snapshots.patches import audit_store
from keikaku_snapshots.patches.audit_chain import AuditProblem, check_chain
from keikaku_snapshots.patches.audit_crypto import parts_of, payload_of, require_encryption, signed_parts
from keikaku_snapshots.patches.audit_key import KeyRing, add_key, key_file_of, load_keys, make_key_file
from keikaku_snapshots.patches.records import ensure_schema, has_schema
from keikaku_snapshots.patches.settings import AuditSettings
from keikaku_snapshots.postgres.connect import connect, translated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from datetime import date
    from types import TracebackType

    from keikaku_snapshots.patches.audit_crypto import Line
    from keikaku_snapshots.postgres.connect import Connection
    from keikaku_snapshots.postgres.url import DatabaseURL

log = logging.getLogger("keikaku_snapshots.audit")

#: Seconds to wait for another writer; each holds the lock for milliseconds.
_LOCK_WAIT_S: Final = 10.0
_STATEMENT_S: Final = 60.0
#: Problems that are quoted when old lines are not dropped because of them.
_QUOTED: Final = 5


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """A line of the audit log, as it is read."""

    #: Its number.
    number: int
    #: When it was written, UTC, ISO 8601.
    at: str
    #: What happened.
    event: str
    #: Everything else that it says.
    facts: dict[str, Any]


def _now() -> datetime:
    return datetime.now(UTC)


class AuditLog:
    """Writes and checks the audit log of one database.

    Args:
        url: The database that the patches change.
        settings: Encryption, keys, retention.
        environ: Where the keys are looked for; the process's environment if None.
        clock: Tells the time, with its zone.

    Raises:
        ConfigurationError: Lines are to be encrypted and the library for it is missing.
    """

    def __init__(
        self,
        url: DatabaseURL,
        settings: AuditSettings | None = None,
        *,
        environ: Mapping[str, str] | None = None,
        clock: Callable[[], datetime] = _now,
    ) -> None:
        self._url = url
        self._settings = settings or AuditSettings()
        self._environ = os.environ if environ is None else environ
        self._clock = clock
        self._connection: Connection | None = None
        self._ring: KeyRing | None = None
        # The engine's threads may write at once.
        self._mutex = threading.RLock()
        if self._settings.log_encryption:
            require_encryption()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the log's own connection; the next use opens another."""
        with self._mutex:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def check(self) -> None:
        """Make sure that lines can be written: the key is here and is the log's own; before a run.

        The key file is made when there is no key and the log is empty.

        Raises:
            ConfigurationError: A variable does not hold a key.
            AuditError: The log was written with another key, was tampered with, or the key file is damaged.
            KeikakuError: The database or the key file cannot be reached.
        """
        with self._mutex, translated(self._url, "checking the audit log"):
            connection = self._own()
            ensure_schema(connection)
            with connection.transaction():
                audit_store.lock(connection)
                audit_store.find_end(connection, self._keys(connection))

    def append(
        self, event: str, facts: Mapping[str, Any] | None = None, /, *, connection: Connection | None = None
    ) -> None:
        """Write a line.

        Args:
            event: What happened, in a word, such as ``run_began``.
            facts: Further facts; never a secret or a value of a row. Times, UUIDs and the like become texts.
            connection: The connection of a short transaction that the line belongs to; the log's own if None.

        Raises:
            AuditError: It could not be written, and ``on_failure`` is ``error``; else this is a warning.
        """
        try:
            with self._mutex:
                self._append(event, facts or {}, connection)
        except (KeikakuError, psycopg.Error) as error:
            self._failed(event, error)

    def note(self, event: str, facts: Mapping[str, Any] | None = None, /) -> None:
        """Write a line about what has happened already: a failure is a warning in any case.

        Args:
            event: What happened.
            facts: Further facts.
        """
        try:
            with self._mutex:
                self._append(event, facts or {}, None)
        except (KeikakuError, psycopg.Error) as error:
            self._warn(event, error)

    def read(self) -> Iterator[AuditEntry]:
        """Read all lines, the oldest first.

        Yields:
            Each line.

        Raises:
            AuditError: The keys that are here cannot read it, or it was changed.
        """
        with self._reading() as (connection, ring):
            if ring is None:
                return
            for line in audit_store.lines(connection):
                yield _entry(line, ring)

    def verify(self, anchor: str = "") -> list[AuditProblem]:
        """Check that every line is there, unchanged and in its place.

        Args:
            anchor: What `anchor` returned before, if it was noted elsewhere: shows also that the log
                was not put back to an earlier state of itself.

        Returns:
            What is wrong, with line numbers; nothing when all is well.

        Raises:
            AuditError: There is a log, and no key at all.
            KeikakuError: The database cannot be reached.
        """
        with self._reading() as (connection, ring):
            if ring is None:
                return check_chain([], None, None, lambda _: None, anchor)
            marks = audit_store.marks(connection)
            return check_chain(
                audit_store.lines(connection), marks.get("checkpoint"), marks.get("head"), ring.find, anchor
            )

    def anchor(self) -> str:
        """Return number and digest of the last line, to be noted where the database's owner cannot write.

        Returns:
            ``NUMBER:DIGEST``; empty for an empty log.

        Raises:
            AuditError: The log was written with another key, or was tampered with.
        """
        with self._reading() as (connection, ring):
            if ring is None:
                return ""
            end = audit_store.find_end(connection, ring)
            return f"{end.number}:{end.digest}" if end.number else ""

    def rotate(self) -> str:
        """Hand the log over to a new key; the lines of before stay readable with the old one.

        With a key file, the new key is made and put in front of the old ones. With a variable, set it to
        the new key, and the one for old keys to the old key, first.

        Returns:
            Id of the key that is used from now on.

        Raises:
            UsageError: The key in the variable is still the old one.
            KeikakuError: It could not be done; the log goes on with the old key.
        """
        with self._mutex, translated(self._url, "rotating the key of the audit log"):
            connection = self._own()
            ensure_schema(connection)
            before = self._keys(connection)
            from_variable = bool(self._environ.get(self._settings.key_variable, "").strip())
            if from_variable and audit_store.head_key_id(connection) in {None, before.current.key_id}:
                raise UsageError(
                    "the log is written with this key already",
                    found=f"{self._settings.key_variable} holds the key {before.current.key_id}.",
                    hint=f"Set {self._settings.key_variable} to a new key, and to the one of now"
                    f" {self._settings.old_keys_variable}.",
                    hint_ja="新しい鍵を環境変数に設定し、現在の鍵を旧鍵の環境変数に移してください。",
                )
            self._ring = before if from_variable else add_key(key_file_of(self._settings, self._environ))
            key_id = self._ring.current.key_id
            self._append("audit_key_in_use", {"key": key_id}, None)
            return key_id

    def purge(self, days: int | None = None) -> int:
        """Drop the lines of months that ended more than so many days ago, and sign where the rest begins.

        Args:
            days: Days that are kept; ``audit_retention_days`` if None.

        Returns:
            How many lines were dropped.

        Raises:
            AuditError: The log was tampered with; nothing is dropped, it is evidence.
        """
        kept = self._settings.audit_retention_days if days is None else days
        if kept < 0:
            raise UsageError(
                f"the audit log cannot be kept for {kept} days",
                hint="Give 0 or more days.",
                hint_ja="0 以上の日数を指定してください。",
            )
        with self._mutex, translated(self._url, "dropping old lines of the audit log"):
            connection = self._own()
            if not has_schema(connection):
                return 0
            now = self._clock()
            first_kept = (now.astimezone(UTC) - timedelta(days=kept)).date().replace(day=1)
            with connection.transaction():
                audit_store.lock(connection)
                if audit_store.is_empty(connection):
                    return 0
                ring = self._keys(connection)
                found = list(audit_store.lines(connection))
                self._refuse_to_drop_evidence(connection, found, ring)
                old = _before(found, first_kept)
                if not old:
                    return 0
                writer = audit_store.Writer(connection, ring, self._settings.log_encryption)
                says = {"lines": len(old), "last_line": old[-1].number, "retention_days": kept}
                writer.append([self._payload(connection, "audit_purged", says, now)], now)
                writer.drop(old[-1])
                return len(old)

    def _own(self) -> Connection:
        if self._connection is None or self._connection.closed:
            self._connection = connect(
                self._url,
                autocommit=True,
                application_name="keikaku_snapshots audit",
                statement_timeout_s=_STATEMENT_S,
                lock_timeout_s=_LOCK_WAIT_S,
            )
        return self._connection

    def _keys(self, connection: Connection) -> KeyRing:
        """Return the keys; those of the file are read again when another process has rotated them."""
        written_with = audit_store.head_key_id(connection)
        if self._ring is None or (written_with is not None and self._ring.find(written_with) is None):
            self._ring = load_keys(self._settings, self._environ)
        if self._ring is None:
            if not audit_store.is_empty(connection):
                raise audit_store.other_key(f"Its key is {written_with}.", None)
            self._ring = make_key_file(key_file_of(self._settings, self._environ))
        return self._ring

    def _append(self, event: str, facts: Mapping[str, Any], connection: Connection | None) -> None:
        if connection is not None:
            # Within a transaction this is a savepoint: a failure here leaves the caller's work alone.
            with connection.transaction():
                self._write(connection, event, facts)
            return
        own = self._own()
        written: list[Line] = []
        try:
            with translated(self._url, "preparing the audit log"):
                ensure_schema(own)
            with translated(self._url, "writing the audit log"), own.transaction():
                written.append(self._write(own, event, facts))
        except KeikakuError:
            if not own.closed:
                raise
            # The session ended while the log was idle, or after COMMIT was sent: ask before writing again.
            with translated(self._url, "writing the audit log"):
                again = self._own()
                with again.transaction():
                    # Under the lock: by then the session that was lost has committed, or never will.
                    audit_store.lock(again)
                    if not (written and audit_store.has_line(again, written[0])):
                        self._write(again, event, facts)

    def _write(self, connection: Connection, event: str, facts: Mapping[str, Any]) -> Line:
        audit_store.lock(connection)
        writer = audit_store.Writer(connection, self._keys(connection), self._settings.log_encryption)
        now = self._clock().astimezone(UTC)
        return writer.append([self._payload(connection, event, facts, now)], now)

    @staticmethod
    def _payload(
        connection: Connection, event: str, facts: Mapping[str, Any], now: datetime
    ) -> dict[str, Any]:
        info = connection.info
        return {
            "event": event,
            "at": now.isoformat(),
            "database": info.dbname,
            "role": info.user,
            "host": socket.gethostname(),
            "facts": dict(facts),
        }

    @contextmanager
    def _reading(self) -> Iterator[tuple[Connection, KeyRing | None]]:
        """Read one state of the log; no keys for a log that is empty."""
        with (
            translated(self._url, "reading the audit log"),
            connect(self._url, autocommit=True, application_name="keikaku_snapshots audit") as connection,
        ):
            if not has_schema(connection):
                yield connection, None
                return
            with connection.transaction():
                connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
                if audit_store.is_empty(connection):
                    yield connection, None
                    return
                ring = load_keys(self._settings, self._environ)
                if ring is None:
                    raise audit_store.other_key(f"Its key is {audit_store.head_key_id(connection)}.", None)
                yield connection, ring

    @staticmethod
    def _refuse_to_drop_evidence(connection: Connection, found: list[Line], ring: KeyRing) -> None:
        marks = audit_store.marks(connection)
        problems = check_chain(found, marks.get("checkpoint"), marks.get("head"), ring.find)
        if problems:
            more = [] if len(problems) <= _QUOTED else [f"… {len(problems) - _QUOTED} more"]
            raise AuditError(
                "no old lines of the audit log were dropped: it is not as it was written",
                found="\n".join([*map(str, problems[:_QUOTED]), *more]),
                hint=audit_store.HOW_TO_VERIFY,
                hint_ja=audit_store.HOW_TO_VERIFY_JA,
            )

    def _failed(self, event: str, error: KeikakuError | psycopg.Error) -> None:
        if self._settings.on_failure == "warn":
            self._warn(event, error)
            return
        if isinstance(error, KeikakuError) and not isinstance(error, ConnectError):
            raise error
        raise AuditError(
            f"the audit log could not be written ({event})",
            found=_reason(error),
            hint="Remove the cause named above, or set on_failure: warn for the audit log.",
            hint_ja="上記の原因を取り除くか、監査ログの on_failure を warn に設定してください。",
        ) from error

    @staticmethod
    def _warn(event: str, error: KeikakuError | psycopg.Error) -> None:
        log.warning("the audit log could not be written (%s): %s", event, _reason(error))


def _reason(error: KeikakuError | psycopg.Error) -> str:
    # The driver's own text may quote a row or a connection string.
    if isinstance(error, KeikakuError):
        return error.headline
    return f"{type(error).__name__} (SQLSTATE {error.sqlstate})" if error.sqlstate else type(error).__name__


def _before(lines: list[Line], first_kept: date) -> list[Line]:
    """Return the lines from the first one on that are older; the last line of all always stays."""
    older: list[Line] = []
    for line in lines[:-1]:
        if line.month >= first_kept:
            break
        older.append(line)
    return older


def _entry(line: Line, ring: KeyRing) -> AuditEntry:
    key_id = str((parts_of(line.text) or {}).get("key"))
    key = ring.find(key_id)
    if key is None:
        raise audit_store.other_key(f"Line {line.number} has the key {key_id}.", ring)
    signed = signed_parts(line.text, key)
    if signed is None:
        raise AuditError(
            f"line {line.number} of the audit log was changed",
            hint=audit_store.HOW_TO_VERIFY,
            hint_ja=audit_store.HOW_TO_VERIFY_JA,
        )
    payload = payload_of(signed, key)
    at, event, facts = payload.pop("at", ""), payload.pop("event", ""), payload.pop("facts", {})
    return AuditEntry(line.number, at, event, payload | facts)
