"""Errors of drivers become ours by what they carry, not by where they come from."""

from __future__ import annotations

import errno

import psycopg
import pytest

from keikaku_snapshots import errors
from keikaku_snapshots.postgres.connect import is_transient, report_of, translate
from keikaku_snapshots.postgres.url import DatabaseURL

URL = DatabaseURL.parse("postgresql://app:s3cretpass@db.example:5433/shop")


class AsyncpgLikeError(Exception):
    """What asyncpg raises: the fields of the message are attributes."""

    def __init__(self, sqlstate: str, message: str = "refused", **fields: str) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate
        self.message = message
        self.detail = fields.get("detail")
        self.hint = None
        self.context = fields.get("context")
        self.schema_name = fields.get("schema")
        self.table_name = fields.get("table")
        self.column_name = fields.get("column")
        self.constraint_name = fields.get("constraint")


class SqlalchemyLikeError(Exception):
    """SQLAlchemy's wrapper: the driver's error is in `orig`."""

    def __init__(self, orig: BaseException) -> None:
        super().__init__(f"wrapped {orig}")
        self.orig = orig


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        ("08006", errors.ConnectError),
        ("28P01", errors.AuthenticationError),
        ("28000", errors.AuthenticationError),
        ("3D000", errors.ConnectError),
        ("53300", errors.ConnectError),
        ("57P01", errors.ConnectError),
        ("57014", errors.OperationTimeoutError),
        ("55P03", errors.DatabaseInUseError),
        ("55006", errors.DatabaseInUseError),
        ("40P01", errors.DatabaseInUseError),
        ("42501", errors.AccessDeniedError),
        ("25006", errors.AccessDeniedError),
        ("53100", errors.DiskFullError),
        ("23503", errors.ForeignKeyError),
        ("23505", errors.UniqueError),
        ("23502", errors.NotNullError),
        ("23514", errors.CheckError),
        ("22P02", errors.DataError),
        ("42P01", errors.UsageError),
        ("XX000", errors.KeikakuError),
    ],
)
def test_each_sqlstate_has_its_error(state: str, kind: type[errors.KeikakuError]) -> None:
    """The class follows from the SQLSTATE alone."""
    assert type(translate(AsyncpgLikeError(state), url=URL)) is kind


def test_an_error_of_ours_is_returned_as_it_is() -> None:
    """Translating twice changes nothing."""
    first = translate(AsyncpgLikeError("23505"))

    assert translate(first) is first


def test_a_wrapped_error_is_read_through_its_wrapper() -> None:
    """SQLAlchemy's exceptions carry the driver's in `orig`."""
    assert report_of(
        SqlalchemyLikeError(AsyncpgLikeError("23505", constraint="staffs_email_key"))
    ).constraint == ("staffs_email_key")


def test_a_foreign_key_error_names_everything_but_the_key() -> None:
    """FAULTS 33: key values are personal data; they are in details only."""
    error = translate(
        AsyncpgLikeError(
            "23503",
            schema="public",
            table="offices",
            constraint="offices_created_by_fkey",
            detail='Key (created_by)=(hanako@example.com) is not present in table "staffs".',
        ),
        url=URL,
        doing="copying offices",
        batch=3,
        hint="Create the system staff first.",
    )

    assert isinstance(error, errors.ForeignKeyError)
    for part in (
        "外部キー制約違反",
        "public.offices",
        "offices_created_by_fkey",
        "created_by",
        "Batch: 3",
        "staffs",
    ):
        assert part in str(error)
    assert "Create the system staff first." in str(error)
    assert "hanako" not in str(error)
    assert error.details["key"] == "hanako@example.com"
    assert error.details["references"] == "staffs"


def test_a_japanese_server_is_understood() -> None:
    """The server's language is the administrator's choice; keys are found by their shape."""
    error = translate(
        AsyncpgLikeError("23503", table="b", detail='テーブル"a"にキー(a_id)=(7)が存在しません')
    )

    assert error.details["key"] == "7"
    assert error.details["references"] == "a"


def test_a_parent_that_is_still_referenced_is_told_apart() -> None:
    """Both directions are 23503, and the remedy is the opposite."""
    error = translate(
        AsyncpgLikeError("23503", table="b", detail='Key (id)=(7) is still referenced from table "b".')
    )

    assert "still refer" in error.what
    assert "b first" in error.hint


def test_a_missing_row_of_the_same_table_is_no_remaining_reference() -> None:
    """A table that refers to itself is named in both directions."""
    error = translate(
        AsyncpgLikeError("23503", table="b", detail='Key (up)=(7) is not present in table "b".')
    )

    assert "does not exist" in error.what


