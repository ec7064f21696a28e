"""One batch after the other: retries, rows that are put off, sizes, limits, and what operators ask."""

from __future__ import annotations

import gc
import random
from typing import TYPE_CHECKING, Final

import psycopg

from keikaku_snapshots.errors import (
    PatchFailedError,
)
from keikaku_snapshots.patches import records
from keikaku_snapshots.patches.batch import BatchResult, CommitInDoubtError
from keikaku_snapshots.patches.limits import over_limit, too_many_wrong
from keikaku_snapshots.patches.records_schema import SCHEMA
from keikaku_snapshots.patches.sizing import Sizing
from keikaku_snapshots.patches.watchdog import OverLimitError
from keikaku_snapshots.postgres.connect import is_transient

if TYPE_CHECKING:
    from collections.abc import Callable

    from keikaku_snapshots.patches.batch import BatchProcessor
    from keikaku_snapshots.patches.between import Between
    from keikaku_snapshots.patches.execution import Execution
    from keikaku_snapshots.patches.keyset import Key
    from keikaku_snapshots.patches.set_based import Counts
    from keikaku_snapshots.patches.settings import PatchSettings
    from keikaku_snapshots.patches.watchdog import Watchdog
    from keikaku_snapshots.patches.worker import Worker
    from keikaku_snapshots.postgres.connect import Connection

#: Serialization failure, deadlock, lock not granted in time, statement cancelled by a timeout.
RETRIED: Final = frozenset({"40001", "40P01", "55P03", "57014"})
#: Rows after which the share of inconsistent ones means something.
_RATIO_ROWS: Final = 100
#: Seconds between two looks at a replica that lags behind.
_LAG_LOOK_S: Final = 0.5
_MB: Final = 1024 * 1024


