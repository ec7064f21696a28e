"""Seconds, queries and memory of a piece of work."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Any, Self

import psutil

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Measured", "measured"]

#: Seconds between two looks at the resident memory; a look costs about 20 microseconds.
_LOOK_EVERY_S = 0.01


class Measured:
    """What a piece of work took; a context manager, read after its end.

    ::

        with measured(engine) as work:
            ...
        assert work.queries <= 10 and work.seconds < 30
    """

    #: Seconds on the wall.
    seconds: float = 0.0
    #: Statements that were sent through the engine, a batch of ``executemany`` counting as one; None without
    #: an engine. Driver connections that bypass SQLAlchemy (COPY) are not seen.
    queries: int | None = None
    #: Highest resident memory of this process meanwhile, in megabytes (1,000,000 bytes).
    memory_peak_mb: float = 0.0
    #: How much higher that is than the memory at the beginning, in megabytes.
    memory_growth_mb: float = 0.0

    def __init__(self, engine: Any = None) -> None:
        """Prepare.

        Args:
            engine: An SQLAlchemy ``Engine`` or ``AsyncEngine`` whose statements are counted.
        """
        self._engine = getattr(engine, "sync_engine", engine)
        self._process = psutil.Process()
        self._stop = threading.Event()
        self._watcher: threading.Thread | None = None
        self._highest = self._lowest = 0
        self._began = 0.0

    def __enter__(self) -> Self:
        if self._engine is not None:
            from sqlalchemy import event

            self.queries = 0
            event.listen(self._engine, "before_cursor_execute", self._count)
        self._highest = self._lowest = self._resident()
        self._stop.clear()
        self._watcher = threading.Thread(target=self._watch, name="keikaku-memory", daemon=True)
        self._watcher.start()
        self._began = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.seconds = time.perf_counter() - self._began
        if self._engine is not None:
            from sqlalchemy import event

            event.remove(self._engine, "before_cursor_execute", self._count)
        self._stop.set()
        if self._watcher is not None:
            self._watcher.join()
        self._highest = max(self._highest, self._resident())
        self.memory_peak_mb = self._highest / 1e6
        self.memory_growth_mb = (self._highest - self._lowest) / 1e6

    def _count(self, *_: Any) -> None:
        self.queries = (self.queries or 0) + 1

    def _resident(self) -> int:
        return int(self._process.memory_info().rss)

    def _watch(self) -> None:
        while not self._stop.wait(_LOOK_EVERY_S):
            with contextlib.suppress(psutil.Error):
                self._highest = max(self._highest, self._resident())


def measured(engine: Any = None) -> Measured:
    """Measure the block that follows.

    Args:
        engine: An SQLAlchemy ``Engine`` or ``AsyncEngine`` whose statements are counted.

    Returns:
        A context manager with ``seconds``, ``queries``, ``memory_peak_mb`` and ``memory_growth_mb``.
    """
    return Measured(engine)
