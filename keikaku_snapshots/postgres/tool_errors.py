"""What a client program wrote on its error output, turned into the errors of this library."""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from keikaku_snapshots import errors
from keikaku_snapshots.postgres.failures import COPY_PLACE
from keikaku_snapshots.postgres.tool_messages import (
    NAMES,
    ToolMessage,
    guess_state,
    public_stderr,
    read_message,
    without_values,
)

if TYPE_CHECKING:
    from keikaku_snapshots._process import ToolResult
    from keikaku_snapshots.postgres.url import DatabaseURL

#: Lines of a message that are shown; the whole is in ``details["stderr"]``.
_SHOWN_LINES = 8
_CONSTRAINT_IN_TEXT = re.compile(r'constraint "(?P<name>[^"]+)"')
_TABLE_IN_TEXT = re.compile(r'(?:table|relation) "(?P<name>[^"]+)"')
_DISK_FULL = re.compile(
    r"No space left on device|File too large|Disk quota exceeded|disk full", re.IGNORECASE
)
_AUTHENTICATION = re.compile(
    r"authentication failed|no password supplied|no pg_hba\.conf entry|pg_hba\.conf rejects"
    r'|role ".*" does not exist|is not permitted to log in|has group or world access|認証に失敗'
)
_CONNECT = re.compile(
    r"connection to server |could not connect to|could not translate host name|server closed the connection"
    r"|connection to server was lost|could not receive data from server|SSL (error|SYSCALL)|starting up"
    r"|no connection to the server|terminating connection"
)
_VERSION = re.compile(
    r"server version mismatch|unsupported version \(|invalid command \\(un)?restrict"
    r'|unrecognized configuration parameter "(transaction_timeout|idle_session_timeout)"'
)
_ARCHIVE = re.compile(
    r"does not appear to be a valid archive|could not read from input file|could not uncompress"
    r"|did not find magic string|input file is too short|input file appears to be a text format|corrupt"
    r"|unexpected end of file|invalid (block|header)|could not find (block|entry)"
)
_WORKER_LOCK = "could not obtain lock on relation"
_CONTENTS = re.compile(r'contents of table "(?P<table>.+)" failed')
_SERVICE = re.compile(r"syntax error in service file|invalid connection option|nested service")


def translate_tool_failure(
    result: ToolResult,
    url: DatabaseURL | None,
    *,
    doing: str,
    kind: type[errors.KeikakuError] | None = None,
) -> errors.KeikakuError:
    """Turn the failure of a client program into an error to raise.

    Args:
        result: What `run_tool` gave; not ``ok``.
        url: The database, for its name and for redaction; None for programs that do not connect.
        doing: What was being done, such as "dumping app".
        kind: The class where nothing more precise is known; by default
            `CreateFailedError` for pg_dump, else `RestoreFailedError`.

    Returns:
        The error. ``details``: program, returncode, sqlstate, transient, table, constraint, and
        with row data stderr and key; the text has no row data.
    """
    default = kind or (errors.CreateFailedError if result.program == "pg_dump" else errors.RestoreFailedError)
    stderr = result.stderr if url is None else url.redact(result.stderr)
    message = read_message(stderr)
    failure = _Failure(result, url, doing, default, stderr, message)
    for decide in (_by_signal, _by_disk, _by_version, _by_connection, _by_state, _by_archive):
        error = decide(failure)
        if error is not None:
            return error
    return failure.build(default, f"{result.program} failed with code {result.returncode}")


