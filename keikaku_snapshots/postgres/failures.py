"""What a driver reports, turned into the errors of this library, once and at the edge."""

from __future__ import annotations

import errno
import re
from typing import TYPE_CHECKING, Any

from keikaku_snapshots import errors
from keikaku_snapshots.postgres.server_report import ServerReport, chain_of, report_of

if TYPE_CHECKING:
    from keikaku_snapshots.postgres.url import DatabaseURL

__all__ = ["COPY_PLACE", "ServerReport", "is_transient", "report_of", "translate"]

#: SQLSTATEs of a connection that was lost or not yet possible; trying again may help.
_LOST = frozenset({"57P01", "57P02", "57P03"})
#: SQLSTATEs that another try of one single call may not meet again (docs/design.md, Retry).
_CONTENTION = frozenset({"40001", "40P01", "53300", "55P03"})
#: How libpq, the operating system and the drivers word a connection that was refused or lost.
#: Connection errors carry no SQLSTATE before the session begins, so their text is all there is.
_TRANSIENT_TEXT = re.compile(
    r"connection refused|connection reset|connection timed out|connection timeout expired"
    r"|server closed the connection|terminating connection|the connection is (lost|closed)"
    r"|connection (was|is) closed|broken pipe|could not receive data|could not send data"
    r"|starting up|shutting down|in recovery mode|not yet accepting connections"
    r"|起動中|起動しています|停止中|シャットダウン|サーバーが予期せず",
    re.IGNORECASE,
)
_AUTHENTICATION_TEXT = re.compile(
    r"authentication failed|no password supplied|no pg_hba\.conf entry|pg_hba\.conf rejects"
    r"|role \".*\" does not exist|is not permitted to log in|authentication method"
    r"|認証に失敗|pg_hba\.conf|ロール\".*\"は存在しません|ログインが許可されていません",
    re.IGNORECASE,
)
_UNKNOWN_DATABASE_TEXT = re.compile(r"database \".*\" does not exist|データベース\".*\"は存在しません")
_TOO_MANY_TEXT = re.compile(r"too many (clients|connections)|remaining connection slots|接続(数|枠)")
_CONNECT_DENIED_TEXT = re.compile(r"permission denied for database|データベース.*(権限|アクセス)")
#: "Key (a, b)=(1, 2)" of a constraint's detail, in whatever language the server speaks.
_KEY = re.compile(r"\((?P<columns>.+?)\)=\((?P<values>.*)\)", re.DOTALL)
#: Where in a COPY the server stopped, in its CONTEXT.
COPY_PLACE = re.compile(r"COPY (?P<table>[^,]+), line (?P<line>\d+)(?:, column (?P<column>[^:]+))?")


def is_transient(error: BaseException, *, single_call: bool = False) -> bool:
    """Tell whether trying again may help, the work having been rolled back.

    Connections refused, reset or lost, and a pool that gave none in time,
    count; a wrong password, missing rights, a full disk or a fault of the
    statement never do. Whether COMMIT had been sent is for the caller to
    know: after it, nothing may be repeated.

    Args:
        error: What was raised, by a driver or by this library.
        single_call: True for one call that stands alone; then a deadlock, a
            serialization failure, a lock timeout and "too many connections"
            count too.

    Returns:
        True if a fresh connection may succeed.
    """
    if not isinstance(error, Exception):
        return False  # KeyboardInterrupt, SystemExit
    if isinstance(error, errors.AuthenticationError | errors.OutcomeUnknownError):
        return False
    if isinstance(error, errors.KeikakuError) and "transient" in error.details:
        return bool(error.details["transient"]) or (single_call and bool(error.details.get("contention")))
    state = report_of(error).sqlstate
    if state:
        return state.startswith("08") or state in _LOST or (single_call and state in _CONTENTION)
    return any(_is_transient_link(link, single_call=single_call) for link in chain_of(error))


def _is_transient_link(error: BaseException, *, single_call: bool) -> bool:
    kind = type(error)
    if isinstance(
        error, ConnectionRefusedError | ConnectionResetError | ConnectionAbortedError | BrokenPipeError
    ):
        return True
    module = kind.__module__.partition(".")[0]
    if kind.__name__ in {"PoolTimeout", "ConnectionTimeout"}:
        return True
    if module == "sqlalchemy" and kind.__name__ == "TimeoutError":
        return True
    if module not in {"psycopg", "psycopg_pool", "asyncpg", "sqlalchemy"}:
        return False
    text = str(error)
    if _AUTHENTICATION_TEXT.search(text):
        return False
    if single_call and _TOO_MANY_TEXT.search(text):
        return True
    return bool(_TRANSIENT_TEXT.search(text))


