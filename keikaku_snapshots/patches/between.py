"""What is looked at between two batches: requests, windows, replicas, and news for somebody to hear."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final

from keikaku_snapshots.patches import records
from keikaku_snapshots.patches.limits import CancelledError, StoppedError

if TYPE_CHECKING:
    import threading

    from keikaku_snapshots.patches.settings import PatchSettings
    from keikaku_snapshots.patches.worker import Worker

#: Seconds between two looks at a replica that lags behind.
_LAG_LOOK_S: Final = 0.5


class Between:
    """Stops or slows a run between two batches.

    Args:
        worker: Sessions and state of the run.
        settings: Limits of the patch.
        stop: Set when the process is to stop.
    """

    def __init__(self, worker: Worker, settings: PatchSettings, stop: threading.Event) -> None:
        self._worker = worker
        self._settings = settings
        self._stop = stop

    def look(self, batch_s: float) -> None:
        """Look at everything.

        Args:
            batch_s: Seconds that the next batch will take.

        Raises:
            StoppedError: The run is to pause.
            CancelledError: It is to be taken back.
        """
        self._worker.tell_news()
        if self._stop.is_set():
            raise StoppedError("paused")
        self._obey()
        self._check_window(batch_s)
        self._wait_for_replicas()
        if self._settings.pause_s and self._worker.execution.batch_number:
            self.pause(self._settings.pause_s)

    def pause(self, seconds: float) -> None:
        """Wait, but not longer than until the process is to stop.

        Args:
            seconds: How long.
        """
        self._stop.wait(seconds)

    def _obey(self) -> None:
        worker, execution_id = self._worker, self._worker.execution.execution_id
        asked = worker.controlled(lambda: records.requests(worker.control, execution_id))
        if not asked:
            return
        worker.controlled(lambda: records.take_requests(worker.control, execution_id))
        if "cancel" in asked:
            raise CancelledError
        raise StoppedError("paused")

    def _check_window(self, batch_s: float) -> None:
        windows = self._worker.around.windows
        if windows is None or self._worker.execution.outside_window_reason:
            return
        now = self._worker.around.clock()
        closes_at = windows.closes_at(now)
        if closes_at is None or now + timedelta(seconds=batch_s) >= closes_at:
            raise StoppedError("window_closed")

    def _wait_for_replicas(self) -> None:
        limit_s = self._settings.max_replica_lag_s
        if limit_s is None:
            return
        while not self._stop.is_set():
            row = self._worker.controlled(self._lag)
            if not row or row[0] is None or row[0] <= limit_s:
                return
            self.pause(_LAG_LOOK_S)

    def _lag(self) -> tuple[float | None] | None:
        return self._worker.control.execute(
            "SELECT max(extract(epoch FROM replay_lag))::float8 FROM pg_catalog.pg_stat_replication"
        ).fetchone()
