"""Run the parts of a dump on a connection: everything, or the rows only.

One way for both strategies. ``COPY`` speaks the protocol itself, so a process
that dies in the middle sends no end of data and the server rolls back (psql on
a pipe takes the end of its input as "done", FAULTS 2). Errors arrive with
table, constraint and key as fields instead of text to be picked apart.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import psycopg

from keikaku_snapshots.errors import (
    DiskFullError,
    KeikakuError,
    OutcomeUnknownError,
    RestoreFailedError,
)
from keikaku_snapshots.postgres.failures import report_of, translate
from keikaku_snapshots.snapshots.script import Kind, Part

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from keikaku_snapshots.postgres.connect import Connection
    from keikaku_snapshots.postgres.url import DatabaseURL
    from keikaku_snapshots.snapshots.dump_script import Script
    from keikaku_snapshots.snapshots.rights import RoleRights

#: Bytes handed to the driver at once; measured equal to psql from 128 kB up.
CHUNK_BYTES = 256 << 10

_IDENTIFIER = rb'(?:"(?:[^"]|"")+"|[A-Za-z0-9_$\x80-\xff]+)'
_OWNED = re.compile(
    rb"ALTER (?P<type>[A-Z][A-Z ]*?) (?P<object>\S[^\x00]*) OWNER TO (?P<role>" + _IDENTIFIER + rb");\Z",
    re.DOTALL,
)
_GRANTEE = re.compile(rb" (?:TO|FROM) (?P<role>" + _IDENTIFIER + rb")(?: WITH GRANT OPTION)?;\Z")
_DEFAULT_OF = re.compile(rb"ALTER DEFAULT PRIVILEGES FOR ROLE (?P<role>" + _IDENTIFIER + rb")")
_ROLES = rb" TO (?P<roles>" + _IDENTIFIER + rb"(?:, " + _IDENTIFIER + rb")*)(?= USING \(| WITH CHECK \(|;)"
_POLICY = re.compile(
    rb"CREATE POLICY " + _IDENTIFIER + rb" ON " + _IDENTIFIER + rb"\." + _IDENTIFIER
    + rb"(?: AS RESTRICTIVE)?(?: FOR [A-Z]+)?" + _ROLES
)  # fmt: skip
_MAPPING = re.compile(rb"CREATE USER MAPPING FOR (?P<role>" + _IDENTIFIER + rb") SERVER ")
_ENCODING = re.compile(rb"SET client_encoding = '(?P<name>\w+)';\Z")
_SESSION_ROLE = re.compile(rb"SET SESSION AUTHORIZATION (?P<role>" + _IDENTIFIER + rb");\Z")
#: What a role that is not the owner needs so that it is not locked out.
_GRANTABLE = {
    b"TABLE": b"TABLE",
    b"VIEW": b"TABLE",
    b"MATERIALIZED VIEW": b"TABLE",
    b"FOREIGN TABLE": b"TABLE",
    b"SEQUENCE": b"SEQUENCE",
    b"SCHEMA": b"SCHEMA",
    b"FUNCTION": b"FUNCTION",
}
_PERMISSION = ("42501", "42704", "0LP01", "0L000", "28000")


class Loader:
    """Runs parts and collects what could not be given back exactly."""

    def __init__(
        self,
        connection: Connection,
        script: Script,
        rights: RoleRights,
        *,
        progress: Callable[[int], None] | None = None,
        loaded: Callable[[bytes], None] | None = None,
    ) -> None:
        """Prepare; nothing runs yet.

        Args:
            connection: Where to; in a transaction, or autocommit on a scratch database.
            script: The dump.
            rights: What the role may give back.
            progress: Told the position in the file, bytes.
            loaded: Told each COPY statement whose rows are all there.
        """
        self._connection = connection
        self._script = script
        self._rights = rights
        self._progress = progress
        self._loaded = loaded
        self._skipping_session_role = False
        self._lost: dict[str, set[str]] = {}
        self._extra: list[str] = []
        self._encoding = "UTF8"
        #: The statement that runs now or failed, for messages.
        self.current = ""

    @property
    def warnings(self) -> list[str]:
        """What was not given back, one line each."""
        lines = [
            f"not given back to role {role} ({'; '.join(sorted(reasons))})"
            for role, reasons in sorted(self._lost.items())
        ]
        return lines + self._extra

    def load(self, *, clean: bool) -> None:
        """Run the whole script.

        Args:
            clean: It may begin with what ``--clean`` adds.

        Raises:
            psycopg.Error: The server refused a statement; `current` says which.
        """
        self.run(self._script.stream(clean=clean))

    def go_on_with(self, script: Script) -> None:
        """Take another script of the same dump; what was learnt of the first stays."""
        self._script = script

    def run(self, parts: Iterable[Part]) -> None:
        """Run parts in order.

        Args:
            parts: Some or all parts of the script, in file order.

        Raises:
            psycopg.Error: The server refused one; `current` says which.
        """
        cursor = self._connection.cursor()
        self._speak(self._encoding)
        for part in parts:
            self.current = self._script.label(part)
            if part.kind is Kind.COPY:
                self._copy(cursor, part)
            elif part.kind is Kind.OWNER:
                self._owner(self._script.text(part))
            elif part.kind is Kind.PRIVILEGE:
                self._privilege(self._script.text(part))
            elif part.kind is Kind.LARGE_OBJECT:
                self._large_object(cursor, self._script.text(part))
            elif part.kind is Kind.EXTENSION:
                self._extension(self._script.text(part))
            else:
                self._statement(cursor, self._script.text(part))
            if self._progress is not None:
                self._progress(max(part.end, part.data_end))
        self.current = ""
        self._speak("UTF8")

    def _speak(self, encoding: str) -> None:
        """A dump of an SQL_ASCII database is in no encoding; our own questions are always UTF-8."""
        if self._encoding != "UTF8":
            self._connection.execute(f"SET client_encoding = '{encoding}'")  # a word of the dump, \w+

    def _copy(self, cursor: psycopg.Cursor[Any], part: Part) -> None:
        text = self._script.text(part)
        with memoryview(self._script.buffer) as view, cursor.copy(text) as copy:
            for start in range(part.data_start, part.data_end, CHUNK_BYTES):
                with view[start : min(start + CHUNK_BYTES, part.data_end)] as chunk:
                    copy.write(chunk)
                if self._progress is not None:
                    self._progress(start)
        if self._loaded is not None:
            self._loaded(text)

    def _large_object(self, cursor: psycopg.Cursor[Any], text: bytes) -> None:
        if text.startswith(b"ALTER "):
            self._owner(text)
        elif text.startswith((b"GRANT ", b"REVOKE ")):
            self._privilege(text)
        else:
            self._statement(cursor, text)

    def _statement(self, cursor: psycopg.Cursor[Any], text: bytes) -> None:
        role = _SESSION_ROLE.match(text)
        if role is not None and (not self._rights.is_superuser or _role(role) in self._rights.missing):
            # Only a superuser may grant as somebody else, and nobody as a role that does not exist.
            self._lose(_role(role), "grants that another role gave")
            self._skipping_session_role = True
            return
        if text.startswith(b"RESET SESSION AUTHORIZATION") and self._skipping_session_role:
            self._skipping_session_role = False
            return
        encoding = _ENCODING.match(text)
        if encoding is not None:
            self._encoding = encoding["name"].decode()
        if self._rights.missing:
            text = self._without_missing_roles(text)
        if text:
            cursor.execute(text)

    def _without_missing_roles(self, text: bytes) -> bytes:
        """A policy or user mapping of a role that does not exist concerns nobody; empty: leave it out."""
        mapping = _MAPPING.match(text)
        if mapping is not None and _role(mapping) in self._rights.missing:
            self._lose(_role(mapping), "user mapping, does not exist here")
            return b""
        policy = _POLICY.match(text)
        if policy is None:
            return text
        roles = re.findall(_IDENTIFIER, policy["roles"])
        kept = [role for role in roles if _name(role) not in self._rights.missing]
        for role in roles:
            if role not in kept:
                self._lose(_name(role), "row security policy, does not exist here")
        if not kept:
            return b""
        return text[: policy.start("roles")] + b", ".join(kept) + text[policy.end("roles") :]

    def _owner(self, text: bytes) -> None:
        owned = _OWNED.match(text)
        role = _role(owned) if owned else ""
        if role in self._rights.missing:
            self._lose(role, "does not exist here")
        elif role in self._rights.unreachable:
            self._lose(
                role, "the restoring role may not act for it; it got all privileges instead of ownership"
            )
            self._keep_in(owned, role)
        elif not self._try(text):
            self._lose(role, "the server refused to make it the owner")

    def _keep_in(self, owned: re.Match[bytes] | None, role: str) -> None:
        """Give a role that cannot be the owner all privileges, so that it is not locked out (B17)."""
        if owned is None or role in self._rights.superusers:
            return
        kind = _GRANTABLE.get(owned["type"])
        if kind is not None:
            self._try(b"GRANT ALL ON " + kind + b" " + owned["object"] + b" TO " + owned["role"] + b";")

    def _privilege(self, text: bytes) -> None:
        if self._skipping_session_role:
            return
        for pattern, unreachable_too in ((_GRANTEE, False), (_DEFAULT_OF, True)):
            match = pattern.search(text)
            role = _role(match) if match else ""
            if role in self._rights.missing:
                self._lose(role, "does not exist here")
                return
            if unreachable_too and role in self._rights.unreachable:
                self._lose(role, "default privileges, the restoring role may not act for it")
                return
        if not self._try(text):
            match = _GRANTEE.search(text)
            self._lose(_role(match) if match else "?", "the server refused a grant")

    def _extension(self, text: bytes) -> None:
        """Extensions and their comments belong to whoever may make them; a comment is no reason to fail."""
        if text.startswith(b"COMMENT"):
            if not self._try(text) and not self._has_comment(text):
                self._extra.append("comment of an extension not given back: it belongs to another role")
            return
        self._connection.execute(text)

    def _has_comment(self, text: bytes) -> bool:
        rows = self._connection.execute(
            "SELECT pg_catalog.quote_literal(pg_catalog.obj_description(oid, 'pg_extension'))"
            " FROM pg_catalog.pg_extension WHERE extname = %s",
            [text.split()[3].decode("utf-8", "replace").strip('"')],
        ).fetchall()
        return any(comment is not None and text.endswith(comment.encode() + b";") for (comment,) in rows)

    def _try(self, text: bytes) -> bool:
        """Run a statement about rights; False when the role may not, with the transaction still usable."""
        if self._rights.is_superuser:
            self._connection.execute(text)
            return True
        try:
            if self._connection.autocommit:
                self._connection.execute(text)
            else:
                with self._connection.transaction():
                    self._connection.execute(text)
        except psycopg.Error as error:
            if error.sqlstate in _PERMISSION:
                return False
            raise
        return True

    def _lose(self, role: str, reason: str) -> None:
        self._lost.setdefault(role, set()).add(reason)


def new_owner(statement: bytes) -> str | None:
    """Name the role that a statement makes the owner of something; None if it does not."""
    match = _OWNED.match(statement)
    return None if match is None else _role(match)


def _role(match: re.Match[bytes]) -> str:
    return _name(match["role"])


def _name(identifier: bytes) -> str:
    text = identifier.decode("utf-8", "replace")
    return text[1:-1].replace('""', '"') if text.startswith('"') else text


def restore_failed(error: BaseException, url: DatabaseURL, what: str, *, statement: str = "") -> KeikakuError:
    """Say why a restore failed; the key of a row stays out of the text (B2).

    Args:
        error: What was raised.
        url: The database, for redaction.
        what: What failed, one line.
        statement: The statement that was running.

    Returns:
        The error to raise ``from`` the other.
    """
    inner = translate(error, url=url)
    if isinstance(inner, DiskFullError | OutcomeUnknownError | RestoreFailedError):
        return inner
    fields = {key: value for key, value in inner.details.items() if key not in {"transient", "contention"}}
    report = report_of(error)
    lines = [f"While running: {statement}"] if statement else []
    lines.append(inner.what + (f" ({inner.term})" if inner.term else ""))
    lines.append(inner.found)
    hint = ""
    if report.sqlstate == "53200":
        hint = "Raise max_locks_per_transaction and restart the server, or use strategy='swap'."
    if report.sqlstate.startswith("23"):
        fields.setdefault("constraint", report.constraint)
    return RestoreFailedError(what, found="\n".join(line for line in lines if line), hint=hint, **fields)