def translate(
    error: BaseException,
    *,
    url: DatabaseURL | None = None,
    doing: str = "",
    batch: int | None = None,
    table: str = "",
    hint: str = "",
) -> errors.KeikakuError:
    """Turn what a driver raised into an error of this library.

    Raise the result ``from`` the driver's error. Texts never hold the values
    of a row: key and row are in ``details["key"]`` and ``details["row"]``.

    Args:
        error: What was raised.
        url: The connection it happened on, for its name and for redaction.
        doing: What was being done, such as "copying staffs".
        batch: Number of the batch of rows, where rows were being written.
        table: The table being written, used when the server names none.
        hint: What to do, when the caller knows better than the error's class.

    Returns:
        The error to raise; one of ours is returned as it is.
    """
    if isinstance(error, errors.KeikakuError):
        return error
    report = report_of(error)
    redact = url.redact if url is not None else str
    where = url.location if url is not None else ""
    context = _Context(redact=redact, where=where, doing=doing, batch=batch, table=table, hint=hint)
    result = _from_state(report, context) if report.sqlstate else _from_text(error, context)
    result.details.setdefault("sqlstate", report.sqlstate)
    result.details.setdefault("transient", is_transient(error))
    result.details.setdefault("contention", is_transient(error, single_call=True))
    return result


class _Context:
    """What the caller of `translate` knows, and how it goes into the text."""

    def __init__(
        self, *, redact: object, where: str, doing: str, batch: int | None, table: str, hint: str
    ) -> None:
        self._redact = redact
        self.where = where
        self.doing = doing
        self.batch = batch
        self.table = table
        self.hint = hint

    def redact(self, text: str) -> str:
        return str(self._redact(text)) if callable(self._redact) else text

    def what(self, sentence: str) -> str:
        return f"{sentence} while {self.doing}" if self.doing else sentence

    def found(self, *lines: str) -> str:
        kept = [self.redact(line.strip()) for line in lines if line and line.strip()]
        if self.where:
            kept.append(f"Database: {self.where}")
        return "\n".join(kept)

    def build(
        self,
        kind: type[errors.KeikakuError],
        sentence: str,
        *lines: str,
        hint: str = "",
        hint_ja: str = "",
        **fields: Any,
    ) -> errors.KeikakuError:
        what, found = self.what(sentence), self.found(*lines)
        if self.hint:
            return kind(what, found=found, hint=self.hint, hint_ja="", **fields)
        return kind(what, found=found, hint=hint, hint_ja=hint_ja, **fields)


