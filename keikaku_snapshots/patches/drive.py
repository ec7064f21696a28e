"""Taking a run from the wish to its end, whatever that is."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from keikaku_snapshots.errors import KeikakuError, PatchFailedError
from keikaku_snapshots.patches import auditing, records
from keikaku_snapshots.patches.ending import LEFT_ALONE, disarm, explained, fail, finish_rollback, policy
from keikaku_snapshots.patches.estimate import FACTOR, LEAST_S, count_matching, estimate
from keikaku_snapshots.patches.guards import check_guards
from keikaku_snapshots.patches.lease import lock_keys
from keikaku_snapshots.patches.limits import CancelledError, StoppedError, over_memory
from keikaku_snapshots.patches.plan import make_plan
from keikaku_snapshots.patches.records_schema import SCHEMA
from keikaku_snapshots.patches.run import Job, Run
from keikaku_snapshots.patches.watchdog import Watchdog
from keikaku_snapshots.patches.worker import Worker
from keikaku_snapshots.postgres.connect import translated

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from keikaku_snapshots.patches.definition import Patch
    from keikaku_snapshots.patches.execution import Execution
    from keikaku_snapshots.patches.parameters import Parameters
    from keikaku_snapshots.patches.plan import Plan
    from keikaku_snapshots.patches.settings import PatchSettings
    from keikaku_snapshots.patches.surroundings import Surroundings
    from keikaku_snapshots.postgres.connect import Connection

_MB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the caller wants."""

    #: The patch.
    patch: Patch
    #: Its parameters.
    parameters: Parameters
    #: Its settings.
    settings: PatchSettings
    #: Gets the run after each batch.
    progress: Callable[[Execution], None] | None = None
    #: Whether it may run although it has run before.
    again: bool = False
    #: Whether this goes on with a run that another process began.
    resumes: bool = False


class Drive:
    """Drives runs.

    Args:
        around: The database and the parts around the engine.
        stop: Set when the process is to stop after the present batch.
    """

    def __init__(self, around: Surroundings, stop: threading.Event) -> None:
        self._around = around
        self._stop = stop

    def run(self, asked: Asked, execution: Execution) -> Execution:
        """Take a run to its end, or to a pause.

        Args:
            asked: What the caller wants.
            execution: The run as it is recorded.

        Returns:
            The run, completed or paused.

        Raises:
            KeikakuError: It was refused, or it failed and was taken back.
        """
        settings = asked.settings
        expected = execution.estimated_s
        watch = Watchdog(
            memory_limit_bytes=settings.memory_limit_mb * _MB,
            time_limit_s=None,
            active_s=execution.active_s,
            estimate_s=expected,
            every_s=self._around.engine.watch_s,
        )
        worker = Worker(self._around, execution, watch)
        armed = execution.sub_state not in {"pending", "validating"}
        try:
            with watch:
                run = self._begin(worker, watch, asked)
                if worker.execution.sub_state == "rolling_back":
                    finish_rollback(worker, policy(worker.execution, settings), execution.error_message)
                    return worker.execution
                try:
                    armed = True
                    run.go()
                    disarm(worker)
                except StoppedError as stopped:
                    worker.record(sub_state=stopped.sub_state)
                except LEFT_ALONE:
                    raise
                except CancelledError:
                    cancelled = PatchFailedError(f"data patch {asked.patch.name} was cancelled")
                    raise fail(worker, cancelled, settings.on_conflict, armed=armed, cancelled=True) from None
                except Exception as error:
                    known = explained(worker, error)
                    if isinstance(known, LEFT_ALONE):
                        raise known from error
                    armed = worker.execution.sub_state not in {"pending", "validating"}
                    raise fail(worker, known, settings.on_conflict, armed=armed) from error
                except BaseException:
                    # Ctrl-C: the batch was rolled back, and everything before it stays.
                    pause_interrupted(worker)
                    raise
            return worker.execution
        finally:
            worker.close()

    def _begin(self, worker: Worker, watch: Watchdog, asked: Asked) -> Run:
        """Do what may refuse a run: nothing is changed yet."""
        patch, settings, resumes = asked.patch, asked.settings, asked.resumes
        try:
            with translated(self._around.url, f"preparing data patch {patch.name}"):
                plan = make_plan(worker.control, patch, asked.parameters, settings.target_tables)
                worker.lock(lock_keys(patch.name, plan.oids), take_over=resumes and self._is_stale(worker))
                if watch.memory_bytes >= watch.memory_limit_bytes:
                    raise over_memory(watch.memory_bytes, watch.memory_limit_bytes)
                if resumes:
                    # Whoever resumes does not want an older pause; a wish to cancel still holds.
                    records.take_requests(worker.control, worker.execution.execution_id, "pause")
                else:
                    self._check(worker, plan, asked)
                auditing.began(self._around, worker.execution, resumes=resumes)
            watch.estimate_s = worker.execution.estimated_s
            watch.time_limit_s = (
                settings.max_runtime_s
                if settings.max_runtime_s is not None
                else FACTOR * (worker.execution.estimated_s or LEAST_S)
            )
        except KeikakuError as error:
            error.details.setdefault("execution_id", str(worker.execution.execution_id))
            if not resumes:
                worker.record(
                    event="failed",
                    status="failed",
                    sub_state="failed",
                    completed_at=datetime.now(UTC),
                    error_message=str(error),
                    error_sqlstate=str(error.details.get("sqlstate") or ""),
                )
            raise
        return Run(
            worker, Job(plan=plan, settings=settings, watch=watch, stop=self._stop, progress=asked.progress)
        )

    def _is_stale(self, worker: Worker) -> bool:
        return is_stale(worker.control, worker.execution, self._around.engine.lease_s)

    def _check(self, worker: Worker, plan: Plan, asked: Asked) -> None:
        settings, control = asked.settings, worker.control
        count = None
        if plan.keyset is not None and settings.require_dry_run:
            count = count_matching(control, plan.keyset)
        check_guards(control, self._around, worker.execution, settings, again=asked.again, count=count)
        expected = estimate(control, worker.execution, settings, count)
        if expected.records is not None:
            names = [target.name.text for target in plan.targets]
            self._around.undo.check_disk(control, names, expected.records)
        worker.record(
            status="running",
            sub_state="validating",
            started_at=datetime.now(UTC),
            estimated_records=expected.records,
            estimated_s=expected.seconds,
            target_tables=[target.name.text for target in plan.targets],
        )


def pause_interrupted(worker: Worker) -> None:
    """Record a run as paused that was interrupted in its work.

    One that was interrupted before stays as it is, so that it is validated when it is resumed; one that is
    over, or is being taken back, is never called paused.

    Args:
        worker: Of the run.
    """
    now = records.find(worker.control, worker.execution.execution_id)
    if now.status == "running" and now.sub_state in {"batching", "verifying"}:
        worker.record(sub_state="paused")


def is_stale(connection: Connection, execution: Execution, lease_s: float) -> bool:
    """Tell whether a run has given no sign of life for too long.

    Args:
        connection: The database.
        execution: The run.
        lease_s: Seconds after which it is taken for dead.
    """
    row = connection.execute(
        f"SELECT clock_timestamp() - beat_at > make_interval(secs => %s) FROM {SCHEMA}.heartbeat"  # noqa: S608
        " WHERE execution_id = %s",
        [lease_s, execution.execution_id],
    ).fetchone()
    return row is None or bool(row[0])
