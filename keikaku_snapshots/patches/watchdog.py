"""Memory and time of a run, looked at ten times a second; what is over its limit is cancelled in flight."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Literal, Self, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from keikaku_snapshots.postgres.connect import Connection

#: What was over its limit.
Cause: TypeAlias = Literal["memory", "time"]
#: What somebody should be told of while the run goes on.
Warned: TypeAlias = Literal["memory_high", "time_twice", "time_thrice"]
#: Share of the memory limit that is worth a message.
_MEMORY_HIGH = 0.8


class OverLimitError(Exception):
    """The run is over a limit; raised where Python is at work and no statement can be cancelled."""


class Watchdog:
    """Watches this process while it works on a run.

    Args:
        memory_limit_bytes: Most resident memory.
        time_limit_s: Most seconds of work; None for no limit.
        estimate_s: Seconds it should take, for warnings; None when nobody knows.
        active_s: Seconds of work that other processes have spent on the run.
        every_s: Seconds between two looks.
        memory: Tells the resident memory in bytes; that of this process when None.
    """

    def __init__(
        self,
        *,
        memory_limit_bytes: int,
        time_limit_s: float | None,
        estimate_s: float | None = None,
        active_s: float = 0.0,
        every_s: float = 0.1,
        memory: Callable[[], int] | None = None,
    ) -> None:
        #: Most resident memory.
        self.memory_limit_bytes = memory_limit_bytes
        #: Most seconds of work; None for no limit.
        self.time_limit_s = time_limit_s
        #: Seconds that the run should take; None when nobody knows.
        self.estimate_s = estimate_s
        self._before_s = active_s
        self._every_s = every_s
        self._memory = memory or resident_memory()
        self._since: float | None = None
        self._connection: Connection | None = None
        # Held while a statement is being cancelled, so that the next one is not hit.
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="keikaku-watchdog", daemon=True)
        self._warned: set[Warned] = set()
        self._news: list[Warned] = []
        #: What was over its limit, if anything was.
        self.cause: Cause | None = None
        #: Most resident memory that was seen, in bytes.
        self.peak_bytes = self._memory()
        #: Resident memory at the last look, in bytes.
        self.memory_bytes = self.peak_bytes

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def active_s(self) -> float:
        """Seconds of work so far, without pauses."""
        since = self._since
        return self._before_s + (time.monotonic() - since if since is not None else 0.0)

    @contextmanager
    def working(self, connection: Connection) -> Iterator[None]:
        """Count the time of this block as work, and cancel its statements when a limit is passed.

        Args:
            connection: Runs the statements.
        """
        self._since = time.monotonic()
        self._connection = connection
        try:
            yield
        finally:
            with self._lock:
                self._connection = None
                self._before_s = self.active_s
                self._since = None

    def check(self) -> None:
        """Look now.

        Raises:
            OverLimitError: A limit is passed.
        """
        self._look()
        if self.cause is not None:
            raise OverLimitError(self.cause)

    def forget(self) -> None:
        """Begin anew after memory was given back."""
        self.cause = None

    def news(self) -> list[Warned]:
        """Return what has happened since the last call that somebody should be told of."""
        told, self._news = self._news, []
        return told

    def _run(self) -> None:
        while not self._ended.wait(self._every_s):
            self._look()
            if self.cause is not None:
                with self._lock:
                    if self._connection is not None:
                        # Once more at the next look: it may have been between two statements.
                        with suppress(Exception):
                            self._connection.cancel()

    def _look(self) -> None:
        self.memory_bytes = memory = self._memory()
        self.peak_bytes = max(self.peak_bytes, memory)
        if memory > self.memory_limit_bytes * _MEMORY_HIGH:
            self._warn("memory_high")
        seconds = self.active_s
        for factor, warning in ((2, "time_twice"), (3, "time_thrice")):
            if self.estimate_s is not None and seconds > factor * self.estimate_s:
                self._warn("time_twice" if warning == "time_twice" else "time_thrice")
        if self._since is None or self.cause is not None:
            return
        if memory > self.memory_limit_bytes:
            self.cause = "memory"
        elif self.time_limit_s is not None and seconds > self.time_limit_s:
            self.cause = "time"

    def _warn(self, warning: Warned) -> None:
        if warning not in self._warned:
            self._warned.add(warning)
            self._news.append(warning)


def resident_memory() -> Callable[[], int]:
    """Return what tells the resident memory of this process in bytes."""
    import psutil

    process = psutil.Process()
    return lambda: int(process.memory_info().rss)