class BatchLoop:
    """Does the batches of a run until the table ends.

    Args:
        worker: Sessions and state of the run.
        settings: Limits of the patch.
        watch: Memory and time.
        between: What is looked at between two batches.
        progress: Gets the run after each batch.
    """

    def __init__(
        self,
        worker: Worker,
        settings: PatchSettings,
        watch: Watchdog,
        between: Between,
        *,
        progress: Callable[[Execution], None] | None = None,
    ) -> None:
        self._worker = worker
        self._settings = settings
        self._watch = watch
        self.between = between
        self._progress = progress
        self._advanced: Execution | None = None
        self._deferring: tuple[Key, ...] = ()
        size = worker.execution.batch_size or settings.batch_size
        self.sizing = Sizing(size, settings.target_batch_s, settings.adaptive)

    def run(self, processor: BatchProcessor) -> None:
        """Do all batches, then those rows that were put off.

        Args:
            processor: Does one.
        """
        upper = self._worker.execution.upper_key
        if upper is not None:
            while self._step(
                lambda connection, size, skip: processor.process(
                    connection, self._worker.execution.cursor, upper, size, skip_locked=skip
                )
            ):
                pass
        while self._step_deferred(processor):
            pass
        self.check_ratio(at_end=True)

    def look(self) -> None:
        """Look at what may stop or slow the run between two batches.

        Raises:
            StoppedError: The run is to pause.
            CancelledError: It is to be taken back.
        """
        self.between.look((self.sizing.row_s or 0.0) * self.sizing.size)

    def count(self, connection: Connection, result: BatchResult) -> None:
        """Count a batch whose transaction goes on: where it stands is told, but the cursor stays.

        Args:
            connection: The work connection, in the transaction.
            result: What the batch did.
        """
        worker, counts = self._worker, result.counts
        self._write_keys(connection, worker.execution, result)
        self._log(connection, worker.execution, result)
        worker.execution = records.advance(
            worker.control,
            worker.execution,
            cursor=None,
            counts=_sums(counts),
            next_size=self.sizing.size,
            active_s=self._watch.active_s,
            peak_memory_bytes=self._watch.peak_bytes,
            switched=False,
        )
        if result.size:
            self.sizing = self.sizing.after(result.seconds)
        if self._progress is not None:
            self._progress(worker.execution)
        self.check_ratio()

    def step(self, call: Callable[[Connection], BatchResult | None]) -> bool:
        """Do one step that has no size, with the same care.

        Args:
            call: Does it in one transaction.

        Returns:
            False when there was nothing to do.
        """
        return self._step(lambda connection, _size, _skip: call(connection), resizes=False)

    def advance(self, connection: Connection, result: BatchResult) -> None:
        """Move the cursor in the batch's transaction.

        Args:
            connection: The work connection.
            result: What the batch did.

        Raises:
            LeaseLostError: Another worker has taken the run over.
        """
        execution = self._worker.execution
        counts = result.counts
        if counts.changed or result.cursor is None:
            self._worker.around.undo.confirm(connection, execution.execution_id)
        self._write_keys(connection, execution, result)
        self._advanced = records.advance(
            connection,
            execution,
            cursor=result.cursor,
            counts=_sums(counts),
            next_size=self.sizing.size,
            active_s=self._watch.active_s,
            peak_memory_bytes=self._watch.peak_bytes,
            switched=True,
        )
        self._log(connection, execution, result)

    def _log(self, connection: Connection, execution: Execution, result: BatchResult) -> None:
        counts = result.counts
        records.log_batch(
            connection,
            execution.execution_id,
            records.BatchRecord(
                phase="run",
                number=execution.batch_number + 1,
                started_at=result.started_at,
                seconds=result.seconds,
                batch_size=result.size,
                processed=counts.processed,
                changed=counts.changed,
                inconsistent=counts.inconsistent,
                memory_bytes=self._watch.memory_bytes,
            ),
        )

    def _write_keys(self, connection: Connection, execution: Execution, result: BatchResult) -> None:
        if result.deferred:
            connection.cursor().executemany(
                f"INSERT INTO {SCHEMA}.deferred (execution_id, key) VALUES (%s, %s) ON CONFLICT DO NOTHING",  # noqa: S608
                [(execution.execution_id, list(key)) for key in result.deferred],
            )
        if result.rejects:
            connection.cursor().executemany(
                f"INSERT INTO {SCHEMA}.rejected (execution_id, key, why) VALUES (%s, %s, %s)",  # noqa: S608
                [(execution.execution_id, list(key), why) for key, why in result.rejects],
            )
        if self._deferring:
            connection.cursor().executemany(
                f"DELETE FROM {SCHEMA}.deferred WHERE execution_id = %s AND key = %s",  # noqa: S608
                [(execution.execution_id, list(key)) for key in self._deferring],
            )

    def _step(
        self, call: Callable[[Connection, int, bool], BatchResult | None], *, resizes: bool = True
    ) -> bool:
        self.look()
        attempt, halved, skip = 0, False, False
        while True:
            number = self._worker.execution.batch_number
            # A size that is not adaptive stays, except for the one batch that needs too much memory.
            shrinks = halved and not self.sizing.adaptive
            size = max(1, self.sizing.size // 2) if shrinks else self.sizing.size
            try:
                with self._watch.working(self._worker.work):
                    result = call(self._worker.work, size, skip)
            except CommitInDoubtError as error:
                attempt += 1
                if attempt > self._worker.around.engine.batch_attempts:
                    raise error.__cause__ or error from error
                self._worker.reconnect()
                if self._worker.execution.batch_number > number:
                    return True
            except (psycopg.Error, OverLimitError) as error:
                if self._watch.cause is not None:
                    self._over_limit(error, halved=halved)
                    halved = True
                    continue
                attempt += 1
                skip = self._recover(error, attempt, skip=skip)
            else:
                return self._done(result, size, resizes=resizes and not skip)

    def _done(self, result: BatchResult | None, size: int, *, resizes: bool) -> bool:
        if result is None:
            return False
        if self._advanced is not None:
            self._worker.execution, self._advanced = self._advanced, None
        if resizes and size == self.sizing.size:
            self.sizing = self.sizing.after(result.seconds)
        if self._progress is not None:
            self._progress(self._worker.execution)
        self.check_ratio()
        return True

    def _over_limit(self, error: BaseException, *, halved: bool) -> None:
        """Give memory back and allow one more try, or give up."""
        if halved or self._watch.cause == "time":
            raise over_limit(self._watch) from error
        self.sizing = self.sizing.halved()
        gc.collect()
        self._watch.forget()

    def _recover(self, error: BaseException, attempt: int, *, skip: bool) -> bool:
        """Make another try possible, or raise; returns whether locked rows are put off from now on."""
        if self._worker.work.broken or is_transient(error):
            if attempt > self._worker.around.engine.batch_attempts:
                raise error
            self._worker.reconnect()
            return skip
        state = getattr(error, "sqlstate", None)
        if state not in RETRIED or skip:
            raise error
        self.sizing = self.sizing.halved()
        if attempt >= self._worker.around.engine.batch_attempts:
            return True
        self.between.pause(random.uniform(0.5, 1.5) * min(0.05 * 2**attempt, 2.0))
        return False

    def _step_deferred(self, processor: BatchProcessor) -> bool:
        keys = self._deferred_keys(self.sizing.size)
        if not keys:
            return False
        self._deferring = tuple(keys)
        try:
            # A smaller batch is of no help: these keys are all that is left.
            return (
                self._step(
                    lambda connection, _size, skip: (
                        None if skip else processor.process_keys(connection, keys)
                    ),
                    resizes=False,
                )
                or self._still_locked()
            )
        except psycopg.Error as error:
            if error.sqlstate != "55P03":
                raise
            return self._still_locked()
        finally:
            self._deferring = ()

    def _still_locked(self) -> bool:
        keys = self._deferred_keys(10_000)
        raise PatchFailedError(
            f"other sessions held {len(keys)} rows locked all the time",
            found="Their keys are in the details of this error and in the table keikaku_patches.deferred.",
            hint="End the sessions that hold them (pg_locks, pg_stat_activity), then run the patch again.",
            hint_ja="行をロックしているセッション(pg_locks、pg_stat_activity)を終了して再実行してください。",
            keys=keys,
        )

    def _deferred_keys(self, limit: int) -> list[Key]:
        rows = self._worker.control.execute(
            f"SELECT key FROM {SCHEMA}.deferred WHERE execution_id = %s ORDER BY key LIMIT %s",  # noqa: S608
            [self._worker.execution.execution_id, limit],
        )
        return [tuple(row[0]) for row in rows]

    def check_ratio(self, *, at_end: bool = False) -> None:
        """Give up when too many rows are not as they should be.

        Args:
            at_end: True when no row is left; then even one row counts.

        Raises:
            PatchFailedError: Too many are.
        """
        execution = self._worker.execution
        if at_end or (execution.processed_records >= _RATIO_ROWS and execution.batch_number):
            too_many_wrong(
                execution.inconsistent_records,
                execution.processed_records,
                self._settings.inconsistency_limit,
            )


def _sums(counts: Counts) -> dict[str, int]:
    return {
        "processed_records": counts.processed,
        "changed_records": counts.changed,
        "unchanged_records": counts.unchanged,
        "rejected_records": counts.rejected,
        "inconsistent_records": counts.inconsistent,
    }
