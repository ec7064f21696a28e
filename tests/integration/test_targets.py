"""Whose transaction it is, what is undone, and what is tried again, for every kind of caller."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import asyncpg
import psycopg
import pytest
import sqlalchemy
from psycopg.rows import dict_row
from sqlalchemy.orm import Session

from keikaku_snapshots.datasets.attempts import Attempt, Timeouts
from keikaku_snapshots.datasets.copy import copy_rows
from keikaku_snapshots.datasets.steps import Execute
from keikaku_snapshots.datasets.targets import run
from keikaku_snapshots.errors import (
    ConnectError,
    ForeignKeyError,
    OperationTimeoutError,
    OutcomeUnknownError,
    ParameterTypeError,
    UniqueError,
    UsageError,
)
from keikaku_snapshots.postgres.connect import RetryPolicy
from tests.callers import IN_TRANSACTION, OWNED, caller, settled
from tests.proxy import Proxy, after_bytes, at_commit_after_it_was_done, at_commit_before_it_is_done
from tests.servers import connect
from tests.waiting import until_somebody_waits

if TYPE_CHECKING:
    from collections.abc import Callable

    from keikaku_snapshots.datasets.steps import Steps
    from keikaku_snapshots.postgres.url import DatabaseURL

#: Tries without the usual waiting.
QUICK = RetryPolicy(attempts=3, wait_min_s=0.01, wait_max_s=0.02)


@pytest.fixture
def tables(shared_database: DatabaseURL) -> DatabaseURL:
    """A database with a parent and a child table."""
    with connect(shared_database) as connection:
        connection.execute(
            "CREATE TABLE things (id integer PRIMARY KEY, name text);"
            "CREATE TABLE parts (id integer, thing_id integer REFERENCES things)"
        )
    return shared_database


def stored(url: DatabaseURL) -> list[int]:
    """The ids that another session sees."""
    with connect(url) as connection:
        return [row[0] for row in connection.execute("SELECT id FROM things ORDER BY id")]  # type: ignore[misc]


def loading(*ids: int, parts: tuple[int, ...] = ()) -> Callable[[Attempt], Steps[int]]:
    """A unit of work that copies things, then parts."""

    def unit(attempt: Attempt) -> Steps[int]:
        count: int = yield from copy_rows("things", ("id", "name"), lambda: [(str(n), "\\雪\t") for n in ids])
        yield from copy_rows("parts", ("thing_id",), lambda: [(str(n),) for n in parts])
        return count

    return unit


@pytest.mark.parametrize("kind", OWNED)
def test_without_a_transaction_the_work_is_committed(tables: DatabaseURL, kind: str) -> None:
    """A1: on a URL and on an autocommit connection the work is committed."""

    async def main() -> int:
        async with caller(kind, tables) as one:
            count: int = await settled(run(one.db, loading(1, 2)))
            assert stored(tables) == [1, 2]
            return count

    assert asyncio.run(main()) == 2


@pytest.mark.parametrize("kind", IN_TRANSACTION)
@pytest.mark.parametrize(("end", "expected"), [("commit", [1, 2]), ("rollback", [])])
def test_in_a_transaction_the_caller_decides(
    tables: DatabaseURL, kind: str, end: str, expected: list[int]
) -> None:
    """A1: in a caller's transaction nothing is committed for the caller, who may commit or roll back."""

    async def main() -> None:
        async with caller(kind, tables) as one:
            assert await settled(run(one.db, loading(1, 2))) == 2
            assert stored(tables) == []
            await one.end(end)

    asyncio.run(main())

    assert stored(tables) == expected


@pytest.mark.parametrize("kind", OWNED)
def test_a_failure_without_a_transaction_leaves_nothing(tables: DatabaseURL, kind: str) -> None:
    """A1: all or nothing: what was copied before the failure is undone, and the connection works on."""

    async def main() -> None:
        async with caller(kind, tables) as one:
            with pytest.raises(ForeignKeyError, match="Refers to: things"):
                await settled(run(one.db, loading(1, 2, parts=(1, 99))))
            assert stored(tables) == []
            await settled(run(one.db, loading(3)))

    asyncio.run(main())

    assert stored(tables) == [3]


@pytest.mark.parametrize("kind", IN_TRANSACTION)
def test_a_failure_in_a_transaction_goes_back_to_the_savepoint(tables: DatabaseURL, kind: str) -> None:
    """A1: the caller's own earlier work survives a failure of ours, and the transaction works on."""

    async def main() -> None:
        async with caller(kind, tables) as one:
            await one.execute("INSERT INTO things VALUES (50)")
            with pytest.raises(ForeignKeyError):
                await settled(run(one.db, loading(1, 2, parts=(99,))))
            await settled(run(one.db, loading(3)))
            await one.end("commit")

    asyncio.run(main())

    assert stored(tables) == [3, 50]


