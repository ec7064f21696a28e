"""The watch over a COPY: what a server does not take is a stall, what is not made yet is none."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from keikaku_snapshots.datasets import bulk_create_offices, generate
from keikaku_snapshots.datasets.attempts import Timeouts
from keikaku_snapshots.datasets.copy import Block, copy_blocks, copy_rows
from keikaku_snapshots.datasets.targets import run
from keikaku_snapshots.errors import OperationTimeoutError
from tests.callers import caller, settled
from tests.integration.test_targets import QUICK
from tests.servers import connect

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keikaku_snapshots.datasets.attempts import Attempt
    from keikaku_snapshots.datasets.steps import Steps
    from keikaku_snapshots.postgres.url import DatabaseURL

KINDS = ("url", "psycopg-async", "asyncpg")
#: The limit of these tests, and longer than that.
LIMIT_S, LONG_S = 0.3, 0.5


@pytest.fixture
def things(shared_database: DatabaseURL) -> DatabaseURL:
    """A database with one table."""
    with connect(shared_database) as connection:
        connection.execute("CREATE TABLE things (id integer PRIMARY KEY)")
    return shared_database


def slow_rows() -> Iterator[tuple[str]]:
    """Two rows, the second of which takes its time."""
    yield ("1",)
    time.sleep(LONG_S)
    yield ("2",)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_take_long_to_make_are_no_stall(things: DatabaseURL, kind: str) -> None:
    """A10: a COPY that makes no progress is stopped; one whose rows the user still makes goes on."""

    def unit(attempt: Attempt) -> Steps[int]:
        return (yield from copy_rows("things", ("id",), slow_rows, batch_size=1, stall_timeout_s=LIMIT_S))

    async def main() -> int:
        async with caller(kind, things) as one:
            count: int = await settled(run(one.db, unit, policy=QUICK))
            return count

    assert asyncio.run(main()) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_an_executor_still_makes_are_no_stall(things: DatabaseURL, kind: str) -> None:
    """A10: waiting for a worker is not waiting for the server."""
    with ThreadPoolExecutor(1) as executor:

        def blocks() -> Iterator[Any]:
            yield Block(b"1\n", 1)
            yield (future := executor.submit(time.sleep, LONG_S))
            future.result()
            yield Block(b"2\n", 1)

        def unit(attempt: Attempt) -> Steps[int]:
            return (yield from copy_blocks("things", ("id",), blocks, batch_size=1, stall_timeout_s=LIMIT_S))

        async def main() -> int:
            async with caller(kind, things) as one:
                count: int = await settled(run(one.db, unit, policy=QUICK))
                return count

        assert asyncio.run(main()) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_that_takes_nothing_more_is_a_stall(things: DatabaseURL, kind: str) -> None:
    """A10: also after slow rows: the end of the COPY waits for somebody else's row."""

    def unit(attempt: Attempt) -> Steps[int]:
        return (yield from copy_rows("things", ("id",), slow_rows, batch_size=1, stall_timeout_s=LIMIT_S))

    async def main() -> None:
        async with caller(kind, things) as one:
            with connect(things) as other, other.transaction():
                other.execute("INSERT INTO things VALUES (2)")
                with pytest.raises(OperationTimeoutError, match="made no progress"):
                    await settled(run(one.db, unit, policy=QUICK, timeouts=Timeouts(lock_s=None)))

    asyncio.run(main())


def test_the_factories_keep_the_limit_that_they_are_given(shared_database: DatabaseURL) -> None:
    """A10: `Timeouts.stall_s` holds for bulk_create_* as for generate."""
    generate("keikaku", "small", shared_database, create_tables=True)
    with connect(shared_database) as other, other.transaction():
        other.execute("LOCK TABLE offices IN SHARE MODE")
        limits = Timeouts(lock_s=None, statement_s=20, stall_s=LIMIT_S)
        with pytest.raises(OperationTimeoutError, match=r"no progress for 0\.3 s"):
            bulk_create_offices(shared_database, 1, timeouts=limits, retry=QUICK)
