"""Cancelling work on an event loop at any moment: all or nothing, and a connection in order."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import sqlalchemy

from keikaku_snapshots.datasets import Dataset, Scale, Table, generate
from keikaku_snapshots.datasets.async_targets import AsyncpgTarget, AsyncPsycopgTarget
from keikaku_snapshots.datasets.copy import copy_rows
from keikaku_snapshots.datasets.targets import run
from tests.callers import IN_TRANSACTION, OWNED, Caller, caller
from tests.servers import connect

if TYPE_CHECKING:
    from keikaku_snapshots.datasets import Shard
    from keikaku_snapshots.datasets.attempts import Attempt
    from keikaku_snapshots.datasets.steps import Step, Steps
    from keikaku_snapshots.postgres.url import DatabaseURL

ASYNC_OWNED = [kind for kind in OWNED if "async" in kind]
ASYNC_IN_TRANSACTION = [kind for kind in IN_TRANSACTION if "async" in kind]
#: More than the steps of the unit below; the last ones are never reached.
STEPS = 9
#: Once as asyncio does it, and again and again as the scopes of anyio do until the task has ended.
TIMES = (1, 50)


@pytest.fixture
def tables(shared_database: DatabaseURL) -> DatabaseURL:
    """A database with two tables."""
    with connect(shared_database) as connection:
        connection.execute("CREATE TABLE things (id integer); CREATE TABLE parts (id integer)")
    return shared_database


@pytest.fixture
def database(shared_database: DatabaseURL) -> DatabaseURL:
    """An empty database; one for the module."""
    return shared_database


def unit(_: Attempt) -> Steps[None]:
    """Rows into both tables; the second COPY has several blocks."""
    yield from copy_rows("things", ("id",), lambda: [("1",)])
    yield from copy_rows("parts", ("id",), lambda: [("1",)] * 3, batch_size=1)


def stored(url: DatabaseURL) -> tuple[Any, ...]:
    """Rows of both tables that another session sees."""
    with connect(url) as connection:
        connection.execute("SET lock_timeout = '2s'")
        row = connection.execute(
            "SELECT (SELECT count(*) FROM things), (SELECT count(*) FROM parts)"
        ).fetchone()
        connection.execute("TRUNCATE things, parts")
    assert row is not None
    return row


async def _cancelled(
    db: Any, number: int, times: int, monkeypatch: pytest.MonkeyPatch
) -> BaseException | None:
    """Do the unit and cancel it in its step of this number; how it ended."""
    performed = 0

    async def cancel() -> None:
        for _ in range(times):
            task.cancel()
            await asyncio.sleep(0)

    with monkeypatch.context() as patch:
        for target in (AsyncPsycopgTarget, AsyncpgTarget):
            for name in ("execute", "copy"):
                original: Any = getattr(target, name)

                async def counted(self: Any, *parameters: Any, original: Any = original) -> Any:
                    nonlocal performed
                    performed += 1
                    if performed == number:
                        cancelling.append(asyncio.create_task(cancel()))
                    return await original(self, *parameters)

                patch.setattr(target, name, counted)
        cancelling: list[asyncio.Task[None]] = []
        task = asyncio.ensure_future(run(db, unit))
        await asyncio.wait({task})
        await asyncio.gather(*cancelling)
    return asyncio.CancelledError() if task.cancelled() else task.exception()


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("kind", ASYNC_IN_TRANSACTION)
def test_a_cancelled_call_leaves_nothing_for_the_caller_to_commit(
    tables: DatabaseURL, kind: str, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A1: cancelled in whichever step, how often ever: the caller's COMMIT has all of the rows or none."""

    async def attempt(number: int) -> None:
        async with caller(kind, tables) as one:
            await one.execute("SELECT 1")
            outcome = await _cancelled(one.db, number, times, monkeypatch)
            await one.execute("SELECT 1")  # not stuck in COPY, not closed, not failed
            await one.end("commit")
        whole = stored(tables)
        assert whole in {(0, 0), (1, 3)}, f"half of the work after a cancellation in step {number}"
        assert isinstance(outcome, asyncio.CancelledError) or whole == (1, 3)

    async def main() -> None:
        for number in range(1, STEPS + 1):
            await attempt(number)

    asyncio.run(main())


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("kind", ASYNC_OWNED)
def test_a_cancelled_call_leaves_no_open_transaction(
    tables: DatabaseURL, kind: str, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A1: afterwards an autocommit connection commits the caller's next statement, as ever."""

    async def attempt(number: int) -> None:
        async with caller(kind, tables) as one:
            outcome = await _cancelled(one.db, number, times, monkeypatch)
            whole = stored(tables)
            await one.execute("INSERT INTO things VALUES (7)")
            assert stored(tables) == (1, 0), f"a transaction stayed open: step {number}"
        assert whole in {(0, 0), (1, 3)}
        assert isinstance(outcome, asyncio.CancelledError) or whole == (1, 3)

    async def main() -> None:
        for number in range(1, STEPS + 1):
            await attempt(number)

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["psycopg-async", "asyncpg-block"])
def test_work_that_cannot_be_undone_cannot_be_committed(tables: DatabaseURL, kind: str) -> None:
    """A savepoint that is gone cannot be rolled back to: the connection is closed with what was copied."""

    def breaking(attempt: Attempt) -> Steps[None]:
        yield from unit(attempt)
        yield _statement("RELEASE SAVEPOINT keikaku_snapshots")
        raise ArithmeticError

    async def main() -> None:
        async with caller(kind, tables) as one:
            await one.execute("SELECT 1")
            with pytest.raises(ArithmeticError):
                await run(one.db, breaking)
            with pytest.raises(Exception, match="closed"):
                await one.end("commit")

    asyncio.run(main())

    assert stored(tables) == (0, 0)


