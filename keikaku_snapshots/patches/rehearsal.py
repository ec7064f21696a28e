"""A rehearsal: some batches for real, in one transaction that is rolled back.

It finds what only a write can find: violated constraints, triggers that
refuse, how long a batch takes. It is not free of side effects: numbers of
sequences are used up, write-ahead log is written, dead rows stay until the
next vacuum, and rows are locked until it ends.
"""

from __future__ import annotations

import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg import sql

from keikaku_snapshots.patches.batch import BatchProcessor, opening
from keikaku_snapshots.patches.definition import StepPatch
from keikaku_snapshots.patches.estimate import count_matching
from keikaku_snapshots.patches.keyset import last_key
from keikaku_snapshots.patches.limits import too_many_wrong
from keikaku_snapshots.patches.reading import read_only_inside
from keikaku_snapshots.patches.steps import do_step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from keikaku_snapshots.patches.context import PatchContext
    from keikaku_snapshots.patches.keyset import Key
    from keikaku_snapshots.patches.run import Job
    from keikaku_snapshots.patches.set_based import Counts
    from keikaku_snapshots.patches.worker import Worker

#: Times the work that undo and commits cost beside it; measured in benchmarks.
UNDO_FACTOR: Final = 2.0
SIDE_EFFECTS: Final = (
    "A rehearsal uses up numbers of sequences, writes to the write-ahead log and leaves dead rows for the"
    " next vacuum; nothing else of it stays."
)


def rehearse(worker: Worker, job: Job, batches: int, remembered: dict[str, Any]) -> dict[str, Any]:
    """Run some batches and roll them back.

    Args:
        worker: Sessions and state; holds the locks.
        job: What is to be run.
        batches: How many; a `StepPatch` runs all its steps.
        remembered: What `validate` remembered.

    Returns:
        Columns of the record.
    """
    connection, patch = worker.work, job.plan.patch
    context = job.context(worker.execution, lambda: read_only_inside(connection))
    context.remembered.update(remembered)
    total = count_matching(connection, job.plan.keyset) if job.plan.keyset is not None else None
    sums = [0, 0, 0, 0, 0]

    def add(counts: Counts) -> None:
        parts = (counts.processed, counts.changed, counts.unchanged, counts.rejected, counts.inconsistent)
        sums[:] = [have + more for have, more in zip(sums, parts, strict=True)]

    began = time.monotonic()
    with _backup_point(worker, job):
        # The mark of the transaction is that of a run, also where nothing is armed and so nothing captured.
        connection.execute(opening(job.settings, 300.0, worker.around.undo.switch(context.execution_id)))
        try:
            is_whole = _work(worker, job, context, batches, add)
            connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
            if is_whole:
                patch.verify(context)
        finally:
            with suppress(psycopg.Error):
                connection.execute(sql.SQL("ROLLBACK"))
    seconds = time.monotonic() - began
    processed, changed, unchanged, rejected, inconsistent = sums
    too_many_wrong(inconsistent, processed, job.settings.inconsistency_limit)
    whole = total if total is not None else processed
    return {
        "processed_records": processed,
        "changed_records": changed,
        "unchanged_records": unchanged,
        "rejected_records": rejected,
        "inconsistent_records": inconsistent,
        "estimated_records": whole,
        "estimated_s": seconds * UNDO_FACTOR * (whole / processed if processed else 1.0),
        "findings": worker.execution.findings | {"note": SIDE_EFFECTS, "whole": is_whole},
    }


@contextmanager
def _backup_point(worker: Worker, job: Job) -> Iterator[None]:
    """Arm for a step of own SQL, which is watched by what is armed; all of it is dropped afterwards."""
    if not isinstance(job.plan.patch, StepPatch):
        yield
        return
    undo, execution_id = worker.around.undo, worker.execution.execution_id
    undo.arm(worker.control, execution_id, [target.name.text for target in job.plan.targets])
    try:
        yield
    finally:
        undo.drop(worker.control, execution_id)


def _work(
    worker: Worker, job: Job, context: PatchContext, batches: int, add: Callable[[Counts], None]
) -> bool:
    """Do the batches or steps; tells whether they were all."""
    connection, patch = worker.work, job.plan.patch
    if isinstance(patch, StepPatch):
        tables = [target.name.text for target in job.plan.targets]
        for _, work in patch.steps(context):
            add(do_step(worker, work, context, tables, connection).counts)
        return True
    processor = BatchProcessor(job.plan, context, job.settings, check=job.watch.check)
    upper = last_key(connection, job.plan.walked)
    after: Key | None = None
    for _ in range(batches):
        result = (
            processor.apply(connection, after, upper, job.settings.batch_size) if upper is not None else None
        )
        if result is None:
            return True
        after = result.cursor
        add(result.counts)
    return upper is not None and after == upper