def test_a_failing_row_stays_out_of_the_text() -> None:
    """FAULTS 33: not-null errors carry the whole row."""
    error = translate(
        AsyncpgLikeError(
            "23502", table="staffs", column="email", detail="Failing row contains (1, 山田, null)."
        )
    )

    assert "山田" not in str(error)
    assert "email" in str(error)
    assert "山田" in error.details["row"]


def test_a_refused_value_stays_out_of_the_text() -> None:
    """The primary message of a bad value repeats the value."""
    error = translate(
        AsyncpgLikeError(
            "22P02",
            'invalid input syntax for type integer: "yamada"',
            context='COPY staffs, line 12, column age: "yamada"',
        )
    )

    assert "yamada" not in str(error)
    assert "age" in str(error)
    assert error.details["line"] == 12


def test_the_password_is_redacted_from_foreign_text() -> None:
    """FAULTS 31: drivers echo URLs."""
    error = translate(
        psycopg.OperationalError("cannot use postgresql://app:s3cretpass@db.example/shop"), url=URL
    )

    assert "s3cretpass" not in str(error)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ('FATAL:  password authentication failed for user "app"', errors.AuthenticationError),
        ("fe_sendauth: no password supplied", errors.AuthenticationError),
        ('FATAL:  no pg_hba.conf entry for host "10.0.0.1"', errors.AuthenticationError),
        ('FATAL:  ユーザー"app"のパスワード認証に失敗しました', errors.AuthenticationError),
        ('FATAL:  role "app" does not exist', errors.AuthenticationError),
        ('FATAL:  database "shop" does not exist', errors.ConnectError),
        ('FATAL:  データベース"shop"は存在しません', errors.ConnectError),
        ("FATAL:  sorry, too many clients already", errors.ConnectError),
        ('FATAL:  permission denied for database "shop"', errors.AccessDeniedError),
        ("Connection refused", errors.ConnectError),
        ("failed to resolve host 'x': [Errno -2] Name or service not known", errors.ConnectError),
    ],
)
def test_a_refused_connection_is_told_by_its_words(text: str, kind: type[errors.KeikakuError]) -> None:
    """Before a session there is no SQLSTATE."""
    assert type(translate(psycopg.OperationalError(text))) is kind


def test_a_full_disk_of_ours_is_a_disk_error() -> None:
    """ENOSPC can reach us as an OSError too."""
    assert isinstance(translate(OSError(errno.ENOSPC, "No space left on device")), errors.DiskFullError)


@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError(),
        ConnectionResetError(),
        psycopg.OperationalError("connection to server failed: Connection refused"),
        psycopg.OperationalError("consuming input failed: server closed the connection unexpectedly"),
        psycopg.errors.ConnectionTimeout("connection timeout expired"),
        psycopg.OperationalError("FATAL:  the database system is starting up"),
        AsyncpgLikeError("08003"),
        AsyncpgLikeError("57P01"),
        SqlalchemyLikeError(AsyncpgLikeError("57P03")),
        translate(AsyncpgLikeError("08006")),
        type("PoolTimeout", (psycopg.OperationalError,), {})("couldn't get a connection after 30.00 sec"),
        type("TimeoutError", (Exception,), {"__module__": "sqlalchemy.exc"})("QueuePool limit reached"),
    ],
)
def test_a_lost_connection_is_transient(error: Exception) -> None:
    """docs/design.md, Retry: refused, reset, 08xxx, 57P01 to 57P03, and a pool that gave none in time."""
    assert is_transient(error)


@pytest.mark.parametrize("state", ["40001", "40P01", "53300", "55P03"])
def test_contention_is_transient_for_single_calls_only(state: str) -> None:
    """docs/design.md, Retry: a unit of several calls has no business to repeat them."""
    assert not is_transient(AsyncpgLikeError(state))
    assert is_transient(AsyncpgLikeError(state), single_call=True)
    assert is_transient(translate(AsyncpgLikeError(state)), single_call=True)


@pytest.mark.parametrize(
    "error",
    [
        AsyncpgLikeError("28P01"),
        AsyncpgLikeError("42501"),
        AsyncpgLikeError("53100"),
        AsyncpgLikeError("23505"),
        AsyncpgLikeError("57014"),
        psycopg.OperationalError("connection failed: FATAL:  password authentication failed"),
        OSError(errno.ENOSPC, "No space left on device"),
        TypeError("connection refused"),
        errors.OutcomeUnknownError("lost after COMMIT"),
        KeyboardInterrupt(),
    ],
)
def test_what_another_try_cannot_help_is_not_transient(error: BaseException) -> None:
    """docs/design.md, Retry: never authentication, disk, rights or faults of the statement."""
    assert not is_transient(error, single_call=True)
