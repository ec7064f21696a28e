"""Dry runs and rehearsals: what is told of a patch before anything is changed for good."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from keikaku_snapshots.errors import PatchDefinitionError, PatchFailedError, PatchRefusedError
from keikaku_snapshots.patches.definition import StepPatch
from keikaku_snapshots.patches.dry_run import DryRun, Found
from keikaku_snapshots.patches.ending import explained, failed
from keikaku_snapshots.patches.lease import key_of, lock_keys
from keikaku_snapshots.patches.limits import over_limit, over_memory, too_many_wrong
from keikaku_snapshots.patches.plan import make_plan
from keikaku_snapshots.patches.reading import read_only
from keikaku_snapshots.patches.rehearsal import rehearse
from keikaku_snapshots.patches.run import Job
from keikaku_snapshots.patches.watchdog import Watchdog
from keikaku_snapshots.patches.worker import Worker

if TYPE_CHECKING:
    import threading

    from keikaku_snapshots.patches.drive import Asked
    from keikaku_snapshots.patches.execution import Execution
    from keikaku_snapshots.patches.surroundings import Surroundings
    from keikaku_snapshots.postgres.connect import Connection

_MB: Final = 1024 * 1024


class Trial:
    """Tries a patch out.

    Args:
        around: The database and the parts around the engine.
        asked: What is wanted.
        execution: Its record, ``dry_run`` or ``rehearsal``.
        stop: Set when the process is to stop.
    """

    def __init__(
        self, around: Surroundings, asked: Asked, execution: Execution, stop: threading.Event
    ) -> None:
        self._around = around
        self._asked = asked
        self._stop = stop
        self._watch = Watchdog(
            memory_limit_bytes=asked.settings.memory_limit_mb * _MB,
            time_limit_s=None,
            every_s=around.engine.watch_s,
        )
        self._worker = Worker(around, execution, self._watch)

    def run(self, batches: int = 0) -> Execution:
        """Do it.

        Args:
            batches: Batches of a rehearsal.

        Returns:
            The record with what was found.

        Raises:
            PatchFailedError: It failed; nothing was changed.
            PatchRefusedError: The patch cannot be tried in this way.
            PatchDefinitionError: It does not fit the tables.
        """
        worker, watch = self._worker, self._watch
        try:
            try:
                with watch:
                    values = self._work(batches)
                    worker.record(
                        status="completed",
                        sub_state="done",
                        completed_at=datetime.now(UTC),
                        **values,
                    )
            except Exception as error:
                known = over_limit(watch) if watch.cause is not None else explained(worker, error)
                # A patch that does not fit the tables was never tried.
                misfits = isinstance(known, PatchDefinitionError) and worker.execution.started_at is None
                worker.record(
                    status="failed",
                    sub_state="failed",
                    completed_at=datetime.now(UTC),
                    error_message=str(known),
                    error_sqlstate=str(known.details.get("sqlstate") or ""),
                )
                if misfits or isinstance(known, PatchRefusedError):
                    known.details.setdefault("execution_id", str(worker.execution.execution_id))
                    raise known from error
                raise failed(known, worker.execution, "Nothing was changed.") from error
            return worker.execution
        finally:
            worker.close()

    def _work(self, batches: int) -> dict[str, Any]:
        worker, asked, watch = self._worker, self._asked, self._watch
        rehearses = worker.execution.kind == "rehearsal"
        if not rehearses and isinstance(asked.patch, StepPatch):
            raise PatchRefusedError(
                f"data patch {asked.patch.name} runs SQL of its own, so there is no dry run of it",
                hint=f"keikaku patch rehearse {asked.patch.name} runs it and takes everything back.",
                hint_ja=f"`keikaku patch rehearse {asked.patch.name}` で試行できます(変更は取り消されます)。",
            )
        plan = make_plan(worker.control, asked.patch, asked.parameters, asked.settings.target_tables)
        # A dry run disturbs nobody: its lock is its own, so that one can see whether it is alive.
        keys = lock_keys(asked.patch.name, plan.oids) if rehearses else []
        worker.lock([key_of(f"execution {worker.execution.execution_id}"), *keys])
        if watch.memory_bytes >= watch.memory_limit_bytes:
            raise over_memory(watch.memory_bytes, watch.memory_limit_bytes)
        worker.record(status="running", sub_state="validating", started_at=datetime.now(UTC))
        job = Job(plan=plan, settings=asked.settings, watch=watch, stop=self._stop, progress=asked.progress)
        with watch.working(worker.work):
            with read_only(worker.work) as connection:
                context = job.context(worker.execution, lambda: nullcontext(connection))
                asked.patch.validate(context)
                worker.record(sub_state="batching")
                if not rehearses:
                    return self._dry_run(connection, job)
            return rehearse(worker, job, batches, dict(context.remembered))

    def _dry_run(self, connection: Connection, job: Job) -> dict[str, Any]:
        worker, settings = self._worker, job.settings
        context = job.context(worker.execution, lambda: nullcontext(connection))
        dry_run = DryRun(job.plan, context, job.watch.check)
        connection.execute("SET LOCAL enable_seqscan = off; SET LOCAL jit = off")
        found = dry_run.run(connection, settings.batch_size, self._tell)
        rejected = sum(found.reasons.values())
        try:
            too_many_wrong(found.inconsistent, found.processed, settings.inconsistency_limit)
        except PatchFailedError as error:
            lines = (f"{count:,} rejected: {why}" for why, count in found.reasons.most_common(5))
            error.found = "\n".join([error.found, *lines])
            raise
        undo_bytes = self._around.undo.check_disk(
            worker.control, [target.name.text for target in job.plan.targets], found.changed
        )
        return {
            "processed_records": found.processed,
            "changed_records": found.changed,
            "unchanged_records": found.unchanged,
            "rejected_records": rejected,
            "inconsistent_records": found.inconsistent,
            "estimated_records": found.processed,
            "estimated_s": found.estimated_s,
            "findings": worker.execution.findings
            | {
                "sample": job.plan.parameters.without_secrets(found.sample),
                "plan": job.plan.parameters.without_secrets(found.plan),
                "undo_bytes": undo_bytes,
                "reasons": dict(found.reasons.most_common(20)),
            },
        }

    def _tell(self, found: Found) -> None:
        if self._stop.is_set():
            raise PatchFailedError("the dry run was stopped")
        if self._asked.progress is not None:
            self._asked.progress(
                replace(
                    self._worker.execution,
                    processed_records=found.processed,
                    changed_records=found.changed,
                    unchanged_records=found.unchanged,
                    inconsistent_records=found.inconsistent,
                    active_s=self._watch.active_s,
                )
            )