@dataclass(frozen=True, slots=True)
class _Failure:
    """A failed program and what is known around it."""

    #: How it ended.
    result: ToolResult
    #: The database.
    url: DatabaseURL | None
    #: What was being done.
    doing: str
    #: Class of the error when nothing more precise is known.
    default: type[errors.KeikakuError]
    #: Redacted error output.
    stderr: str
    #: Its first error.
    message: ToolMessage

    def build(
        self,
        kind: type[errors.KeikakuError],
        sentence: str,
        *,
        hint: str = "",
        transient: bool = False,
        **fields: Any,
    ) -> errors.KeikakuError:
        lines = [without_values(self.message.text)] if self.message.text else []
        if not lines:
            lines = public_stderr(self.stderr).strip().splitlines()[:_SHOWN_LINES]
        if dumped := _CONTENTS.search(self.stderr):
            lines.append(f"Table: {dumped['table']}")
        if self.message.place:
            lines.append(f"At: {self.message.place}")
        if copy := COPY_PLACE.search(self.message.parts.get("CONTEXT", "")):
            lines.append(f"Table: {copy['table']}, line {copy['line']} of its data")
        if self.url is not None:
            lines.append(f"Database: {self.url.location}")
        details = {
            "program": self.result.program,
            "returncode": self.result.returncode,
            "sqlstate": self.message.state,
            "stderr": self.stderr,
            "transient": transient,
        }
        return kind(
            f"{sentence} while {self.doing}", found="\n".join(lines), hint=hint, **{**details, **fields}
        )


def _by_signal(failure: _Failure) -> errors.KeikakuError | None:
    result = failure.result
    if result.stopped:
        return failure.build(failure.default, f"{result.program} was stopped because {result.stopped}")
    if result.returncode >= 0:
        return None
    if result.returncode == -signal.SIGXFSZ:
        # The limit's default action: the program is killed without a word (FAULTS 52).
        return failure.build(
            errors.DiskFullError,
            f"{result.program} reached the largest file size allowed",
            hint="Raise the limit (ulimit -f unlimited), or use compression.",
            hint_ja="ファイルサイズの上限を上げる(ulimit -f unlimited)か、圧縮を使用してください。",
        )
    name = _signal_name(-result.returncode)
    hint = ""
    if result.returncode == -signal.SIGKILL:
        hint = "Something killed it, often the system when memory ran out (see dmesg). Run it again."
    return failure.build(failure.default, f"{result.program} was ended by {name}", hint=hint)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _by_disk(failure: _Failure) -> errors.KeikakuError | None:
    state = failure.message.state
    if state == "53100" or (not state and failure.message.parts and _DISK_FULL.search(failure.message.text)):
        return failure.build(
            errors.DiskFullError,
            "the disk of the server is full",
            hint="Free space where the server keeps its data (its log says where), then run it again.",
        )
    if not state and _DISK_FULL.search(failure.stderr):
        return failure.build(errors.DiskFullError, f"{failure.result.program} could not write its file")
    return None


def _by_version(failure: _Failure) -> errors.KeikakuError | None:
    if not _VERSION.search(failure.stderr):
        return None
    versions = re.search(r"server version: (\S+);.*?version: (\S+)", failure.stderr)
    fields: dict[str, Any] = (
        {"server_version": versions[1], "tool_version": versions[2].rstrip(")")} if versions else {}
    )
    sentence = f"{failure.result.program} does not fit the version of the server or file"
    if versions:
        sentence = (
            f"{failure.result.program} {fields['tool_version']} cannot work "
            f"with server {fields['server_version']}"
        )
    return failure.build(
        errors.ToolVersionError,
        sentence,
        hint=f"Use the tools of the server's major version (PG_BIN); this one is {failure.result.argv0}.",
        **fields,
    )


def _by_connection(failure: _Failure) -> errors.KeikakuError | None:
    # With a SQLSTATE the session existed, and its class says more than the words.
    state, stderr = failure.message.state, failure.stderr
    if _SERVICE.search(stderr):
        return failure.build(
            errors.ToolVersionError,
            f"{failure.result.program} does not know a parameter of the database URL",
            hint="Leave out what this PostgreSQL version does not have; see the parameters after '?'.",
        )
    lost = state.startswith("08") or state in {"57P01", "57P02", "57P03"}
    began = re.search(r"connection to server (at|on) .* failed:", stderr) is not None
    if state and not lost and not began:
        return None
    if not (lost or began or _CONNECT.search(stderr)):
        return None
    if began and _AUTHENTICATION.search(stderr):
        return failure.build(errors.AuthenticationError, "the server refused the role or its password")
    if began and "permission denied for database" in stderr:
        return failure.build(
            errors.AccessDeniedError,
            "the role may not connect to the database",
            hint="GRANT CONNECT ON DATABASE.",
        )
    if began and re.search(r'database ".*" does not exist', stderr):
        return failure.build(
            errors.ConnectError,
            "the database does not exist",
            hint="Create it (createdb NAME), or correct the name in the database URL.",
        )
    if began:
        return failure.build(errors.ConnectError, "the server cannot be reached", transient=True)
    return failure.build(errors.ConnectError, "the connection to the server was lost", transient=True)


