"""Connections to real servers: nothing inherited, every error in our words."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
import time
from typing import TYPE_CHECKING

import psycopg
import pytest

from keikaku_snapshots import errors
from keikaku_snapshots.postgres.catalog import row_counts
from keikaku_snapshots.postgres.connect import (
    RetryPolicy,
    connect,
    is_transient,
    server_info,
    translate,
    translated,
)
from keikaku_snapshots.postgres.databases import lock_holders, sessions_in
from keikaku_snapshots.postgres.tables import TableName
from tests import servers

if TYPE_CHECKING:
    from collections.abc import Callable

    from keikaku_snapshots.postgres.url import DatabaseURL
    from tests.conftest import MakeDatabase


def _one(connection: psycopg.Connection[tuple[object, ...]], query: str) -> object:
    row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return row[0]


def test_what_the_server_says_of_itself_is_known(each_server: servers.Server) -> None:
    """No question is asked again."""
    with connect(each_server.url) as connection:
        info = server_info(connection)

    assert info.major == each_server.major
    assert info.version.startswith(f"{each_server.major}.")
    assert (info.database, info.user, info.is_superuser, info.encoding) == (
        "postgres",
        "postgres",
        True,
        "UTF8",
    )


def test_inherited_variables_have_no_effect(database: DatabaseURL, monkeypatch: pytest.MonkeyPatch) -> None:
    """FAULTS 11: an inherited PGHOSTADDR leads to another server."""
    for name, value in {
        "PGHOSTADDR": "192.0.2.1",
        "PGHOST": "nonexistent.example",
        "PGPORT": "1",
        "PGUSER": "nobody",
        "PGPASSWORD": "wrong",
        "PGDATABASE": "nosuch",
        "PGOPTIONS": "-c statement_timeout=1ms -c default_transaction_read_only=on",
        "PGSERVICE": "nosuch",
        "PGCLIENTENCODING": "LATIN1",
        "PGAPPNAME": "other",
        "PGTZ": "Asia/Tokyo",
        "PGDATESTYLE": "German",
        "PGSSLMODE": "verify-full",
        "PGREQUIREAUTH": "none",
        "PGSSLCERTMODE": "require",
        "PGMAXPROTOCOLVERSION": "nonsense",
        "PGTARGETSESSIONATTRS": "read-only",
    }.items():
        monkeypatch.setenv(name, value)

    with connect(database) as connection:
        shown = {
            name: _one(connection, f"SHOW {name}")
            for name in ("statement_timeout", "client_encoding", "application_name", "datestyle")
        }
        assert connection.info.dbname == database.database
        assert _one(connection, "SHOW timezone") != "Asia/Tokyo"

    assert shown == {
        "statement_timeout": "0",
        "client_encoding": "UTF8",
        "application_name": "keikaku_snapshots",
        "datestyle": "ISO, MDY",
    }


def test_a_dead_peer_will_be_noticed(database: DatabaseURL) -> None:
    """FAULTS 99: keepalives are set on the socket."""
    with connect(database) as connection:
        link = socket.socket(fileno=connection.fileno())
        try:
            assert link.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert link.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30
            assert link.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 60_000
        finally:
            link.detach()


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"password": "s3cret-wrong"}, errors.AuthenticationError, "password"),
        ({"user": "nobody_here"}, errors.AuthenticationError, "nobody_here"),
        ({"database": "no_such_database"}, errors.ConnectError, "does not exist"),
        ({"port": 1}, errors.ConnectError, "refused"),
        ({"host": "nonexistent.invalid"}, errors.ConnectError, "host name"),
        ({"parameters": (("sslmode", "require"),)}, errors.ConnectError, "SSL"),
    ],
)
def test_a_refused_connection_says_why(
    database: DatabaseURL, change: dict[str, object], kind: type[errors.KeikakuError], words: str
) -> None:
    """B16: what was found, where, what to do; never the password."""
    url = dataclasses.replace(database, **change)  # type: ignore[arg-type]

    with pytest.raises(errors.KeikakuError, match=words) as raised:
        connect(url)
    assert type(raised.value) is kind
    assert "s3cret-wrong" not in str(raised.value)
    assert "To fix this" in str(raised.value)


def test_a_database_that_the_role_may_not_enter_is_an_access_error(
    server: servers.Server, database: DatabaseURL
) -> None:
    """Exit code 18 and not 12: the server is there."""
    with server.admin() as admin:
        admin.execute(f'REVOKE CONNECT ON DATABASE "{database.database}" FROM PUBLIC'.encode())

    with pytest.raises(errors.AccessDeniedError, match="may not connect"):
        connect(servers.as_role(database, "keikaku_owner"))


def test_a_statement_that_takes_too_long_is_stopped(database: DatabaseURL) -> None:
    """The limit outlives a rollback."""
    with connect(database, statement_timeout_s=0.1) as connection:
        connection.rollback()
        with pytest.raises(errors.OperationTimeoutError), translated(database, "sleeping"):
            connection.execute("SELECT pg_sleep(5)")


def test_a_lock_that_is_held_is_given_up_and_its_holder_named(database: DatabaseURL) -> None:
    """FAULTS 60: a restore waited for ever."""
    with (
        connect(database, application_name="application") as holder,
        connect(database, lock_timeout_s=0.1) as waiter,
    ):
        holder.execute("CREATE TABLE t (id int)")
        holder.commit()
        holder.execute("SELECT * FROM t")
        began = time.monotonic()
        with pytest.raises(errors.DatabaseInUseError), translated(database):
            waiter.execute("LOCK TABLE t")
        waiter.rollback()

        assert time.monotonic() - began < 2
        assert [one.pid for one in lock_holders(waiter, [TableName("public", "t")])] == [
            holder.info.backend_pid
        ]
        assert lock_holders(waiter, [TableName("public", "other")]) == []
        assert "application 'application'" in lock_holders(waiter)[0].text


def test_rows_hidden_by_row_security_are_an_error_and_never_fewer_rows(
    server: servers.Server, owner_database: DatabaseURL
) -> None:
    """FAULTS 18: a copy had 9 of 1000 rows, exit 0."""
    with server.admin(owner_database.database) as admin:
        admin.execute("CREATE TABLE t AS SELECT generate_series(1, 10) id")
        admin.execute("ALTER TABLE t ENABLE ROW LEVEL SECURITY")
        admin.execute("CREATE POLICY p ON t USING (id < 3)")
        admin.execute("GRANT SELECT ON t TO keikaku_owner")

    with connect(owner_database, row_security=False) as connection:
        with pytest.raises(errors.AccessDeniedError, match="row-level security"), translated(owner_database):
            connection.execute("SELECT count(*) FROM t")
        connection.rollback()
        with pytest.raises(errors.AccessDeniedError), translated(owner_database):
            row_counts(connection)
    with connect(owner_database, autocommit=True) as connection:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            row_counts(connection)
        assert _one(connection, "SHOW row_security") == "on"


def test_text_is_utf8_whatever_the_database_is(server: servers.Server, make_database: MakeDatabase) -> None:
    """FAULTS 74: UTF-8 text was stored as Ã© in a LATIN1 database, exit 0."""
    url = make_database(server)
    with server.admin() as admin:
        admin.execute(f'DROP DATABASE "{url.database}"'.encode())
        admin.execute(
            f'CREATE DATABASE "{url.database}" TEMPLATE template0 '
            "ENCODING LATIN1 LC_COLLATE 'C' LC_CTYPE 'C'".encode()
        )

    with connect(url) as connection:
        row = connection.execute("SELECT length(%s::text), octet_length(%s::text)", ("é", "é")).fetchone()

    assert row == (1, 1)


def test_a_terminated_session_is_a_lost_connection(server: servers.Server, database: DatabaseURL) -> None:
    """57P01 may be tried again on a fresh connection."""
    with connect(database) as connection, server.admin() as admin:
        admin.execute("SELECT pg_terminate_backend(%s, 5000)", (connection.info.backend_pid,))
        with pytest.raises(errors.ConnectError) as raised, translated(database):
            connection.execute("SELECT 1")

    assert is_transient(raised.value)


def test_a_server_that_refuses_at_first_is_tried_again(
    database: DatabaseURL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docs/design.md, Retry: refused before any statement."""
    real = psycopg.connect
    tries: list[int] = []

    def flaky(**arguments: object) -> object:
        tries.append(1)
        return real(**({**arguments, "port": 1} if len(tries) < 3 else arguments))  # type: ignore[arg-type]

    monkeypatch.setattr(psycopg, "connect", flaky)
    with connect(database, retry=RetryPolicy(wait_min_s=0.01, wait_max_s=0.02)):
        assert len(tries) == 3


