"""The manager's methods as awaitables, run in one long-lived worker thread.

One thread, because programs must be started from a thread that outlives them
(FAULTS 45) and because a manager serves one caller at a time; long-lived,
because a fixture awaits many short calls.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from keikaku_snapshots.snapshots.checkpoint import Checkpoint
    from keikaku_snapshots.snapshots.manager import SnapshotManager

P = ParamSpec("P")
T = TypeVar("T")


class AsyncSnapshotManager:
    """The awaitable twin of `SnapshotManager`; ``manager.aio``.

    Each method takes and returns what the method of the same name does. Calls
    run one after the other, in the order in which they were awaited. A call
    that is cancelled goes on to its end in its thread, because a restore must
    not be left half-done; the next call waits for it.
    """

    def __init__(self, manager: SnapshotManager) -> None:
        """Stand beside a manager; the thread starts with the first call.

        Args:
            manager: What does the work.
        """
        self._manager = manager
        self._worker = ThreadPoolExecutor(1, "keikaku-aio")
        self.create_snapshot = self._twin(manager.create_snapshot)
        self.restore_snapshot = self._twin(manager.restore_snapshot)
        self.list_snapshots = self._twin(manager.list_snapshots)
        self.get_snapshot = self._twin(manager.get_snapshot)
        self.snapshot_exists = self._twin(manager.snapshot_exists)
        self.verify_snapshot = self._twin(manager.verify_snapshot)
        self.compare_snapshots = self._twin(manager.compare_snapshots)
        self.delete_snapshot = self._twin(manager.delete_snapshot)
        self.delete_old_snapshots = self._twin(manager.delete_old_snapshots)
        self.prune = self._twin(manager.prune)
        self.rename_snapshot = self._twin(manager.rename_snapshot)
        self.pin_snapshot = self._twin(manager.pin_snapshot)
        self.tag_snapshot = self._twin(manager.tag_snapshot)
        self.describe_snapshot = self._twin(manager.describe_snapshot)
        self.checkpoint = self._twin(manager.checkpoint)
        self.rewind = self._twin(manager.rewind)
        self.drop_checkpoint = self._twin(manager.drop_checkpoint)
        self.list_templates = self._twin(manager.list_templates)
        self.clear_templates = self._twin(manager.clear_templates)

    def _twin(self, method: Callable[P, T]) -> Callable[P, Coroutine[Any, Any, T]]:
        @functools.wraps(method)
        async def call(*arguments: P.args, **keywords: P.kwargs) -> T:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._worker, functools.partial(method, *arguments, **keywords))

        return call

    @contextlib.asynccontextmanager
    async def rewinding(self, *, wait_s: float = 5.0) -> AsyncIterator[Checkpoint]:
        """Make a checkpoint before the block and go back to it after, as the manager's ``rewinding``.

        Args:
            wait_s: Seconds to wait for open transactions, each time.

        Yields:
            The checkpoint.
        """
        made = await self.checkpoint(wait_s=wait_s)
        try:
            yield made
        finally:
            await self.rewind(wait_s=wait_s)

    async def close(self) -> None:
        """Close the manager when the calls before have ended."""
        await asyncio.get_running_loop().run_in_executor(self._worker, lambda: None)
        self._manager.close()

    def stop(self) -> None:
        """End the worker thread when its work is done; called by the manager's ``close``."""
        self._worker.shutdown(wait=True)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