#: SQLSTATE or its class → (error, sentence, hint). The longest match wins.
_BY_STATE: dict[str, tuple[type[errors.KeikakuError], str, str]] = {
    "08": (errors.ConnectError, "the connection to the server was lost", ""),
    "28": (errors.AuthenticationError, "the server refused the role or its password", ""),
    "3D000": (
        errors.ConnectError,
        "the database does not exist",
        "Create it (createdb NAME), or correct the name in the database URL.",
    ),
    "53300": (
        errors.ConnectError,
        "the server has no free connection",
        "Close connections that are not needed, or raise max_connections.",
    ),
    "57P01": (errors.ConnectError, "the server ended the connection", ""),
    "57P02": (errors.ConnectError, "the server crashed and ended the connection", ""),
    "57P03": (errors.ConnectError, "the server does not accept connections yet", ""),
    "57P04": (errors.ConnectError, "the database was dropped under the connection", ""),
    "57P05": (errors.ConnectError, "the server ended the connection because it was idle", ""),
    "57014": (errors.OperationTimeoutError, "the server cancelled the statement", ""),
    "25P03": (errors.OperationTimeoutError, "the server ended a transaction that was idle too long", ""),
    "25P04": (errors.OperationTimeoutError, "the server ended a transaction that took too long", ""),
    "55P03": (
        errors.DatabaseInUseError,
        "a lock was not granted in time",
        "Find out who holds it (pg_locks, pg_stat_activity) and end that session, or wait longer for locks.",
    ),
    "55006": (errors.DatabaseInUseError, "the database is in use by other sessions", ""),
    "40001": (
        errors.DatabaseInUseError,
        "another transaction changed the same rows",
        "Run it again; another session works on these tables.",
    ),
    "40P01": (
        errors.DatabaseInUseError,
        "two transactions waited for each other (deadlock)",
        "Run it again; another session works on these tables.",
    ),
    "42501": (errors.AccessDeniedError, "the role lacks a right", ""),
    "25006": (
        errors.AccessDeniedError,
        "the database is read-only",
        "Use the primary server, and check default_transaction_read_only of database and role.",
    ),
    "53100": (
        errors.DiskFullError,
        "the server's disk is full",
        "Free space on the database server, then run it again.",
    ),
    "53200": (
        errors.KeikakuError,
        "the server ran out of memory",
        "If the message names max_locks_per_transaction, raise it and restart the server.",
    ),
    "42P01": (errors.UsageError, "a table is missing in the database", "Run the migrations first."),
    "42703": (errors.UsageError, "a column is missing in the database", "Run the migrations first."),
    "3F000": (errors.UsageError, "a schema is missing in the database", "Run the migrations first."),
    "42P04": (errors.UsageError, "a database of this name exists already", "Use another name."),
    "22": (errors.DataError, "the server refused a value", ""),
    "P0": (
        errors.DataError,
        "a trigger or function of the database refused it",
        "The server's message above is its own; correct the rows, or disable the trigger for this work.",
    ),
    "23": (errors.DataError, "a constraint refused a row", ""),
    "428C9": (errors.DataError, "a generated column cannot be written", ""),
}
_RUN_MIGRATIONS_JA = "先にマイグレーションを実行してください。"
_RUN_AGAIN_JA = "別のセッションが同じテーブルを使用しています。再実行してください。"
#: The hints above in Japanese.
_HINTS_JA: dict[str, str] = {
    "": "上記のサーバーのメッセージが示す原因を取り除き、再実行してください。",
    "3D000": "データベースを作成する(createdb NAME)か、URL のデータベース名を修正してください。",
    "53300": "不要な接続を閉じるか、max_connections を上げてください。",
    "55P03": (
        "ロックを保持しているセッションを pg_locks と pg_stat_activity で確認して終了するか、"
        "ロックの待ち時間を延ばしてください。"
    ),
    "40001": _RUN_AGAIN_JA,
    "40P01": _RUN_AGAIN_JA,
    "25006": (
        "プライマリサーバーに接続し、"
        "データベースとロールの default_transaction_read_only を確認してください。"
    ),
    "53100": "データベースサーバーの空き容量を確保して再実行してください。",
    "53200": (
        "メッセージに max_locks_per_transaction がある場合は、その値を上げてサーバーを再起動してください。"
    ),
    "42P01": _RUN_MIGRATIONS_JA,
    "42703": _RUN_MIGRATIONS_JA,
    "3F000": _RUN_MIGRATIONS_JA,
    "42P04": "別の名前を指定してください。",
    "P0": "上記のメッセージに従って行を修正するか、この作業の間トリガーを無効にしてください。",
}
_CONSTRAINTS: dict[str, tuple[type[errors.DataError], str]] = {
    "23001": (errors.ForeignKeyError, "other rows still refer to this row"),
    "23502": (errors.NotNullError, "a column that must have a value got none"),
    "23503": (errors.ForeignKeyError, "a row refers to a row that does not exist"),
    "23505": (errors.UniqueError, "a value that must be unique exists already"),
    "23514": (errors.CheckError, "a check constraint refused a row"),
    "23P01": (errors.UniqueError, "a row overlaps with one that exists already"),
}


def _from_state(report: ServerReport, context: _Context) -> errors.KeikakuError:
    if report.sqlstate in _CONSTRAINTS:
        return _constraint_error(report, context)
    for key in (report.sqlstate, report.sqlstate[:2]):
        if key in _BY_STATE:
            kind, sentence, hint = _BY_STATE[key]
            break
    else:
        key, kind, sentence = "", errors.KeikakuError, "the server refused the statement"
        hint = report.hint or "Correct what the server's message above names, then run it again."
    message = report.message
    fields: dict[str, Any] = {"detail": report.detail, "context": report.context}
    if kind is errors.DataError:
        # "invalid input syntax for type integer: "…"" repeats the value.
        fields["server_message"] = message
        message = message.partition(': "')[0]
    lines = [f"Server: {message} (SQLSTATE {report.sqlstate})"]
    if kind is errors.DataError:
        lines += _place_lines(report, context, fields)
    return context.build(kind, sentence, *lines, hint=hint, hint_ja=_HINTS_JA.get(key, ""), **fields)


