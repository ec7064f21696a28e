"""The life of one run: validation, backup point, batches, verification, end."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import psycopg

from keikaku_snapshots.errors import PatchFailedError
from keikaku_snapshots.patches.batch import BatchProcessor
from keikaku_snapshots.patches.between import Between
from keikaku_snapshots.patches.context import PatchContext
from keikaku_snapshots.patches.definition import Patch, RowPatch, SqlPatch, StepPatch
from keikaku_snapshots.patches.keyset import last_key
from keikaku_snapshots.patches.loop import RETRIED, BatchLoop
from keikaku_snapshots.patches.points import reached
from keikaku_snapshots.patches.reading import OtherReader, read_only
from keikaku_snapshots.patches.single import run_single
from keikaku_snapshots.patches.steps import run_steps
from keikaku_snapshots.postgres.connect import is_transient

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from keikaku_snapshots.patches.execution import Execution
    from keikaku_snapshots.patches.plan import Plan
    from keikaku_snapshots.patches.settings import PatchSettings
    from keikaku_snapshots.patches.watchdog import Watchdog
    from keikaku_snapshots.patches.worker import Worker
    from keikaku_snapshots.postgres.connect import Connection

_log = logging.getLogger("keikaku_snapshots.patches")
#: Tries of a verification whose connection was lost; it only reads.
_VERIFY_TRIES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is to be run, and how."""

    #: Patch, parameters, tables.
    plan: Plan
    #: Limits of the patch.
    settings: PatchSettings
    #: Memory and time.
    watch: Watchdog
    #: Set when the process is to stop after the present batch.
    stop: threading.Event
    #: Gets the run after each batch.
    progress: Callable[[Execution], None] | None = None

    def context(
        self, execution: Execution, reader: Callable[[], AbstractContextManager[Connection]]
    ) -> PatchContext:
        """Make what the patch gets to know.

        Args:
            execution: The run.
            reader: Holds a transaction that cannot write.
        """
        return PatchContext(
            execution_id=execution.execution_id,
            params=self.plan.parameters.model,
            actor=execution.actor,
            now=execution.started_at or datetime.now(UTC),
            dry_run=execution.dry_run,
            reader=reader,
            remembered=dict(execution.findings.get("remembered", {})),
        )