@pytest.mark.parametrize("kind", ["psycopg", "psycopg-async", "asyncpg-block", "async-session-asyncpg"])
def test_the_callers_settings_come_back(tables: DatabaseURL, kind: str) -> None:
    """Time limits, time zone and row security of the caller's transaction are as before."""
    seen: list[Any] = []

    def unit(attempt: Attempt) -> Steps[None]:
        names = ("statement_timeout", "lock_timeout", "TimeZone", "row_security", "DateStyle")
        row = yield Execute("SELECT " + ", ".join(f"current_setting('{name}')" for name in names))
        seen.append(row[0])

    def look(attempt: Attempt) -> Steps[Any]:
        return (yield Execute("SELECT current_setting('statement_timeout'), current_setting('TimeZone')"))

    async def main() -> None:
        async with caller(kind, tables) as one:
            await one.execute("SET LOCAL statement_timeout = '77s'")
            await one.execute("SET LOCAL TimeZone = 'Asia/Tokyo'")
            await settled(run(one.db, unit, timeouts=Timeouts(statement_s=5, lock_s=6)))
            await one.execute(
                "INSERT INTO things SELECT 1, current_setting('statement_timeout') || "
                "current_setting('TimeZone')"
            )
            await one.end("commit")

    asyncio.run(main())

    assert seen == [("5s", "6s", "UTC", "off", "ISO, MDY")]
    with connect(tables) as connection:
        assert connection.execute("SELECT name FROM things").fetchone() == ("77sAsia/Tokyo",)


def test_rows_that_a_session_has_not_sent_yet_are_parents_too(tables: DatabaseURL) -> None:
    """A session is flushed first, so that rows added to it may be referred to."""
    from sqlalchemy.orm import Session, registry

    mapped = registry()

    @mapped.mapped
    class Thing:
        __table__ = sqlalchemy.Table(
            "things", mapped.metadata, sqlalchemy.Column("id", sqlalchemy.Integer, primary_key=True)
        )

    engine = sqlalchemy.create_engine(tables.for_sqlalchemy())
    with Session(engine) as session:
        thing = Thing()
        thing.id = 7  # type: ignore[attr-defined]
        session.add(thing)
        run(session, loading(parts=(7,)))
        session.commit()
    engine.dispose()

    assert stored(tables) == [7]


def test_a_row_factory_of_the_caller_changes_nothing(tables: DatabaseURL) -> None:
    """Connections that answer with dicts are taken too, and keep their factory."""
    with psycopg.connect(tables.text, row_factory=dict_row) as connection:
        run(connection, loading(1))
        assert connection.execute("SELECT id FROM things").fetchone() == {"id": 1}


@pytest.mark.parametrize("kind", ["url", "psycopg-autocommit", "asyncpg", "psycopg-async-autocommit"])
def test_a_commit_whose_answer_is_lost_is_never_repeated(tables: DatabaseURL, kind: str) -> None:
    """FAULTS 17: the server committed, the client never heard: outcome unknown, no second try."""

    async def main(proxy: Proxy) -> None:
        async with caller(kind, proxy.url) as one:
            with pytest.raises(OutcomeUnknownError, match="lost after COMMIT was sent"):
                await settled(run(one.db, loading(1, 2), policy=QUICK))

    with Proxy(tables, at_commit_after_it_was_done) as proxy:
        asyncio.run(main(proxy))

    assert (proxy.connections, proxy.cuts) == (1, 1)
    assert stored(tables) == [1, 2]


def test_a_commit_that_never_arrived_is_not_repeated_either(tables: DatabaseURL) -> None:
    """FAULTS 17: the client cannot tell this from the other case, so it must not try again."""
    with Proxy(tables, at_commit_before_it_is_done) as proxy, pytest.raises(OutcomeUnknownError):
        run(proxy.url, loading(1, 2), policy=QUICK)

    assert proxy.connections == 1
    assert stored(tables) == []


def many(count: int) -> Callable[[Attempt], Steps[int]]:
    """A unit of work of some megabytes, so that the connection can be lost in the middle of it."""

    def unit(attempt: Attempt) -> Steps[int]:
        rows = ((str(n), "x" * 200) for n in range(count))
        return (yield from copy_rows("things", ("id", "name"), lambda: rows))

    return unit


