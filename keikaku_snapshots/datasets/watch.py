"""Stopping a COPY that does not move: a lock in the way, a server that stands still."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING, Any, Self

from keikaku_snapshots.errors import ConnectError, OperationTimeoutError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from types import TracebackType

    from keikaku_snapshots.datasets.steps import Copy, Pending

# The limit is kept to a tenth, and looked after at least once a second.
_LOOKS_PER_LIMIT = 10


class _Watch:
    """What the watches of both worlds share."""

    def __init__(self, step: Copy) -> None:
        self._limit_s = step.stall_timeout_s
        self._table = step.table
        # Since when the server has had something to do; None while rows are being made.
        self._waiting_since: float | None = time.monotonic()
        self._fired = False

    def blocks(self, step: Copy) -> Iterator[bytes | Pending]:
        """The blocks of the COPY; the time that making them takes is no standing still."""
        made = iter(step.blocks())
        self._waiting_since = None
        for block in made:
            if isinstance(block, bytes):
                self._waiting_since = time.monotonic()
            yield block
            self._waiting_since = None
        self._waiting_since = time.monotonic()

    def _interval_s(self) -> float:
        return min(1.0, (self._limit_s or 0) / _LOOKS_PER_LIMIT)

    def _is_over(self) -> bool:
        since = self._waiting_since
        return self._limit_s is not None and since is not None and time.monotonic() - since > self._limit_s

    def _error(self) -> OperationTimeoutError:
        what = f"COPY into {self._table!r} made no progress for {self._limit_s:g} s and was stopped"
        hint = (
            "Look who holds locks on the table (pg_stat_activity, pg_locks), or raise the limit "
            "(stall timeout). Nothing was written."
        )
        return OperationTimeoutError(what, hint=hint, transient=False)


class StallWatch(_Watch):
    """A thread that cancels the statement on the server when the COPY stands still.

    Args:
        step: The COPY.
        cancel: Cancels the running statement from another thread.
    """

    def __init__(self, step: Copy, cancel: Callable[[], Any]) -> None:
        super().__init__(step)
        self._cancel = cancel
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, name="keikaku-copy-watch", daemon=True)

    def __enter__(self) -> Self:
        if self._limit_s is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._limit_s is not None:
            self._thread.join()
        if self._fired and isinstance(error, Exception):
            raise self._error() from error

    def _look(self) -> None:
        while not self._ended.wait(self._interval_s()):
            if self._is_over():
                self._fired = True
                self._cancel()
                return


class AsyncStallWatch(_Watch):
    """A task that does the same on the event loop.

    Args:
        step: The COPY.
        cancel: Coroutine function that cancels the running statement.
        is_lost: Tells whether the connection is gone; for drivers that go on waiting then.
    """

    def __init__(
        self, step: Copy, cancel: Callable[[], Awaitable[Any]], is_lost: Callable[[], bool] = lambda: False
    ) -> None:
        super().__init__(step)
        self._cancel, self._is_lost = cancel, is_lost
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        if self._limit_s is not None:
            self._task = asyncio.create_task(self._look())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._fired and error is not None:
            if isinstance(error, asyncio.CancelledError) and (own := asyncio.current_task()) is not None:
                own.uncancel()  # the cancellation was ours, not that of whoever awaits the task
            if self._is_lost():
                what = f"the connection was lost while rows were copied into {self._table!r}"
                raise ConnectError(what, transient=True, contention=True) from error
            raise self._error() from error

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s())
            if self._is_over() or self._is_lost():
                self._fired = True
                await self._cancel()
                return
