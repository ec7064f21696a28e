"""The audit log in its tables: appending, reading, dropping, always under one lock."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from psycopg import sql

from keikaku_snapshots.errors import AuditError
from keikaku_snapshots.patches.audit_chain import AuditProblem, Mark, read_mark
from keikaku_snapshots.patches.audit_crypto import GENESIS, Line, parts_of, seal, sign_mark
from keikaku_snapshots.patches.records_schema import SCHEMA

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime

    from keikaku_snapshots.patches.audit_key import AuditKey, KeyRing
    from keikaku_snapshots.postgres.connect import Connection

_LINES: Final = sql.Identifier(SCHEMA, "audit")
_MARKS: Final = sql.Identifier(SCHEMA, "audit_mark")
#: Key of the advisory lock that lets one writer at a time continue the chain.
_LOCK: Final = 0x6B65696B_61756474
#: What the line says that hands the log over to another key.
ROTATED: Final = "audit_key_rotated"
HOW_TO_VERIFY: Final = "See what is wrong: `keikaku patch audit verify`. Do not delete anything yet."
HOW_TO_VERIFY_JA: Final = "`keikaku patch audit verify` で確認してください。"


@dataclass(frozen=True, slots=True)
class End:
    """Where the log ends."""

    #: Number of the last line; 0 for an empty log.
    number: int
    #: Its digest.
    digest: str
    #: Key that the next line must have; empty for any.
    next_key: str
    #: Id of the key that signed the head; empty for an empty log.
    key_id: str


def lock(connection: Connection) -> None:
    """Wait until this transaction is the only one that writes; it is until it ends."""
    connection.execute("SELECT pg_catalog.pg_advisory_xact_lock(%s)", [_LOCK])


def marks(connection: Connection) -> dict[str, str]:
    """Return head and checkpoint, as they are stored."""
    return dict(connection.execute(sql.SQL("SELECT kind, line FROM {}").format(_MARKS)).fetchall())


def lines(connection: Connection) -> Iterator[Line]:
    """Read all lines by number, a few at a time; within a transaction."""
    query = sql.SQL("SELECT number, month, key_id, line FROM {} ORDER BY number").format(_LINES)
    with connection.cursor(name="keikaku_audit") as cursor:
        cursor.itersize = 1000
        for row in cursor.execute(query):
            yield Line(*row)


def head_key_id(connection: Connection) -> str | None:
    """Tell which key the log was last written with; None for an empty log."""
    row = connection.execute(
        sql.SQL(
            "SELECT (SELECT line FROM {} WHERE kind = 'head'),"
            " (SELECT key_id FROM {} ORDER BY number DESC LIMIT 1)"
        ).format(_MARKS, _LINES)
    ).fetchone()
    head, key_id = row if row is not None else (None, None)
    if head is None:
        return None if key_id is None else str(key_id)
    return str((parts_of(head) or {}).get("key"))


def is_empty(connection: Connection) -> bool:
    """Tell whether there is no line and no mark: a log that nobody has written yet."""
    row = connection.execute(
        sql.SQL("SELECT EXISTS (SELECT FROM {}) OR EXISTS (SELECT FROM {})").format(_LINES, _MARKS)
    ).fetchone()
    return not (row and row[0])


def has_line(connection: Connection, line: Line) -> bool:
    """Tell whether exactly this line was committed."""
    row = connection.execute(
        sql.SQL("SELECT EXISTS (SELECT FROM {} WHERE number = %s AND line = %s)").format(_LINES),
        [line.number, line.text],
    ).fetchone()
    return bool(row and row[0])


def find_end(connection: Connection, ring: KeyRing) -> End:
    """Read where the log ends, under the lock.

    Args:
        connection: In a transaction that holds the lock.
        ring: The keys.

    Returns:
        The end.

    Raises:
        AuditError: Head and last line do not agree, or the key is not here; nothing may be appended.
    """
    row = connection.execute(
        sql.SQL(
            "SELECT (SELECT line FROM {marks} WHERE kind = 'head'), number, month, key_id, line"
            " FROM (SELECT 1) one LEFT JOIN (SELECT * FROM {lines} ORDER BY number DESC LIMIT 1) last ON true"
        ).format(marks=_MARKS, lines=_LINES)
    ).fetchone()
    head, *last = row if row is not None else (None, None)
    line = Line(*last) if last[0] is not None else None
    if head is None and line is None:
        return End(0, GENESIS, "", "")
    mark = read_mark(head, "head", ring.find) if head is not None else None
    if isinstance(mark, AuditProblem) and mark.kind == "key":
        raise other_key(mark.what, ring)
    if not isinstance(mark, Mark) or line is None or (mark.number, mark.digest) != (line.number, line.digest):
        raise AuditError(
            "the audit log was tampered with: its end is not where its head says",
            found="Nothing is appended to it.",
            hint=HOW_TO_VERIFY,
            hint_ja=HOW_TO_VERIFY_JA,
        )
    return End(mark.number, mark.digest, mark.next_key, mark.key_id)


def other_key(what: str, ring: KeyRing | None) -> AuditError:
    """Say that the log was written with a key that is not here."""
    here = ring.source if ring else "none was found"
    return AuditError(
        "the audit log was written with another key",
        found=f"{what}\nKeys: {here}",
        hint="Set the key that it was written with: KEIKAKU_AUDIT_KEY, or beside a newer one"
        " KEIKAKU_AUDIT_OLD_KEYS.",
        hint_ja="書き込み時の鍵を KEIKAKU_AUDIT_KEY(更新後は KEIKAKU_AUDIT_OLD_KEYS)に設定してください。",
    )


@dataclass(frozen=True, slots=True)
class Writer:
    """Continues the chain."""

    #: A connection whose transaction holds the lock.
    connection: Connection
    #: The keys.
    ring: KeyRing
    #: Whether lines are encrypted.
    encrypt: bool

    def append(self, payloads: list[Mapping[str, Any]], at: datetime) -> Line:
        """Write lines; a change of the key is a line of its own before them, under the key of before.

        Args:
            payloads: What they say.
            at: When.

        Returns:
            The last line.

        Raises:
            AuditError: The log must not be continued.
        """
        end = find_end(self.connection, self.ring)
        key = self._key_of(end)
        written: list[Line] = []
        if key.key_id != self.ring.current.key_id:
            new = self.ring.current.key_id
            says = {"event": ROTATED, "at": at.isoformat(), "old_key": key.key_id, "new_key": new}
            written.append(self._sealed(says, end.number, end.digest, at, key, next_key=new))
        for payload in payloads:
            number, digest = (written[-1].number, written[-1].digest) if written else (end.number, end.digest)
            written.append(self._sealed(payload, number, digest, at, self.ring.current))
        self._insert(written)
        return written[-1]

    def _key_of(self, end: End) -> AuditKey:
        """Return the key that the next line must have."""
        if not end.next_key:
            return self.ring.current
        key = self.ring.find(end.next_key)
        if key is None:
            raise other_key(f"Its last line hands it over to the key {end.next_key}.", self.ring)
        return key

    def _sealed(
        self,
        payload: Mapping[str, Any],
        number: int,
        digest: str,
        at: datetime,
        key: AuditKey,
        *,
        next_key: str = "",
    ) -> Line:
        return seal(
            payload,
            number=number + 1,
            previous=digest,
            at=at,
            key=key,
            encrypt=self.encrypt,
            next_key=next_key,
        )

    def _insert(self, written: list[Line]) -> None:
        last = written[-1]
        values = sql.SQL(", ").join([sql.SQL("(%s, %s, %s, %s)")] * len(written))
        facts = [fact for line in written for fact in (line.number, line.month, line.key_id, line.text)]
        self.connection.execute(
            sql.SQL(
                "WITH added AS (INSERT INTO {} (number, month, key_id, line) VALUES {})"
                " INSERT INTO {} VALUES ('head', %s) ON CONFLICT (kind) DO UPDATE SET line = EXCLUDED.line"
            ).format(_LINES, values, _MARKS),
            [*facts, self._mark("head", last)],
        )

    def _mark(self, kind: str, line: Line) -> str:
        next_key = str((parts_of(line.text) or {}).get("next") or line.key_id)
        return sign_mark(
            kind, number=line.number, digest=line.digest, next_key=next_key, key=self.ring.current
        )

    def drop(self, last: Line) -> None:
        """Drop the lines up to this one and sign the checkpoint that the rest continues."""
        self.connection.execute(
            sql.SQL(
                "WITH dropped AS (DELETE FROM {} WHERE number <= %s)"
                " INSERT INTO {} VALUES ('checkpoint', %s)"
                " ON CONFLICT (kind) DO UPDATE SET line = EXCLUDED.line"
            ).format(_LINES, _MARKS),
            [last.number, self._mark("checkpoint", last)],
        )