def test_a_connection_lost_in_a_copy_is_tried_again_on_a_fresh_one(tables: DatabaseURL) -> None:
    """A10: lost before COMMIT was sent: rolled back, tried again, and every row is there once."""
    with Proxy(tables, after_bytes(500_000), cuts=2) as proxy:
        assert run(proxy.url, many(20_000), policy=QUICK) == 20_000

    assert (proxy.connections, proxy.cuts) == (3, 2)
    assert len(stored(tables)) == 20_000


def test_after_the_last_try_nothing_is_written(tables: DatabaseURL) -> None:
    """A10: three tries, then the connection's error, and not a row of any of them."""
    with Proxy(tables, after_bytes(500_000), cuts=9) as proxy, pytest.raises(ConnectError):
        run(proxy.url, many(20_000), policy=QUICK)

    assert (proxy.connections, proxy.cuts) == (3, 3)
    assert stored(tables) == []


@pytest.mark.parametrize("kind", ["psycopg", "psycopg-autocommit", "asyncpg", "asyncpg-block"])
def test_a_callers_lost_connection_is_not_replaced(tables: DatabaseURL, kind: str) -> None:
    """A1, A10: a caller's connection cannot be opened again for him; he is told that it is lost."""

    async def main(proxy: Proxy) -> None:
        async with caller(kind, proxy.url) as one:
            with pytest.raises(ConnectError, match="lost"):
                await settled(run(one.db, many(20_000), policy=QUICK))

    with Proxy(tables, after_bytes(500_000)) as proxy:
        asyncio.run(main(proxy))

    assert proxy.connections == 1
    assert stored(tables) == []


def test_a_server_that_refuses_is_tried_again(tables: DatabaseURL) -> None:
    """A10: a refused connection is transient; the error at the end says what to check."""
    import dataclasses
    import socket

    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    refused = dataclasses.replace(tables, port=port)

    with pytest.raises(ConnectError, match="refused"):
        run(refused, loading(1), policy=QUICK)


@pytest.mark.parametrize("kind", ["url", "psycopg-autocommit", "asyncpg"])
def test_a_serialization_failure_is_tried_again(tables: DatabaseURL, kind: str) -> None:
    """Design, Retry: 40001 and 40P01 are tried again where the library owns the transaction."""
    with connect(tables) as connection:
        connection.execute(
            "CREATE SEQUENCE tries; CREATE FUNCTION fail_once() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            "IF nextval('tries') = 1 THEN RAISE EXCEPTION 'once' USING ERRCODE = '40001'; END "
            "IF; RETURN NEW; END $$;"
            "CREATE TRIGGER fail_once BEFORE INSERT ON things FOR EACH STATEMENT EXECUTE FUNCTION fail_once()"
        )

    async def main() -> None:
        async with caller(kind, tables) as one:
            await settled(run(one.db, loading(1), policy=QUICK))

    asyncio.run(main())

    assert stored(tables) == [1]


def drawing(log: list[Attempt], free: int) -> Callable[[Attempt], Steps[int]]:
    """A unit that collides with the row 0 until it has drawn anew often enough."""

    def unit(attempt: Attempt) -> Steps[int]:
        log.append(attempt)
        value = 0 if attempt.fresh < free else 100 + attempt.fresh
        return (yield from copy_rows("things", ("id",), lambda: [(str(value),)]))

    return unit


@pytest.mark.parametrize("kind", ["url", "psycopg", "async-session-asyncpg"])
def test_colliding_values_without_a_seed_are_drawn_anew(tables: DatabaseURL, kind: str) -> None:
    """A10: up to three times with fresh values, in a caller's transaction inside the savepoint."""
    log: list[Attempt] = []
    with connect(tables) as connection:
        connection.execute("INSERT INTO things VALUES (0)")

    async def main() -> None:
        async with caller(kind, tables) as one:
            await settled(run(one.db, drawing(log, free=3), unseeded=True))
            if kind != "url":
                await one.end("commit")

    asyncio.run(main())

    assert [attempt.fresh for attempt in log] == [0, 1, 2, 3]
    assert stored(tables) == [0, 103]


@pytest.mark.parametrize(("unseeded", "tries"), [(True, 4), (False, 1)])
def test_values_with_a_seed_never_change(tables: DatabaseURL, unseeded: bool, tries: int) -> None:
    """A10: seeded values fail at once; unseeded ones after three more draws."""
    log: list[Attempt] = []
    with connect(tables) as connection:
        connection.execute("INSERT INTO things VALUES (0)")

    with pytest.raises(UniqueError, match="一意制約違反"):
        run(tables, drawing(log, free=9), unseeded=unseeded)

    assert len(log) == tries