def test_a_wrong_password_is_tried_once(database: DatabaseURL, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/design.md, Retry: never authentication; a server may lock the account."""
    real = psycopg.connect
    tries: list[int] = []

    def counted(**arguments: object) -> object:
        tries.append(1)
        return real(**arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(psycopg, "connect", counted)
    with pytest.raises(errors.AuthenticationError):
        connect(dataclasses.replace(database, password="wrong"), retry=RetryPolicy())
    assert len(tries) == 1


_SCHEMA = """
    CREATE TABLE a (id int PRIMARY KEY);
    CREATE TABLE b (id int NOT NULL, a_id int REFERENCES a, n int CHECK (n > 0), UNIQUE (id, n));
    INSERT INTO a VALUES (1); INSERT INTO b VALUES (1, 1, 1);
"""
_VIOLATIONS = [
    ("INSERT INTO b VALUES (2, 77, 1)", errors.ForeignKeyError, "b_a_id_fkey", "a_id", "77"),
    ("DELETE FROM a", errors.ForeignKeyError, "b_a_id_fkey", "id", "1"),
    ("INSERT INTO b VALUES (1, 1, 1)", errors.UniqueError, "b_id_n_key", "id, n", "1, 1"),
    ("INSERT INTO b VALUES (NULL, 1, 1)", errors.NotNullError, "", "id", None),
    ("INSERT INTO b VALUES (3, 1, -5)", errors.CheckError, "b_n_check", "", None),
]


@pytest.mark.parametrize(
    ("statement", "kind", "constraint", "column", "key"),
    _VIOLATIONS,
    ids=[kind[1].__name__ for kind in _VIOLATIONS],
)
@pytest.mark.parametrize("run", ["psycopg", "sqlalchemy", "asyncpg", "sqlalchemy+asyncpg"])
def test_a_refused_row_is_explained_whatever_the_driver(
    database: DatabaseURL,
    run: str,
    statement: str,
    kind: type[errors.KeikakuError],
    constraint: str,
    column: str,
    key: str | None,
) -> None:
    """A9: table, constraint, column and key, from psycopg, asyncpg and SQLAlchemy alike."""
    with connect(database, autocommit=True) as connection:
        connection.execute(_SCHEMA)

    error = translate(_RUNNERS[run](database, statement), url=database)

    assert type(error) is kind
    assert "public.b" in str(error)
    assert constraint in str(error)
    assert error.details["column"] == column
    assert error.details.get("key") == key


def _with_psycopg(url: DatabaseURL, statement: str) -> BaseException:
    with connect(url) as connection, pytest.raises(psycopg.Error) as raised:
        connection.execute(statement.encode())
    return raised.value


def _with_sqlalchemy(url: DatabaseURL, statement: str) -> BaseException:
    import sqlalchemy as sa

    engine = sa.create_engine(url.for_sqlalchemy())
    with engine.connect() as connection, pytest.raises(sa.exc.SQLAlchemyError) as raised:
        connection.execute(sa.text(statement))
    engine.dispose()
    return raised.value


def _with_asyncpg(url: DatabaseURL, statement: str) -> BaseException:
    import asyncpg

    async def main() -> BaseException:
        connection = await asyncpg.connect(
            host=url.host, port=url.port, user=url.user, password=url.password, database=url.database
        )
        try:
            await connection.execute(statement)
        except asyncpg.PostgresError as error:
            return error
        finally:
            await connection.close()
        raise AssertionError

    return asyncio.run(main())


def _with_sqlalchemy_asyncpg(url: DatabaseURL, statement: str) -> BaseException:
    import sqlalchemy as sa
    from sqlalchemy.ext.asyncio import create_async_engine

    async def main() -> BaseException:
        engine = create_async_engine(url.for_sqlalchemy("asyncpg"))
        try:
            async with engine.connect() as connection:
                await connection.execute(sa.text(statement))
        except sa.exc.SQLAlchemyError as error:
            return error
        finally:
            await engine.dispose()
        raise AssertionError

    return asyncio.run(main())


_RUNNERS: dict[str, Callable[[DatabaseURL, str], BaseException]] = {
    "psycopg": _with_psycopg,
    "sqlalchemy": _with_sqlalchemy,
    "asyncpg": _with_asyncpg,
    "sqlalchemy+asyncpg": _with_sqlalchemy_asyncpg,
}


def test_a_plain_role_sees_other_sessions_though_not_their_kind(
    server: servers.Server, owner_database: DatabaseURL
) -> None:
    """docs/design.md, Swap: backend_type is NULL for other roles' sessions."""
    with server.admin(owner_database.database) as other, connect(owner_database) as connection:
        found = sessions_in(connection, owner_database.database)

        assert [(one.pid, one.backend_type, one.can_terminate) for one in found] == [
            (other.info.backend_pid, "", False)
        ]