class Run:
    """Takes a run from where it is to its end, or to a pause.

    Args:
        worker: Holds locks and lease.
        job: What is to be run.
    """

    def __init__(self, worker: Worker, job: Job) -> None:
        self._worker = worker
        self._job = job

    @property
    def tables(self) -> tuple[str, ...]:
        """All tables that it may change."""
        return tuple(target.name.text for target in self._job.plan.targets)

    def go(self) -> None:
        """Do what is left to do.

        Raises:
            StoppedError: It stopped between two batches.
            CancelledError: An operator wants it taken back.
            KeikakuError: Something failed; nothing is taken back here.
            psycopg.Error: The same, as the server said it.
        """
        if self._worker.execution.sub_state in {"pending", "validating"}:
            self._validate()
        self._arm()
        if self._worker.execution.mode == "single_transaction":
            run_single(self._worker, self._job, self._loop(), self._final)
            return
        self._batches()
        self._verify()
        reached("before_completed")
        self._worker.record(event="completed", **self._final())

    def _final(self) -> dict[str, Any]:
        """The columns of a completed run."""
        worker, execution = self._worker, self._worker.execution
        return {
            "status": "completed",
            "sub_state": "done",
            "completed_at": datetime.now(UTC),
            "findings": execution.findings
            | {
                "undo_bytes": worker.around.undo.size_bytes(worker.control, execution.execution_id),
                "verification": self._verification(),
            },
        }

    def _verification(self) -> list[dict[str, Any]]:
        """What was verified, for reports."""
        execution, patch = self._worker.execution, self._job.plan.patch
        wrong, limit = execution.inconsistent_records, self._job.settings.inconsistency_limit
        done: list[dict[str, Any]] = [
            {
                "name": "inconsistent rows",
                "passed": True,
                "detail": f"{wrong:,} of {execution.processed_records:,}; {limit:.1%} or more fails",
            }
        ]
        condition = patch.verify_batch() if isinstance(patch, SqlPatch | RowPatch) else ""
        if condition:
            done.append({"name": "each row", "passed": True, "detail": condition})
        if type(patch).verify is not Patch.verify:
            about = (type(patch).verify.__doc__ or "").strip().partition("\n")[0]
            done.append({"name": "the whole run", "passed": True, "detail": about})
        return done

    def _loop(self) -> BatchLoop:
        worker, job = self._worker, self._job
        return BatchLoop(
            worker,
            job.settings,
            job.watch,
            Between(worker, job.settings, job.stop),
            progress=job.progress,
        )

    def _validate(self) -> None:
        worker, job = self._worker, self._job
        with job.watch.working(worker.work), read_only(worker.work) as connection:
            context = job.context(worker.execution, lambda: _same(connection))
            job.plan.patch.validate(context)
            upper = last_key(connection, job.plan.keyset) if job.plan.keyset is not None else None
        worker.record(
            upper_key=upper,
            findings=worker.execution.findings | {"remembered": context.remembered},
        )

    def _arm(self) -> None:
        worker = self._worker
        reached("before_arm")
        execution_id = worker.execution.execution_id
        self._patiently(lambda: worker.around.undo.arm(worker.control, execution_id, self.tables))
        self._patiently(lambda: worker.around.undo.check(worker.control, execution_id))
        reached("after_arm")
        reference = worker.execution.backup_reference
        if self._job.settings.backup_dump and not reference:
            if worker.around.backup is None:
                raise PatchFailedError(
                    "a dump of the target tables is asked for, and nobody can make one here",
                    hint="Run the patch with the command line, or hand `backup` to the executor.",
                    hint_ja="コマンドラインから実行するか、executor に `backup` を渡してください。",
                )
            reference = worker.around.backup(execution_id, self.tables)
        worker.record(sub_state="batching", backup_reference=reference)

    def _patiently(self, call: Callable[[], None]) -> None:
        """Make the backup point again when another session was in the way of it."""
        attempts = self._worker.around.engine.batch_attempts
        for left in reversed(range(attempts)):
            try:
                call()
            except psycopg.Error as error:
                if not left or error.sqlstate not in RETRIED:
                    raise
                self._job.stop.wait(0.05 * (attempts - left))
            else:
                return

    def _batches(self) -> None:
        worker, job = self._worker, self._job
        loop = self._loop()
        execution_id = worker.execution.execution_id
        switch = worker.around.undo.switch(execution_id)
        reader = OtherReader(lambda: worker.around.connect(f"{execution_id} reader"))
        try:
            context = job.context(worker.execution, reader)
            if isinstance(job.plan.patch, StepPatch):
                run_steps(worker, job.plan.patch, context, loop, job.settings, switch, self.tables)
                return
            loop.run(
                BatchProcessor(
                    job.plan,
                    context,
                    job.settings,
                    switch=switch,
                    advance=loop.advance,
                    check=job.watch.check,
                    idle_timeout_s=max(worker.around.engine.lease_s, job.settings.statement_timeout_s),
                )
            )
        finally:
            reader.close()

    def _verify(self) -> None:
        worker, job = self._worker, self._job
        reached("before_verify")
        worker.record(sub_state="verifying")
        for left in reversed(range(_VERIFY_TRIES)):
            try:
                with job.watch.working(worker.work), read_only(worker.work) as connection:
                    reached("in_verify")
                    job.plan.patch.verify(job.context(worker.execution, lambda: _same(connection)))
            except psycopg.Error as error:
                if not left or not is_transient(error):
                    raise
                worker.reconnect()
            else:
                break
        reached("after_verify")


def _same(connection: Connection) -> AbstractContextManager[Connection]:
    from contextlib import nullcontext

    return nullcontext(connection)