def test_a_lock_in_the_way_ends_at_the_lock_limit(tables: DatabaseURL) -> None:
    """A lock that is not granted in time is an error of its own; nothing was written."""
    from keikaku_snapshots.errors import DatabaseInUseError

    with connect(tables) as other, other.transaction():
        other.execute("LOCK TABLE things")
        with pytest.raises(DatabaseInUseError, match="lock was not granted"):
            run(tables, loading(1), timeouts=Timeouts(lock_s=0.1), policy=QUICK)


def test_a_statement_that_takes_too_long_is_stopped(tables: DatabaseURL) -> None:
    """A10: the statement limit is set on the server."""

    def unit(attempt: Attempt) -> Steps[None]:
        yield Execute("SELECT pg_sleep(20)")

    with pytest.raises(OperationTimeoutError):
        run(tables, unit, timeouts=Timeouts(statement_s=0.1))


@pytest.mark.parametrize(
    "kind", ["psycopg-async", "psycopg-async-autocommit", "asyncpg", "async-session-asyncpg"]
)
def test_a_copy_that_stands_still_is_stopped_on_the_event_loop(tables: DatabaseURL, kind: str) -> None:
    """A10: the watch works on the event loop too, and the caller's transaction goes on."""

    def unit(attempt: Attempt) -> Steps[int]:
        return (yield from copy_rows("things", ("id",), lambda: [("5",)], stall_timeout_s=0.3))

    async def main() -> None:
        async with caller(kind, tables) as one:
            with connect(tables) as other, other.transaction():
                other.execute("LOCK TABLE things")
                with pytest.raises(OperationTimeoutError, match="made no progress"):
                    await settled(run(one.db, unit, timeouts=Timeouts(lock_s=None)))
            await settled(run(one.db, unit))

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["psycopg-async", "asyncpg", "asyncpg-block"])
def test_a_cancelled_task_leaves_a_clean_connection(tables: DatabaseURL, kind: str) -> None:
    """Cancelling the awaiting task rolls back; the connection can be used again."""

    async def main() -> None:
        async with caller(kind, tables) as one:
            with connect(tables) as other, other.transaction():
                other.execute("LOCK TABLE things")
                task = asyncio.ensure_future(run(one.db, loading(1), timeouts=Timeouts(lock_s=None)))
                await asyncio.to_thread(until_somebody_waits, tables)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            await settled(run(one.db, loading(2)))
            if kind != "asyncpg":
                await one.end("commit")

    asyncio.run(main())

    assert stored(tables) == [2]


def test_an_interrupt_rolls_back(tables: DatabaseURL) -> None:
    """Ctrl-C in the middle undoes the work and is raised again."""

    def unit(attempt: Attempt) -> Steps[None]:
        yield from loading(1)(attempt)
        raise KeyboardInterrupt

    with connect(tables) as connection:
        with pytest.raises(KeyboardInterrupt):
            run(connection, unit)
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE

    assert stored(tables) == []


def test_a_deferred_constraint_fails_before_commit(tables: DatabaseURL) -> None:
    """FAULTS 85: deferred foreign keys pass in one transaction in any order, and fail as what they are."""
    with connect(tables) as connection:
        connection.execute(
            "CREATE TABLE later (thing_id integer CONSTRAINT later_thing REFERENCES things "
            "DEFERRABLE INITIALLY DEFERRED)"
        )

    def unit(thing: str) -> Callable[[Attempt], Steps[None]]:
        def steps(attempt: Attempt) -> Steps[None]:
            yield from copy_rows("later", ("thing_id",), lambda: [("8",)])
            yield from copy_rows("things", ("id",), lambda: [(thing,)])

        return steps

    run(tables, unit("8"))
    with connect(tables) as connection:
        connection.execute("TRUNCATE things, later, parts")
    with pytest.raises(ForeignKeyError, match="later_thing"):
        run(tables, unit("9"))

    assert stored(tables) == []


def test_a_transaction_that_has_failed_is_refused(tables: DatabaseURL) -> None:
    """A connection whose transaction has failed says so, and what to do."""
    with psycopg.connect(tables.text) as connection:
        with pytest.raises(psycopg.Error):
            connection.execute("SELECT 1/0")
        with pytest.raises(UsageError, match="has failed before"):
            run(connection, loading(1))
        connection.rollback()


@pytest.mark.parametrize("kind", IN_TRANSACTION)
def test_every_kind_of_caller_hears_of_its_failed_transaction(tables: DatabaseURL, kind: str) -> None:
    """The caller's own failed transaction is his to roll back; the words are the same for every driver."""

    async def main() -> None:
        async with caller(kind, tables) as one:
            with pytest.raises(Exception, match="division by zero"):
                await one.execute("SELECT 1 / 0")
            with pytest.raises(UsageError, match="has failed before") as caught:
                await settled(run(one.db, loading(1)))
            assert "Roll it back" in caught.value.hint

    asyncio.run(main())