def _statement(sql: str) -> Step:
    from keikaku_snapshots.datasets.steps import Execute

    return Execute(sql)


def test_a_sync_connection_that_cannot_be_undone_is_closed_too(tables: DatabaseURL) -> None:
    """As on the event loop."""

    def breaking(attempt: Attempt) -> Steps[None]:
        yield from unit(attempt)
        yield _statement("RELEASE SAVEPOINT keikaku_snapshots")
        raise ArithmeticError

    with psycopg.connect(tables.text) as connection:
        connection.execute("SELECT 1")
        with pytest.raises(ArithmeticError):
            run(connection, breaking)
        assert connection.closed

    assert stored(tables) == (0, 0)


def slow_rows(shard: Shard) -> list[tuple[str, str]]:
    """A shard that takes its time."""
    time.sleep(0.05)
    return [(str(shard.index), "t")]


metadata = sqlalchemy.MetaData()
slow = Dataset(
    name="slow",
    tables=(
        Table(
            sqlalchemy.Table(
                "slow",
                metadata,
                sqlalchemy.Column("id", sqlalchemy.Integer, primary_key=True, autoincrement=False),
                sqlalchemy.Column("is_test_data", sqlalchemy.Boolean, nullable=False),
            ),
            slow_rows,
        ),
    ),
    scales=(Scale("small", 6),),
    shard_units=1,
)


@pytest.mark.parametrize("kind", ["psycopg-async", "asyncpg", "async-session-asyncpg"])
def test_waiting_for_an_executor_does_not_stop_the_event_loop(database: DatabaseURL, kind: str) -> None:
    """While a worker makes a shard, other tasks of the loop go on; nobody waits for a future there."""
    longest = 0.0

    async def measure() -> None:
        nonlocal longest
        last = time.perf_counter()
        while True:
            await asyncio.sleep(0)
            now = time.perf_counter()
            waited_s, last = now - last, now
            longest = max(longest, waited_s)

    async def fill(one: Caller) -> None:
        await generate(slow, "small", one.db, create_tables=True)  # imports and DDL are done
        ticking = asyncio.create_task(measure())
        with ThreadPoolExecutor(1) as pool:
            generated = await generate(slow, "small", one.db, executor=pool)
        ticking.cancel()
        assert generated.rows == {"slow": 6}

    async def main() -> None:
        async with caller(kind, database) as one:
            await fill(one)

    asyncio.run(main())

    # A blocked loop would have stood still for at least three shards of 50 ms, since
    # the first one to be asked for is not begun when it is waited for.
    assert longest < 0.15


@pytest.mark.parametrize("kind", ["psycopg-async", "asyncpg"])
def test_waiting_for_an_executor_can_be_cancelled(database: DatabaseURL, kind: str) -> None:
    """The wait ends at once, and the connection is in order."""

    async def main() -> None:
        async with caller(kind, database) as one:
            await generate(slow, "small", one.db, create_tables=True)
            with ThreadPoolExecutor(1) as pool, pytest.raises(TimeoutError):
                await asyncio.wait_for(generate(slow, "small", one.db, executor=pool), 0.1)
            await one.execute("SELECT 1")
            if kind == "psycopg-async":
                await one.end("commit")

    asyncio.run(main())

    with connect(database) as connection:
        assert connection.execute("SELECT count(*) FROM slow").fetchone() == (6,)