def _place_lines(report: ServerReport, context: _Context, fields: dict[str, Any]) -> list[str]:
    """Table, column, line and batch, as far as they are known, also into ``fields``."""
    table, column = report.place or context.table, report.column
    lines: list[str] = []
    place = COPY_PLACE.search(report.context)
    if place:
        table = table or place["table"].strip()
        column = column or (place["column"] or "").strip()
        fields["line"] = int(place["line"])
    fields.update(table=table, column=column, constraint=report.constraint, batch=context.batch)
    if table:
        lines.append(f"Table: {table}")
    if report.constraint:
        lines.append(f"Constraint: {report.constraint}")
    if column:
        lines.append(f"Column: {column}")
    if context.batch is not None:
        lines.append(f"Batch: {context.batch}")
    return lines


def _constraint_error(report: ServerReport, context: _Context) -> errors.KeikakuError:
    kind, sentence = _CONSTRAINTS[report.sqlstate]
    fields: dict[str, Any] = {"server_message": report.message, "context": report.context}
    key = _KEY.search(report.detail)
    columns = key["columns"] if key else ""
    other = ""
    if key:
        fields["key"] = key["values"]
        named = re.search(r'"([^"]+)"', report.detail.replace(key.group(0), ""))
        other = named.group(1) if named else ""
    elif report.detail:
        fields["row"] = report.detail  # "Failing row contains (…)" of a check or not-null constraint
    lines = _place_lines(report, context, fields)
    if columns and not report.column:
        fields["column"] = columns
        lines.insert(len(lines) - (context.batch is not None), f"Column: {columns}")
    hint = ""
    if kind is errors.ForeignKeyError and other:
        fields["references"] = other
        if _still_referenced(report, other):
            sentence = "other rows still refer to this row"
            hint = f"Delete or re-point the rows of {other} first."
        else:
            lines.append(f"Refers to: {other}")
    if kind is errors.CheckError:
        hint = "Correct the generator of this table so that the check above holds."
    return context.build(kind, sentence, *lines, hint=hint, **fields)


def _still_referenced(report: ServerReport, other: str) -> bool:
    """Whether a parent row was removed, in contrast to a child row that came too early.

    The server names the referring table in both cases; in this one the detail
    line names it too. A table that refers to itself needs the words.
    """
    absent = "is not present" in report.detail or "存在しません" in report.detail
    return report.sqlstate == "23001" or (other == report.table and not absent)


def _from_text(error: BaseException, context: _Context) -> errors.KeikakuError:
    """Errors without a SQLSTATE: before a session began, or from the operating system."""
    text = str(error).strip()
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return context.build(errors.DiskFullError, "the disk is full", text)
    if _AUTHENTICATION_TEXT.search(text):
        return context.build(errors.AuthenticationError, "the server refused the role or its password", text)
    if _UNKNOWN_DATABASE_TEXT.search(text):
        _, sentence, hint = _BY_STATE["3D000"]
        return context.build(errors.ConnectError, sentence, text, hint=hint, hint_ja=_HINTS_JA["3D000"])
    if _CONNECT_DENIED_TEXT.search(text):
        return context.build(
            errors.AccessDeniedError,
            "the role may not connect to the database",
            text,
            hint="Grant it: GRANT CONNECT ON DATABASE … TO …, or use another role.",
        )
    if _TOO_MANY_TEXT.search(text):
        _, sentence, hint = _BY_STATE["53300"]
        return context.build(errors.ConnectError, sentence, text, hint=hint, hint_ja=_HINTS_JA["53300"])
    if _is_connection_error(error):
        return context.build(errors.ConnectError, _connect_sentence(error, text), text)
    if isinstance(error, TimeoutError):
        return context.build(errors.OperationTimeoutError, "the step took too long", text)
    kind = type(error).__name__
    return context.build(errors.KeikakuError, "the database driver failed", f"{kind}: {text}")


def _is_connection_error(error: BaseException) -> bool:
    if any(isinstance(link, ConnectionError) for link in chain_of(error)) or is_transient(error):
        return True
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"OperationalError", "gaierror", "InterfaceError", "ConnectionDoesNotExistError"})


def _connect_sentence(error: BaseException, text: str) -> str:
    lowered = text.lower()
    if "refused" in lowered:
        return "the server refused the connection"
    if type(error).__name__ == "ConnectionTimeout" or "timeout" in lowered or "timed out" in lowered:
        return "the server did not answer in time"
    if "resolve" in lowered or "name or service" in lowered or type(error).__name__ == "gaierror":
        return "the server's host name is not known"
    if "ssl" in lowered:
        return "no encrypted connection could be made"
    if "closed" in lowered or "lost" in lowered or "reset" in lowered:
        return "the connection to the server was lost"
    return "the server cannot be reached"
