"""``mode: single_transaction``: all batches in one transaction, invisible to others until it is committed.

All or nothing, at the price of locks and dead rows. The cursor is kept in
memory: a run that dies has done nothing, and a resumed one begins anew.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import psycopg

from keikaku_snapshots.errors import OutcomeUnknownError
from keikaku_snapshots.patches import auditing, records
from keikaku_snapshots.patches.batch import BatchProcessor, CommitInDoubtError, commit, opening
from keikaku_snapshots.patches.definition import StepPatch
from keikaku_snapshots.patches.limits import over_limit
from keikaku_snapshots.patches.points import reached
from keikaku_snapshots.patches.reading import read_only_inside
from keikaku_snapshots.patches.steps import do_step
from keikaku_snapshots.patches.watchdog import OverLimitError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from keikaku_snapshots.patches.batch import BatchResult
    from keikaku_snapshots.patches.loop import BatchLoop
    from keikaku_snapshots.patches.run import Job
    from keikaku_snapshots.patches.worker import Worker
    from keikaku_snapshots.postgres.connect import Connection

#: Seconds that the transaction may be silent: between two batches nobody else waits for an answer.
_IDLE_S = 600.0
_COUNTS = (
    "processed_records",
    "changed_records",
    "unchanged_records",
    "rejected_records",
    "inconsistent_records",
)


def run_single(worker: Worker, job: Job, loop: BatchLoop, final: Callable[[], dict[str, Any]]) -> None:
    """Do all batches, the verification and the end of a run in one transaction.

    Args:
        worker: Sessions and state of the run.
        job: What is to be run.
        loop: What is looked at between two batches.
        final: Tells the columns of a completed run.

    Raises:
        OutcomeUnknownError: The connection was lost in COMMIT, and the server cannot be asked.
    """
    connection = worker.work
    # What an earlier try has counted was rolled back.
    none: dict[str, Any] = dict.fromkeys(_COUNTS, 0)
    worker.record(cursor=None, batch_number=0, **none)
    switch = worker.around.undo.switch(worker.execution.execution_id)
    try:
        with job.watch.working(connection):
            connection.execute(opening(job.settings, _IDLE_S, switch))
        for result in _batches(worker, job, loop):
            loop.count(connection, result)
        loop.check_ratio(at_end=True)
        _verify(worker, job)
        worker.around.undo.confirm(connection, worker.execution.execution_id)
        worker.record_in(connection, event="completed", **final())
    except (psycopg.Error, OverLimitError) as error:
        _roll_back(connection)
        if job.watch.cause is not None:
            raise over_limit(job.watch) from error
        raise
    except BaseException:
        _roll_back(connection)
        raise
    try:
        commit(connection)
    except CommitInDoubtError as error:
        worker.reconnect()
        if worker.execution.status != "completed":
            raise error.__cause__ or OutcomeUnknownError("COMMIT was not answered") from error
    worker.execution = records.find(worker.control, worker.execution.execution_id)
    auditing.changed(worker.around, worker.execution)


def _batches(worker: Worker, job: Job, loop: BatchLoop) -> Iterator[BatchResult]:
    connection, patch = worker.work, job.plan.patch
    context = job.context(worker.execution, lambda: read_only_inside(connection))
    if isinstance(patch, StepPatch):
        tables = [target.name.text for target in job.plan.targets]
        for _, work in patch.steps(context):
            loop.look()
            with job.watch.working(connection):
                result = do_step(worker, work, context, tables, connection)
            yield result
        return
    processor = BatchProcessor(job.plan, context, job.settings, check=job.watch.check)
    upper, after = worker.execution.upper_key, None
    while upper is not None:
        loop.look()
        with job.watch.working(connection):
            step = processor.apply(connection, after, upper, loop.sizing.size)
        if step is None:
            return
        after = step.cursor
        yield step


def _verify(worker: Worker, job: Job) -> None:
    connection = worker.work
    reached("before_verify")
    worker.record(sub_state="verifying")
    with job.watch.working(connection):
        context = job.context(worker.execution, lambda: read_only_inside(connection))
        reached("in_verify")
        job.plan.patch.verify(context)
        connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
    reached("after_verify")


def _roll_back(connection: Connection) -> None:
    if not connection.broken:
        with suppress(psycopg.Error):
            connection.execute("ROLLBACK")
