"""Steps on the connections of an event loop: psycopg, asyncpg, and SQLAlchemy on either."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import psycopg

from keikaku_snapshots.datasets.steps import (
    Begin,
    Commit,
    Copy,
    Execute,
    Pending,
    Rollback,
    Sleep,
    Step,
    until_done,
)
from keikaku_snapshots.datasets.targets import SAVEPOINT, begin_statement, busy, check_driver
from keikaku_snapshots.datasets.watch import AsyncStallWatch
from keikaku_snapshots.errors import ConnectError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import asyncpg
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

    from keikaku_snapshots.datasets.attempts import Timeouts

#: Longer than any work; asyncpg takes no other word for "no limit" where the connection has one.
_NO_LIMIT_S = 10.0**8
#: Seconds in which the server says itself that a statement has reached its limit.
_ANSWER_S = 10.0
_CONTROL = ("BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT", "RELEASE")


class _AsyncTarget:
    """What all of them share."""

    def __init__(self) -> None:
        self._owned = False

    async def perform(self, step: Step) -> Any:
        """Do the step and return its answer."""
        match step:
            case Execute(sql, parameters):
                return await self.execute(sql, parameters)
            case Copy():
                return await self.copy(step)
            case Begin():
                statement = await self.begin_statement()
                await self.execute(statement or f"SAVEPOINT {SAVEPOINT}")
                self._owned = statement is not None
                return self._owned
            case Commit():
                return await self.execute("COMMIT" if self._owned else f"RELEASE SAVEPOINT {SAVEPOINT}")
            case Rollback():
                return await self._rollback()
            case Sleep(seconds):
                return await asyncio.sleep(seconds)

    async def interrupt(self, task: asyncio.Task[Any]) -> None:
        """Make the step that this task performs end soon."""
        task.cancel()

    async def close(self) -> None:
        """Nothing here is the library's."""

    async def _rollback(self) -> bool:
        try:
            await self.execute("ROLLBACK" if self._owned else f"ROLLBACK TO SAVEPOINT {SAVEPOINT}")
            if not self._owned:
                await self.execute(f"RELEASE SAVEPOINT {SAVEPOINT}")
        except Exception:  # noqa: BLE001 - the error that led here is the one to tell
            # What could not be undone must not be committed by anybody.
            with suppress(Exception):
                await self.discard()
            return False
        return True

    async def discard(self) -> None:
        """Close the connection, so that nothing of it can be committed."""
        raise NotImplementedError

    async def begin_statement(self) -> str | None:
        raise NotImplementedError

    async def execute(self, sql: str, parameters: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        raise NotImplementedError

    async def copy(self, step: Copy) -> int:
        raise NotImplementedError


class AsyncPsycopgTarget(_AsyncTarget):
    """Steps on a psycopg AsyncConnection of the caller's."""

    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        super().__init__()
        self._connection = connection
        self._interrupted = False
        self._waiting: asyncio.Task[None] | None = None

    async def interrupt(self, task: asyncio.Task[Any]) -> None:
        """Stop the statement on the server, or the COPY at its next block.

        Not by cancelling the task: a psycopg connection whose task is cancelled while COPY
        begins or ends stays in COPY, and takes no statement any more.
        """
        del task
        self._interrupted = True
        if self._waiting is not None:
            self._waiting.cancel()
        elif self._connection.info.transaction_status == psycopg.pq.TransactionStatus.ACTIVE:
            await self._connection.cancel_safe(timeout=5)

    async def discard(self) -> None:
        """Close the connection."""
        await self._connection.close()

    async def begin_statement(self) -> str | None:
        """None for a savepoint, else what begins a transaction."""
        if self._connection.closed:
            raise ConnectError(
                "the connection is closed", hint="Open a new one and call again.", transient=False
            )
        status = self._connection.info.transaction_status
        return begin_statement(autocommit=self._connection.autocommit, status=status)

    async def execute(self, sql: str, parameters: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        """Run one statement and return its rows."""
        self._interrupted = False
        async with psycopg.AsyncRawCursor(self._connection, row_factory=psycopg.rows.tuple_row) as cursor:
            await cursor.execute(sql.encode(), parameters or None, prepare=False)
            return await cursor.fetchall() if cursor.description is not None else []

    async def copy(self, step: Copy) -> int:
        """Send COPY text."""
        self._interrupted = False
        async with (
            AsyncStallWatch(step, lambda: self._connection.cancel_safe(timeout=5)) as watch,
            psycopg.AsyncRawCursor(self._connection) as cursor,
        ):
            async with cursor.copy(step.statement.encode()) as copy:
                for block in watch.blocks(step):
                    if self._interrupted:
                        raise asyncio.CancelledError
                    if isinstance(block, bytes):
                        await copy.write(block)
                    else:
                        await self._until_done(block)
            return cursor.rowcount

    async def _until_done(self, pending: Pending) -> None:
        self._waiting = asyncio.create_task(until_done(pending))
        try:
            await self._waiting
        finally:
            self._waiting = None


class AsyncpgTarget(_AsyncTarget):
    """Steps on an asyncpg connection of the caller's."""

    def __init__(self, connection: asyncpg.Connection[Any], timeouts: Timeouts) -> None:
        super().__init__()
        self._connection = connection
        self._in_control = False
        # The server keeps our own limit. asyncpg's command_timeout is meant for the statements of
        # the application and would end a COPY of some seconds; None would mean just that one.
        limit_s = timeouts.statement_s
        self._limit_s = _NO_LIMIT_S if limit_s is None else limit_s + _ANSWER_S

    async def interrupt(self, task: asyncio.Task[Any]) -> None:
        """Cancel the task, which asyncpg cleans up after; but BEGIN might be done nevertheless."""
        if not self._in_control:
            task.cancel()

    async def discard(self) -> None:
        """Close the connection."""
        self._connection.terminate()

    async def begin_statement(self) -> str | None:
        """None for a savepoint, else what begins a transaction."""
        if self._connection.is_closed():
            raise ConnectError(
                "the connection is closed", hint="Open a new one and call again.", transient=False
            )
        return None if self._connection.is_in_transaction() else "BEGIN"

    async def execute(self, sql: str, parameters: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        """Run one statement and return its rows."""
        if sql.startswith(_CONTROL):
            # By the simple protocol: nothing of it stays in the cache of prepared statements.
            self._in_control = True
            try:
                await self._connection.execute(sql, timeout=self._limit_s)
            except Exception as error:
                if "another operation is in progress" in str(error):
                    raise busy() from error
                raise
            finally:
                self._in_control = False
            return []
        records = await self._connection.fetch(sql, *parameters, timeout=self._limit_s)
        return [tuple(record) for record in records]

    async def copy(self, step: Copy) -> int:
        """Send COPY text by asyncpg's own COPY.

        The text form and not ``copy_records_to_table``: that one is binary and
        needs every value in the Python type of its column.
        """
        failure: list[Exception] = []
        task = asyncio.current_task()

        async def cancel() -> None:
            if task is not None:
                task.cancel()

        # asyncpg waits for ever for a connection that was lost while its buffer was full.
        async with AsyncStallWatch(step, cancel, self._connection.is_closed) as watch:

            async def source() -> AsyncIterator[bytes]:
                try:
                    for block in watch.blocks(step):
                        if isinstance(block, bytes):
                            yield block
                        else:
                            await until_done(block)
                except Exception as error:
                    # asyncpg puts its own error in the place of this one.
                    failure.append(error)
                    raise

            try:
                tag: str = await self._connection.copy_to_table(
                    step.table,
                    source=source(),
                    columns=step.columns,
                    schema_name=step.schema,
                    format="text",
                    encoding="utf8",
                    # A COPY is watched for standing still; a long one is no fault.
                    timeout=_NO_LIMIT_S,
                )
            except Exception as error:
                if failure and failure[0] is not error:
                    raise failure[0] from error
                raise
            return int(tag.rpartition(" ")[2])


class AsyncSQLAlchemyTarget(_AsyncTarget):
    """Steps on the driver's connection below an SQLAlchemy AsyncConnection or AsyncSession."""

    def __init__(self, db: AsyncConnection | AsyncSession, timeouts: Timeouts) -> None:
        super().__init__()
        self._db, self._timeouts = db, timeouts
        self._bound: AsyncConnection | None = None
        self._driver: AsyncPsycopgTarget | AsyncpgTarget | None = None

    async def interrupt(self, task: asyncio.Task[Any]) -> None:
        """Make the step that this task performs end soon."""
        if self._driver is not None:
            await self._driver.interrupt(task)
        else:
            task.cancel()

    async def discard(self) -> None:
        """Close the driver's connection; SQLAlchemy notices."""
        if self._driver is not None:
            await self._driver.discard()
        if self._bound is not None:
            # Else the end of the caller's block would try to roll back what is gone, and its
            # error would stand in the place of ours.
            await self._bound.invalidate()

    async def begin_statement(self) -> str | None:
        """None for a savepoint, else what begins a transaction."""
        connection: Any = self._db
        if hasattr(connection, "flush"):
            await connection.flush()  # rows the session has not sent yet may be the parents of ours
            connection = await connection.connection()
        check_driver(connection.dialect)
        # SQLAlchemy begins on the first statement only; without one its commit() would do nothing.
        (await connection.exec_driver_sql("SELECT 1")).close()
        self._bound = connection
        driver = (await connection.get_raw_connection()).driver_connection
        if isinstance(driver, psycopg.AsyncConnection):
            self._driver = AsyncPsycopgTarget(driver)
        else:
            self._driver = AsyncpgTarget(driver, self._timeouts)
        return await self._driver.begin_statement()

    async def execute(self, sql: str, parameters: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        """Run one statement and return its rows."""
        assert self._driver is not None
        return await self._driver.execute(sql, parameters)

    async def copy(self, step: Copy) -> int:
        """Send COPY text."""
        assert self._driver is not None
        return await self._driver.copy(step)
