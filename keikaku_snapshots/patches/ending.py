"""How a run ends that did not succeed: stopped, cancelled, failed, and what it changed taken back."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import psycopg

from keikaku_snapshots.errors import (
    ConnectError,
    DataError,
    KeikakuError,
    LeaseLostError,
    MemoryLimitExceededError,
    OutcomeUnknownError,
    PatchFailedError,
    PatchRollbackError,
)
from keikaku_snapshots.patches import records
from keikaku_snapshots.patches.points import reached
from keikaku_snapshots.patches.reading import is_read_only_error
from keikaku_snapshots.postgres.connect import is_transient, report_of, translate

if TYPE_CHECKING:
    from keikaku_snapshots.patches.execution import Execution, SubState
    from keikaku_snapshots.patches.ports import RolledBack
    from keikaku_snapshots.patches.settings import OnConflict, PatchSettings
    from keikaku_snapshots.patches.worker import Worker

_log = logging.getLogger("keikaku_snapshots.patches")
#: After these nothing may be taken back: the run belongs to somebody else, or nobody knows its state. It
#: stays as it is and can be resumed.
LEFT_ALONE = (LeaseLostError, OutcomeUnknownError, ConnectError)


def explained(worker: Worker, error: BaseException) -> KeikakuError:
    """Turn what was raised into an error of this library that says where in the run it was.

    Args:
        worker: The run.
        error: What was raised.
    """
    execution = worker.execution
    where = (
        f"batch {execution.batch_number + 1}" if execution.sub_state == "batching" else execution.sub_state
    )
    if is_read_only_error(error):
        return PatchFailedError(
            "a data patch tried to write where it may only read",
            found=f"Data patch: {execution.patch_name}, {where}; SQLSTATE 25006",
            hint="Yield changes from transform; they are written by the engine.",
            hint_ja="transform から変更を yield してください。書き込みはエンジンが行います。",
            sqlstate="25006",
        )
    if isinstance(error, psycopg.Error):
        known = translate(
            error, url=worker.around.url, doing=f"running data patch {execution.patch_name}, {where}"
        )
        state = report_of(error).sqlstate
        if state and state not in known.found:
            known.found = f"{known.found}\nSQLSTATE: {state}".lstrip()
        if isinstance(known, DataError):
            # Its own remedy is for generated rows.
            known.hint = (
                "Correct the patch, so that its values are allowed; "
                f"`keikaku patch rehearse {execution.patch_name}` tries its first batches beforehand."
            )
            known.hint_ja = (
                "許可される値になるようにパッチを修正してください。"
                f"`keikaku patch rehearse {execution.patch_name}` で事前に確認できます。"
            )
        return known
    if isinstance(error, KeikakuError):
        return error
    kind = type(error).__name__
    _log.debug("data patch %s raised %s", execution.patch_name, kind, exc_info=error)
    # The text of an assertion is the author's own; any other may quote a row.
    said = str(error) if isinstance(error, AssertionError) else ""
    return PatchFailedError(
        f"data patch {execution.patch_name} raised {kind} in {where}",
        found=said or "What it says may quote a row, so it is shown with -v only.",
    )


def fail(
    worker: Worker,
    error: KeikakuError,
    on_conflict: OnConflict,
    *,
    armed: bool,
    cancelled: bool = False,
) -> KeikakuError:
    """Take back what a run changed and record that it failed.

    Args:
        worker: The run.
        error: Why.
        on_conflict: What happens to rows that somebody else has changed since.
        armed: Whether the backup point exists, so that there may be something to take back.
        cancelled: Whether an operator asked for it.

    Returns:
        The error to raise.
    """
    message, state = str(error), str(error.details.get("sqlstate") or "")
    worker.tell_news()
    if not armed:
        worker.record(
            event="failed",
            status="failed",
            sub_state="failed",
            completed_at=datetime.now(UTC),
            error_message=message,
            error_sqlstate=state,
        )
        disarm(worker)
        return failed(error, worker.execution, "Nothing had been changed.")
    worker.record(sub_state="rolling_back", error_message=message, error_sqlstate=state)
    if error.details.get("event") == "integrity":
        worker.tell("integrity", {"reason": message})
    try:
        done = finish_rollback(worker, on_conflict, message, "cancelled" if cancelled else "rolled_back")
    except KeikakuError as second:
        second.details.setdefault("sqlstate", state)
        return second
    return failed(error, worker.execution, f"Rows taken back: {done.restored:,}.")


def finish_rollback(
    worker: Worker, on_conflict: OnConflict, reason: str, sub_state: SubState = "rolled_back"
) -> RolledBack:
    """Take back what a run changed and record how that ended.

    Args:
        worker: The run, which is ``rolling_back``.
        on_conflict: What happens to rows that somebody else has changed since.
        reason: Why.
        sub_state: What the run is afterwards, without conflicts.

    Returns:
        What was done.

    Raises:
        PatchRollbackError: Not everything could be taken back.
        LeaseLostError: Another worker has taken the run over.
    """
    execution = worker.execution
    try:
        done = take_back(worker, on_conflict)
    except Exception as error:
        why = explained(worker, error)
        if isinstance(why, LeaseLostError):
            raise why from error
        worker.tell("rollback_incomplete", {"reason": str(why)})
        if isinstance(why, PatchRollbackError):
            why.details.setdefault("execution_id", str(execution.execution_id))
            why.found = f"{why.found}\nTaken back because of: {reason}".lstrip()
            raise why from error
        raise PatchRollbackError(
            f"data patch {execution.patch_name} could not be taken back",
            found=f"Taken back because of: {reason}\nWhat stopped it: {why}\n"
            f"Execution: {execution.execution_id}",
            execution_id=str(execution.execution_id),
        ) from error
    worker.record(
        event="rollback_incomplete" if done.conflicts else "rolled_back",
        status="failed",
        sub_state="rolled_back_with_conflicts" if done.conflicts else sub_state,
        completed_at=datetime.now(UTC),
        rollback_performed=not done.conflicts,
        conflicts=done.conflicts,
    )
    disarm(worker)
    if done.conflicts:
        raise PatchRollbackError(
            f"data patch {execution.patch_name} was taken back, except {done.conflicts:,}"
            f" {'row' if done.conflicts == 1 else 'rows'} that others have changed since",
            found=f"Taken back because of: {reason}\nExecution: {execution.execution_id}",
            hint="`keikaku patch report ID` lists them with what is there now; decide about each."
            " --on-conflict force puts the old values back all the same.",
            hint_ja="`keikaku patch report ID` で対象の行と現在の値を確認し、個別に判断してください。"
            "--on-conflict force を付けると元の値に戻します。",
            execution_id=str(execution.execution_id),
            conflicts=done.conflicts,
        )
    return done


def roll_back(worker: Worker, on_conflict: OnConflict, reason: str) -> None:
    """Take back a run that somebody wants taken back, completed or not.

    Where nothing could be taken back at all, the run is again what it was: a completed one that called
    itself unfinished would be taken for one whose process has died.

    Args:
        worker: The run, locked.
        on_conflict: What happens to rows that somebody else has changed since.
        reason: Why.

    Raises:
        PatchRollbackError: Not everything could be taken back.
        LeaseLostError: Another worker has taken the run over.
    """
    before = worker.execution
    done = len(records.batches(worker.control, before.execution_id, "rollback"))
    worker.record(
        status="running",
        sub_state="rolling_back",
        error_message=reason,
        findings=before.findings | {"on_conflict": on_conflict},
    )
    try:
        finish_rollback(worker, on_conflict, reason)
    except PatchRollbackError as error:
        # Other causes, such as a lost connection, leave a rollback that goes on.
        is_refused = isinstance(error.__cause__, PatchRollbackError)
        if is_refused and len(records.batches(worker.control, before.execution_id, "rollback")) == done:
            worker.record(
                status=before.status,
                sub_state=before.sub_state,
                error_message=before.error_message,
                findings=before.findings,
            )
        raise


def policy(execution: Execution, settings: PatchSettings) -> OnConflict:
    """Return what a rollback that goes on does with conflicts: what was wanted when it began.

    Args:
        execution: The run.
        settings: What its patch does otherwise.
    """
    wanted: OnConflict | None = execution.findings.get("on_conflict")
    return wanted if wanted is not None and execution.sub_state == "rolling_back" else settings.on_conflict


def take_back(worker: Worker, on_conflict: OnConflict, tries: int = 5) -> RolledBack:
    """Undo everything in batches, going on after lost connections.

    Args:
        worker: The run.
        on_conflict: What happens to rows that somebody else has changed since.
        tries: How often a lost connection is replaced.

    Returns:
        What was done.
    """
    reached("before_rollback")
    while True:
        try:
            if worker.work.closed or worker.work.broken:
                worker.reconnect()
            done = worker.around.undo.roll_back(
                worker.work,
                worker.execution,
                on_conflict=on_conflict,
                batch_size=max(1000, worker.execution.batch_size),
                before_batch=lambda: reached("in_rollback"),
            )
        except psycopg.Error as error:
            tries -= 1
            if tries <= 0 or not is_transient(error, single_call=True):
                raise
            worker.reconnect()
        else:
            reached("after_rollback")
            return done


def disarm(worker: Worker) -> None:
    """Drop triggers and functions; what cannot be dropped now is swept later.

    Args:
        worker: The run.
    """
    reached("before_disarm")
    try:
        worker.around.undo.disarm(worker.control, worker.execution.execution_id)
    except (psycopg.Error, KeikakuError) as error:
        _log.warning(
            "the triggers of execution %s could not be dropped (%s); the next reap drops them",
            worker.execution.execution_id, type(error).__name__,
        )  # fmt: skip


def failed(error: KeikakuError, execution: Execution, taken_back: str) -> KeikakuError:
    """Make the error that a run raises which has failed.

    Args:
        error: Why.
        execution: The run.
        taken_back: What became of its changes.
    """
    facts: dict[str, Any] = {"execution_id": str(execution.execution_id), "rolled_back": True}
    if isinstance(error, PatchFailedError | MemoryLimitExceededError):
        error.details |= facts
        error.found = f"{error.found}\n{taken_back} Execution: {execution.execution_id}".lstrip()
        return error
    return PatchFailedError(
        f"data patch {execution.patch_name} failed: {error.what}",
        found=f"{error.found}\n{taken_back} Execution: {execution.execution_id}".lstrip(),
        # A hint of the error's class speaks of other work than patches.
        **({"hint": error.hint, "hint_ja": error.hint_ja} if error.hint != error.default_hint else {}),
        **error.details | facts,
    )