@pytest.mark.parametrize(
    "kind",
    [
        "session",
        "sqlalchemy",
        "async-session",
        "async-session-asyncpg",
        "sqlalchemy-async",
        "sqlalchemy-asyncpg",
    ],
)
def test_a_lost_connection_is_told_through_the_callers_block(tables: DatabaseURL, kind: str) -> None:
    """A10: leaving ``with Session(…)`` does not put SQLAlchemy's error in the place of ours."""

    def losing(attempt: Attempt) -> Steps[None]:
        yield from loading(1)(attempt)
        with connect(tables) as other:
            other.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        yield from loading(2)(attempt)

    async def main() -> None:
        async with caller(kind, tables) as one:
            try:
                await settled(run(one.db, losing))
            except ConnectError:
                with pytest.raises(UsageError, match="has failed before"):
                    await settled(run(one.db, loading(3)))
                raise

    with pytest.raises(ConnectError):
        asyncio.run(main())

    assert stored(tables) == []


def test_a_session_without_a_database_is_refused() -> None:
    """A8: a session that is bound to nothing says so, in words that help."""
    with pytest.raises(UsageError, match="does not say which database"):
        run(Session(), loading(1))


def test_a_busy_connection_is_refused(tables: DatabaseURL) -> None:
    """One thing at a time on asyncpg, and a psycopg pipeline takes no COPY: both are said, nothing more."""

    async def main() -> None:
        async with caller("asyncpg", tables) as one:
            with connect(tables) as other, other.transaction():
                other.execute("LOCK TABLE things")
                waiting = asyncio.ensure_future(one.execute("SELECT FROM things"))
                await asyncio.to_thread(until_somebody_waits, tables)
                with pytest.raises(UsageError, match="busy with another statement"):
                    await settled(run(one.db, loading(1)))
            await waiting

    asyncio.run(main())
    busy = pytest.raises(UsageError, match="busy with another statement")
    with connect(tables) as connection, connection.pipeline(), busy:
        run(connection, loading(1))


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
@pytest.mark.parametrize(("end", "expected"), [("commit", [1]), ("rollback", [])])
def test_a_session_inside_run_sync_is_taken(
    tables: DatabaseURL, driver: str, end: str, expected: list[int]
) -> None:
    """A1: AsyncSession.run_sync hands a sync session to code that knows no other; failures are undone."""

    async def main() -> None:
        async with caller("async-session" if driver == "psycopg" else "async-session-asyncpg", tables) as one:
            assert await one.db.run_sync(lambda session: run(session, loading(1))) == 1
            with pytest.raises(ForeignKeyError):
                await one.db.run_sync(lambda session: run(session, loading(2, parts=(9,))))
            await one.end(end)

    asyncio.run(main())

    assert stored(tables) == expected


def test_the_applications_command_timeout_does_not_end_a_load(tables: DatabaseURL) -> None:
    """A10: asyncpg's command_timeout is for the application's statements; ours have their own limits."""

    async def main() -> None:
        connection = await asyncpg.connect(tables.text, command_timeout=0.1)
        try:
            with connect(tables) as other, other.transaction():
                other.execute("LOCK TABLE things")
                task = asyncio.ensure_future(run(connection, loading(1)))
                await asyncio.to_thread(until_somebody_waits, tables)
                await asyncio.sleep(0.2)  # longer than the application's limit
            assert await task == 1
        finally:
            await connection.close()

    asyncio.run(main())

    assert stored(tables) == [1]


def test_a_closed_connection_is_refused(tables: DatabaseURL) -> None:
    """A closed connection says so."""
    with psycopg.connect(tables.text) as connection:
        pass
    with pytest.raises(ConnectError, match="is closed"):
        run(connection, loading(1))


@pytest.mark.parametrize("db", [None, 7, object(), b"postgresql://x"])
def test_anything_else_is_a_type_error(db: Any) -> None:
    """A8: what cannot be written to is a TypeError that lists what can."""
    with pytest.raises(ParameterTypeError, match="db must be a database URL, a psycopg Connection"):
        run(db, loading(1))


def test_another_driver_is_refused(tables: DatabaseURL) -> None:
    """SQLAlchemy on another database or driver says which one is needed."""
    engine = sqlalchemy.create_engine("sqlite://")
    with engine.connect() as connection, pytest.raises(ParameterTypeError, match="sqlite"):
        run(connection, loading(1))
    engine.dispose()