def _by_state(failure: _Failure) -> errors.KeikakuError | None:
    message = failure.message
    state = message.state or guess_state(message.text)
    program = failure.result.program
    if state.startswith("23"):
        return _constraint_error(failure, state)
    # pg_dump bounds its lock wait by statement_timeout, so the server names that one. Its workers do
    # not wait at all behind somebody who wants the table alone.
    waited = state == "57014" and program == "pg_dump" and "LOCK TABLE" in failure.stderr
    if state == "55P03" or waited or _WORKER_LOCK in failure.stderr:
        return failure.build(
            errors.DatabaseInUseError,
            "a table lock was not given in time",
            sqlstate=state,
            hint="End the sessions that use these tables (see pg_stat_activity), then run it again.",
        )
    if state == "57014":
        return failure.build(errors.OperationTimeoutError, f"the server stopped {program}", sqlstate=state)
    if state == "42501":
        row_security = "row-level security" in message.text
        hint = (
            "Use the owner of the table, or a role with BYPASSRLS: a filtered dump would lose rows."
            if row_security
            else ""
        )
        return failure.build(errors.AccessDeniedError, "the role lacks a right", sqlstate=state, hint=hint)
    hints = {
        "42704": "Create what is missing (a role, a type), or leave owners out (owners=False).",
        "53200": "Raise max_locks_per_transaction on the server, or use strategy='swap'.",
        "54000": "A value is too large to be dumped as text (limit about 500 MB); exclude or split it.",
        "25006": "The database is read-only: ALTER DATABASE … SET default_transaction_read_only = off.",
        "0A000": "Install the extension on the server, or drop it from the source.",
        "22021": "The encodings differ; create the database with ENCODING 'UTF8'.",
        "22P05": "The encodings differ; create the database with ENCODING 'UTF8'.",
    }
    if state:
        return failure.build(
            failure.default,
            f"the server refused what {program} asked",
            hint=hints.get(state, ""),
            sqlstate=state,
        )
    return None


def _constraint_error(failure: _Failure, state: str) -> errors.KeikakuError:
    parts, text = failure.message.parts, failure.message.text
    fields: dict[str, Any] = {name: parts[label] for label, name in NAMES.items() if label in parts}
    if match := _CONSTRAINT_IN_TEXT.search(text):
        fields.setdefault("constraint", match["name"])
    if match := _TABLE_IN_TEXT.search(text):
        fields.setdefault("table", match["name"])
    if match := COPY_PLACE.search(parts.get("CONTEXT", "")):
        fields.setdefault("table", match["table"])
    table = fields.get("table", "")
    if fields.get("schema") and table:
        table = f"{fields['schema']}.{table}"
    terms = {
        "23503": "外部キー制約違反",
        "23505": "一意制約違反",
        "23502": "NOT NULL制約違反",
        "23514": "CHECK制約違反",
    }
    constraint = fields.get("constraint") or fields.get("column") or "unknown"
    term = f" ({terms[state]})" if state in terms else ""
    sentence = f"the data violates constraint {constraint!r} of table {table or 'unknown'!r}{term}"
    # The key may be personal data (B2): for code only.
    key = parts.get("DETAIL", parts.get("detail", ""))
    return failure.build(failure.default, sentence, sqlstate=state, key=key, **fields)


def _by_archive(failure: _Failure) -> errors.KeikakuError | None:
    if failure.result.program == "pg_restore" and _ARCHIVE.search(failure.stderr):
        return failure.build(errors.SnapshotCorruptError, "the archive cannot be read")
    return None
