"""Running a `StepPatch`: each step is one transaction with its undo and its place in the records."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from keikaku_snapshots.patches.batch import BatchResult, opening, transaction
from keikaku_snapshots.patches.context import PatchContext, StepContext
from keikaku_snapshots.patches.points import reached
from keikaku_snapshots.patches.set_based import Counts
from keikaku_snapshots.patches.step_guard import check_transaction
from keikaku_snapshots.patches.step_statements import check_statements

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from psycopg import sql
    from psycopg.sql import Composable

    from keikaku_snapshots.patches.definition import StepPatch
    from keikaku_snapshots.patches.loop import BatchLoop
    from keikaku_snapshots.patches.settings import PatchSettings
    from keikaku_snapshots.patches.worker import Worker
    from keikaku_snapshots.postgres.connect import Connection


def run_steps(
    worker: Worker,
    patch: StepPatch,
    context: PatchContext,
    loop: BatchLoop,
    settings: PatchSettings,
    switch: Composable,
    tables: Sequence[str],
) -> None:
    """Run the steps that were not committed yet.

    Args:
        worker: Sessions and state of the run.
        patch: The patch.
        context: What it gets to know.
        loop: Does each step with its care for lost connections and limits.
        settings: Timeouts.
        switch: Statement that turns undo capture on.
        tables: Tables that it may change.
    """
    begin = opening(settings, max(worker.around.engine.lease_s, settings.statement_timeout_s), switch)
    for _, work in list(patch.steps(context))[worker.execution.batch_number :]:
        step = partial(do_step, worker, work, context, tables)
        loop.step(partial(_in_transaction, begin, step, loop))


def _in_transaction(
    begin: sql.Composed, step: Callable[[Connection], BatchResult], loop: BatchLoop, connection: Connection
) -> BatchResult | None:
    return transaction(connection, begin, lambda: step(connection), loop.advance)


def do_step(
    worker: Worker,
    work: Callable[[StepContext], None],
    context: PatchContext,
    tables: Sequence[str],
    connection: Connection,
) -> BatchResult:
    """Do a step in the caller's transaction.

    Args:
        worker: Undo and state of the run.
        work: What does it.
        context: What the patch gets to know.
        tables: Tables that it may change.
        connection: In a transaction.

    Returns:
        What it did.
    """
    began, started_at = time.monotonic(), datetime.now(UTC)
    changed = 0

    def run(query: str, parameters: Any) -> tuple[int, list[Any]]:
        nonlocal changed
        check_statements(query)
        check_transaction(connection)
        cursor = connection.execute(query, parameters)
        check_transaction(connection)
        if cursor.description:
            return cursor.rowcount, cursor.fetchall()
        changed += max(0, cursor.rowcount)
        return cursor.rowcount, []

    step_context = StepContext(
        execution_id=context.execution_id,
        params=context.params,
        actor=context.actor,
        now=context.now,
        dry_run=context.dry_run,
        reader=context.reader,
        remembered=context.remembered,
        run=run,
    )
    reached("before_dml")
    with worker.around.undo.guard(connection, context.execution_id, tables):
        work(step_context)
    reached("after_dml")
    return BatchResult(
        started_at=started_at,
        seconds=time.monotonic() - began,
        size=0,
        cursor=None,
        counts=Counts(changed, changed, 0, 0),
    )
