"""Database work as generators of steps, so that it is written once for sync and async callers.

A unit of work is a generator: it yields a step, is sent the answer, and is thrown
the driver's exception when the step failed. It never waits itself; `drive_sync`
and `drive_async` do, over a target (see `targets`)::

    def highest(table: str) -> Steps[int]:
        rows = yield Execute(f"SELECT max(id) FROM {quote_name(table)}")
        return rows[0][0] or 0

Statements use ``$1`` placeholders. Cast every parameter (``$1::text``): asyncpg
takes the type from the statement, psycopg from the value.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar

ResultT = TypeVar("ResultT")

#: Seconds that a step has to end after it was cancelled. A server answers a cancellation in
#: milliseconds; only one that is gone does not, and then the driver gives the connection up.
_END_LIMIT_S = 10.0


class Pending(Protocol):
    """What an executor gives back: the rows of a shard that are not made yet."""

    def add_done_callback(self, callback: Callable[[Any], object], /) -> object:
        """Call the function when they are made."""

    def done(self) -> bool:
        """True when they are."""


@dataclass(frozen=True, slots=True)
class Execute:
    """Run one statement; the answer is a list of rows, each a tuple."""

    #: One SQL statement with ``$1`` placeholders.
    sql: str
    #: The values of the placeholders.
    parameters: tuple[object, ...] = ()


@dataclass(frozen=True, slots=True)
class Copy:
    """Send COPY text (UTF-8, see `encoding`); the answer is the number of rows that the server stored."""

    #: The table, not quoted.
    table: str
    #: Its schema; the search path decides when None.
    schema: str | None
    #: The columns, not quoted.
    columns: tuple[str, ...]
    #: Makes the blocks of COPY text; none is kept. In place of a block it may give what must be
    #: done before the next one is there, so that an event loop can go on meanwhile.
    blocks: Callable[[], Iterable[bytes | Pending]]
    #: Seconds after which a COPY that takes no more blocks is cancelled; None waits for ever.
    stall_timeout_s: float | None = 60.0

    @property
    def statement(self) -> str:
        """The statement; it says UTF-8 because the connection's client encoding may be another one."""
        listed = ", ".join(map(quote_name, self.columns))
        target = qualified(self.schema, self.table)
        return f"COPY {target} ({listed}) FROM STDIN WITH (FORMAT text, ENCODING 'UTF8')"


@dataclass(frozen=True, slots=True)
class Begin:
    """Start a transaction (the answer is True), or a savepoint inside the caller's (False)."""


@dataclass(frozen=True, slots=True)
class Commit:
    """Commit the library's own transaction, or release the savepoint."""


@dataclass(frozen=True, slots=True)
class Rollback:
    """Undo everything since `Begin`; never raises. The answer is False when the connection is gone."""


@dataclass(frozen=True, slots=True)
class Sleep:
    """Wait before the next attempt."""

    #: How long.
    seconds: float


Step: TypeAlias = Execute | Copy | Begin | Commit | Rollback | Sleep
Steps: TypeAlias = Generator[Step, Any, ResultT]


class SyncTarget(Protocol):
    """Performs steps on a connection, waiting for each."""

    def perform(self, step: Step) -> Any:
        """Do the step and return its answer."""

    def close(self) -> None:
        """Give back what the target itself opened; nothing of the caller's."""


class AsyncTarget(Protocol):
    """Performs steps on a connection of an event loop."""

    async def perform(self, step: Step) -> Any:
        """Do the step and return its answer."""

    async def interrupt(self, task: asyncio.Task[Any]) -> None:
        """Make the step that this task performs end soon, the connection staying in order."""

    async def close(self) -> None:
        """Give back what the target itself opened; nothing of the caller's."""


def drive_sync(steps: Steps[ResultT], target: SyncTarget) -> ResultT:
    """Run the steps to their end, one after another.

    Args:
        steps: The unit of work.
        target: Where it is done; closed at the end.

    Returns:
        What the generator returned.

    Raises:
        BaseException: What the unit raised.
    """
    try:
        step = next(steps)
        while True:
            try:
                answer = target.perform(step)
            except BaseException as error:  # noqa: BLE001 - the unit rolls back and raises it again
                step = steps.throw(error)
            else:
                step = steps.send(answer)
    except StopIteration as stop:
        result: ResultT = stop.value
        return result
    finally:
        target.close()


async def drive_async(steps: Steps[ResultT], target: AsyncTarget) -> ResultT:
    """Run the steps to their end on the event loop; see `drive_sync`.

    A cancellation is raised between the steps, never inside one: a driver that is left in
    the middle of COPY or ROLLBACK keeps half of the work, and the caller may commit it.
    """
    late: asyncio.CancelledError | None = None
    try:
        step = next(steps)
        while True:
            try:
                if late is not None and not isinstance(step, Begin | Commit | Rollback):
                    raise late  # noqa: TRY301 - of the step before
                answer, cancelled = await _whole(target, step)
                # What has begun or is committed is so: the unit must know.
                late = late or cancelled
                if cancelled is not None and not isinstance(step, Begin | Commit | Rollback):
                    raise cancelled  # noqa: TRY301 - as above
            except BaseException as error:  # noqa: BLE001 - the unit rolls back and raises it again
                step = steps.throw(error)
            else:
                step = steps.send(answer)
    except StopIteration as stop:
        if late is not None:
            raise late from None
        result: ResultT = stop.value
        return result
    finally:
        await target.close()


async def _whole(target: AsyncTarget, step: Step) -> tuple[Any, asyncio.CancelledError | None]:
    """Perform a step to its end; the answer, and the cancellation that came meanwhile."""
    task = asyncio.ensure_future(target.perform(step))
    try:
        return await asyncio.shield(task), None
    except asyncio.CancelledError as error:
        if task.cancelled():
            raise
        cancelled = error
    if not isinstance(step, Commit | Rollback):
        await _undisturbed(target.interrupt(task))
    await _undisturbed(asyncio.wait({task}, timeout=_END_LIMIT_S))
    if not task.done():
        task.cancel()
        await _undisturbed(asyncio.wait({task}, timeout=_END_LIMIT_S))
    if task.done() and not task.cancelled():
        failure = task.exception()
        if failure is None and isinstance(step, Begin | Commit | Rollback):
            return task.result(), cancelled
        if failure is not None and isinstance(step, Commit):
            raise failure
    raise cancelled


async def _undisturbed(work: Awaitable[Any]) -> None:
    """Wait for short work, also when the cancellation is repeated, as anyio does it; errors are dropped."""
    task = asyncio.ensure_future(work)
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            continue
    if not task.cancelled():
        task.exception()


async def until_done(pending: Pending) -> None:
    """Wait for what an executor makes without standing in the way of the event loop."""
    loop = asyncio.get_running_loop()
    done = asyncio.Event()
    pending.add_done_callback(lambda _: loop.call_soon_threadsafe(done.set))
    await done.wait()


def quote_name(name: str) -> str:
    """The name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def qualified(schema: str | None, table: str) -> str:
    """Table and schema as SQL identifiers."""
    return quote_name(table) if schema is None else f"{quote_name(schema)}.{quote_name(table)}"
